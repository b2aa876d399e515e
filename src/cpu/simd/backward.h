// SPDX-License-Identifier: Apache-2.0
//
// The kernels of the gradient to the input, once for every vector type V: unpack, backward.
#pragma once

#include "cpu/simd/tiles.h"

namespace int8q::cpu {
namespace {

// w = float(codes). Four groups of four rows are a 4 x 4 transpose of dwords: row r's 16 codes come together.
template <class V>
void unpack(const int8_t* panel, int64_t k_begin, int64_t k_count, float* w, int64_t w_stride) {
  for (int64_t j = 0; j < k_count; j += 16) {
    const int8_t* group = panel + (k_begin + j) * kPanelRows;
    for (int r = 0; r < kPanelRows; r += 4) {
      __m128 g[4];
      for (int i = 0; i < 4; ++i) g[i] = _mm_loadu_ps(reinterpret_cast<const float*>(group + i * 64 + r * 4));
      _MM_TRANSPOSE4_PS(g[0], g[1], g[2], g[3]);
      for (int i = 0; i < 4; ++i) {
        for (int v = 0; v < 16; v += V::kLanes) {
          const auto codes = V::to_float(V::widen_s8(_mm_castps_si128(g[i]), v));
          V::template store<0>(w + (r + i) * w_stride + j + v, codes, typename V::Whole{});
        }
      }
    }
  }
}

// R rows x C vectors of dX, one fma chain an element: C loads of w and R broadcasts of g for R * C fmas.
template <class V, int R, int C>
void backward_tile(const BackwardBlock& block, int64_t row, int64_t col) {
  using F = typename V::F;
  constexpr typename V::Whole kWhole{};
  F acc[R][C];
  float* dx = block.dx + row * block.dx_stride + col;
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) acc[r][c] = V::template load<0>(dx + r * block.dx_stride + c * V::kLanes, kWhole);
  }
  const float* g = block.g + row * block.g_stride;
  const float* w = block.w + col;
  for (int64_t n = 0; n < block.n; ++n, w += block.w_stride) {
    F b[C];
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) b[c] = V::template load<0>(w + c * V::kLanes, kWhole);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const F a = V::set(g[r * block.g_stride + n]);
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) acc[r][c] = V::fma(a, b[c], acc[r][c]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) V::template store<0>(dx + r * block.dx_stride + c * V::kLanes, acc[r][c], kWhole);
  }
}

template <class V, int R, int C>
void backward_columns(const BackwardBlock& block, int64_t col) {
  for_each_row_tile<R>(block.rows,
                       [&](int64_t row, auto tile) { backward_tile<V, decltype(tile)::kCount, C>(block, row, col); });
}

// R x C vectors: 6 x 4 of 32 zmm or 6 x 2 of 16 ymm are accumulators, C more hold w and one g. A multiple of 16 columns
// that is none of C vectors ends in tiles of 16.
template <class V, int R, int C>
void backward(const BackwardBlock& block) {
  int64_t j = 0;
  for (; j + C * V::kLanes <= block.k; j += C * V::kLanes) backward_columns<V, R, C>(block, j);
  for (; j < block.k; j += kPanelRows) backward_columns<V, R, kPanelRows / V::kLanes>(block, j);
}

}  // namespace
}  // namespace int8q::cpu
