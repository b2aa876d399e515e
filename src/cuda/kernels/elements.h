// SPDX-License-Identifier: Apache-2.0
//
// Eight neighbouring elements of a row as fp32, whatever the row's dtype and alignment.
#pragma once

#include "cuda/kernels/arguments.h"
#include "cuda/kernels/device.h"

namespace int8q::gpu {

inline constexpr int kChunk = 8;  // 16 bytes of 16-bit elements, 8 bytes of codes

template <Dtype D>
inline constexpr int kElementBytes = D == Dtype::kF32 ? 4 : 2;

template <Dtype D>
INT8Q_DEVICE float float_of_16_bits(uint32_t h) {
  return D == Dtype::kF16 ? half_to_float(static_cast<uint16_t>(h)) : float_of(h << 16);
}

// An element's bits, wherever they came from.
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
template <Dtype D>
INT8Q_DEVICE float float_of_bits(uint32_t bits) {
  if constexpr (D == Dtype::kF32) {
    return float_of(bits);
  } else {
    return float_of_16_bits<D>(bits);
  }
}

template <Dtype D>
INT8Q_DEVICE float load_element(const uint8_t* row, int64_t i) {
  return float_of_bits<D>(load(reinterpret_cast<const BitsOf<D>*>(row + i * kElementBytes<D>)));
}

INT8Q_DEVICE uint32_t magnitude(float x) { return bits_of(x) & 0x7fffffffu; }
INT8Q_DEVICE bool is_outlier(uint32_t bits, uint32_t limit) { return bits >= limit && bits <= kInfBits; }

// Where the dtype is known when the kernel runs, and the same for all threads.
INT8Q_DEVICE float load_element(Dtype dtype, const uint8_t* row, int64_t i) {
  return dtype == Dtype::kF32   ? load_element<Dtype::kF32>(row, i)
         : dtype == Dtype::kF16 ? load_element<Dtype::kF16>(row, i)
                                : load_element<Dtype::kBf16>(row, i);
}

// Rounds half to even.
INT8Q_DEVICE uint16_t to_bf16(float f) {
  const uint32_t bits = bits_of(f);
  if (magnitude(f) > kInfBits) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

// What the first eight bits of x leave: nothing of Inf.
INT8Q_DEVICE float rest_of_term(float x) {
  return magnitude(x) == kInfBits ? 0.0f : x - float_of(bits_of(x) & 0xffff0000u);
}
// x = term 0 + term 1 + term 2, exactly but for what is below 2^-133: terms are cut, since the largest floats would round to Inf.
INT8Q_DEVICE uint16_t bf16_term(float x, int term) {
  for (; term > 0; --term) x = rest_of_term(x);
  return static_cast<uint16_t>((magnitude(x) > kInfBits ? 0x7fc00000u : bits_of(x)) >> 16);
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

INT8Q_DEVICE void store_element(Dtype dtype, uint8_t* row, int64_t i, float value) {
  if (dtype == Dtype::kF32) return store(reinterpret_cast<float*>(row + i * 4), value);
  store(reinterpret_cast<uint16_t*>(row + i * 2), dtype == Dtype::kF16 ? float_to_half(value) : to_bf16(value));
}

// Elements [i, i + 8) of a row that begins at a multiple of 16 bytes, i a multiple of 8, as they lie there.
template <Dtype D>
struct ChunkBits {
  U32x4 words[D == Dtype::kF32 ? 2 : 1];
};
template <Dtype D>
INT8Q_DEVICE ChunkBits<D> load_bits(const uint8_t* row, int64_t i) {
  const auto* from = reinterpret_cast<const U32x4*>(row + i * kElementBytes<D>);
  if constexpr (D == Dtype::kF32) {
    return {{load(from), load(from + 1)}};
  } else {
    return {{load(from)}};
  }
}
template <Dtype D>
INT8Q_DEVICE void floats_of(const ChunkBits<D>& bits, float (&v)[kChunk]) {
#pragma unroll
  for (int e = 0; e < kChunk; ++e) {
    constexpr int kPerWord = 4 / kElementBytes<D>;
    const U32x4& four = bits.words[e / kPerWord / 4];
    const uint32_t words[4] = {four.x, four.y, four.z, four.w}, word = words[e / kPerWord % 4];
    if constexpr (D == Dtype::kF32) {
      v[e] = float_of(word);
    } else {
      v[e] = float_of_16_bits<D>(word >> e % 2 * 16 & 0xffffu);
    }
  }
}

// Elements [i, i + 8) of a row of k, i a multiple of 8; those from k on are 0. kAligned: rows begin at multiples of 16 bytes.
template <Dtype D, bool kAligned>
INT8Q_DEVICE void load_chunk(const uint8_t* row, int64_t i, int64_t k, float (&v)[kChunk]) {
  if (kAligned && i + kChunk <= k) return floats_of<D>(load_bits<D>(row, i), v);
#pragma unroll
  for (int e = 0; e < kChunk; ++e) v[e] = i + e < k ? load_element<D>(row, i + e) : 0.0f;
}

// The same where the dtype is known when the kernel runs.
template <bool kAligned>
INT8Q_DEVICE void load_chunk(Dtype dtype, const uint8_t* row, int64_t i, int64_t k, float (&v)[kChunk]) {
  if (dtype == Dtype::kF32) return load_chunk<Dtype::kF32, kAligned>(row, i, k, v);
  if (dtype == Dtype::kF16) return load_chunk<Dtype::kF16, kAligned>(row, i, k, v);
  load_chunk<Dtype::kBf16, kAligned>(row, i, k, v);
}

// Elements [i, i + 8) of a row of k, i a multiple of 8, at once where their place is a multiple of 16 bytes; those from k on are 0.
template <Dtype D>
INT8Q_DEVICE void load_chunk_anywhere(const uint8_t* row, int64_t i, int64_t k, float (&v)[kChunk]) {
  const bool aligned = reinterpret_cast<uint64_t>(row + i * kElementBytes<D>) % 16 == 0;
  aligned ? load_chunk<D, true>(row, i, k, v) : load_chunk<D, false>(row, i, k, v);
}
INT8Q_DEVICE void load_chunk_anywhere(Dtype dtype, const uint8_t* row, int64_t i, int64_t k, float (&v)[kChunk]) {
  if (dtype == Dtype::kF32) return load_chunk_anywhere<Dtype::kF32>(row, i, k, v);
  if (dtype == Dtype::kF16) return load_chunk_anywhere<Dtype::kF16>(row, i, k, v);
  load_chunk_anywhere<Dtype::kBf16>(row, i, k, v);
}

// v += these.
INT8Q_DEVICE void add_chunk(Dtype dtype, const uint8_t* row, int64_t i, int64_t k, float (&v)[kChunk]) {
  float more[kChunk];
  load_chunk_anywhere(dtype, row, i, k, more);
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
INT8Q_DEVICE int valid_codes(int64_t left) {
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

// Stores elements [i, i + 8) of a row of k, i a multiple of 8, at once where their place is a multiple of 16 bytes.
INT8Q_DEVICE void store_chunk(Dtype dtype, uint8_t* row, int64_t i, int64_t k, const float (&v)[kChunk]) {
  uint8_t* to = row + i * (dtype == Dtype::kF32 ? 4 : 2);
  if (i + kChunk > k || reinterpret_cast<uint64_t>(to) % 16 != 0) {
#pragma unroll
    for (int e = 0; e < kChunk; ++e) {
      if (i + e < k) store_element(dtype, row, i + e, v[e]);
    }
    return;
  }
  if (dtype == Dtype::kF32) {
    store(reinterpret_cast<U32x4*>(to), U32x4{bits_of(v[0]), bits_of(v[1]), bits_of(v[2]), bits_of(v[3])});
    store(reinterpret_cast<U32x4*>(to) + 1, U32x4{bits_of(v[4]), bits_of(v[5]), bits_of(v[6]), bits_of(v[7])});
    return;
  }
  uint32_t words[4] = {0, 0, 0, 0};
#pragma unroll
  for (int e = 0; e < kChunk; ++e) {
    const uint32_t h = dtype == Dtype::kF16 ? float_to_half(v[e]) : to_bf16(v[e]);
    words[e / 2] |= h << e % 2 * 16;
  }
  store(reinterpret_cast<U32x4*>(to), U32x4{words[0], words[1], words[2], words[3]});
}

}  // namespace int8q::gpu
