// SPDX-License-Identifier: Apache-2.0
//
// What gemm.h and dot.h ask of a ymm, whatever the instruction.
#pragma once

#include "cpu/simd/vec256.h"

namespace int8q::cpu {
namespace {

struct Ymm {
  using Vec = __m256i;
  static constexpr int kGroupBytes = 64;
  static constexpr bool kMacsOfPairs = false;
  static constexpr int kVecs = 2;

  static Vec load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  static void store(void* p, Vec v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
  static Vec zero() { return _mm256_setzero_si256(); }
  static Vec add(Vec a, Vec b) { return _mm256_add_epi32(a, b); }
  static Vec sub(Vec a, Vec b) { return _mm256_sub_epi32(a, b); }
  static Vec broadcast(const void* p) {
    int32_t dword;
    __builtin_memcpy(&dword, p, 4);
    return _mm256_set1_epi32(dword);
  }
  static int32_t sum(Vec v) {
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
  }
};

}  // namespace
}  // namespace int8q::cpu
