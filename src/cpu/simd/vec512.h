// SPDX-License-Identifier: Apache-2.0
//
// Sixteen 32-bit lanes of AVX-512 F, BW, VL, DQ: vec256.h in zmm. Tails are masked loads and stores, which do not touch
// what is masked out.
#pragma once

#include <immintrin.h>
#include <stdint.h>

namespace int8q::cpu {
namespace {

struct Vec512 {
  static constexpr int kLanes = 16;
  using F = __m512;
  using I = __m512i;

  struct Whole {};
  struct Part {
    uint32_t mask;
    explicit Part(int64_t count) : mask((1u << count) - 1) {}
    __mmask16 m16() const { return static_cast<__mmask16>(mask); }
  };

  static I load32(const void* p, Whole) { return _mm512_loadu_si512(p); }
  static I load32(const void* p, Part l) { return _mm512_maskz_loadu_epi32(l.m16(), p); }
  static __m256i load16(const void* p, Whole) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  static __m256i load16(const void* p, Part l) { return _mm256_maskz_loadu_epi16(l.m16(), p); }
  static __m128i load8(const void* p, Whole) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
  static __m128i load8(const void* p, Part l) { return _mm_maskz_loadu_epi8(l.m16(), p); }
  static void store32(void* p, I v, Whole) { _mm512_storeu_si512(p, v); }
  static void store32(void* p, I v, Part l) { _mm512_mask_storeu_epi32(p, l.m16(), v); }
  static void store16(void* p, __m256i v, Whole) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
  static void store16(void* p, __m256i v, Part l) { _mm256_mask_storeu_epi16(p, l.m16(), v); }
  static void store8(void* p, __m128i v, Whole) { _mm_storeu_si128(static_cast<__m128i*>(p), v); }
  static void store8(void* p, __m128i v, Part l) { _mm_mask_storeu_epi8(p, l.m16(), v); }

  static F set(float f) { return _mm512_set1_ps(f); }
  static I set(int32_t i) { return _mm512_set1_epi32(i); }
  static F zero() { return _mm512_setzero_ps(); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F fma_unless_zero(F a, F b, F c) {
    return _mm512_mask3_fmadd_ps(a, b, c, _mm512_cmp_ps_mask(a, zero(), _CMP_NEQ_UQ));
  }
  static I bits(F f) { return _mm512_castps_si512(f); }
  static F from_bits(I i) { return _mm512_castsi512_ps(i); }
  static F to_float(I i) { return _mm512_cvtepi32_ps(i); }
  static I sub(I a, I b) { return _mm512_sub_epi32(a, b); }
  static I add(I a, I b) { return _mm512_add_epi32(a, b); }
  // acc + the sum of each dword's four s8.
  static I add_quads(I acc, I codes) {
    const I pairs = _mm512_maddubs_epi16(_mm512_set1_epi8(1), codes);
    return _mm512_add_epi32(acc, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
  }

  static I round_where_below(F x, I limit, F f) {
    const I magnitude = _mm512_and_si512(bits(x), set(0x7fffffff));
    return _mm512_maskz_cvtps_epi32(_mm512_cmplt_epi32_mask(magnitude, limit), f);
  }

  template <int D, class Lanes>
  static F load(const void* p, Lanes lanes) {
    if constexpr (D == 0) return from_bits(load32(p, lanes));
    if constexpr (D == 1) return _mm512_cvtph_ps(load16(p, lanes));
    return from_bits(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load16(p, lanes)), 16));
  }

  template <int D, class Lanes>
  static void store(void* p, F f, Lanes lanes) {
    if constexpr (D == 0) store32(p, bits(f), lanes);
    if constexpr (D == 1) store16(p, _mm512_cvtps_ph(f, _MM_FROUND_TO_NEAREST_INT), lanes);
    if constexpr (D == 2) {
      const __mmask16 odd = _mm512_test_epi32_mask(bits(f), set(0x10000));
      const I half_down = _mm512_add_epi32(bits(f), set(0x7fff));
      const I to_even = _mm512_mask_add_epi32(half_down, odd, half_down, set(1));
      const __mmask16 nan = _mm512_cmp_ps_mask(f, f, _CMP_UNORD_Q);
      const I rounded = _mm512_mask_or_epi32(to_even, nan, bits(f), set(0x400000));
      store16(p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)), lanes);
    }
  }

  template <class Lanes>
  static I load_s8(const void* p, Lanes lanes) {
    return widen_s8(load8(p, lanes), 0);
  }
  static I widen_s8(__m128i codes, int) { return _mm512_cvtepi8_epi32(codes); }
  template <class Lanes>
  static void store_s8(void* p, I q, Lanes lanes) {
    store8(p, _mm512_cvtepi32_epi8(q), lanes);
  }
  static void store_u8(void* p, I q) { store8(p, _mm_xor_si128(_mm512_cvtepi32_epi8(q), _mm_set1_epi8(-128)), Whole{}); }
  static void store_pairs(void* p, I q) {
    store16(p, _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(_mm512_cvtepi32_epi16(q), 0xd8), 0xd8), Whole{});
  }

  template <int D>
  static I round_words_below(const void* p, I limit, F multiplier) {
    const auto* second = static_cast<const uint8_t*>(p) + 32 * (D == 0 ? 2 : 1);
    const I magnitude = Stored<D>::magnitudes(p, Whole{});
    if constexpr (D == 0) {
      const __mmask16 below_a = _mm512_cmplt_epi32_mask(magnitude, limit);
      const __mmask16 below_b = _mm512_cmplt_epi32_mask(Stored<D>::magnitudes(second, Whole{}), limit);
      const F a = _mm512_maskz_mul_ps(below_a, load<0>(p, Whole{}), multiplier);
      const F b = _mm512_maskz_mul_ps(below_b, load<0>(second, Whole{}), multiplier);
      return _mm512_packs_epi32(_mm512_cvtps_epi32(a), _mm512_cvtps_epi32(b));
    }
    const __mmask32 below = _mm512_cmplt_epi16_mask(magnitude, limit);
    if constexpr (D == 1) {
      const F a = _mm512_maskz_cvtph_ps(static_cast<__mmask16>(below), load16(p, Whole{}));
      const F b = _mm512_maskz_cvtph_ps(static_cast<__mmask16>(below >> 16), load16(second, Whole{}));
      return _mm512_packs_epi32(_mm512_cvtps_epi32(mul(a, multiplier)), _mm512_cvtps_epi32(mul(b, multiplier)));
    }
    const I x = load32(p, Whole{});
    const F a = mul(from_bits(_mm512_unpacklo_epi16(_mm512_setzero_si512(), x)), multiplier);
    const F b = mul(from_bits(_mm512_unpackhi_epi16(_mm512_setzero_si512(), x)), multiplier);
    return _mm512_maskz_packs_epi32(below, _mm512_cvtps_epi32(a), _mm512_cvtps_epi32(b));
  }
  template <int D>
  static I pack_s8(I a, I b) {
    const I mixed = _mm512_packs_epi16(a, b);
    if constexpr (D == 2) return even_qwords_first(mixed);
    return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), mixed);
  }
  static I s8_to_u8(I codes) { return _mm512_xor_si512(codes, _mm512_set1_epi8(-128)); }
  template <int D>
  static I s16_pairs(I words) {
    if constexpr (D != 2) words = even_qwords_first(words);
    return _mm512_shufflehi_epi16(_mm512_shufflelo_epi16(words, 0xd8), 0xd8);
  }

  static I signed_byte(I dwords, int byte) {
    return _mm512_srai_epi32(_mm512_sll_epi32(dwords, _mm_cvtsi32_si128(24 - 8 * byte)), 24);
  }
  static I insert_byte(I dwords, int to, I from, int byte) {
    const I low = _mm512_and_si512(_mm512_srl_epi32(from, _mm_cvtsi32_si128(8 * byte)), set(0xff));
    return _mm512_or_si512(dwords, _mm512_sll_epi32(low, _mm_cvtsi32_si128(8 * to)));
  }

  template <int D>
  struct Stored {
    static constexpr int kLanes = D == 0 ? 16 : 32;
    using Mask = uint32_t;
    template <class Lanes>
    static I magnitudes(const void* p, Lanes lanes) {
      if constexpr (D == 0) return _mm512_and_si512(load32(p, lanes), set(0x7fffffff));
      return _mm512_and_si512(load(p, lanes), set(0x7fff7fff));
    }
    static I limit(uint32_t word) { return set(static_cast<int32_t>(D == 0 ? word : word << 16 | word)); }
    static Mask between(I low, I a, I high) {
      if constexpr (D == 0) return _mm512_mask_cmple_epi32_mask(_mm512_cmpge_epi32_mask(a, low), a, high);
      return _mm512_mask_cmple_epi16_mask(_mm512_cmpge_epi16_mask(a, low), a, high);
    }
    static uint64_t lane_bits(Mask m) { return m; }
    static I max_where_not(Mask m, I a, I b) {
      if constexpr (D == 0) return _mm512_mask_max_epu32(a, static_cast<__mmask16>(~m), a, b);
      return _mm512_mask_max_epu16(a, ~m, a, b);
    }
    static uint32_t maximum(I a) {
      if constexpr (D == 0) return _mm512_reduce_max_epu32(a);
      return _mm512_reduce_max_epu32(_mm512_max_epu32(_mm512_srli_epi32(a, 16), _mm512_and_si512(a, set(0xffff))));
    }

   private:
    static I load(const void* p, Whole) { return _mm512_loadu_si512(p); }
    static I load(const void* p, Part l) { return _mm512_maskz_loadu_epi16(l.mask, p); }
  };

 private:
  static I even_qwords_first(I i) { return _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), i); }
};

}  // namespace
}  // namespace int8q::cpu
