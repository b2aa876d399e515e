// SPDX-License-Identifier: Apache-2.0
//
// Packing 16 rows of codes into a panel, once for every vector type V: 64 columns of four rows at a time, a cache line of
// each, by 4 x 4 transposes of dwords (a dword is a group of four columns): 4 loads, 8 shuffles and 4 stores of 16 bytes for
// 64 codes. Line by line, since rows a multiple of 4 KiB apart share one set of L1.
//
// Row sums come from the finished lines: u8 ones times s8, pairs then quads, at most 4 * 128 a dword a line.
#pragma once

#include "cpu/simd/rows.h"

namespace int8q::cpu {
namespace {

template <class V>
void pack(const int8_t* b, int64_t b_stride, int64_t rows, int64_t k, int64_t k_padded, int8_t* panel, int32_t* sums) {
  constexpr int kVecs = kPanelRows / V::kLanes;
  constexpr typename V::Whole kWhole{};
  const int64_t whole = rows == kPanelRows ? k / 64 * 64 : 0;
  typename V::I sum[kVecs];
  for (int v = 0; v < kVecs; ++v) sum[v] = V::set(0);
  for (int64_t j = 0; j < whole; j += 64) {
    int8_t* lines = panel + j * kPanelRows;
    for (int r = 0; r < kPanelRows; r += 4) {
      for (int c = 0; c < 64; c += 16) {
        __m128 g[4];
        for (int i = 0; i < 4; ++i) g[i] = _mm_loadu_ps(reinterpret_cast<const float*>(b + (r + i) * b_stride + j + c));
        _MM_TRANSPOSE4_PS(g[0], g[1], g[2], g[3]);
        for (int i = 0; i < 4; ++i) _mm_store_ps(reinterpret_cast<float*>(lines + c * kPanelRows + i * 64 + r * 4), g[i]);
      }
    }
    for (int64_t line = 0; line < 16; ++line) {
      for (int v = 0; v < kVecs; ++v) {
        sum[v] = V::add_quads(sum[v], V::load32(lines + line * 64 + v * V::kLanes * 4, kWhole));
      }
    }
  }
  pack_s8_generic(b + whole, b_stride, rows, k - whole, k_padded - whole, panel + whole * kPanelRows, sums);
  for (int v = 0; v < kVecs; ++v) {
    int32_t* to = sums + v * V::kLanes;
    V::store32(to, V::add(V::load32(to, kWhole), sum[v]), kWhole);
  }
}

}  // namespace
}  // namespace int8q::cpu
