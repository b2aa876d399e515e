// SPDX-License-Identifier: Apache-2.0
//
// A product of floating-point activations and int8 weights beside float64, within a bound from norms and machine epsilon.
#pragma once

#include <gtest/gtest.h>

#include "cuda/kernels/shapes.h"
#include "cuda_emulation/cases.h"

namespace int8q::gpu {

struct Case {
  int64_t m, n, k;
  Dtype x, y;
  bool kept, accumulate, aligned;
  uint64_t seed;

  std::string name() const {
    return std::to_string(m) + " x " + std::to_string(n) + " x " + std::to_string(k) + ", X " +
           std::to_string(static_cast<int>(x)) + ", Y " + std::to_string(static_cast<int>(y)) + (kept ? ", kept" : "") +
           (accumulate ? ", accumulate" : "") + (aligned ? "" : ", unaligned") + ", seed " + std::to_string(seed);
  }
};

// With a row of Inf, and one of NaN in its lowest bits; fp16 up to its largest.
inline void fill_activations(Grid& x, const Case& c, Random& random) {
  for (int64_t i = 0; i < c.m; ++i) {
    const float scale = i % 4 == 3 ? (c.x == Dtype::kF16 ? 3000.0f : 1e30f) : 1.0f;
    for (int64_t j = 0; j < c.k; ++j) x.set(i, j, random.uniform(-2, 2) * (random.below(50) == 0 ? 10.0f : 1.0f) * scale);
  }
  if (c.m > 1) x.set(1, c.k / 2, -std::numeric_limits<float>::infinity());
  if (c.m > 2) x.set(2, c.k - 1, float_of(c.x == Dtype::kF32 ? 0x7f800001 : 0x7fc00000));
}

// run(p): launches the kernel.
template <class Run>
void check(const Case& c, const Run& run) {
  SCOPED_TRACE(c.name());
  Random random(c.seed);
  Grid x(abi(c.x), c.m, c.k), w(INT8Q_S8, c.n, c.k), y(abi(c.y), c.m, c.n);
  fill_activations(x, c, random);
  std::vector<float> col_stats(static_cast<size_t>(c.n)), bias(static_cast<size_t>(c.n));
  for (int64_t n = 0; n < c.n; ++n) {
    for (int64_t j = 0; j < c.k; ++j) w.set_integer(n, j, test::provoking_code(random, true));
    col_stats[static_cast<size_t>(n)] = random.uniform(0.1f, 2.0f);
    bias[static_cast<size_t>(n)] = random.uniform(-2, 2);
    for (int64_t i = 0; i < c.m; ++i) y.set(i, n, random.uniform(-5, 5));
  }
  const std::vector<int64_t> cols = c.kept && c.k > 3 ? std::vector<int64_t>{0, c.k / 2, c.k - 1} : std::vector<int64_t>{};
  const int64_t kept_stride = (c.n + 15) / 16 * 16;
  std::vector<uint32_t> kept_bitmap(static_cast<size_t>(bitmap_words(c.k)));
  std::vector<uint16_t> kept(cols.size() * static_cast<size_t>(kept_stride));
  for (const int64_t col : cols) kept_bitmap[static_cast<size_t>(col / 32)] |= 1u << col % 32;
  for (uint16_t& weight : kept) weight = f32_to_f16(random.uniform(-3, 3));

  const int64_t alignment = c.aligned ? 16 : 1;
  const emulation::Matrix x_device(x, alignment, c.seed), w_device(w, alignment, c.seed),
      y_device(y, alignment, c.seed + 1);
  const Buffer<float> stats_device(col_stats, "col_stats"), bias_device(bias, "bias");
  const Buffer<int64_t> cols_device(cols, "kept_cols");
  const Buffer<uint32_t> bitmap_device(kept_bitmap, "kept_bitmap");
  const Buffer<uint16_t> kept_device(kept, "kept_weights");
  Gemm p{};
  p.m = c.m, p.n = c.n, p.k = c.k;
  p.w = reinterpret_cast<const int8_t*>(w_device.data()), p.w_stride = w_device.stride();
  p.col_stats = stats_device.device();
  p.bias = c.seed % 3 == 0 ? nullptr : bias_device.device(), p.bias_dtype = Dtype::kF32;
  p.scope = OutlierScope::kAll;
  p.x = x_device.data(), p.x_stride = x_device.stride(), p.x_dtype = c.x;
  p.kept_count = static_cast<int>(cols.size()), p.kept_cols = cols_device.device();
  p.kept_bitmap = bitmap_device.device(), p.kept_weights = kept_device.device(), p.kept_stride = kept_stride;
  p.y = y_device.data(), p.y_stride = y_device.stride(), p.y_dtype = c.y, p.accumulate = c.accumulate;
  run(p);

  const double eps = c.y == Dtype::kF32 ? 0x1p-24 : c.y == Dtype::kF16 ? 0x1p-11 : 0x1p-8;
  for (int64_t i = 0; i < c.m; ++i) {
    for (int64_t n = 0; n < c.n; ++n) {
      double want = p.bias == nullptr ? 0 : static_cast<double>(bias[static_cast<size_t>(n)]), magnitudes = std::fabs(want);
      const auto add = [&](double term) { want += term, magnitudes += std::fabs(term); };
      for (int64_t j = 0; j < c.k; ++j) {
        const auto keep = static_cast<size_t>(std::find(cols.begin(), cols.end(), j) - cols.begin());
        add(static_cast<double>(x.at(i, j)) *
            (keep < cols.size()
                 ? static_cast<double>(f16_to_f32(kept[keep * static_cast<size_t>(kept_stride) + static_cast<size_t>(n)]))
                 : w.integer(n, j) * static_cast<double>(col_stats[static_cast<size_t>(n)]) / 127));
      }
      if (c.accumulate) add(static_cast<double>(y.at(i, n)));
      const float got = y_device.element(abi(c.y), i, n);
      if (std::isnan(want)) {
        ASSERT_TRUE(std::isnan(got)) << "row " << i << ", column " << n << ": " << got;
      } else if (std::isinf(want) || (c.y == Dtype::kF16 && std::fabs(want) > 65600)) {
        ASSERT_EQ(static_cast<double>(got), std::copysign(std::numeric_limits<double>::infinity(), want)) << "row " << i;
      } else {
        // Each of K terms, of fp32 x three times as many, is added in fp32, by tensor cores that may truncate; then
        // factors, bias and y before; the result is rounded to Y's type.
        const double sums = (c.x == Dtype::kF32 ? 6.0 : 2.0) * static_cast<double>(c.k) + 8;
        ASSERT_NEAR(got, want, sums * 0x1p-24 * magnitudes + 1.01 * eps * std::fabs(want) + 0x1p-24)
            << "row " << i << ", column " << n;
      }
    }
  }
}

using Sizes = std::vector<std::array<int64_t, 3>>;

// Calls body(case) for each of these sizes, dtypes of X and alignments.
template <class Body>
void for_each_case(const Sizes& sizes, const Body& body) {
  uint64_t seed = 1;
  for (const auto& [m, n, k] : sizes) {
    for (const Dtype x : {Dtype::kF32, Dtype::kF16, Dtype::kBf16}) {
      for (const bool aligned : {true, false}) {
        body(Case{.m = m,
                  .n = n,
                  .k = k,
                  .x = x,
                  .y = seed % 4 == 3 ? Dtype::kF32 : static_cast<Dtype>(seed % 4),
                  .kept = seed % 5 < 2,
                  .accumulate = seed % 2 == 0,
                  .aligned = aligned,
                  .seed = seed});
        if (testing::Test::HasFatalFailure()) return;
        ++seed;
      }
    }
  }
}

}  // namespace int8q::gpu
