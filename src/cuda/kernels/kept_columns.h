// SPDX-License-Identifier: Apache-2.0
//
// Outlier columns whose weights are kept in fp16 (the columns that calibration names): they leave the integer product as all
// outlier columns do, and are added to y behind its column's scale, by the weights that they had.
#pragma once

#include "cuda/kernels/elements.h"
#include "cuda/kernels/outlier_columns.h"

namespace int8q::gpu {

INT8Q_DEVICE bool is_kept(const Gemm& p, int64_t k) {
  return p.kept_count > 0 && (load(p.kept_bitmap + k / 32) >> k % 32 & 1) != 0;
}

// What x[m,k] of an outlier column adds to y: with element scope nothing unless it is an outlier itself.
INT8Q_DEVICE float outlier_of(const Gemm& p, int64_t m, int64_t k) {
  const float x = load_element(p.x_dtype, p.x + m * p.x_stride, k);
  return p.scope != OutlierScope::kElements || is_outlier(magnitude(x), p.limit) ? x : 0.0f;
}

// body(x, w): x of row m in each kept column that is an outlier column by their bitmap, which kAll has none of; and that
// column of weights.
template <class Body>
INT8Q_DEVICE void for_each_kept(const Gemm& p, uint32_t bitmap, int64_t m, const Body& body) {
#pragma unroll 1
  for (int t = 0; t < p.kept_count; ++t) {
    const int64_t k = load(p.kept_cols + t);
    if (p.scope != OutlierScope::kAll && !holds_column(bitmap, k)) continue;
    const float x = outlier_of(p, m, k);
    if (x != 0.0f) body(x, p.kept_weights + t * p.kept_stride);
  }
}

INT8Q_DEVICE float add_kept_columns(const Gemm& p, uint32_t bitmap, int64_t m, int64_t n, float value) {
  for_each_kept(p, bitmap, m, [&](float x, const uint16_t* w) { value = fma(x, half_to_float(load(w + n)), value); });
  return value;
}

// The same for columns [n, n + 8) of y, n a multiple of 8.
INT8Q_DEVICE void add_kept_columns(const Gemm& p, uint32_t bitmap, int64_t m, int64_t n, float (&value)[kChunk]) {
  for_each_kept(p, bitmap, m, [&](float x, const uint16_t* w) {
    uint32_t words[kChunk / 2];
    load_words(w + n, words);
#pragma unroll
    for (int e = 0; e < kChunk; ++e)
      value[e] = fma(x, float_of_bits<uint16_t>(Dtype::kF16, bits_at<uint16_t>(words, e)), value[e]);
  });
}

}  // namespace int8q::gpu
