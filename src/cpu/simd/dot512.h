// SPDX-License-Identifier: Apache-2.0
//
// dot.h's step on zmm: 32 codes widened, vpmaddwd.
#pragma once

#include "cpu/simd/dot.h"

namespace int8q::cpu {
namespace {

struct Dot512 {
  using Vec = __m512i;
  static constexpr int kBytes = 32;
  static Vec zero() { return _mm512_setzero_si512(); }
  static Vec widen(const void* p) { return _mm512_cvtepi8_epi16(_mm256_loadu_si256(static_cast<const __m256i*>(p))); }
  static Vec mac(Vec acc, Vec a, Vec b) { return _mm512_add_epi32(acc, _mm512_madd_epi16(a, b)); }
  static int32_t sum(Vec v) { return _mm512_reduce_add_epi32(v); }
};

}  // namespace
}  // namespace int8q::cpu
