// SPDX-License-Identifier: Apache-2.0
//
// A product beside the oracle: accumulators bit for bit, floats within a bound from norms and machine epsilon.
#pragma once

#include "cuda/kernels/quantize_rows.h"
#include "cuda/kernels/shapes.h"
#include "cuda_emulation/cases.h"

namespace int8q::gpu {

struct Case {
  int64_t m, n, k;
  Dtype x = Dtype::kF16, y = Dtype::kF32;
  int32_t mode = INT8Q_OUTLIERS_COLUMN;
  int outlier_cols = 3;  // and one element more
  bool exactly = false;  // no other columns than the first `outlier_cols`
  bool bias = true, accumulate = false, accumulators = false;
  bool aligned = true;  // rows of W and X at multiples of 16 bytes
  int splits = 1;
  uint64_t seed = 0;
  int kept = 0;  // of the first columns also in fp16

  std::string name() const {
    return std::to_string(m) + " x " + std::to_string(n) + " x " + std::to_string(k) + ", x " +
           std::to_string(static_cast<int>(x)) + ", y " + std::to_string(static_cast<int>(y)) + ", mode " +
           std::to_string(mode) + ", " + std::to_string(outlier_cols) + " outlier columns" + (bias ? ", bias" : "") +
           (accumulate ? ", accumulate" : "") + (accumulators ? ", accumulators" : "") + (aligned ? "" : ", unaligned") +
           (splits == 1 ? "" : ", " + std::to_string(splits) + " splits") +
           (kept == 0 ? "" : ", " + std::to_string(kept) + " kept columns") + ", seed " + std::to_string(seed);
  }
};

inline void fill_activations(Grid& x, const Case& c, Random& random) {
  for (int64_t i = 0; i < c.m; ++i) {
    for (int64_t j = 0; j < c.k; ++j) x.set(i, j, random.uniform(-3, 3));
  }
  if (c.k == 0 || c.m == 0) return;
  for (int t = 0; t < c.outlier_cols; ++t) {
    const int64_t j = c.exactly ? t : random.below(c.k);
    for (int64_t i = 0; i < c.m; i += 1 + random.below(3)) x.set(i, j, random.uniform(-40, 40));
  }
  if (!c.exactly) x.set(random.below(c.m), random.below(c.k), 25.0f);
  for (int t = 0; c.exactly && t < c.outlier_cols; ++t) x.set(random.below(c.m), t, -7.0f);
}

template <class Arch>
void launch_quantize(const QuantizeRows& p, Dtype dtype, int blocks, bool aligned, uint64_t seed) {
  emulation::launch(
      {.blocks = blocks, .threads = QuantizeRows::kThreads, .shared_bytes = p.shared_bytes(p.k), .seed = seed}, [&] {
        switch (dtype) {
          case Dtype::kF32: return aligned ? quantize_rows<Dtype::kF32, true>(p) : quantize_rows<Dtype::kF32, false>(p);
          case Dtype::kF16: return aligned ? quantize_rows<Dtype::kF16, true>(p) : quantize_rows<Dtype::kF16, false>(p);
          case Dtype::kBf16: return aligned ? quantize_rows<Dtype::kBf16, true>(p) : quantize_rows<Dtype::kBf16, false>(p);
        }
      });
}

template <class Tile>
int64_t tiles_of(const Case& c) {
  return (c.m + Tile::kM - 1) / Tile::kM * ((c.n + Tile::kN - 1) / Tile::kN);
}

// run(p): launches the kernel.
template <class Arch, class Run>
void check(const Case& c, const Run& run) {
  SCOPED_TRACE(c.name());
  Random random(c.seed + 1);
  Grid x(abi(c.x), c.m, c.k), w(INT8Q_S8, c.n, c.k), y(abi(c.y), c.m, c.n);
  fill_activations(x, c, random);
  std::vector<float> col_stats(static_cast<size_t>(c.n)), bias(static_cast<size_t>(c.n));
  for (int64_t n = 0; n < c.n; ++n) {
    for (int64_t j = 0; j < c.k; ++j) w.set_integer(n, j, test::provoking_code(random, false));
    col_stats[static_cast<size_t>(n)] = random.uniform(0.1f, 2.0f);
    bias[static_cast<size_t>(n)] = random.uniform(-2, 2);
    for (int64_t i = 0; i < c.m; ++i) y.set(i, n, random.uniform(-5, 5));
  }

  const int64_t kept_stride = (c.n + 15) / 16 * 16;
  std::vector<int64_t> kept_cols(static_cast<size_t>(c.kept));
  std::vector<uint32_t> kept_bitmap(static_cast<size_t>(bitmap_words(c.k)));
  std::vector<uint16_t> kept(static_cast<size_t>(c.kept * kept_stride));
  for (int64_t t = 0; t < c.kept; ++t) {
    kept_cols[static_cast<size_t>(t)] = t;
    kept_bitmap[static_cast<size_t>(t / 32)] |= 1u << t % 32;
  }
  for (uint16_t& weight : kept) weight = f32_to_f16(random.uniform(-3, 3));

  const int blocks = static_cast<int>(std::min<int64_t>(c.m, 3));
  const int64_t stride = (c.k + 15) / 16 * 16;
  const emulation::Matrix x_device(x, c.aligned ? 16 : 1, c.seed), w_device(w, c.aligned ? 16 : 1, c.seed),
      y_device(y, c.aligned ? 16 : 1, c.seed + 1);
  Buffer<int8_t> codes(c.m * stride, "codes");
  Buffer<float> stats(c.m, "row_stats");
  Buffer<FoundColumns> found(blocks, "found");
  Buffer<uint32_t> bitmaps(static_cast<int64_t>(blocks) * bitmap_words(c.k), "bitmaps");
  const Buffer<float> col_stats_device(col_stats, "col_stats"), bias_device(bias, "bias");
  const Buffer<int64_t> kept_cols_device(kept_cols, "kept_cols");
  const Buffer<uint32_t> kept_bitmap_device(kept_bitmap, "kept_bitmap");
  const Buffer<uint16_t> kept_device(kept, "kept_weights");
  Buffer<int32_t> sums(c.m * c.n, "accumulators");
  const int64_t tiles = tiles_of<SmallTile<Arch>>(c), tile_elements = SmallTile<Arch>::kM * SmallTile<Arch>::kN;
  Buffer<uint32_t> counters(tiles, "counters");
  Buffer<int32_t> partials(c.splits == 1 ? 0 : tiles * c.splits * tile_elements, "partial sums");
  const QuantizeRows quantize{.x = x_device.data(),
                              .rows = c.m,
                              .k = c.k,
                              .x_stride = x_device.stride(),
                              .limit = c.mode == INT8Q_OUTLIERS_OFF ? kNoOutliers : bits_of(test::kThreshold),
                              .codes = codes.device(),
                              .codes_stride = stride,
                              .padded = stride,
                              .row_stats = stats.device(),
                              .found = found.device(),
                              .bitmaps = bitmaps.device(),
                              .counters = counters.device(),
                              .counter_count = static_cast<int>(counters.count())};
  launch_quantize<Arch>(quantize, c.x, blocks, c.aligned, c.seed);

  const bool outliers = c.mode != INT8Q_OUTLIERS_OFF;
  const Gemm p{.m = c.m,
               .n = c.n,
               .k = c.k,
               .codes = codes.device(),
               .codes_stride = stride,
               .row_stats = stats.device(),
               .w = reinterpret_cast<const int8_t*>(w_device.data()),
               .w_stride = w_device.stride(),
               .col_stats = col_stats_device.device(),
               .bias = c.bias ? bias_device.device() : nullptr,
               .bias_dtype = Dtype::kF32,
               .found = outliers ? found.device() : nullptr,
               .bitmaps = bitmaps.device(),
               .found_blocks = blocks,
               .scope = c.mode == INT8Q_OUTLIERS_ELEMENT ? OutlierScope::kElements : OutlierScope::kColumns,
               .limit = quantize.limit,
               .x = x_device.data(),
               .x_stride = x_device.stride(),
               .x_dtype = c.x,
               .kept_count = c.kept,
               .kept_cols = kept_cols_device.device(),
               .kept_bitmap = kept_bitmap_device.device(),
               .kept_weights = kept_device.device(),
               .kept_stride = kept_stride,
               .y = c.accumulators ? reinterpret_cast<uint8_t*>(sums.device()) : y_device.data(),
               .y_stride = c.accumulators ? c.n * 4 : y_device.stride(),
               .y_dtype = c.y,
               .accumulators = c.accumulators,
               .accumulate = c.accumulate,
               .splits = c.splits,
               .partials = partials.device(),
               .counters = counters.device()};
  run(p);

  const auto q = test::quantize(x, c.mode, test::kThreshold);
  const double eps = c.y == Dtype::kF32 ? 0x1p-24 : c.y == Dtype::kF16 ? 0x1p-11 : 0x1p-8;
  for (int64_t i = 0; i < c.m; ++i) {
    for (int64_t n = 0; n < c.n; ++n) {
      int32_t acc = 0;
      double outlier = 0, magnitudes = 0, of_kept = 0, most_of_kept = 0;
      for (int64_t j = 0; j < c.k; ++j) {
        acc += q.codes[static_cast<size_t>(i * c.k + j)] * w.integer(n, j);
      }
      for (const int64_t j : q.outlier_cols) {
        if (c.mode == INT8Q_OUTLIERS_ELEMENT && !test::is_outlier(x.at(i, j), c.mode, test::kThreshold)) continue;
        if (j < c.kept) {
          const auto weight = static_cast<double>(f16_to_f32(kept[static_cast<size_t>(j * kept_stride + n)]));
          of_kept += static_cast<double>(x.at(i, j)) * weight;
          most_of_kept += std::fabs(static_cast<double>(x.at(i, j)) * weight);
          continue;
        }
        outlier += static_cast<double>(x.at(i, j)) * w.integer(n, j);
        magnitudes += std::fabs(static_cast<double>(x.at(i, j)) * w.integer(n, j));
      }
      if (c.accumulators) {
        ASSERT_EQ(sums[i * c.n + n], acc) << "row " << i << ", column " << n;
        continue;
      }
      const double scale = static_cast<double>(col_stats[static_cast<size_t>(n)]) / 127,
                   product = acc * static_cast<double>(q.stats[static_cast<size_t>(i)]) / 127;
      const double before = (c.bias ? static_cast<double>(bias[static_cast<size_t>(n)]) : 0) +
                            (c.accumulate ? static_cast<double>(y.at(i, n)) : 0);
      const double want = (product + outlier) * scale + of_kept + before;
      // Each of the terms is rounded once as fp32, each of at most count + 4 sums, factors four times; the result to y's type.
      const double terms = static_cast<double>(q.outlier_cols.size()) + 8;
      const double bound =
          terms * 0x1p-24 * ((std::fabs(product) + magnitudes) * scale + most_of_kept + std::fabs(before)) +
          1.01 * eps * std::fabs(want) + 0x1p-24;
      const float got = y_device.element(abi(c.y), i, n);
      ASSERT_NEAR(got, want, bound) << "row " << i << ", column " << n;
    }
  }
}

// Case `seed` of all dtypes, scopes, and whatever else varies.
template <class Run>
void for_each_float_case(int64_t m, const Run& run) {
  uint64_t seed = 1;
  for (const Dtype x : {Dtype::kF32, Dtype::kF16, Dtype::kBf16}) {
    for (const Dtype y : {Dtype::kF32, Dtype::kF16, Dtype::kBf16}) {
      for (const int32_t mode : {INT8Q_OUTLIERS_OFF, INT8Q_OUTLIERS_COLUMN, INT8Q_OUTLIERS_ELEMENT}) {
        run({.m = m,
             .n = seed % 2 == 1 ? 17 : 40,
             .k = 100,
             .x = x,
             .y = y,
             .mode = mode,
             .outlier_cols = seed % 3 == 0 ? 40 : 3,
             .bias = seed % 3 != 1,
             .accumulate = seed % 2 == 0,
             .aligned = seed % 5 > 1,
             .seed = seed});
        ++seed;
      }
    }
  }
}

}  // namespace int8q::gpu
