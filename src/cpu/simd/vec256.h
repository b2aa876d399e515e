// SPDX-License-Identifier: Apache-2.0
//
// Eight 32-bit lanes of AVX2 + FMA + F16C, for the templates of this folder. Everything is in an anonymous namespace: no
// symbol compiled with an ISA's flags may be shared between object files. D is a dtype: 0 fp32, 1 fp16, 2 bf16.
//
// Whole is a full vector at p, Part(n) its first n lanes, 0 < n < lanes: the others load as zeros and are not stored, and
// no byte of them is touched.
#pragma once

#include <immintrin.h>
#include <stdint.h>

namespace int8q::cpu {
namespace {

struct Vec256 {
  static constexpr int kLanes = 8;
  using F = __m256;
  using I = __m256i;

  struct Whole {};
  struct Part {
    int64_t count;
    explicit Part(int64_t n) : count(n) {}
  };

  static I load32(const void* p, Whole) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  static I load32(const void* p, Part l) { return load_bytes(p, 4 * l.count); }
  static __m128i load16(const void* p, Whole) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
  static __m128i load16(const void* p, Part l) { return _mm256_castsi256_si128(load_bytes(p, 2 * l.count)); }
  static __m128i load8(const void* p, Whole) { return _mm_loadl_epi64(static_cast<const __m128i*>(p)); }
  static __m128i load8(const void* p, Part l) { return _mm256_castsi256_si128(load_bytes(p, l.count)); }
  static void store32(void* p, I v, Whole) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
  static void store32(void* p, I v, Part l) { store_bytes(p, v, 4 * l.count); }
  static void store16(void* p, __m128i v, Whole) { _mm_storeu_si128(static_cast<__m128i*>(p), v); }
  static void store16(void* p, __m128i v, Part l) { store_bytes(p, _mm256_castsi128_si256(v), 2 * l.count); }
  static void store8(void* p, __m128i v, Whole) { _mm_storel_epi64(static_cast<__m128i*>(p), v); }
  static void store8(void* p, __m128i v, Part l) { store_bytes(p, _mm256_castsi128_si256(v), l.count); }

  static F set(float f) { return _mm256_set1_ps(f); }
  static I set(int32_t i) { return _mm256_set1_epi32(i); }
  static F zero() { return _mm256_setzero_ps(); }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F div(F a, F b) { return _mm256_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  // c in lanes where a is +-0, a NaN is not.
  static F fma_unless_zero(F a, F b, F c) {
    return _mm256_blendv_ps(c, fma(a, b, c), _mm256_cmp_ps(a, zero(), _CMP_NEQ_UQ));
  }
  static I bits(F f) { return _mm256_castps_si256(f); }
  static F from_bits(I i) { return _mm256_castsi256_ps(i); }
  static F to_float(I i) { return _mm256_cvtepi32_ps(i); }
  static I sub(I a, I b) { return _mm256_sub_epi32(a, b); }
  static I add(I a, I b) { return _mm256_add_epi32(a, b); }
  // acc + the sum of each dword's four s8.
  static I add_quads(I acc, I codes) {
    const I pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), codes);
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }

  // rint(f), half to even, where the bits of |x| are below limit, else 0.
  static I round_where_below(F x, I limit, F f) {
    const I magnitude = _mm256_and_si256(bits(x), set(0x7fffffff));
    return _mm256_and_si256(_mm256_cmpgt_epi32(limit, magnitude), _mm256_cvtps_epi32(f));
  }

  template <int D, class Lanes>
  static F load(const void* p, Lanes lanes) {
    if constexpr (D == 0) return from_bits(load32(p, lanes));
    if constexpr (D == 1) return _mm256_cvtph_ps(load16(p, lanes));
    return from_bits(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load16(p, lanes)), 16));
  }

  // Rounds to nearest even; bf16 in integers, since vcvtneps2bf16 would flush denormals. A NaN stays one: quiet, high half.
  template <int D, class Lanes>
  static void store(void* p, F f, Lanes lanes) {
    if constexpr (D == 0) store32(p, bits(f), lanes);
    if constexpr (D == 1) store16(p, _mm256_cvtps_ph(f, _MM_FROUND_TO_NEAREST_INT), lanes);
    if constexpr (D == 2) {
      const I odd = _mm256_and_si256(_mm256_srli_epi32(bits(f), 16), set(1));
      const I to_even = _mm256_add_epi32(_mm256_add_epi32(bits(f), set(0x7fff)), odd);
      const I quiet = _mm256_or_si256(bits(f), set(0x400000));
      const I rounded = bits(_mm256_blendv_ps(from_bits(to_even), from_bits(quiet), _mm256_cmp_ps(f, f, _CMP_UNORD_Q)));
      const I high = _mm256_srli_epi32(rounded, 16);
      store16(p, _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1)), lanes);
    }
  }

  // Codes: int8_t, uint8_t + 128, or int16_t with each group of four as {0, 2, 1, 3}.
  template <class Lanes>
  static I load_s8(const void* p, Lanes lanes) {
    return _mm256_cvtepi8_epi32(load8(p, lanes));
  }
  // Codes [first, first + 8) of 16, first 0 or 8.
  static I widen_s8(__m128i codes, int first) {
    return _mm256_cvtepi8_epi32(first == 0 ? codes : _mm_unpackhi_epi64(codes, codes));
  }
  template <class Lanes>
  static void store_s8(void* p, I q, Lanes lanes) {
    store8(p, _mm_packs_epi16(narrow_s16(q), narrow_s16(q)), lanes);
  }
  static void store_u8(void* p, I q) {
    store8(p, _mm_xor_si128(_mm_packs_epi16(narrow_s16(q), narrow_s16(q)), _mm_set1_epi8(-128)), Whole{});
  }
  static void store_pairs(void* p, I q) {
    store16(p, _mm_shufflehi_epi16(_mm_shufflelo_epi16(narrow_s16(q), 0xd8), 0xd8), Whole{});
  }

  // rint(x * multiplier) of the 16 elements at p as s16, 0 where their stored bits are not below Stored<D>::limit. They lie as
  // vpackssdw leaves them, which is in order for bf16, widened by vpunpck; the two functions behind put them in order.
  template <int D>
  static I round_words_below(const void* p, I limit, F multiplier) {
    const auto* second = static_cast<const uint8_t*>(p) + 32;
    if constexpr (D == 0) {
      const I a = round_where_below(from_bits(load32(p, Whole{})), limit, mul(load<0>(p, Whole{}), multiplier));
      return _mm256_packs_epi32(
          a, round_where_below(load<0>(second, Whole{}), limit, mul(load<0>(second, Whole{}), multiplier)));
    }
    const I x = load32(p, Whole{}), below = _mm256_cmpgt_epi16(limit, Stored<D>::magnitudes(p, Whole{}));
    if constexpr (D == 1) {
      const I inlier = _mm256_and_si256(x, below);
      const F low = _mm256_cvtph_ps(_mm256_castsi256_si128(inlier)),
              high = _mm256_cvtph_ps(_mm256_extracti128_si256(inlier, 1));
      return _mm256_packs_epi32(_mm256_cvtps_epi32(mul(low, multiplier)), _mm256_cvtps_epi32(mul(high, multiplier)));
    }
    const F low = from_bits(_mm256_unpacklo_epi16(_mm256_setzero_si256(), x));
    const F high = from_bits(_mm256_unpackhi_epi16(_mm256_setzero_si256(), x));
    return _mm256_and_si256(
        below, _mm256_packs_epi32(_mm256_cvtps_epi32(mul(low, multiplier)), _mm256_cvtps_epi32(mul(high, multiplier))));
  }
  template <int D>
  static I pack_s8(I a, I b) {
    const I mixed = _mm256_packs_epi16(a, b);
    if constexpr (D == 2) return _mm256_permute4x64_epi64(mixed, 0xd8);
    return _mm256_permutevar8x32_epi32(mixed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  }
  static I s8_to_u8(I codes) { return _mm256_xor_si256(codes, _mm256_set1_epi8(-128)); }
  template <int D>
  static I s16_pairs(I words) {
    if constexpr (D != 2) words = _mm256_permute4x64_epi64(words, 0xd8);
    return _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(words, 0xd8), 0xd8);
  }

  // Byte `byte` of each dword, sign-extended; that of `from` put into byte `to` of `dwords`, which is 0 there.
  static I signed_byte(I dwords, int byte) {
    return _mm256_srai_epi32(_mm256_sll_epi32(dwords, _mm_cvtsi32_si128(24 - 8 * byte)), 24);
  }
  static I insert_byte(I dwords, int to, I from, int byte) {
    const I low = _mm256_and_si256(_mm256_srl_epi32(from, _mm_cvtsi32_si128(8 * byte)), set(0xff));
    return _mm256_or_si256(dwords, _mm256_sll_epi32(low, _mm_cvtsi32_si128(8 * to)));
  }

  // The bits of |x| as they are stored, 32 or 16 a lane: what the scan takes its maximum of.
  template <int D>
  struct Stored {
    static constexpr int kLanes = D == 0 ? 8 : 16;
    using Mask = I;
    static I magnitudes(const void* p, Whole) {
      return _mm256_and_si256(load32(p, Whole{}), limit(D == 0 ? 0x7fffffff : 0x7fff));
    }
    static I magnitudes(const void* p, Part l) {
      return _mm256_and_si256(load_bytes(p, l.count * (D == 0 ? 4 : 2)), limit(D == 0 ? 0x7fffffff : 0x7fff));
    }
    static I limit(uint32_t word) { return set(static_cast<int32_t>(D == 0 ? word : word << 16 | word)); }
    static Mask between(I low, I a, I high) {  // neither a sign bit set: signed comparisons do
      if constexpr (D == 0)
        return _mm256_andnot_si256(_mm256_or_si256(_mm256_cmpgt_epi32(low, a), _mm256_cmpgt_epi32(a, high)), set(-1));
      return _mm256_andnot_si256(_mm256_or_si256(_mm256_cmpgt_epi16(low, a), _mm256_cmpgt_epi16(a, high)), set(-1));
    }
    static uint64_t lane_bits(Mask m) {
      if constexpr (D == 0) return static_cast<uint32_t>(_mm256_movemask_ps(from_bits(m)));
      const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(m), _mm256_extracti128_si256(m, 1));
      return static_cast<uint32_t>(_mm_movemask_epi8(bytes));
    }
    static I max_where_not(Mask m, I a, I b) {
      if constexpr (D == 0) return _mm256_max_epu32(a, _mm256_andnot_si256(m, b));
      return _mm256_max_epu16(a, _mm256_andnot_si256(m, b));
    }
    static uint32_t maximum(I a) {
      if constexpr (D != 0) a = _mm256_max_epu32(_mm256_srli_epi32(a, 16), _mm256_and_si256(a, set(0xffff)));
      __m128i m = _mm_max_epu32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
      m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0x4e));
      return static_cast<uint32_t>(_mm_cvtsi128_si32(_mm_max_epu32(m, _mm_shuffle_epi32(m, 0xb1))));
    }
  };

  // `bytes` < 32 of them, zeros behind, through registers: vpmaskmovd has no bytes, and QEMU 7.2 reads what it masks out.
  static I load_bytes(const void* p, int64_t bytes) {
    const auto* from = static_cast<const uint8_t*>(p) + (bytes & 24);
    uint64_t eight = 0, rest = 0;
    if ((bytes & 8) != 0) __builtin_memcpy(&eight, from - 8, 8);
    if ((bytes & 1) != 0) rest = from[bytes & 6];
    if ((bytes & 2) != 0) {
      uint16_t two;
      __builtin_memcpy(&two, from + (bytes & 4), 2);
      rest = rest << 16 | two;
    }
    if ((bytes & 4) != 0) {
      uint32_t four;
      __builtin_memcpy(&four, from, 4);
      rest = rest << 32 | four;
    }
    const auto low = static_cast<long long>((bytes & 8) != 0 ? eight : rest);
    const __m128i last = _mm_set_epi64x((bytes & 8) != 0 ? static_cast<long long>(rest) : 0, low);
    if ((bytes & 16) == 0) return _mm256_zextsi128_si256(last);
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(static_cast<const __m128i*>(p))), last, 1);
  }

 private:
  static __m128i narrow_s16(I q) { return _mm_packs_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1)); }

  // The first `bytes` < 32 of v.
  static void store_bytes(void* p, I v, int64_t bytes) {
    auto* to = static_cast<uint8_t*>(p);
    __m128i left = _mm256_castsi256_si128(v);
    if ((bytes & 16) != 0) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to), left);
      to += 16;
      left = _mm256_extracti128_si256(v, 1);
    }
    if ((bytes & 8) != 0) {
      _mm_storel_epi64(reinterpret_cast<__m128i*>(to), left);
      to += 8;
      left = _mm_unpackhi_epi64(left, left);
    }
    uint64_t rest = static_cast<uint64_t>(_mm_cvtsi128_si64(left));
    if ((bytes & 4) != 0) {
      __builtin_memcpy(to, &rest, 4);
      to += 4;
      rest >>= 32;
    }
    if ((bytes & 2) != 0) {
      __builtin_memcpy(to, &rest, 2);
      to += 2;
      rest >>= 16;
    }
    if ((bytes & 1) != 0) *to = static_cast<uint8_t>(rest);
  }
};

}  // namespace
}  // namespace int8q::cpu
