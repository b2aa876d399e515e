// SPDX-License-Identifier: Apache-2.0
//
// The whole linear, quantize + product + 7 outlier columns + dequantize + bias, bf16 in and out, for each ISA that this
// machine runs. Counters: Tops (2MNK), GB/s (one read of the weights). --benchmark_filter=avx2 etc. chooses.
#include <benchmark/benchmark.h>

#include <algorithm>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/registry.h"
#include "int8q/int8q.h"

namespace {

void check(int32_t status) {
  if (status != INT8Q_OK) throw std::runtime_error(std::string(int8q_status_name(status)) + ": " + int8q_last_error());
}

int8q_matrix matrix(int32_t dtype, int64_t rows, int64_t cols, void* data) {
  return {sizeof(int8q_matrix), dtype, rows, cols, cols, data};
}

uint16_t bf16(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, sizeof bits);
  return static_cast<uint16_t>(bits >> 16);
}

// Normal activations cut at 3.5 with 7 columns of outliers on three of four rows.
std::vector<uint16_t> activations(int64_t m, int64_t k) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<uint16_t> x(static_cast<size_t>(m * k));
  for (auto& v : x) v = bf16(std::min(3.5f, std::max(-3.5f, normal(random))));
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t t = 0; t < 7 && i % 4 != 3; ++t) x[static_cast<size_t>(i * k + t * (k / 7))] = bf16(40.0f);
  }
  return x;
}

void linear(benchmark::State& state, const char* isa, int64_t k, int64_t n) {
  const int64_t m = state.range(0);
  int8q_context_options options{};
  options.size = sizeof options;
  options.isa = isa;
  int8q_context* context;
  check(int8q_create_context(&options, &context));
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  std::vector<float> w(static_cast<size_t>(n * k)), b(static_cast<size_t>(n));
  for (auto& v : w) v = normal(random);
  for (auto& v : b) v = normal(random);
  const int8q_matrix weight = matrix(INT8Q_F32, n, k, w.data()), bias = matrix(INT8Q_F32, 1, n, b.data());
  int8q_linear* layer;
  check(int8q_create_linear(context, &weight, nullptr, &bias, nullptr, &layer));
  std::vector<uint16_t> x = activations(m, k), y(static_cast<size_t>(m * n));
  const int8q_matrix in = matrix(INT8Q_BF16, m, k, x.data()), out = matrix(INT8Q_BF16, m, n, y.data());
  uint64_t bytes;
  check(int8q_query_workspace(context, layer, INT8Q_FORWARD, m, 0, &bytes));
  void* workspace = std::aligned_alloc(64, bytes);
  while (state.KeepRunning()) check(int8q_forward(context, layer, &in, 0, &out, workspace, bytes));
  const double runs = static_cast<double>(state.iterations());
  state.counters["Tops"] = benchmark::Counter(2e-12 * static_cast<double>(m * n * k) * runs, benchmark::Counter::kIsRate);
  state.counters["GB/s"] = benchmark::Counter(1e-9 * static_cast<double>(n * k) * runs, benchmark::Counter::kIsRate);
  std::free(workspace);
  check(int8q_destroy_linear(layer));
  check(int8q_destroy_context(context));
}

const bool registered = [] {
  for (const int8q::cpu::Isa& isa : int8q::cpu::isas()) {
    if (!isa.supported()) continue;
    for (const auto& [k, n] : {std::pair<int64_t, int64_t>{4096, 4096}, {768, 768}}) {
      const std::string name = std::string("linear/") + isa.name + "/" + std::to_string(k) + "x" + std::to_string(n);
      auto* bench = benchmark::RegisterBenchmark(name.c_str(), linear, isa.name, k, n);
      bench->Arg(1)->Arg(8)->Arg(128)->Arg(512)->ArgName("M")->UseRealTime()->Unit(benchmark::kMicrosecond);
    }
  }
  return true;
}();

}  // namespace
