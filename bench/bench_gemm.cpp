// SPDX-License-Identifier: Apache-2.0
//
// The integer product alone: the register tile with all its operands in L1, and int8q_multiply over row-major codes, which
// packs its weights at every call, beside oneDNN's over packed ones.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "cpu/registry.h"
#include "support/machine.h"
#include "support/onednn.h"
#include "support/suite.h"

namespace int8q::bench {
namespace {

// What a call computes, all of it in L1: one register tile as deep as fits, or, where B is widened first, rows enough to hide
// that.
struct Micro {
  const char* isa;
  int64_t rows, panels, depth;
};
constexpr Micro kMicro[] = {
    {"avx2", 24, 4, 192}, {"avxvnni", 6, 1, 1024}, {"avx512bw", 24, 4, 192}, {"avx512vnni", 6, 4, 320}};

void microkernel(const Micro& micro) {
  const int64_t cols = micro.panels * cpu::kPanelRows;
  add({"microkernel", std::string("int8q:") + micro.isa, {micro.depth, cols}, micro.rows, 1, ""},
      [=](benchmark::State& state) {
        const cpu::Kernels& kernels = cpu::find_isa(micro.isa)->kernels();
        alignas(64) static uint8_t codes[16 << 10];
        alignas(64) static int8_t panels[24 << 10];
        alignas(64) static int32_t start[4 * cpu::kPanelRows];
        alignas(64) static int32_t acc[24 * 4 * cpu::kPanelRows];
        std::memset(codes, 129, sizeof codes);  // pages of its own: what is only read maps to one page of zeros
        std::memset(panels, 1, sizeof panels);
        const cpu::GemmBlock block{.codes = codes,
                                   .code_stride = 2 * micro.depth + 64,
                                   .rows = micro.rows,
                                   .panels = panels,
                                   .panel_stride = micro.depth * cpu::kPanelRows,
                                   .panel_count = micro.panels,
                                   .groups = micro.depth / cpu::kGroup,
                                   .start = start,
                                   .accumulate = false,
                                   .next = nullptr,
                                   .acc = acc,
                                   .acc_stride = cols};
        while (state.KeepRunning()) kernels.gemm.run(block);
        count_operations(state, static_cast<double>(micro.rows * cols * micro.depth), micro.isa, 1);
      });
}

void multiply(const std::string& isa, Size size, int64_t m, int threads) {
  add({"multiply", "int8q:" + isa, size, m, threads, ""}, [=](benchmark::State& state) {
    std::vector<int8_t> a(static_cast<size_t>(m * size.k), 11), b(static_cast<size_t>(size.n * size.k), -7);
    std::vector<int32_t> c(static_cast<size_t>(m * size.n));
    Context& with = context(isa, threads);
    time_calls(state, [&] {
      int8q::multiply(with, view(a.data(), m, size.k), view(b.data(), size.n, size.k), view(c.data(), m, size.n));
    });
    count_operations(state, static_cast<double>(m * size.k * size.n), isa, threads);
    count_bytes(state, static_cast<double>(size.k * size.n), read_of(threads));
  });
}

}  // namespace

void register_benchmarks(const Options& options) {
  add_peaks(options, options.isas);
  add_bandwidths(options);
  for (const Micro& micro : kMicro) {
    if (std::find(options.isas.begin(), options.isas.end(), micro.isa) != options.isas.end()) microkernel(micro);
  }
  for (const Size size : sizes(options)) {
    for (const int threads : options.threads) {
      for (const int64_t m : {1, 8, 128, 512}) {
        for (const std::string& isa : options.isas) multiply(isa, size, m, threads);
        onednn::add("multiply", onednn::Kind::kS8, size, m, threads, false, options.isas.back());
      }
    }
  }
}

}  // namespace int8q::bench
