// SPDX-License-Identifier: Apache-2.0
//
// Sixteen 32-bit lanes of AVX-512 F, BW, VL, DQ: vec256.h in zmm.
#pragma once

#include <immintrin.h>
#include <stdint.h>

namespace int8q::cpu {
namespace {

struct Vec512 {
  static constexpr int kLanes = 16;
  using F = __m512;
  using I = __m512i;
  using Mask = __mmask16;

  static F set(float f) { return _mm512_set1_ps(f); }
  static I set(int32_t i) { return _mm512_set1_epi32(i); }
  static F zero() { return _mm512_setzero_ps(); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static I bits(F f) { return _mm512_castps_si512(f); }
  static F to_float(I i) { return _mm512_cvtepi32_ps(i); }
  static I to_nearest(F f) { return _mm512_cvtps_epi32(f); }
  static I magnitude(F f) { return _mm512_and_si512(bits(f), _mm512_set1_epi32(0x7fffffff)); }
  static I sub(I a, I b) { return _mm512_sub_epi32(a, b); }
  static I mul_small(I a, I b) { return _mm512_madd_epi16(_mm512_and_si512(a, _mm512_set1_epi32(0xffff)), b); }

  static I max_unsigned(I a, I b) { return _mm512_max_epu32(a, b); }
  static Mask within(I a, int32_t low, int32_t high) {
    return static_cast<Mask>(_mm512_cmpge_epi32_mask(a, set(low)) & _mm512_cmple_epi32_mask(a, set(high)));
  }
  static uint32_t lane_bits(Mask m) { return m; }
  static I clear(Mask m, I a) { return _mm512_maskz_mov_epi32(static_cast<Mask>(~m), a); }
  static uint32_t reduce_max_unsigned(I a) { return _mm512_reduce_max_epu32(a); }

  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static I load(const int32_t* p) { return _mm512_loadu_si512(p); }
  static void store(float* p, F f) { _mm512_storeu_ps(p, f); }
  static void store(int32_t* p, I i) { _mm512_storeu_si512(p, i); }
  static I load_s8(const void* p) { return _mm512_cvtepi8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))); }
  static F load_f16(const void* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p))); }

  template <int D>
  static F load(const void* p) {
    if constexpr (D == 0) return _mm512_loadu_ps(p);
    if constexpr (D == 1) return load_f16(p);
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(p))), 16));
  }

  template <int D>
  static void store(void* p, F f) {
    if constexpr (D == 0) {
      _mm512_storeu_ps(p, f);
    } else if constexpr (D == 1) {
      _mm256_storeu_si256(static_cast<__m256i*>(p), _mm512_cvtps_ph(f, _MM_FROUND_TO_NEAREST_INT));
    } else {
      const I b = bits(f);
      const I odd = _mm512_and_si512(_mm512_srli_epi32(b, 16), set(1));
      const I rounded = _mm512_srli_epi32(_mm512_add_epi32(b, _mm512_add_epi32(odd, set(0x7fff))), 16);
      const Mask nan = _mm512_cmpgt_epi32_mask(magnitude(f), set(0x7f800000));
      const I chosen = _mm512_mask_or_epi32(rounded, nan, _mm512_srli_epi32(b, 16), set(0x40));
      _mm256_storeu_si256(static_cast<__m256i*>(p), _mm512_cvtepi32_epi16(chosen));
    }
  }

  static void store_s8(void* p, I q) { _mm_storeu_si128(static_cast<__m128i*>(p), _mm512_cvtepi32_epi8(q)); }
  static void store_u8(void* p, I q) {
    _mm_storeu_si128(static_cast<__m128i*>(p), _mm_xor_si128(_mm512_cvtepi32_epi8(q), _mm_set1_epi8(-128)));
  }
  static void store_pairs(void* p, I q) {
    const __m256i s16 = _mm512_cvtepi32_epi16(q);
    _mm256_storeu_si256(static_cast<__m256i*>(p), _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(s16, 0xd8), 0xd8));
  }

  static I byte_of_dword(I dwords, int byte) {
    return _mm512_srai_epi32(_mm512_sll_epi32(dwords, _mm_cvtsi32_si128(24 - 8 * byte)), 24);
  }
};

}  // namespace
}  // namespace int8q::cpu
