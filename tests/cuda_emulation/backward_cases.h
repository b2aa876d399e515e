// SPDX-License-Identifier: Apache-2.0
//
// A gradient to the input beside float64, within a bound from norms and machine epsilon.
#pragma once

#include <gtest/gtest.h>

#include <optional>

#include "cuda/kernels/shapes.h"
#include "cuda_emulation/cases.h"

namespace int8q::gpu {

struct Case {
  int64_t m, n, k;
  Dtype dy, dx;
  bool accumulate, aligned;
  uint64_t seed;
  std::optional<float> special;  // an element of dY's row 0
};

// Of what is rounded before the product, relative; fp16's weights twice.
inline double rounding(Dtype dy) { return dy == Dtype::kF16 ? 1.01 * 0x1p-10 : dy == Dtype::kBf16 ? 0x1p-8 : 0x1p-23; }

// run(p): launches the kernel.
template <class Run>
void check(const Case& c, const Run& run) {
  SCOPED_TRACE(std::to_string(c.m) + " x " + std::to_string(c.n) + " x " + std::to_string(c.k) + ", dY " +
               std::to_string(static_cast<int>(c.dy)) + ", dX " + std::to_string(static_cast<int>(c.dx)) +
               (c.accumulate ? ", accumulate" : "") + (c.aligned ? "" : ", unaligned") + ", seed " +
               std::to_string(c.seed));
  Random random(c.seed);
  Grid dy(abi(c.dy), c.m, c.n), w(INT8Q_S8, c.n, c.k), dx(abi(c.dx), c.m, c.k);
  std::vector<float> col_stats(static_cast<size_t>(c.n));
  float greatest = 0;
  for (int64_t n = 0; n < c.n; ++n) {
    for (int64_t j = 0; j < c.k; ++j) w.set_integer(n, j, test::provoking_code(random, false));
    for (int64_t i = 0; i < c.m; ++i) dy.set(i, n, random.uniform(-2, 2) * (c.seed % 5 == 0 ? 1e-4f : 1.0f));
    col_stats[static_cast<size_t>(n)] = random.below(9) == 0 ? 0.0f : random.uniform(0.1f, 2.0f);
    greatest = std::max(greatest, col_stats[static_cast<size_t>(n)]);
  }
  if (c.special) dy.set(0, c.n / 2, *c.special);
  for (int64_t i = 0; i < c.m; ++i) {
    for (int64_t j = 0; j < c.k; ++j) dx.set(i, j, random.uniform(-5, 5));
  }
  const int64_t alignment = c.aligned ? 16 : 1;
  const emulation::Matrix dy_device(dy, alignment, c.seed), w_device(w, alignment, c.seed),
      dx_device(dx, alignment, c.seed + 1);
  const Buffer<float> stats_device(col_stats, "col_stats");
  run({.m = c.m,
       .n = c.n,
       .k = c.k,
       .dy = dy_device.data(),
       .dy_stride = dy_device.stride(),
       .dy_dtype = c.dy,
       .w = reinterpret_cast<const int8_t*>(w_device.data()),
       .w_stride = w_device.stride(),
       .col_stats = stats_device.device(),
       .greatest = greatest,
       .dx = dx_device.data(),
       .dx_stride = dx_device.stride(),
       .dx_dtype = c.dx,
       .accumulate = c.accumulate});
  const double eps = c.dx == Dtype::kF32 ? 0x1p-24 : c.dx == Dtype::kF16 ? 0x1p-11 : 0x1p-8;
  for (int64_t i = 0; i < c.m; ++i) {
    for (int64_t j = 0; j < c.k; ++j) {
      double sum = 0, magnitudes = 0, lost = 0;
      for (int64_t n = 0; n < c.n; ++n) {
        const double term = static_cast<double>(dy.at(i, n)) * static_cast<double>(col_stats[static_cast<size_t>(n)]) /
                            127 * w.integer(n, j);
        sum += term;
        magnitudes += std::fabs(term);
        lost += std::fabs(static_cast<double>(dy.at(i, n))) * (1 + std::abs(w.integer(n, j)));
      }
      const double before = c.accumulate ? static_cast<double>(dx.at(i, j)) : 0, want = sum + before;
      const float got = dx_device.element(abi(c.dx), i, j);
      if (!std::isfinite(want)) {
        ASSERT_TRUE(std::isnan(want) ? std::isnan(got) : static_cast<double>(got) == want) << got << " for " << want;
        continue;
      }
      // dY's ratio or, of fp16, the weights' is rounded (denormals absolutely), each of n sums and the factors in fp32, the
      // result to dX's type.
      const double bound = (rounding(c.dy) + (static_cast<double>(c.n) + 8) * 0x1p-24) * magnitudes +
                           (c.dy == Dtype::kF16 ? 0x1p-25 * lost * static_cast<double>(greatest) / 127 : 0) +
                           1.01 * eps * std::fabs(want) + 0x1p-24 * (1 + std::fabs(before));
      ASSERT_NEAR(got, want, bound) << "row " << i << ", column " << j;
    }
  }
}

}  // namespace int8q::gpu
