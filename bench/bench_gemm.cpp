// SPDX-License-Identifier: Apache-2.0
//
// The integer product alone: the register tile with all its operands in L1, and int8q_multiply over row-major codes, which
// packs its weights at every call, beside oneDNN's over packed ones.
#include <cstdlib>
#include <memory>

#include "cpu/registry.h"
#include "support/machine.h"
#include "support/onednn.h"
#include "support/suite.h"

namespace int8q::bench {
namespace {

// 24 rows x 64 columns x 192: B 12 KiB, A 4.6 KiB (9.2 as s16), C 6 KiB. Rows divide by every tile's.
void microkernel(const std::string& isa) {
  constexpr int64_t kRows = 24, kPanels = 4, kDepth = 192;
  add({"microkernel", "int8q:" + isa, {kDepth, kPanels * cpu::kPanelRows}, kRows, 1, ""}, [=](benchmark::State& state) {
    const cpu::Kernels& kernels = cpu::find_isa(isa.c_str())->kernels();
    const int64_t stride = 2 * kDepth + 64;
    alignas(64) static uint8_t codes[kRows * (2 * kDepth + 64)];
    alignas(64) static int8_t panels[kPanels * kDepth * cpu::kPanelRows];
    alignas(64) static int32_t start[kPanels * cpu::kPanelRows];
    alignas(64) static int32_t acc[kRows * kPanels * cpu::kPanelRows];
    const cpu::GemmBlock block{.codes = codes,
                               .code_stride = stride,
                               .rows = kRows,
                               .panels = panels,
                               .panel_stride = kDepth * cpu::kPanelRows,
                               .panel_count = kPanels,
                               .groups = kDepth / cpu::kGroup,
                               .start = start,
                               .accumulate = true,
                               .next = nullptr,
                               .acc = acc,
                               .acc_stride = kPanels * cpu::kPanelRows};
    while (state.KeepRunning()) kernels.gemm.run(block);
    count_operations(state, static_cast<double>(kRows * kPanels * cpu::kPanelRows * kDepth), isa, 1);
  });
}

void multiply(const std::string& isa, Size size, int64_t m, int threads) {
  add({"multiply", "int8q:" + isa, size, m, threads, ""}, [=](benchmark::State& state) {
    std::vector<int8_t> a(static_cast<size_t>(m * size.k), 11), b(static_cast<size_t>(size.n * size.k), -7);
    std::vector<int32_t> c(static_cast<size_t>(m * size.n));
    Context& with = context(isa, threads);
    let_others_sleep();
    while (state.KeepRunning()) {
      int8q::multiply(with, view(a.data(), m, size.k), view(b.data(), size.n, size.k), view(c.data(), m, size.n));
    }
    count_operations(state, static_cast<double>(m * size.k * size.n), isa, threads);
    count_bytes(state, static_cast<double>(size.k * size.n), read_of(threads));
  });
}

}  // namespace

void register_benchmarks(const Options& options) {
  add_peaks(options, options.isas);
  add_bandwidths(options);
  for (const std::string& isa : options.isas) microkernel(isa);
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
