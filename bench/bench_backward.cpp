// SPDX-License-Identifier: Apache-2.0
//
// The gradient to the input, dX = (dY o col_stats/127) . Wq, beside oneDNN's bare products of the same shape with float
// weights. %peak is of fp32 multiply-adds, or of vdpbf16ps where dY is bf16 and the ISA has it.
#include "cpu/cpuid.h"
#include "support/machine.h"
#include "support/onednn.h"
#include "support/suite.h"

namespace int8q::bench {
namespace {

template <class T>
void backward(const std::string& isa, Size size, int64_t m, int threads, const char* dtype, const std::string& peak) {
  add({"backward", "int8q:" + isa, size, m, threads, std::string("/dtype:") + dtype}, [=](benchmark::State& state) {
    const Linear& layer = *linears(size, false)[0];
    const std::vector<T> dy = values<T>(m * size.n, 4);
    std::vector<T> dx(static_cast<size_t>(m * size.k));
    Workspace workspace;
    Context& with = context(isa, threads);
    time_calls(state, [&] { layer.backward(with, view(dy.data(), m, size.n), view(dx.data(), m, size.k), workspace); });
    count_operations(state, static_cast<double>(m * size.k * size.n), peak, threads);
  });
}

}  // namespace

void register_benchmarks(const Options& options) {
  add_peaks(options, {"fma256", "fma512", "bf16"});
  add_bandwidths(options);
  const bool has_bf16 = cpu::cpu_features().avx512bf16;
  for (const Size size : sizes(options)) {
    for (const int threads : options.threads) {
      for (const int64_t m : {1, 32, 128, 256, 512}) {
        for (const std::string& isa : options.isas) {
          const std::string fma = isa.starts_with("avx512") ? "fma512" : "fma256";
          backward<float>(isa, size, m, threads, "f32", fma);
          backward<Float16>(isa, size, m, threads, "f16", fma);
          backward<BFloat16>(isa, size, m, threads, "bf16", isa == "avx512vnni" && has_bf16 ? "bf16" : fma);
        }
        onednn::add("backward", onednn::Kind::kF32, size, m, threads, false, "fma512");
        if (has_bf16) onednn::add("backward", onednn::Kind::kBf16, size, m, threads, false, "bf16");
      }
    }
  }
}

}  // namespace int8q::bench
