// SPDX-License-Identifier: Apache-2.0
//
// What kernels are launched with. Pointers are to device memory; a stride is in bytes.
#pragma once

#include "cuda/kernels/portable.h"

namespace int8q::gpu {

inline constexpr uint32_t kInfBits = 0x7f800000u;
inline constexpr uint32_t kNoOutliers = kInfBits + 1;  // as `limit`

// A bitmap of columns: column c is bit c % 32 of word c / 32. In chunks of 16 bytes, whose last bits are no columns.
INT8Q_CONSTEXPR int bitmap_words(int64_t k) { return static_cast<int>((k + 127) / 128 * 4); }

// Shared memory of a list of columns (ColumnList): the bitmap and a flag, ranks and their total.
INT8Q_CONSTEXPR int bitmap_bytes(int64_t k) { return (bitmap_words(k) + 4) * 4; }
INT8Q_CONSTEXPR int rank_bytes(int64_t k) { return (bitmap_words(k) + 1) * 4; }
INT8Q_CONSTEXPR int list_bytes(int64_t k) { return bitmap_bytes(k) + rank_bytes(k); }

// The columns that one block of quantize_rows found; 64 bytes.
inline constexpr int kListed = 15;
struct alignas(16) FoundColumns {
  uint32_t count;
  uint32_t first[kListed];  // ascending; 0 from count on
};

struct QuantizeRows {
  static constexpr int kThreads = 256;

  const uint8_t* x;  // [rows] of K elements, any alignment of whole elements
  int64_t rows, k, x_stride;
  uint32_t limit;
  int8_t* codes;         // [rows] of codes_stride bytes, at a multiple of 16
  int64_t codes_stride;  // a multiple of 16
  int64_t padded;        // K to a multiple of 8 at most codes_stride; what is behind K is filled with 0
  float* row_stats;      // [rows]
  FoundColumns* found;   // [blocks]; NULL: nobody asks for the columns
  uint32_t* bitmaps;     // [blocks][bitmap_words(K)]; read where the count of a block is above kListed
  uint32_t* counters;    // [counter_count], which become 0 for the product that comes behind
  int counter_count;

  INT8Q_CONSTEXPR static int shared_bytes(int64_t k) { return (bitmap_words(k) + kThreads / kWarp) * 4; }
};

// What is added for the outlier columns: x . W^T of them, or of their elements at or above the limit alone.
enum class OutlierScope {
  kColumns,        // and their codes leave the integer product
  kZeroedColumns,  // their codes are zero already
  kElements,
  kAll,  // of every column: there is no integer product
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
  OutlierScope scope;
  uint32_t limit;
  const uint8_t* x;
  int64_t x_stride;
  Dtype x_dtype;

  // Columns whose weights are also there in fp16, and taken where such a column is an outlier column.
  int kept_count;
  const int64_t* kept_cols;      // [kept_count]
  const uint32_t* kept_bitmap;   // [bitmap_words(K)]
  const uint16_t* kept_weights;  // f16 [kept_count] columns, kept_stride apart, which begin at multiples of 16 bytes
  int64_t kept_stride;           // >= N, a multiple of 16

  // Floats of y_dtype, or (accumulators) int32: A . W^T without outlier columns, not scaled.
  uint8_t* y;
  int64_t y_stride;
  Dtype y_dtype;
  bool accumulators;
  bool accumulate;  // into y

  // So many blocks share a tile of Y, each a part of K; the last to come adds up and goes on.
  int splits;
  int32_t* partials;   // [tiles][splits][elements of a tile]; not used by one split. Of finish_s8 the sums, [M][N]
  uint32_t* counters;  // [tiles], 0 before and after
};

// A matrix of bytes as the driver tells it to the copy engine (CUtensorMap).
struct alignas(64) TensorMap {
  uint64_t words[16];
};

// Y[M,N] by gemm_wgmma.h, whose maps have the rows of p.codes and p.w.
struct GemmByMaps {
  TensorMap codes, w;
  Gemm p;
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

// The same by w8a16_wgmma.h, whose maps have bytes, too: two for each float of p.x or p.dy, and p.w.
struct W8a16ByMaps {
  TensorMap floats, w;
  Gemm p;
};
struct BackwardByMaps {
  TensorMap floats, w;
  Backward p;
};

// Behind quantize_rows, for who asks for the columns themselves: mask, list and count of what its blocks found, and zeros as
// the codes of these columns.
struct FinishColumns {
  static constexpr int kThreads = 256;

  int64_t rows, k;
  const FoundColumns* found;
  const uint32_t* bitmaps;
  int found_blocks;
  int8_t* codes;  // [rows] of codes_stride bytes; NULL: they stay
  int64_t codes_stride;
  uint8_t* mask;   // [K], or NULL
  int64_t* cols;   // [count], or NULL
  int64_t* count;  // or NULL

  INT8Q_CONSTEXPR static int shared_bytes(int64_t k) { return list_bytes(k); }
};

// A list of columns as one block of quantize_rows would leave it. Columns outside of [0, K) are passed over.
struct ListColumns {
  static constexpr int kThreads = 256;

  const int64_t* cols;  // [count] ascending
  int64_t count, k;
  FoundColumns* found;
  uint32_t* bitmap;  // [bitmap_words(K)]

  INT8Q_CONSTEXPR static int shared_bytes(int64_t k) { return bitmap_words(k) * 4; }
};

// Rows of codes to where others have their places; columns from `cols` to `to_cols` become 0.
struct CopyCodes {
  static constexpr int kThreads = 256;

  int64_t rows, cols;
  const int8_t* from;
  int64_t from_stride;
  int8_t* to;
  int64_t to_stride, to_cols;
};

// y = (q * stats) * (1 / 127) row by row; or of accumulators, float(acc) * ((row_stats * col_stats) * (1 / 16129)) + bias.
struct Dequantize {
  static constexpr int kThreads = 256;

  int64_t rows, cols;
  const int8_t* codes;  // [rows] of `stride` bytes, or NULL
  const int32_t* accumulators;
  int64_t stride;
  const float* row_stats;  // [rows]
  const float* col_stats;  // [cols], of accumulators
  const void* bias;        // [cols] of bias_dtype, or NULL
  Dtype bias_dtype;
  uint8_t* y;
  int64_t y_stride;
  Dtype y_dtype;
};

// counts[k] += the rows in which |x[i,k]| is at or above the limit.
struct CountOutliers {
  static constexpr int kThreads = 256;
  static constexpr int kColumns = 256;  // of a block; as many blocks as one likes share them, each with other rows
  static constexpr int kSharedBytes = kColumns * 4;

  const uint8_t* x;
  int64_t rows, k, x_stride;
  Dtype x_dtype;
  uint32_t limit;
  int64_t* counts;  // [K]
};

}  // namespace int8q::gpu
