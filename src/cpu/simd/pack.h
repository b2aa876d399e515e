// SPDX-License-Identifier: Apache-2.0
//
// Packing 16 rows of codes into a panel, for every ISA in ymm: 64 columns of eight rows at a time, since rows a multiple of
// 4 KiB apart share one set of L1, whose ways are eight. A dword is a group of four columns:
//
//   row r    a0 a1 a2 a3 | row r + 4  e0 e1 e2 e3        line 0  a0 b0 c0 d0 | e0 f0 g0 h0
//   row r+1  b0 b1 b2 b3 | row r + 5  f0 f1 f2 f3   ->   line 1  a1 b1 c1 d1 | e1 f1 g1 h1
//   ...                                                  ...     half a cache line each
//
// 64 loads, 64 shuffles, 32 stores a KiB, and row sums of what is stored: u8 ones times s8 are pairs, 16 of which fit 16 bits.
#pragma once

#include "cpu/kernels.h"
#include "cpu/simd/vec256.h"

namespace int8q::cpu {
namespace {

inline constexpr int kPackRows = 8;

// Sixteen bytes of p and of the row four rows below.
inline __m256i load_two_rows(const int8_t* p, int64_t stride) {
  const auto* lower = reinterpret_cast<const __m128i*>(p + 4 * stride);
  return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
                                 _mm_loadu_si128(lower), 1);
}

// 4 x 4 dwords in each half.
inline void transpose_dwords(__m256i (&v)[4]) {
  const __m256i low01 = _mm256_unpacklo_epi32(v[0], v[1]), high01 = _mm256_unpackhi_epi32(v[0], v[1]);
  const __m256i low23 = _mm256_unpacklo_epi32(v[2], v[3]), high23 = _mm256_unpackhi_epi32(v[2], v[3]);
  v[0] = _mm256_unpacklo_epi64(low01, low23);
  v[1] = _mm256_unpackhi_epi64(low01, low23);
  v[2] = _mm256_unpacklo_epi64(high01, high23);
  v[3] = _mm256_unpackhi_epi64(high01, high23);
}

// 64 columns of eight rows to the halves of 16 lines; returns their sums.
inline __m256i pack_eight_rows(const int8_t* b, int64_t stride, int8_t* lines) {
  __m256i pairs = _mm256_setzero_si256();  // |sum| <= 16 * 2 * 128
  for (int c = 0; c < 64; c += 16) {
    __m256i v[4];
    for (int i = 0; i < 4; ++i) v[i] = load_two_rows(b + i * stride + c, stride);
    transpose_dwords(v);
    for (int i = 0; i < 4; ++i) {
      _mm256_store_si256(reinterpret_cast<__m256i*>(lines + (c / kGroup + i) * 64), v[i]);
      pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(_mm256_set1_epi8(1), v[i]));
    }
  }
  return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

inline void pack(const int8_t* b, int64_t b_stride, int64_t rows, int64_t k, int64_t k_padded, int8_t* panel,
                 int32_t* sums) {
  const int64_t whole = rows == kPanelRows ? k / 64 * 64 : 0;
  __m256i upper = _mm256_setzero_si256(), lower = upper;
  for (int64_t j = 0; j < whole; j += 64) {
    int8_t* lines = panel + j * kPanelRows;
    upper = _mm256_add_epi32(upper, pack_eight_rows(b + j, b_stride, lines));
    lower = _mm256_add_epi32(lower, pack_eight_rows(b + j + kPackRows * b_stride, b_stride, lines + kPackRows * kGroup));
  }
  pack_s8_generic(b + whole, b_stride, rows, k - whole, k_padded - whole, panel + whole * kPanelRows, sums);
  const auto add_to = [](int32_t* to, __m256i v) {
    auto* at = reinterpret_cast<__m256i*>(to);
    _mm256_storeu_si256(at, _mm256_add_epi32(_mm256_loadu_si256(at), v));
  };
  add_to(sums, upper);
  add_to(sums + kPackRows, lower);
}

}  // namespace
}  // namespace int8q::cpu
