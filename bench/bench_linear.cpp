// SPDX-License-Identifier: Apache-2.0
//
// The whole linear: quantize + product + outlier columns (7 unless a row says otherwise) + dequantize + bias, bf16 in and
// out. Beside it oneDNN's bare s8 product, which does none of the rest. %bandwidth counts one read of the weights.
#include "support/machine.h"
#include "support/onednn.h"
#include "support/suite.h"

namespace int8q::bench {
namespace {

constexpr int64_t kOutliers = 7;

void linear(const std::string& isa, Size size, int64_t m, int threads, bool rotated, int64_t outliers, int32_t mode,
            const std::string& more, const char* operation = "linear") {
  add({operation, "int8q:" + isa, size, m, threads, "/dtype:bf16" + more}, [=](benchmark::State& state) {
    const std::vector<const Linear*> layers = linears(size, rotated, mode);
    const std::vector<BFloat16> x = activations(m, size.k, outliers);
    std::vector<BFloat16> y(static_cast<size_t>(m * size.n));
    const Matrix in = view(x.data(), m, size.k), out = view(y.data(), m, size.n);
    Workspace workspace;
    Context& with = context(isa, threads);
    size_t next = 0;
    time_calls(state, [&] {
      layers[next]->forward(with, in, out, workspace);
      next = next + 1 == layers.size() ? 0 : next + 1;
    });
    count_operations(state, static_cast<double>(m * size.k * size.n), isa, threads);
    count_bytes(state, static_cast<double>(size.k * size.n), read_of(threads));
  });
}

// What the linear does first, by itself (to rows of s8, where the linear's codes lie as its product wants them): its time over
// the linear's is quantization's share.
void quantize_input(const std::string& isa, int64_t m, int threads) {
  constexpr int64_t kCols = 4096;
  add({"quantize_input", "int8q:" + isa, {kCols, 0}, m, threads, "/dtype:bf16"}, [=](benchmark::State& state) {
    const std::vector<BFloat16> x = activations(m, kCols, kOutliers);
    std::vector<int8_t> q(x.size());
    std::vector<float> stats(static_cast<size_t>(m));
    std::vector<int64_t> cols(static_cast<size_t>(kCols));
    int64_t count = 0;
    Context& with = context(isa, threads);
    time_calls(state, [&] {
      quantize_rows(with, view(x.data(), m, kCols), {}, view(q.data(), m, kCols), stats.data(), nullptr, cols.data(),
                    &count);
    });
    count_bytes(state, static_cast<double>(x.size()) * 3, copy_of(threads));
  });
}

// What any number of outlier columns costs, in both scopes.
void sweep_outliers(const std::string& isa, int threads) {
  const Size size{4096, 4096};
  for (const int64_t outliers : {0, 1, 7, 41, 1352}) {
    for (const int32_t mode : {INT8Q_OUTLIERS_COLUMN, INT8Q_OUTLIERS_ELEMENT}) {
      const std::string scope = mode == INT8Q_OUTLIERS_COLUMN ? "column" : "element";
      linear(isa, size, 128, threads, false, outliers, mode, "/outliers:" + std::to_string(outliers) + "/scope:" + scope);
    }
  }
  for (const int64_t m : {1, 128}) linear(isa, size, m, threads, false, 0, INT8Q_OUTLIERS_ALL, "/outliers:0/scope:all");
}

}  // namespace

void register_benchmarks(const Options& options) {
  add_peaks(options, options.isas);
  add_bandwidths(options);
  for (const Size size : sizes(options)) {
    for (const int threads : options.threads) {
      for (const bool rotated : {false, true}) {
        for (const int64_t m : {1, 8, 32, 128, 512}) {
          if (rotated && m > 8) continue;
          for (const std::string& isa : options.isas) {
            linear(isa, size, m, threads, rotated, kOutliers, INT8Q_OUTLIERS_COLUMN, rotated ? "/rotated" : "");
          }
          onednn::add("gemm", onednn::Kind::kS8, size, m, threads, rotated, options.isas.back());
        }
      }
    }
  }
  for (const std::string& isa : options.isas) {
    // Hardly anything to compute: what a call costs.
    linear(isa, {64, 16}, 1, 1, false, 0, INT8Q_OUTLIERS_COLUMN, "/outliers:0", "call");
    for (const int threads : options.threads) {
      sweep_outliers(isa, threads);
      for (const int64_t m : {128, 512}) quantize_input(isa, m, threads);
    }
  }
}

}  // namespace int8q::bench
