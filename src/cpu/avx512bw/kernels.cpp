// SPDX-License-Identifier: Apache-2.0
//
// AVX-512 F, BW, VL, DQ without VNNI (Skylake-class servers): simd/pairs.h on zmm.
//
// gemm 8x32: 8 rows x 2 panels = 16 accumulators, 4 halves of B, 2 broadcasts, 2 products = 24 of 32 registers.
#include "cpu/kernels.h"
#include "cpu/simd/dot512.h"
#include "cpu/simd/gemm.h"
#include "cpu/simd/table.h"
#include "cpu/simd/vec512.h"

namespace int8q::cpu {
namespace {

using V = Vec512;

struct Pairs512 {
  using Vec = __m512i;
  struct A {
    Vec even, odd;
  };
  using B = A;
  static constexpr int kVecs = 1;
  static constexpr int kCodeBytes = 8;

  static Vec load(const int32_t* p) { return _mm512_loadu_si512(p); }
  static void store(int32_t* p, Vec v) { _mm512_storeu_si512(p, v); }
  static B load_b(const int8_t* p) {
    const Vec b = _mm512_loadu_si512(p);
    return {_mm512_srai_epi16(_mm512_slli_epi16(b, 8), 8), _mm512_srai_epi16(b, 8)};
  }
  static A load_a(const uint8_t* codes) { return {broadcast(codes), broadcast(codes + 4)}; }
  static Vec mac(Vec acc, const A& a, const B& b) {
    acc = _mm512_add_epi32(acc, _mm512_madd_epi16(a.even, b.even));
    return _mm512_add_epi32(acc, _mm512_madd_epi16(a.odd, b.odd));
  }

 private:
  static Vec broadcast(const uint8_t* p) {
    int32_t pair;
    __builtin_memcpy(&pair, p, 4);
    return _mm512_set1_epi32(pair);
  }
};

constexpr Products kProducts = {{"gemm_s16s8_8x32_avx512bw", gemm<Pairs512, 8, 2>},
                                {"gemv_s16s8_8x32_avx512bw", gemm<Pairs512, 8, 2>},
                                {"dot_s8s8_4x4_avx512bw", dot<Dot512, 4, 4>},
                                {"backward_f32_6x64_avx512bw", backward<V, 6, 4>}};

constexpr Kernels kTable = INT8Q_KERNEL_TABLE("avx512bw", CodeLayout::kS16Pairs, ToPairs, "s16", kProducts);

}  // namespace

const Kernels& avx512bw_kernels() { return kTable; }

}  // namespace int8q::cpu
