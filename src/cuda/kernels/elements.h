// SPDX-License-Identifier: Apache-2.0
//
// Eight neighbouring elements of a row as fp32, whatever the row's dtype and alignment.
#pragma once

#include "cuda/kernels/arguments.h"
#include "cuda/kernels/device.h"

namespace int8q::gpu {

inline constexpr int kChunk = 8;  // 16 bytes of 16-bit elements, 8 bytes of codes

// Dtypes are constants here, or known when the kernel runs and the same for all threads. T is an unsigned integer of an element's
// size; one of 32 bits is fp32, whatever the dtype beside it.
template <Dtype D>
struct BitsOfElement {
  using Type = uint16_t;
};
template <>
struct BitsOfElement<Dtype::kF32> {
  using Type = uint32_t;
};
template <Dtype D>
using BitsOf = typename BitsOfElement<D>::Type;
template <class T>
inline constexpr int kChunkWords = static_cast<int>(sizeof(T)) * kChunk / 4;
INT8Q_DEVICE int bytes_of(Dtype dtype) { return dtype == Dtype::kF32 ? 4 : 2; }

template <class T>
INT8Q_DEVICE float float_of_bits(Dtype dtype, uint32_t bits) {
  if constexpr (sizeof(T) == 4) return float_of(bits);
  return dtype == Dtype::kF16 ? half_to_float(static_cast<uint16_t>(bits)) : float_of(bits << 16);
}

INT8Q_DEVICE float load_element(Dtype dtype, const uint8_t* row, int64_t i) {
  const uint8_t* from = row + i * bytes_of(dtype);
  if (dtype == Dtype::kF32) return load(reinterpret_cast<const float*>(from));
  return float_of_bits<uint16_t>(dtype, load(reinterpret_cast<const uint16_t*>(from)));
}

INT8Q_DEVICE uint32_t magnitude(float x) { return bits_of(x) & 0x7fffffffu; }
INT8Q_DEVICE bool is_outlier(uint32_t bits, uint32_t limit) { return bits >= limit && bits <= kInfBits; }

// Rounds half to even.
INT8Q_DEVICE uint16_t to_bf16(float f) {
  const uint32_t bits = bits_of(f);
  if (magnitude(f) > kInfBits) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

// fp32 as a sum of three bf16 terms, exactly but for what is below 2^-133. They are cut, since the largest floats would round to Inf;
// a NaN whose first bits are Inf's is one in the next term.
//
// What is left behind a term: nothing of Inf.
INT8Q_DEVICE float rest_of_term(float x) {
  return magnitude(x) == kInfBits ? 0.0f : x - float_of(bits_of(x) & 0xffff0000u);
}
INT8Q_DEVICE uint32_t bf16_term(float x, int term) {
  const float second = rest_of_term(x), third = rest_of_term(second);
  return bits_of(term == 0 ? x : term == 1 ? second : third) >> 16;
}
// The next term of each of eight, which become what is left.
INT8Q_DEVICE U32x4 take_term(float (&v)[kChunk]) {
  uint32_t words[4];
#pragma unroll
  for (int e = 0; e < kChunk; e += 2) words[e / 2] = byte_permute(bits_of(v[e]), bits_of(v[e + 1]), 0x7632);
#pragma unroll
  for (int e = 0; e < kChunk; ++e) v[e] = rest_of_term(v[e]);
  return {words[0], words[1], words[2], words[3]};
}

// kWords words at `from`, a multiple of their size or of 16 bytes.
template <int kWords>
INT8Q_DEVICE void load_words(const void* from, uint32_t (&words)[kWords]) {
  if constexpr (kWords == 1) {
    words[0] = load(static_cast<const uint32_t*>(from));
  } else if constexpr (kWords == 2) {
    const U32x2 two = load(static_cast<const U32x2*>(from));
    words[0] = two.x, words[1] = two.y;
  } else {
#pragma unroll
    for (int w = 0; w < kWords; w += 4) {
      const U32x4 four = load(static_cast<const U32x4*>(from) + w / 4);
      words[w] = four.x, words[w + 1] = four.y, words[w + 2] = four.z, words[w + 3] = four.w;
    }
  }
}

// Element e of those in `words`.
template <class T, int kWords>
INT8Q_DEVICE uint32_t bits_at(const uint32_t (&words)[kWords], int e) {
  constexpr int kPerWord = 4 / sizeof(T), kBits = 8 * sizeof(T);
  return words[e / kPerWord] >> e % kPerWord * kBits & 0xffffffffu >> (32 - kBits);
}

// As many elements of a row of k, from i on, as there is room for; those from k on are 0. aligned: they lie at a multiple of their size
// in all, or of 16 bytes.
template <class T, int kWords>
INT8Q_DEVICE void load_bits(const T* row, int64_t i, int64_t k, bool aligned, uint32_t (&words)[kWords]) {
  constexpr int kPerWord = 4 / sizeof(T);
  if (aligned && i + kWords * kPerWord <= k) return load_words(row + i, words);
#pragma unroll
  for (int w = 0; w < kWords; ++w) words[w] = 0;
#pragma unroll
  for (int e = 0; e < kWords * kPerWord; ++e) {
    if (i + e < k) words[e / kPerWord] |= static_cast<uint32_t>(load(row + i + e)) << e % kPerWord * 8 * sizeof(T);
  }
}

template <class T, int kWords, int kCount>
INT8Q_DEVICE void floats_of(Dtype dtype, const uint32_t (&words)[kWords], float (&v)[kCount]) {
  static_assert(kWords * 4 == kCount * sizeof(T));
  if (sizeof(T) == 2 && dtype == Dtype::kF16) {  // decided once
#pragma unroll
    for (int e = 0; e < kCount; ++e) v[e] = float_of_bits<T>(Dtype::kF16, bits_at<T>(words, e));
  } else {
#pragma unroll
    for (int e = 0; e < kCount; ++e) v[e] = float_of_bits<T>(Dtype::kBf16, bits_at<T>(words, e));
  }
}

// Elements [i, i + 8) as floats, with load_bits' zeros and alignment.
template <class T>
INT8Q_DEVICE void load_chunk(Dtype dtype, const T* row, int64_t i, int64_t k, bool aligned, float (&v)[kChunk]) {
  uint32_t words[kChunkWords<T>];
  load_bits(row, i, k, aligned, words);
  floats_of<T>(dtype, words, v);
}
INT8Q_DEVICE void load_chunk(Dtype dtype, const uint8_t* row, int64_t i, int64_t k, bool aligned, float (&v)[kChunk]) {
  if (dtype == Dtype::kF32) return load_chunk(dtype, reinterpret_cast<const uint32_t*>(row), i, k, aligned, v);
  load_chunk(dtype, reinterpret_cast<const uint16_t*>(row), i, k, aligned, v);
}
// The same, at once wherever that is possible.
INT8Q_DEVICE void load_chunk(Dtype dtype, const uint8_t* row, int64_t i, int64_t k, float (&v)[kChunk]) {
  load_chunk(dtype, row, i, k, reinterpret_cast<uint64_t>(row + i * bytes_of(dtype)) % 16 == 0, v);
}

// v += these.
INT8Q_DEVICE void add_chunk(Dtype dtype, const uint8_t* row, int64_t i, int64_t k, float (&v)[kChunk]) {
  float more[kChunk];
  load_chunk(dtype, row, i, k, more);
#pragma unroll
  for (int e = 0; e < kChunk; ++e) v[e] += more[e];
}

inline constexpr int kCodeChunk = 16;

// Codes [0, valid) of 16 at `from`; the others are 0.
INT8Q_DEVICE U32x4 load_codes(const int8_t* from, int valid) {
  uint32_t words[4] = {0, 0, 0, 0};
#pragma unroll
  for (int i = 0; i < kCodeChunk; ++i) {
    if (i < valid) words[i / 4] |= static_cast<uint32_t>(load(reinterpret_cast<const uint8_t*>(from) + i)) << i % 4 * 8;
  }
  return {words[0], words[1], words[2], words[3]};
}

// 16 codes of row n at column k of a matrix [rows][cols], whose rows begin at multiples of 16 bytes if kAligned; outside of it 0.
template <class Left>
INT8Q_DEVICE int valid_codes(Left left) {
  return static_cast<int>(left < 0 ? 0 : left < kCodeChunk ? left : kCodeChunk);
}
template <bool kAligned>
INT8Q_DEVICE U32x4 load_codes(const int8_t* matrix, int64_t stride, int64_t rows, int64_t cols, int64_t n, int64_t k) {
  const int valid = n < rows ? valid_codes(cols - k) : 0;
  const int8_t* from = matrix + n * stride + k;
  return kAligned && valid == kCodeChunk ? load(reinterpret_cast<const U32x4*>(from)) : load_codes(from, valid);
}

// Place of 16-byte chunk `chunk` of row `row` in a stage of rows of 64 bytes: eight rows of one chunk, which ldmatrix reads at
// once, lie in all 32 banks.
INT8Q_DEVICE uint32_t swizzled(int row, int chunk) {
  return static_cast<uint32_t>(row * 64 + (chunk ^ (row / 2 % 4)) * kCodeChunk);
}

INT8Q_DEVICE uint16_t round_to_16_bits(Dtype dtype, float value) {
  return dtype == Dtype::kF16 ? float_to_half(value) : to_bf16(value);
}

INT8Q_DEVICE void store_element(Dtype dtype, uint8_t* row, int64_t i, float value) {
  if (dtype == Dtype::kF32) return store(reinterpret_cast<float*>(row + i * 4), value);
  store(reinterpret_cast<uint16_t*>(row + i * 2), round_to_16_bits(dtype, value));
}

// Stores as many elements of a row of k, from i on, as these words have, at once where their place is a multiple of 16 bytes.
template <class T, int kWords>
INT8Q_DEVICE void store_bits(T* row, int64_t i, int64_t k, const uint32_t (&words)[kWords]) {
  constexpr int kElements = kWords * 4 / static_cast<int>(sizeof(T));
  if (i + kElements <= k && reinterpret_cast<uint64_t>(row + i) % 16 == 0) {
#pragma unroll
    for (int w = 0; w < kWords; w += 4)
      store(reinterpret_cast<U32x4*>(row + i) + w / 4, U32x4{words[w], words[w + 1], words[w + 2], words[w + 3]});
    return;
  }
#pragma unroll
  for (int e = 0; e < kElements; ++e) {
    if (i + e < k) store(row + i + e, static_cast<T>(bits_at<T>(words, e)));
  }
}
INT8Q_DEVICE void store_chunk(Dtype dtype, uint8_t* row, int64_t i, int64_t k, const float (&v)[kChunk]) {
  if (dtype == Dtype::kF32) {
    uint32_t words[kChunk];
#pragma unroll
    for (int e = 0; e < kChunk; ++e) words[e] = bits_of(v[e]);
    return store_bits(reinterpret_cast<uint32_t*>(row), i, k, words);
  }
  uint32_t words[kChunk / 2];
#pragma unroll
  for (int e = 0; e < kChunk; e += 2) {
    words[e / 2] = static_cast<uint32_t>(round_to_16_bits(dtype, v[e])) |
                   static_cast<uint32_t>(round_to_16_bits(dtype, v[e + 1])) << 16;
  }
  store_bits(reinterpret_cast<uint16_t*>(row), i, k, words);
}

}  // namespace int8q::gpu
