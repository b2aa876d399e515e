// SPDX-License-Identifier: Apache-2.0
//
// Exact s8 products without VNNI (CodeLayout::kS16Pairs). A group of four k's of B is a dword {b0 b1 b2 b3} a row:
//
//   even = vpsraw(vpsllw(b, 8), 8) = {b0, b2},  odd = vpsraw(b, 8) = {b1, b3}   as s16 pairs
//   acc += vpmaddwd({a0, a2}, even) + vpmaddwd({a1, a3}, odd)
//
// |a * b| <= 128 * 128, a pair of pairs <= 4 * 16,384: no saturation anywhere. Three shifts a vector of B are shared by the
// tile's rows; each row costs two vpmaddwd and two vpaddd for 32 (ymm) or 64 (zmm) products.
#pragma once

#include <immintrin.h>
#include <stdint.h>

namespace int8q::cpu {
namespace {

struct Pairs256 {
  using Vec = __m256i;
  struct A {
    Vec even, odd;
  };
  using B = A;
  static constexpr int kVecs = 2;
  static constexpr int kCodeBytes = 8;

  static Vec load(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static void store(int32_t* p, Vec v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
  static B load_b(const int8_t* p) {
    const Vec b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return {_mm256_srai_epi16(_mm256_slli_epi16(b, 8), 8), _mm256_srai_epi16(b, 8)};
  }
  static A load_a(const uint8_t* codes) { return {broadcast(codes), broadcast(codes + 4)}; }
  static Vec mac(Vec acc, const A& a, const B& b) {
    acc = _mm256_add_epi32(acc, _mm256_madd_epi16(a.even, b.even));
    return _mm256_add_epi32(acc, _mm256_madd_epi16(a.odd, b.odd));
  }

 private:
  static Vec broadcast(const uint8_t* p) {
    int32_t pair;
    __builtin_memcpy(&pair, p, 4);
    return _mm256_set1_epi32(pair);
  }
};

}  // namespace
}  // namespace int8q::cpu
