// SPDX-License-Identifier: Apache-2.0
//
// Kernels over rows of floats or codes, once for every vector type V (vec256.h, vec512.h): absmax, vector-wise quantization
// (arXiv 2208.07339, section 3.1), dequantization, scaling, rounding to storage. Each reads its row once, in order, and is
// bound by that. Every operation rounds as cpu/kernels.h writes it, so that all ISAs agree bit for bit.
#pragma once

#include <immintrin.h>
#include <stddef.h>

#include "cpu/kernels.h"

namespace int8q::cpu {
namespace {

inline constexpr float kInv127 = 1.0f / 127.0f;
inline constexpr float kInv16129 = 1.0f / 16129.0f;

template <int D>
inline constexpr int64_t kBytes = D == 0 ? 4 : 2;

inline const uint8_t* at(const void* p, int64_t bytes) { return static_cast<const uint8_t*>(p) + bytes; }
inline uint8_t* at(void* p, int64_t bytes) { return static_cast<uint8_t*>(p) + bytes; }

// body(j, lanes) for each vector of [0, count), lanes Whole or, for the tail, Part.
template <class V, class Body>
inline __attribute__((always_inline)) void for_each_vector(int64_t count, const Body& body) {
  int64_t j = 0;
  for (; j + V::kLanes <= count; j += V::kLanes) body(j, typename V::Whole{});
  if (j < count) body(j, typename V::Part(count - j));
}

// The stored 16-bit (or 32-bit) words of |x| lie as the floats do: the least word at or above fp32 bits `limit`, and the
// fp32 bits of a word.
template <int D>
uint32_t stored_limit(uint32_t limit) {
  if constexpr (D == 0) return limit;
  if constexpr (D == 2) return (limit + 0xffffu) >> 16;
  if (limit > kInfBits) return 0x7c01u;
  const __m128i h = _mm_cvtps_ph(_mm_castsi128_ps(_mm_cvtsi32_si128(static_cast<int>(limit))), _MM_FROUND_TO_POS_INF);
  return static_cast<uint32_t>(_mm_cvtsi128_si32(h)) & 0xffffu;
}

template <int D>
uint32_t bits_of_stored(uint32_t word) {
  if constexpr (D == 0) return word;
  if constexpr (D == 2) return word << 16;
  return static_cast<uint32_t>(
      _mm_cvtsi128_si32(_mm_castps_si128(_mm_cvtph_ps(_mm_cvtsi32_si128(static_cast<int>(word))))));
}

// absmax = max |x| over the inliers, on the bits as stored: 16-bit types are not converted. The outliers of 64 columns make
// one word of the bitmap.
template <class V, int D>
uint32_t scan(const void* x, int64_t k, uint32_t limit, uint64_t* column_bits) {
  using S = typename V::template Stored<D>;
  const auto low = S::limit(stored_limit<D>(limit)), high = S::limit(stored_limit<D>(kInfBits));
  auto absmax = S::limit(0);
  const auto step = [&](int64_t j, auto lanes) __attribute__((always_inline)) {
    const auto bits = S::magnitudes(at(x, j * kBytes<D>), lanes);
    const auto outlier = S::between(low, bits, high);
    absmax = S::max_where_not(outlier, absmax, bits);
    return S::lane_bits(outlier);
  };
  const auto mark = [&](int64_t j, uint64_t word) {
    if (word != 0 && column_bits != nullptr) column_bits[j / 64] |= word;
  };
  int64_t j = 0;
  for (; j + 64 <= k; j += 64) {
    uint64_t word = 0;
#pragma GCC unroll 8
    for (int i = 0; i < 64; i += S::kLanes) word |= step(j + i, typename V::Whole{}) << i;
    mark(j, word);
  }
  for (; j + S::kLanes <= k; j += S::kLanes) mark(j, step(j, typename V::Whole{}) << j % 64);
  if (j < k) mark(j, (step(j, typename V::Part(k - j)) & ((uint64_t{1} << (k - j)) - 1)) << j % 64);
  return bits_of_stored<D>(S::maximum(absmax));
}

// Where codes go. Rows of a CodeLayout are padded with code 0: their last vector is stored whole.
struct ToS8 {
  static constexpr int kBytesPerCode = 1;
  template <class V, class Lanes>
  static void store(void* p, typename V::I q, Lanes lanes) {
    V::store_s8(p, q, lanes);
  }
  template <class V, int D>
  static void store_block(void* p, typename V::I a, typename V::I b) {
    V::store32(p, V::template pack_s8<D>(a, b), typename V::Whole{});
  }
  static void pad(void*, int64_t, int64_t) {}
};
struct ToU8 {
  static constexpr int kBytesPerCode = 1;
  template <class V, class Lanes>
  static void store(void* p, typename V::I q, Lanes) {
    V::store_u8(p, q);
  }
  template <class V, int D>
  static void store_block(void* p, typename V::I a, typename V::I b) {
    V::store32(p, V::s8_to_u8(V::template pack_s8<D>(a, b)), typename V::Whole{});
  }
  static void pad(void* codes, int64_t from, int64_t to) {
    if (from < to) __builtin_memset(at(codes, from), 0x80, static_cast<size_t>(to - from));
  }
};
struct ToPairs {
  static constexpr int kBytesPerCode = 2;
  template <class V, class Lanes>
  static void store(void* p, typename V::I q, Lanes) {
    V::store_pairs(p, q);
  }
  template <class V, int D>
  static void store_block(void* p, typename V::I a, typename V::I b) {
    V::store32(p, V::template s16_pairs<D>(a), typename V::Whole{});
    V::store32(at(p, V::kLanes * 4), V::template s16_pairs<D>(b), typename V::Whole{});
  }
  static void pad(void* codes, int64_t from, int64_t to) {
    if (from < to) __builtin_memset(at(codes, from * 2), 0, static_cast<size_t>((to - from) * 2));
  }
};

template <class V>
constexpr int64_t whole_vectors(int64_t k) {
  return (k + V::kLanes - 1) / V::kLanes * V::kLanes;
}

// q = rint(x * (127 * (1 / absmax))), of at most 127 * (1 + 2^-21), so never -128. A row that has a stat holds no NaN: all
// that is not below the limit is an outlier.
//
// Four vectors at a time, so that codes are narrowed together and stored as one whole vector: a row's codes are made from L1
// while the memory rests, so each cycle of it counts.
template <class V, int D, class To>
void encode_row(const void* x, int64_t k, float absmax, uint32_t limit, void* codes) {
  constexpr int64_t kBlock = 4 * V::kLanes;
  const bool tiny = absmax < 0x1p-120f;
  const auto multiplier = V::set(tiny ? 127.0f : 127.0f * (1.0f / absmax)), divisor = V::set(absmax);
  const auto below = V::set(static_cast<int32_t>(limit));
  const auto stored_below = V::template Stored<D>::limit(stored_limit<D>(limit));
  const int64_t blocks = tiny ? 0 : k / kBlock * kBlock;
  for (int64_t j = 0; j < blocks; j += kBlock) {
    const void* from = at(x, j * kBytes<D>);
    const auto a = V::template round_words_below<D>(from, stored_below, multiplier);
    const auto b = V::template round_words_below<D>(at(from, 2 * V::kLanes * kBytes<D>), stored_below, multiplier);
    To::template store_block<V, D>(at(codes, j * To::kBytesPerCode), a, b);
  }
  const void* rest = at(x, blocks * kBytes<D>);
  void* rest_codes = at(codes, blocks * To::kBytesPerCode);
  for_each_vector<V>(
      k - blocks, [&](int64_t j, auto lanes) __attribute__((always_inline)) {
        const auto value = V::template load<D>(at(rest, j * kBytes<D>), lanes);
        const auto scaled = V::mul(tiny ? V::div(value, divisor) : value, multiplier);
        To::template store<V>(at(rest_codes, j * To::kBytesPerCode), V::round_where_below(value, below, scaled), lanes);
      });
}

template <class V, int D, class To>
void encode(const void* x, int64_t k, int64_t k_padded, float absmax, uint32_t limit, void* codes) {
  if (!(absmax > 0.0f)) return To::pad(codes, 0, k_padded);
  encode_row<V, D, To>(x, k, absmax, limit, codes);
  To::pad(codes, whole_vectors<V>(k), k_padded);
}

template <class V, int D>
void encode_s8(const void* x, int64_t k, int64_t, float absmax, uint32_t limit, void* codes) {
  if (absmax > 0.0f) return encode_row<V, D, ToS8>(x, k, absmax, limit, codes);
  if (k > 0) __builtin_memset(codes, 0, static_cast<size_t>(k));
}

template <class V, class To>
void widen(const int8_t* a, int64_t k, int64_t k_padded, void* codes) {
  for_each_vector<V>(
      k, [&](int64_t j, auto lanes) __attribute__((always_inline)) {
        To::template store<V>(at(codes, j * To::kBytesPerCode), V::load_s8(a + j, lanes), lanes);
      });
  To::pad(codes, whole_vectors<V>(k), k_padded);
}

template <class V, int D>
void dequantize(const int8_t* q, int64_t k, float stat, void* y) {
  const auto s = V::set(stat), inv = V::set(kInv127);
  for_each_vector<V>(
      k, [&](int64_t j, auto lanes) __attribute__((always_inline)) {
        const auto value = V::mul(V::mul(V::to_float(V::load_s8(q + j, lanes)), s), inv);
        V::template store<D>(at(y, j * kBytes<D>), value, lanes);
      });
}

template <class V, int D>
void scale(const void* dy, int64_t n, const float* col_stats, void* g) {
  const auto inv = V::set(kInv127);
  for_each_vector<V>(
      n, [&](int64_t j, auto lanes) __attribute__((always_inline)) {
        const auto stats = V::mul(V::template load<0>(col_stats + j, lanes), inv);
        V::template store<0>(at(g, j * kBytes<0>), V::mul(V::template load<D>(at(dy, j * kBytes<D>), lanes), stats), lanes);
      });
}

template <class V, int D>
void store(const float* v, int64_t k, void* y, bool accumulate) {
  for_each_vector<V>(
      k, [&](int64_t j, auto lanes) __attribute__((always_inline)) {
        auto value = V::template load<0>(v + j, lanes);
        if (accumulate) value = V::add(V::template load<D>(at(y, j * kBytes<D>), lanes), value);
        V::template store<D>(at(y, j * kBytes<D>), value, lanes);
      });
}

}  // namespace
}  // namespace int8q::cpu
