// SPDX-License-Identifier: Apache-2.0
//
// What gemm.h and dot.h ask of a zmm, whatever the instruction.
#pragma once

#include "cpu/simd/vec512.h"

namespace int8q::cpu {
namespace {

struct Zmm {
  using Vec = __m512i;
  static constexpr int kGroupBytes = 64;
  static constexpr bool kMacsOfPairs = false;
  static constexpr int kVecs = 1;

  static Vec load(const void* p) { return _mm512_loadu_si512(p); }
  static void store(void* p, Vec v) { _mm512_storeu_si512(p, v); }
  static Vec zero() { return _mm512_setzero_si512(); }
  static Vec add(Vec a, Vec b) { return _mm512_add_epi32(a, b); }
  static Vec sub(Vec a, Vec b) { return _mm512_sub_epi32(a, b); }
  static Vec broadcast(const void* p) {
    int32_t dword;
    __builtin_memcpy(&dword, p, 4);
    return _mm512_set1_epi32(dword);
  }
  static int32_t sum(Vec v) { return _mm512_reduce_add_epi32(v); }
};

}  // namespace
}  // namespace int8q::cpu
