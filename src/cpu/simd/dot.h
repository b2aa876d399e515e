// SPDX-License-Identifier: Apache-2.0
//
// Row-major products for few rows of A: c[i][n] = a[i] . b[n], both widened from s8 to s16, where vpmaddwd is exact for all
// int8, -128 too: a pair is at most 2 * 128 * 128, the sum at most 128 * 128 * 131,071 < 2^31. Bound by reading B once.
#pragma once

#include "cpu/simd/rows.h"

namespace int8q::cpu {
namespace {

// Op: Vec of s16; kBytes s8 a step; widen(p), mac(acc, a, b), sum(acc).
template <class Op, int R, int C>
void dot_tile(const DotBlock& block, int64_t row, int64_t col) {
  using Vec = typename Op::Vec;
  Vec acc[R][C];
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < C; ++c) acc[r][c] = Op::zero();
  }
  const int8_t* a = block.a + row * block.a_stride;
  const int8_t* b = block.b + col * block.b_stride;
  int64_t k = 0;
  for (; k + Op::kBytes <= block.k; k += Op::kBytes) {
    Vec x[R];
    for (int r = 0; r < R; ++r) x[r] = Op::widen(a + r * block.a_stride + k);
    for (int c = 0; c < C; ++c) {
      const Vec w = Op::widen(b + c * block.b_stride + k);
      for (int r = 0; r < R; ++r) acc[r][c] = Op::mac(acc[r][c], x[r], w);
    }
  }
  if (k < block.k) {
    for (int c = 0; c < C; ++c) {
      const Vec w = Op::widen(TailBuffer<64>(b + c * block.b_stride + k, block.k - k).bytes);
      for (int r = 0; r < R; ++r) {
        acc[r][c] = Op::mac(acc[r][c], Op::widen(TailBuffer<64>(a + r * block.a_stride + k, block.k - k).bytes), w);
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < C; ++c) block.c[(row + r) * block.c_stride + col + c] = Op::sum(acc[r][c]);
  }
}

template <class Op, int R, int C>
void dot_rows(const DotBlock& block, int64_t row) {
  int64_t n = 0;
  for (; n + C <= block.cols; n += C) dot_tile<Op, R, C>(block, row, n);
  for (; n < block.cols; ++n) dot_tile<Op, R, 1>(block, row, n);
}

// R x C accumulators and R rows of A in registers: 4 x 4 of 32 zmm, 2 x 4 of 16 ymm.
template <class Op, int R, int C>
void dot(const DotBlock& block) {
  int64_t i = 0;
  for (; i + R <= block.rows; i += R) dot_rows<Op, R, C>(block, i);
  for (; i < block.rows; ++i) dot_rows<Op, 1, C>(block, i);
}

struct Dot256 {
  using Vec = __m256i;
  static constexpr int kBytes = 16;
  static Vec zero() { return _mm256_setzero_si256(); }
  static Vec widen(const void* p) { return _mm256_cvtepi8_epi16(_mm_loadu_si128(static_cast<const __m128i*>(p))); }
  static Vec mac(Vec acc, Vec a, Vec b) { return _mm256_add_epi32(acc, _mm256_madd_epi16(a, b)); }
  static int32_t sum(Vec v) {
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
  }
};

}  // namespace
}  // namespace int8q::cpu
