// SPDX-License-Identifier: Apache-2.0
#include "support/onednn.h"

#include <stdexcept>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "support/machine.h"

#if INT8Q_BENCH_ONEDNN

#include <omp.h>

#include <oneapi/dnnl/dnnl.hpp>

namespace int8q::bench::onednn {
namespace {

using dnnl::memory;
using Tag = memory::format_tag;

dnnl::engine& engine() {
  static dnnl::engine cpu(dnnl::engine::kind::cpu, 0);
  return cpu;
}

memory::data_type input_type(Kind kind) {
  return kind == Kind::kS8 ? memory::data_type::s8 : kind == Kind::kBf16 ? memory::data_type::bf16 : memory::data_type::f32;
}

memory filled(const memory::desc& desc) {
  memory m(desc, engine());
  auto* bytes = static_cast<uint8_t*>(m.get_data_handle());
  // 0x3c3c: 60 as s8, 0.01 as bf16 and fp32; every 7th byte differs in the low bits.
  for (size_t i = 0; i < desc.get_size(); ++i) bytes[i] = static_cast<uint8_t>(0x3c ^ (i % 7 == 0 ? 1 : 0));
  return m;
}

}  // namespace

struct Matmul::Parts {
  dnnl::stream stream{engine()};
  dnnl::matmul primitive;
  memory source, destination;
  std::vector<memory> weights;
  size_t next = 0;
  int threads = 1;
};

std::string version() {
  const dnnl_version_t* v = dnnl::version();
  return std::to_string(v->major) + "." + std::to_string(v->minor) + "." + std::to_string(v->patch);
}

void hold_to(const std::string& isa) {
  const dnnl::cpu_isa most = isa == "avx2"       ? dnnl::cpu_isa::avx2
                             : isa == "avxvnni"  ? dnnl::cpu_isa::avx2_vnni
                             : isa == "avx512bw" ? dnnl::cpu_isa::avx512_core
                                                 : dnnl::cpu_isa::all;
  if (dnnl::set_max_cpu_isa(most) != dnnl::status::success) {
    throw std::runtime_error("oneDNN does not let itself be held to " + isa);
  }
}

Matmul::Matmul(Kind kind, int64_t m, Size size, int64_t copies, int threads) : parts_(std::make_unique<Parts>()) {
  omp_set_num_threads(threads);
  const memory::data_type in = input_type(kind), out = kind == Kind::kS8 ? memory::data_type::s32 : in;
  const memory::desc source({m, size.k}, in, Tag::ab), destination({m, size.n}, out, Tag::ab);
  const memory::desc weights({size.k, size.n}, in, Tag::any), plain({size.k, size.n}, in, Tag::ba);
  const dnnl::matmul::primitive_desc desc(dnnl::matmul::desc(source, weights, destination), engine());
  parts_->primitive = dnnl::matmul(desc);
  parts_->threads = threads;
  parts_->source = filled(source);
  parts_->destination = memory(destination, engine());
  memory rows = filled(plain);
  for (int64_t i = 0; i < copies; ++i) {
    memory packed(desc.weights_desc(), engine());
    dnnl::reorder(rows, packed).execute(parts_->stream, rows, packed);
    parts_->weights.push_back(packed);
  }
  parts_->stream.wait();
}

Matmul::~Matmul() = default;

void Matmul::run() {
  Parts& p = *parts_;
  omp_set_num_threads(p.threads);
  p.primitive.execute(p.stream,
                      {{DNNL_ARG_SRC, p.source}, {DNNL_ARG_WEIGHTS, p.weights[p.next]}, {DNNL_ARG_DST, p.destination}});
  p.stream.wait();
  p.next = (p.next + 1) % p.weights.size();
}

void add(const char* operation, Kind kind, Size size, int64_t m, int threads, bool rotated, const std::string& peak) {
  const char* type = kind == Kind::kS8 ? "s8" : kind == Kind::kBf16 ? "bf16" : "f32";
  const Row row{operation, std::string("onednn:") + type, size, m, threads, rotated ? "/rotated" : ""};
  const Size product = row.operation == std::string_view("backward") ? Size{size.n, size.k} : size;
  auto made = std::make_shared<std::unique_ptr<Matmul>>();  // with the first repetition
  bench::add(row, [=](benchmark::State& state) {
    const int64_t bytes = kind == Kind::kS8 ? 1 : kind == Kind::kBf16 ? 2 : 4;
    if (*made == nullptr) {
      *made = std::make_unique<Matmul>(kind, m, product, copies(size, rotated, bytes), threads);
      on_drop(size, [made] { made->reset(); });
    }
    time_calls(state, [&] { (*made)->run(); });
    count_operations(state, static_cast<double>(m * size.k * size.n), peak, threads);
    count_bytes(state, static_cast<double>(size.k * size.n * bytes), read_of(threads));
  });
}

}  // namespace int8q::bench::onednn

#else

namespace int8q::bench::onednn {

struct Matmul::Parts {};
std::string version() { return "none"; }
void hold_to(const std::string&) {}
Matmul::Matmul(Kind, int64_t, Size, int64_t, int) { throw std::runtime_error("this build has no oneDNN"); }
Matmul::~Matmul() = default;
void Matmul::run() {}
void add(const char*, Kind, Size, int64_t, int, bool, const std::string&) {}

}  // namespace int8q::bench::onednn

#endif
