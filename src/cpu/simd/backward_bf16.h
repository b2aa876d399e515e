// SPDX-License-Identifier: Apache-2.0
//
// The gradient to the input by vdpbf16ps, for bf16 dY on CPUs with AVX512-BF16: two n a step, twice the multiply-adds of fp32.
// Codes are exact in bf16, g is rounded to it.
//
//   dword of g:      { bf16 g[n], bf16 g[n + 1] }                     n even
//   cache line of w: 16 dwords { bf16 w[n][k], bf16 w[n + 1][k] }
//   acc += g[n + 1] * w[n + 1][k], then acc += g[n] * w[n][k]         each fused; denormals are zero, before and after
//
// One-instruction assembly: it needs no flag, so that this folder's other code stays free of AVX512-BF16, and g++ 12 spills the
// intrinsic's accumulators.
#pragma once

#include "cpu/simd/backward.h"
#include "cpu/simd/vec512.h"

namespace int8q::cpu {
namespace {

struct PairStep {
  using F = __m512;
  using B = __m512i;
  static constexpr int kLanes = 16;
  static constexpr int kN = 2;
  static F zero() { return _mm512_setzero_ps(); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, F f) { _mm512_storeu_ps(p, f); }
  static B load_b(const uint8_t* p) { return _mm512_loadu_si512(p); }
  static B load_a(const uint8_t* p) {
    int32_t pair;
    __builtin_memcpy(&pair, p, sizeof pair);
    return _mm512_set1_epi32(pair);
  }
  static F mac(F acc, B a, B b) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
    return acc;
  }

  // Four groups are a 4 x 4 transpose of 128-bit lanes: lane g of rows[q] = { rows 4q .. 4q + 3 } x { k 4g .. 4g + 3 }.
  static inline __attribute__((always_inline)) void unpack(const int8_t* codes, uint8_t* w) {
    __m512i z[4];
    for (int i = 0; i < 4; ++i) z[i] = _mm512_loadu_si512(codes + i * kGroupLine);
    const __m512i low01 = _mm512_shuffle_i32x4(z[0], z[1], 0x44), high01 = _mm512_shuffle_i32x4(z[0], z[1], 0xee);
    const __m512i low23 = _mm512_shuffle_i32x4(z[2], z[3], 0x44), high23 = _mm512_shuffle_i32x4(z[2], z[3], 0xee);
    store_four_rows(_mm512_shuffle_i32x4(low01, low23, 0x88), w);
    store_four_rows(_mm512_shuffle_i32x4(low01, low23, 0xdd), w + 128);
    store_four_rows(_mm512_shuffle_i32x4(high01, high23, 0x88), w + 256);
    store_four_rows(_mm512_shuffle_i32x4(high01, high23, 0xdd), w + 384);
  }

 private:
  static inline __attribute__((always_inline)) void store_four_rows(__m512i rows, uint8_t* w) {
    _mm512_storeu_si512(w, pair(row<0>(rows), row<1>(rows)));
    _mm512_storeu_si512(w + 64, pair(row<2>(rows), row<3>(rows)));
  }
  // vpshufb puts the codes of row r to the top of their k's dwords.
  template <int r>
  static inline __attribute__((always_inline)) __m512i row(__m512i rows) {
    const __m512i top =
        _mm512_set4_epi32(static_cast<int>(0x03808080u + (r * 4u << 24)), static_cast<int>(0x02808080u + (r * 4u << 24)),
                          static_cast<int>(0x01808080u + (r * 4u << 24)), static_cast<int>(0x00808080u + (r * 4u << 24)));
    return _mm512_castps_si512(_mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_shuffle_epi8(rows, top), 24)));
  }
  static __m512i pair(__m512i even, __m512i odd) { return _mm512_or_si512(_mm512_srli_epi32(even, 16), odd); }
};

// Denormals are zeros here too: vdpbf16ps takes them for that.
inline void scale_to_bf16(const void* dy, int64_t n, const float* col_stats, void* g) {
  using V = Vec512;
  const auto inv = V::set(kInv127);
  for_each_vector<V>(
      n, [&](int64_t j, auto lanes) __attribute__((always_inline)) {
        const auto stats = V::mul(V::load<0>(col_stats + j, lanes), inv);
        __m256i rounded;
        asm("vcvtneps2bf16 %1, %0" : "=v"(rounded) : "v"(V::mul(V::load<2>(at(dy, j * 2), lanes), stats)));
        V::store16(at(g, j * 2), rounded, lanes);
      });
  if (n % 2 != 0) __builtin_memset(at(g, n * 2), 0, 2);
}

}  // namespace
}  // namespace int8q::cpu
