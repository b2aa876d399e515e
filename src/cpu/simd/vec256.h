// SPDX-License-Identifier: Apache-2.0
//
// Eight 32-bit lanes of AVX2 + FMA + F16C, for the templates of this folder. Everything is in an anonymous namespace: no
// symbol compiled with an ISA's flags may be shared between object files. D is a dtype: 0 fp32, 1 fp16, 2 bf16.
#pragma once

#include <immintrin.h>
#include <stdint.h>

namespace int8q::cpu {
namespace {

struct Vec256 {
  static constexpr int kLanes = 8;
  using F = __m256;
  using I = __m256i;
  using Mask = __m256i;  // all ones where true

  static F set(float f) { return _mm256_set1_ps(f); }
  static I set(int32_t i) { return _mm256_set1_epi32(i); }
  static F zero() { return _mm256_setzero_ps(); }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F div(F a, F b) { return _mm256_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static I bits(F f) { return _mm256_castps_si256(f); }
  static F to_float(I i) { return _mm256_cvtepi32_ps(i); }
  static I to_nearest(F f) { return _mm256_cvtps_epi32(f); }
  static I magnitude(F f) { return _mm256_and_si256(bits(f), _mm256_set1_epi32(0x7fffffff)); }
  static I sub(I a, I b) { return _mm256_sub_epi32(a, b); }
  // a * b for |a|, |b| < 2^15: one 16-bit product a lane.
  static I mul_small(I a, I b) { return _mm256_madd_epi16(_mm256_and_si256(a, _mm256_set1_epi32(0xffff)), b); }

  static I max_unsigned(I a, I b) { return _mm256_max_epu32(a, b); }
  static Mask within(I a, int32_t low, int32_t high) {  // low <= a <= high, signed, low > INT_MIN, high < INT_MAX
    return _mm256_and_si256(_mm256_cmpgt_epi32(a, set(low - 1)), _mm256_cmpgt_epi32(set(high + 1), a));
  }
  static uint32_t lane_bits(Mask m) { return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(m))); }
  static I clear(Mask m, I a) { return _mm256_andnot_si256(m, a); }

  static uint32_t reduce_max_unsigned(I a) {
    __m128i m = _mm_max_epu32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0x4e));
    return static_cast<uint32_t>(_mm_cvtsi128_si32(_mm_max_epu32(m, _mm_shuffle_epi32(m, 0xb1))));
  }

  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static I load(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static void store(float* p, F f) { _mm256_storeu_ps(p, f); }
  static void store(int32_t* p, I i) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), i); }
  static I load_s8(const void* p) { return _mm256_cvtepi8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p))); }
  static F load_f16(const void* p) { return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(p))); }

  template <int D>
  static F load(const void* p) {
    if constexpr (D == 0) return _mm256_loadu_ps(static_cast<const float*>(p));
    if constexpr (D == 1) return load_f16(p);
    return _mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))), 16));
  }

  template <int D>
  static void store(void* p, F f) {
    if constexpr (D == 0) {
      _mm256_storeu_ps(static_cast<float*>(p), f);
    } else if constexpr (D == 1) {
      _mm_storeu_si128(static_cast<__m128i*>(p), _mm256_cvtps_ph(f, _MM_FROUND_TO_NEAREST_INT));
    } else {
      const I b = bits(f);
      const I odd = _mm256_and_si256(_mm256_srli_epi32(b, 16), set(1));
      const I rounded = _mm256_srli_epi32(_mm256_add_epi32(b, _mm256_add_epi32(odd, set(0x7fff))), 16);
      const I quiet = _mm256_or_si256(_mm256_srli_epi32(b, 16), set(0x40));
      const I nan = _mm256_cmpgt_epi32(magnitude(f), set(0x7f800000));
      _mm_storeu_si128(static_cast<__m128i*>(p), narrow_u16(_mm256_blendv_epi8(rounded, quiet, nan)));
    }
  }

  // Codes in [-127, 127]: int8_t, uint8_t + 128, or int16_t with each group of four as {0, 2, 1, 3}.
  static void store_s8(void* p, I q) {
    const __m128i s16 = _mm_packs_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1));
    _mm_storel_epi64(static_cast<__m128i*>(p), _mm_packs_epi16(s16, s16));
  }
  static void store_u8(void* p, I q) {
    const __m128i s16 = _mm_packs_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1));
    _mm_storel_epi64(static_cast<__m128i*>(p), _mm_xor_si128(_mm_packs_epi16(s16, s16), _mm_set1_epi8(-128)));
  }
  static void store_pairs(void* p, I q) {
    const __m128i s16 = _mm_packs_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1));
    _mm_storeu_si128(static_cast<__m128i*>(p), _mm_shufflehi_epi16(_mm_shufflelo_epi16(s16, 0xd8), 0xd8));
  }

  // The byte c % 4 of each dword, sign-extended.
  static I byte_of_dword(I dwords, int byte) {
    return _mm256_srai_epi32(_mm256_sll_epi32(dwords, _mm_cvtsi32_si128(24 - 8 * byte)), 24);
  }

 private:
  static __m128i narrow_u16(I i) { return _mm_packus_epi32(_mm256_castsi256_si128(i), _mm256_extracti128_si256(i, 1)); }
};

}  // namespace
}  // namespace int8q::cpu
