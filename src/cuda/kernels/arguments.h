// SPDX-License-Identifier: Apache-2.0
//
// What kernels are launched with. Pointers are to device memory; a stride is in bytes.
#pragma once

#include "cuda/kernels/portable.h"

namespace int8q::gpu {

inline constexpr uint32_t kInfBits = 0x7f800000u;
inline constexpr uint32_t kNoOutliers = kInfBits + 1;  // as `limit`

// A bitmap of columns: column c is bit c % 32 of word c / 32.
INT8Q_CONSTEXPR int bitmap_words(int64_t k) { return static_cast<int>((k + 31) / 32); }

// The columns that one block of quantize_rows found; 64 bytes.
inline constexpr int kListed = 15;
struct alignas(16) FoundColumns {
  uint32_t count;
  uint32_t first[kListed];  // ascending; [min(count, kListed)]
};

struct QuantizeRows {
  static constexpr int kThreads = 256;

  const uint8_t* x;  // [rows] of K elements, any alignment of whole elements
  int64_t rows, k, x_stride;
  uint32_t limit;
  int8_t* codes;         // [rows] of codes_stride bytes, at a multiple of 16
  int64_t codes_stride;  // >= K, a multiple of 16; what is behind K is filled with 0
  float* row_stats;      // [rows]
  FoundColumns* found;   // [blocks]; NULL: nobody asks for the columns
  uint32_t* bitmaps;     // [blocks][bitmap_words(K)]; read only where found's count is above kListed

  INT8Q_CONSTEXPR static int shared_bytes(int64_t k) { return (bitmap_words(k) + kThreads / kWarp) * 4; }
};

// Y[M,N] = A . W^T, scaled, with outlier columns and bias.
struct Gemm {
  int64_t m, n, k;
  const int8_t* codes;   // [M] as quantize_rows writes them
  int64_t codes_stride;  // a multiple of 16, at least K
  const float* row_stats;
  const int8_t* w;  // [N] rows of K codes
  int64_t w_stride;
  const float* col_stats;
  const void* bias;  // [N] of bias_dtype, or NULL
  Dtype bias_dtype;

  // Outliers, where found is not NULL.
  const FoundColumns* found;
  const uint32_t* bitmaps;
  int found_blocks;
  bool element;  // only elements that are outliers leave the integer product, not their columns
  uint32_t limit;
  const uint8_t* x;
  int64_t x_stride;
  Dtype x_dtype;

  // floats of y_dtype, or (accumulators) int32: A . W^T without outlier columns, not scaled.
  uint8_t* y;
  int64_t y_stride;
  Dtype y_dtype;
  bool accumulators;
  bool accumulate;  // into y
};

// dX[M,K] = (dY o col_stats / 127) . W.
struct Backward {
  int64_t m, n, k;
  const uint8_t* dy;  // [M] rows of N, of dy_dtype
  int64_t dy_stride;
  Dtype dy_dtype;
  const int8_t* w;  // [N] rows of K codes
  int64_t w_stride;
  const float* col_stats;
  float greatest;  // of col_stats
  uint8_t* dx;     // [M] rows of K, of dx_dtype
  int64_t dx_stride;
  Dtype dx_dtype;
  bool accumulate;  // into dx
};

}  // namespace int8q::gpu
