// SPDX-License-Identifier: Apache-2.0
//
// AVX-512 F, BW, VL, DQ without VNNI (Skylake-class servers): avx2/kernels.cpp's exact vpmaddwd on zmm.
//
// gemm 8x32: 8 rows x 2 panels = 16 accumulators, 4 halves of B, 2 broadcasts, 2 products = 24 of 32 registers.
// dot 4x4: 16 accumulators, 4 of B, 1 of A, products = 22.
// backward 6x64: 24 accumulators, 4 of w, 1 of g = 29.
#include "cpu/kernels.h"
#include "cpu/simd/backward.h"
#include "cpu/simd/dot.h"
#include "cpu/simd/gemm.h"
#include "cpu/simd/ops512.h"
#include "cpu/simd/table.h"

namespace int8q::cpu {
namespace {

using V = Vec512;

struct Pairs : Zmm {
  struct A {
    Vec even, odd;
  };
  using B = A;
  static constexpr int kCodeBytes = 8;

  static B load_b(const int8_t* p) {
    const Vec b = load(p);
    return {_mm512_srai_epi16(_mm512_slli_epi16(b, 8), 8), _mm512_srai_epi16(b, 8)};
  }
  static A load_a(const uint8_t* codes) { return {broadcast(codes), broadcast(codes + 4)}; }
  static Vec mac(Vec acc, const A& a, const B& b) {
    acc = _mm512_add_epi32(acc, _mm512_madd_epi16(a.even, b.even));
    return _mm512_add_epi32(acc, _mm512_madd_epi16(a.odd, b.odd));
  }
};

struct Widened : Zmm {
  static constexpr int kBytes = 32;
  static constexpr bool kBiased = false;
  static Vec bias() { return zero(); }
  static Vec load_a(const int8_t* p) {
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static Vec load_b(const int8_t* p) { return load_a(p); }
  static Vec tail_a(const int8_t* p, int64_t bytes) {
    return _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8((uint32_t{1} << bytes) - 1, p));
  }
  static Vec tail_b(const int8_t* p, int64_t bytes) { return tail_a(p, bytes); }
  static Vec mac(Vec acc, Vec a, Vec b) { return _mm512_add_epi32(acc, _mm512_madd_epi16(a, b)); }
};

void gemv(const GemmBlock& block) {
  if (block.rows == 1) return gemm<Pairs, 1, 4>(block);
  gemm<Pairs, 8, 2, Fetch::kL2>(block);
}

constexpr Products kProducts = {{"gemm_s16s8_8x32_avx512bw", gemm_widened<Pairs, 8, 2>},
                                {"gemv_s16s8_8x32_avx512bw", gemv},
                                {"dot_s8s8_4x4_avx512bw", dot<Widened, 4, 4>},
                                {"backward_f32_6x64_avx512bw", backward<FusedStep<V>, 6, 4>}};

constexpr Kernels kTable = INT8Q_KERNEL_TABLE("avx512bw", CodeLayout::kS16Pairs, ToPairs, "s16", kProducts);

}  // namespace

const Kernels& avx512bw_kernels() { return kTable; }

}  // namespace int8q::cpu
