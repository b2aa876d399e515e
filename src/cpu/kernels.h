// SPDX-License-Identifier: Apache-2.0
//
// What an ISA provides: one table of kernels. ISA folders include intrinsics and this header only: anything with
// external linkage from the STL, compiled with an ISA's flags, could win at link time and crash an older CPU.
//
// Conventions. A dtype's index is 0 fp32, 1 fp16, 2 bf16. Rows of X, Y, dY and dX may start at any byte address: kernels
// use unaligned loads, scalar code memcpy. Workspace pointers (codes, acc, out, gathered, panels) are 64-byte aligned.
// MXCSR is round-to-nearest-even with denormals on. -ffp-contract=off: an fma is written where one is meant.
//
// Packed weights: N-panels of 16 rows, K padded with zeros to a multiple of 64:
//
//   panel p, group g = k / 4:   64 bytes = { w[16p+0][4g..4g+3], w[16p+1][4g..4g+3], ..., w[16p+15][4g..4g+3] }
//   byte address:               p * panel_stride + g * 64 + (n % 16) * 4 + k % 4,  panel_stride = K_padded * 16
//
// A group is one cache line and one zmm (two ymm) of s8 dwords, the B operand of vpdpbusd; 16 groups are one AMX tile.
// A tile of several panels reads as many sequential streams, so the layout fixes no NR.
#pragma once

#include <stdint.h>

namespace int8q::cpu {

inline constexpr int kPanelRows = 16;
inline constexpr int kGroup = 4;
inline constexpr int kPadK = 64;
inline constexpr int kDtypes = 3;
inline constexpr int64_t kGemvRows = 16;  // most rows that a gemv kernel is given

// absmax is found on the bits of |x|, whose unsigned order is that of the floats, Inf and NaN on top.
inline constexpr uint32_t kInfBits = 0x7f800000u;
inline constexpr uint32_t kNoOutliers = kInfBits + 1;  // as `limit`: above Inf; NaN is never an outlier

// How quantized activations lie in the workspace, for groups of four k's:
//   kS16Pairs  8 bytes: int16 { a0, a2, a1, a3 }: vpmaddwd takes (a0,a2) with the even, (a1,a3) with the odd bytes of B
//   kU8        4 bytes: uint8 { a0+128, a1+128, a2+128, a3+128 }: vpdpbusd; accumulators start at -128 * column sum
// Padding up to K_padded holds code 0 in either.
enum class CodeLayout : uint8_t { kS16Pairs, kU8 };

// Place of element j in a kS16Pairs row.
constexpr int64_t pair_place(int64_t j) {
  constexpr int64_t kPlace[kGroup] = {0, 2, 1, 3};
  return j / kGroup * kGroup + kPlace[j % kGroup];
}

// Unsigned maximum of the bits of |x[0..k)| over elements that are no outliers (0 if there is none). An outlier has
// limit <= bits(|x|) <= kInfBits; for each, bit j % 64 of column_bits[j / 64] is set; column_bits may be NULL.
using ScanRow = uint32_t (*)(const void* x, int64_t k, uint32_t limit, uint64_t* column_bits);

// codes[j] = rint(x[j] * (127 * (1 / absmax))), for absmax < 2^-120 rint((x[j] / absmax) * 127); 0 for outliers, in a row whose
// absmax is 0 or NaN, and for j in [k, k_padded). `encode` writes the ISA's CodeLayout, `encode_s8` plain int8_t[k].
using EncodeRow = void (*)(const void* x, int64_t k, int64_t k_padded, float absmax, uint32_t limit, void* codes);

// int8_t[k] to the ISA's CodeLayout, padded.
using WidenRow = void (*)(const int8_t* a, int64_t k, int64_t k_padded, void* codes);

// Packs rows x k codes, rows <= 16, into one zero-padded panel; sums[16] receives the sum of each row.
using PackPanel = void (*)(const int8_t* b, int64_t b_stride, int64_t rows, int64_t k, int64_t k_padded, int8_t* panel,
                           int32_t* sums);

// acc[i][n] = start[n] + sum over k of a[i][k] * b[n][k] for i < rows, n < 16 * panel_count, over `groups` groups of four k's;
// accumulate: plus acc[i][n] before.
// Wraps modulo 2^32, never saturates. `codes` and `panels` point at the first group of the block; strides in bytes.
struct GemmBlock {
  const uint8_t* codes;
  int64_t code_stride;
  int64_t rows;
  const int8_t* panels;
  int64_t panel_stride;
  int64_t panel_count;
  int64_t groups;
  const int32_t* start;  // [16 * panel_count]
  bool accumulate;
  const int8_t* next;  // the panels of the next call, panel_stride apart, for prefetching; NULL where unknown
  int32_t* acc;
  int64_t acc_stride;  // elements
};
using Gemm = void (*)(const GemmBlock& block);

// c[i][n] = sum over k of a[i][k] * b[n][k], row-major operands, any alignment, all of int8 (also -128) exactly.
struct DotBlock {
  const int8_t* a;
  int64_t a_stride;
  int64_t rows;  // of a
  const int8_t* b;
  int64_t b_stride;
  int64_t cols;  // rows of b
  int64_t k;
  int32_t* c;
  int64_t c_stride;
};
using Dot = void (*)(const DotBlock& block);

// Columns cols[0..count) of a panel as columns 0, 1, ... of a small panel, padded with zeros to whole groups; sums[16]
// receives the sum of each row.
using GatherColumns = void (*)(const int8_t* panel, const int32_t* cols, int64_t count, int8_t* small, int32_t* sums);

// out[i][n] = fmaf(x[i][t], w[t][n], out[i][n]) for t ascending; i < rows, n < 16 * panel_count, t < count.
//   w[t][n] = (float(small panel's code) * col_stats[n]) * (1/127f), or kept[t][n] in fp16
//   start: out begins as +0, whatever it holds (with count 0 it is left alone)
//   skip_zero: x[i][t] == 0 leaves out[i][n] as it is (mode ELEMENT: the element is absent)
struct OutlierBlock {
  int64_t rows;
  const int8_t* panels;  // small ones
  int64_t panel_stride;
  int64_t panel_count;  // at most 4
  const float* col_stats;
  int64_t count;
  const float* x;
  int64_t x_stride;             // elements
  const uint16_t* const* kept;  // [count], NULL entries where a column is not kept
  bool start;
  bool skip_zero;
  float* out;
  int64_t out_stride;  // elements
};
using Outliers = void (*)(const OutlierBlock& block);

// y[i][n] = fmaf(float(acc[i][n]), (row_stats[i] * col_stats[n]) * (1/16129f), out[i][n] or 0) + bias[n], n < cols;
// accumulate: plus float(y before). One rounding to y's type, to nearest even; NaN stays NaN.
struct EpilogueBlock {
  int64_t rows;
  int64_t cols;
  const int32_t* acc;
  const float* out;    // NULL: 0
  int64_t acc_stride;  // elements, of acc and out
  const float* row_stats;
  const float* col_stats;
  const float* bias;  // NULL: no addition
  uint8_t* y;
  int64_t y_stride;  // bytes
  bool accumulate;
};
using Epilogue = void (*)(const EpilogueBlock& block);

// y[j] = (float(q[j]) * stat) * (1/127f), rounded to y's type.
using DequantizeRow = void (*)(const int8_t* q, int64_t k, float stat, void* y);

// g[n] = float(dy[n]) * (col_stats[n] * (1/127f)), as fp32; or rounded to bf16, denormals to zero, with a zero after an odd n,
// where dy is bf16 and the table has backward_bf16.
using ScaleRow = void (*)(const void* dy, int64_t n, const float* col_stats, void* g);

// float(code of row r, column k_begin + j), r < 16, j < k_count, into panels of 16 columns, w_stride bytes apart: there row r's
// 16 are one cache line at r * 64. k_begin and k_count are multiples of 16. unpack_bf16: rows r and r + 1, r even, are the cache
// line at r * 32, pairs of bf16.
using UnpackPanel = void (*)(const int8_t* panel, int64_t k_begin, int64_t k_count, void* w, int64_t w_stride);

// dx[i][j] = fmaf(g[i][n], w[n][j], dx[i][j] or 0) for n ascending; i < rows, j < k, k a multiple of 16. w lies as UnpackPanel
// leaves it, the 16 rows of one panel after those of the other. backward_bf16: of pairs n, n + 1 the second first, and denormals
// are zeros everywhere (simd/backward_bf16.h).
struct BackwardBlock {
  int64_t rows;
  int64_t n;
  int64_t k;
  const void* g;
  int64_t g_stride;  // bytes
  const void* w;
  int64_t w_stride;  // bytes, from 16 columns to the next
  // Panels of k columns, unpacked into next_w meanwhile, for the next call; 0: none.
  int64_t next_count;
  const int8_t* next;
  int64_t next_stride;  // bytes, from one panel to the next
  void* next_w;         // as w
  float* dx;
  int64_t dx_stride;  // elements
  bool accumulate;    // false: dx starts at 0
};
using Backward = void (*)(const BackwardBlock& block);

// y[j] = v[j], or float(y[j]) + v[j], rounded once to y's type.
using StoreRow = void (*)(const float* v, int64_t k, void* y, bool accumulate);

// Of the generic ISA, and for what is no whole block in the others.
void pack_s8_generic(const int8_t* b, int64_t b_stride, int64_t rows, int64_t k, int64_t k_padded, int8_t* panel,
                     int32_t* sums);

template <class F>
struct Kernel {
  const char* name;  // op_dtype_MRxNR_isa
  F run;
};

struct Kernels {
  const char* isa;
  CodeLayout layout;
  Kernel<ScanRow> scan[kDtypes];
  Kernel<EncodeRow> encode[kDtypes];
  Kernel<EncodeRow> encode_s8[kDtypes];
  Kernel<WidenRow> widen;
  Kernel<PackPanel> pack;
  Kernel<Gemm> gemm;  // any rows
  Kernel<Gemm> gemv;  // rows <= kGemvRows: reads the panels from memory once
  Kernel<Dot> dot;    // row-major weights, few rows of a
  Kernel<GatherColumns> columns;
  Kernel<Outliers> outliers;
  Kernel<Epilogue> epilogue[kDtypes];
  Kernel<DequantizeRow> dequantize[kDtypes];
  Kernel<ScaleRow> scale[kDtypes];
  Kernel<UnpackPanel> unpack;
  Kernel<Backward> backward;
  Kernel<StoreRow> store[kDtypes];
  // For bf16 dY; run is NULL where the ISA or the CPU has no bf16 products, and dY is multiplied in fp32.
  Kernel<UnpackPanel> unpack_bf16 = {};
  Kernel<Backward> backward_bf16 = {};
};

// One for each ISA folder; callable on any CPU, the table's kernels only where the ISA is supported.
const Kernels& generic_kernels();
#if defined(__x86_64__)
const Kernels& avx2_kernels();
const Kernels& avxvnni_kernels();
const Kernels& avx512bw_kernels();
const Kernels& avx512vnni_kernels();
const Kernels& avx512vnni_bf16_kernels();  // the same and AVX512-BF16
#endif

}  // namespace int8q::cpu
