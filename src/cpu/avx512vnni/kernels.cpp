// SPDX-License-Identifier: Apache-2.0
//
// AVX512-VNNI: vpdpbusd on zmm, u8 codes.
//
// gemm 6x64: 6 rows x 4 panels = 24 accumulators, 4 of B, 1 broadcast = 29 of 32 registers. 24 independent chains cover
// latency 5 x 2 a cycle. vpdpbusd wraps (vpdpbusds would saturate). One-instruction assembly, since g++ 12 spills the
// intrinsic's accumulators.
//
// gemv streams the panels once, whatever the number of rows: at most 16 of them have their accumulators in registers.
#include "cpu/kernels.h"
#include "cpu/simd/dot512.h"
#include "cpu/simd/gemm.h"
#include "cpu/simd/table.h"
#include "cpu/simd/vec512.h"

namespace int8q::cpu {
namespace {

using V = Vec512;

struct Vnni512 {
  using Vec = __m512i;
  using A = Vec;
  using B = Vec;
  static constexpr int kVecs = 1;
  static constexpr int kCodeBytes = 4;

  static Vec load(const int32_t* p) { return _mm512_loadu_si512(p); }
  static void store(int32_t* p, Vec v) { _mm512_storeu_si512(p, v); }
  static B load_b(const int8_t* p) { return _mm512_loadu_si512(p); }
  static A load_a(const uint8_t* codes) {
    int32_t group;
    __builtin_memcpy(&group, codes, 4);
    return _mm512_set1_epi32(group);
  }
  static Vec mac(Vec acc, A a, B b) {
    asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
    return acc;
  }
};

// rows <= 6: 4 panels; <= 12: 2 panels of 12 rows; <= 16: single panels of 16 rows.
void gemv(const GemmBlock& block) {
  if (block.rows <= 6) return gemm<Vnni512, 6, 4>(block);
  if (block.rows <= 12) return gemm<Vnni512, 12, 2>(block);
  gemm<Vnni512, 16, 1>(block);
}

constexpr Products kProducts = {{"gemm_u8s8_6x64_avx512vnni", gemm<Vnni512, 6, 4>},
                                {"gemv_u8s8_16x64_avx512vnni", gemv},
                                {"dot_s8s8_4x4_avx512vnni", dot<Dot512, 4, 4>},
                                {"backward_f32_6x64_avx512vnni", backward<V, 6, 4>}};

constexpr Kernels kTable = INT8Q_KERNEL_TABLE("avx512vnni", CodeLayout::kU8, ToU8, "u8", kProducts);

}  // namespace

const Kernels& avx512vnni_kernels() { return kTable; }

}  // namespace int8q::cpu
