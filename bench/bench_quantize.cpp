// SPDX-License-Identifier: Apache-2.0
//
// What is bound by memory: quantization of activations and of weights, packing, dequantization. GB/s counts what must be
// read and written once; %bandwidth is of a copy in this run.
#include "support/machine.h"
#include "support/suite.h"

namespace int8q::bench {
namespace {

constexpr int64_t kRows = 4096;
constexpr Size kSize{8192, 4096};  // 64 MiB of bf16, 32 MiB of codes

void pack_into_same_memory(benchmark::State& state, Context& with, const Matrix& weight, const float* stats) {
  Workspace blob;
  const uint64_t bytes = Linear::blob_bytes(kSize.n, kSize.k, false);
  void* memory = blob.reserve(bytes);
  const auto pack = [&] { Linear::pack(with, weight, stats, {}, {}, memory, bytes); };
  pack();  // touches it first
  time_calls(state, pack);
}

template <class T>
void quantize(const std::string& isa, int threads, const char* dtype) {
  const int64_t count = kRows * kSize.k;
  add({"quantize_rows", "int8q:" + isa, {kSize.k, 0}, kRows, threads, std::string("/dtype:") + dtype},
      [=](benchmark::State& state) {
        const std::vector<T> x = values<T>(count, 1);
        std::vector<int8_t> q(x.size());
        std::vector<float> stats(static_cast<size_t>(kRows));
        Context& with = context(isa, threads);
        time_calls(state, [&] {
          quantize_rows(with, view(x.data(), kRows, kSize.k), {}, view(q.data(), kRows, kSize.k), stats.data());
        });
        count_bytes(state, static_cast<double>(count) * (sizeof(T) + 1), copy_of(threads));
      });
  add({"dequantize_rows", "int8q:" + isa, {kSize.k, 0}, kRows, threads, std::string("/dtype:") + dtype},
      [=](benchmark::State& state) {
        const std::vector<int8_t> q(static_cast<size_t>(count), 3);
        std::vector<T> y(q.size());
        const std::vector<float> stats(static_cast<size_t>(kRows), 1.0f);
        Context& with = context(isa, threads);
        time_calls(state, [&] {
          dequantize_rows(with, view(q.data(), kRows, kSize.k), stats.data(), view(y.data(), kRows, kSize.k));
        });
        count_bytes(state, static_cast<double>(count) * (sizeof(T) + 1), copy_of(threads));
      });
  add({"quantize_weight", "int8q:" + isa, kSize, 0, threads, std::string("/dtype:") + dtype}, [=](benchmark::State& state) {
    const std::vector<T> w = values<T>(kSize.n * kSize.k, 1);
    pack_into_same_memory(state, context(isa, threads), view(w.data(), kSize.n, kSize.k), nullptr);
    count_bytes(state, static_cast<double>(kSize.n * kSize.k) * (sizeof(T) + 1), copy_of(threads));
  });
  // A new layer each time: allocating and first touching its pages is part of it.
  add({"create_linear", "int8q:" + isa, kSize, 0, threads, std::string("/dtype:") + dtype}, [=](benchmark::State& state) {
    const std::vector<T> w = values<T>(kSize.n * kSize.k, 1);
    Context& with = context(isa, threads);
    time_calls(state, [&] { Linear(with, view(w.data(), kSize.n, kSize.k)); });
    count_bytes(state, static_cast<double>(kSize.n * kSize.k) * (sizeof(T) + 1), copy_of(threads));
  });
}

void pack(const std::string& isa, int threads) {
  add({"pack", "int8q:" + isa, kSize, 0, threads, ""}, [=](benchmark::State& state) {
    const std::vector<int8_t> q(static_cast<size_t>(kSize.n * kSize.k), 3);
    const std::vector<float> stats(static_cast<size_t>(kSize.n), 1.0f);
    pack_into_same_memory(state, context(isa, threads), view(q.data(), kSize.n, kSize.k), stats.data());
    count_bytes(state, 2.0 * static_cast<double>(kSize.n * kSize.k), copy_of(threads));
  });
}

}  // namespace

void register_benchmarks(const Options& options) {
  add_bandwidths(options);
  for (const std::string& isa : options.isas) {
    for (const int threads : options.threads) {
      quantize<float>(isa, threads, "f32");
      quantize<Float16>(isa, threads, "f16");
      quantize<BFloat16>(isa, threads, "bf16");
      pack(isa, threads);
    }
  }
}

}  // namespace int8q::bench
