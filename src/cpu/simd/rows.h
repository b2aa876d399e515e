// SPDX-License-Identifier: Apache-2.0
//
// Kernels over rows of floats or codes, once for every vector type V: absmax, quantization, dequantization, scaling,
// rounding to storage. Memory-bound: each reads its row once, in whole vectors and one tail through a stack buffer, so that
// nothing outside the row is touched.
#pragma once

#include <immintrin.h>
#include <stddef.h>

#include "cpu/kernels.h"

namespace int8q::cpu {
namespace {

constexpr float kInv127 = 1.0f / 127.0f;
constexpr float kInv16129 = 1.0f / 16129.0f;

template <int D>
constexpr int64_t kBytes = D == 0 ? 4 : 2;

inline const uint8_t* at(const void* p, int64_t bytes) { return static_cast<const uint8_t*>(p) + bytes; }
inline uint8_t* at(void* p, int64_t bytes) { return static_cast<uint8_t*>(p) + bytes; }

// `count` elements of `bytes` bytes, zeros behind them.
template <int kCapacity>
struct TailBuffer {
  alignas(64) uint8_t bytes[kCapacity];
  TailBuffer() { __builtin_memset(bytes, 0, kCapacity); }
  TailBuffer(const void* from, int64_t count) {
    __builtin_memset(bytes, 0, kCapacity);
    __builtin_memcpy(bytes, from, static_cast<size_t>(count));
  }
  void write(void* to, int64_t count) const { __builtin_memcpy(to, bytes, static_cast<size_t>(count)); }
};

// Elements [j, j + count) of a row as floats, zeros behind them; count may be a whole vector.
template <class V, int D>
typename V::F load_some(const void* row, int64_t j, int64_t count) {
  if (count >= V::kLanes) return V::template load<D>(at(row, j * kBytes<D>));
  const TailBuffer<64> tail(at(row, j * kBytes<D>), count * kBytes<D>);
  return V::template load<D>(tail.bytes);
}

template <class V, int D>
void store_some(void* row, int64_t j, int64_t count, typename V::F f) {
  if (count >= V::kLanes) return V::template store<D>(at(row, j * kBytes<D>), f);
  TailBuffer<64> tail;
  V::template store<D>(tail.bytes, f);
  tail.write(at(row, j * kBytes<D>), count * kBytes<D>);
}

// absmax on the bits of |x|; four vectors at a time hide the latency of the maximum.
template <class V, int D>
uint32_t scan(const void* x, int64_t k, uint32_t limit, uint64_t* column_bits) {
  using I = typename V::I;
  I absmax = V::set(int32_t{0});
  const auto step = [&](int64_t j, typename V::F f) {
    const I bits = V::magnitude(f);
    const auto outlier = V::within(bits, static_cast<int32_t>(limit), static_cast<int32_t>(kInfBits));
    const uint64_t lanes = V::lane_bits(outlier);
    if (lanes != 0 && column_bits != nullptr) column_bits[j / 64] |= lanes << (j % 64);
    absmax = V::max_unsigned(absmax, V::clear(outlier, bits));
  };
  int64_t j = 0;
  for (; j + V::kLanes <= k; j += V::kLanes) step(j, V::template load<D>(at(x, j * kBytes<D>)));
  if (j < k) step(j, load_some<V, D>(x, j, k - j));
  return V::reduce_max_unsigned(absmax);
}

struct ToS8 {
  static constexpr int kBytesPerCode = 1;
  template <class V>
  static void store(void* p, typename V::I q) {
    V::store_s8(p, q);
  }
  static constexpr int kZero = 0;
};
struct ToU8 {
  static constexpr int kBytesPerCode = 1;
  template <class V>
  static void store(void* p, typename V::I q) {
    V::store_u8(p, q);
  }
  static constexpr int kZero = 0x80;
};
struct ToPairs {
  static constexpr int kBytesPerCode = 2;
  template <class V>
  static void store(void* p, typename V::I q) {
    V::store_pairs(p, q);
  }
  static constexpr int kZero = 0;
};

// The last, partial vector of codes, its padding included as far as there is room for codes.
template <class V, class To>
void store_tail(void* codes, int64_t j, int64_t room, typename V::I q) {
  TailBuffer<64> tail;
  To::template store<V>(tail.bytes, q);
  const int64_t bytes = To::kBytesPerCode * (room < V::kLanes ? room : V::kLanes);
  tail.write(at(codes, j * To::kBytesPerCode), bytes);
}

template <class To>
void pad(void* codes, int64_t from, int64_t to) {
  if (from < to)
    __builtin_memset(at(codes, from * To::kBytesPerCode), To::kZero, static_cast<size_t>((to - from) * To::kBytesPerCode));
}

// q = rint(x * (127 * (1 / absmax))): cvtps2dq rounds half to even. A row's padding ends at `end` codes.
template <class V, int D, class To>
void encode_to(const void* x, int64_t k, int64_t end, float absmax, uint32_t limit, void* codes) {
  using F = typename V::F;
  if (!(absmax > 0.0f)) return pad<To>(codes, 0, end);
  const bool tiny = absmax < 0x1p-120f;
  const F multiplier = V::set(tiny ? 127.0f : 127.0f * (1.0f / absmax)), divisor = V::set(absmax);
  const auto quantize = [&](F f) {
    const auto outlier = V::within(V::magnitude(f), static_cast<int32_t>(limit), static_cast<int32_t>(kInfBits));
    return V::clear(outlier, V::to_nearest(V::mul(tiny ? V::div(f, divisor) : f, multiplier)));
  };
  int64_t j = 0;
  for (; j + V::kLanes <= k; j += V::kLanes) {
    To::template store<V>(at(codes, j * To::kBytesPerCode), quantize(V::template load<D>(at(x, j * kBytes<D>))));
  }
  if (j < k) {
    store_tail<V, To>(codes, j, end - j, quantize(load_some<V, D>(x, j, k - j)));
    j += V::kLanes;
  }
  pad<To>(codes, j, end);
}

template <class V, int D, class To>
void encode(const void* x, int64_t k, int64_t k_padded, float absmax, uint32_t limit, void* codes) {
  encode_to<V, D, To>(x, k, k_padded, absmax, limit, codes);
}

template <class V, int D>
void encode_s8(const void* x, int64_t k, int64_t, float absmax, uint32_t limit, void* codes) {
  encode_to<V, D, ToS8>(x, k, k, absmax, limit, codes);
}

template <class V, class To>
void widen(const int8_t* a, int64_t k, int64_t k_padded, void* codes) {
  int64_t j = 0;
  for (; j + V::kLanes <= k; j += V::kLanes) To::template store<V>(at(codes, j * To::kBytesPerCode), V::load_s8(a + j));
  if (j < k) {
    const TailBuffer<64> tail(a + j, k - j);
    store_tail<V, To>(codes, j, k_padded - j, V::load_s8(tail.bytes));
    j += V::kLanes;
  }
  pad<To>(codes, j, k_padded);
}

template <class V, int D>
void dequantize(const int8_t* q, int64_t k, float stat, void* y) {
  const typename V::F s = V::set(stat), inv = V::set(kInv127);
  const auto value = [&](const void* codes) { return V::mul(V::mul(V::to_float(V::load_s8(codes)), s), inv); };
  int64_t j = 0;
  for (; j + V::kLanes <= k; j += V::kLanes) V::template store<D>(at(y, j * kBytes<D>), value(q + j));
  if (j < k) {
    const TailBuffer<64> tail(q + j, k - j);
    store_some<V, D>(y, j, k - j, value(tail.bytes));
  }
}

template <class V, int D>
void scale(const void* dy, int64_t n, const float* col_stats, float* g) {
  const typename V::F inv = V::set(kInv127);
  for (int64_t j = 0; j < n; j += V::kLanes) {
    const int64_t count = n - j;
    const auto stats = load_some<V, 0>(col_stats, j, count);
    store_some<V, 0>(g, j, count, V::mul(load_some<V, D>(dy, j, count), V::mul(stats, inv)));
  }
}

template <class V, int D>
void store(const float* v, int64_t k, void* y, bool accumulate) {
  for (int64_t j = 0; j < k; j += V::kLanes) {
    const int64_t count = k - j;
    auto value = load_some<V, 0>(v, j, count);
    if (accumulate) value = V::add(load_some<V, D>(y, j, count), value);
    store_some<V, D>(y, j, count, value);
  }
}

}  // namespace
}  // namespace int8q::cpu
