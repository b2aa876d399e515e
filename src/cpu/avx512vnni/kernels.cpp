// SPDX-License-Identifier: Apache-2.0
//
// AVX512-VNNI: vpdpbusd on zmm, u8 codes. It wraps (vpdpbusds would saturate); u8 * s8 <= 255 * 128, four of them 130,560.
// One-instruction assembly, since g++ 12 spills the intrinsic's accumulators.
//
// gemm 6x64: 6 rows x 4 panels = 24 accumulators, 4 of B, 1 broadcast = 29 of 32 registers. 24 independent chains cover
// latency 5 x 2 a cycle.
// gemv: up to 6 rows as gemm; up to 16 in tiles of 8 rows x 2 panels, the second of which finds the panels in L2.
// dot 4x4: (4 + 1) x 4 accumulators, 4 of B, 1 of A, the 128s = 26.
// backward 6x64: 24 accumulators, 4 of w, 1 of g = 29; in fp32, and by vdpbf16ps on CPUs that have it.
#include "cpu/kernels.h"
#include "cpu/simd/backward.h"
#include "cpu/simd/backward_bf16.h"
#include "cpu/simd/dot.h"
#include "cpu/simd/gemm.h"
#include "cpu/simd/ops512.h"
#include "cpu/simd/table.h"

namespace int8q::cpu {
namespace {

using V = Vec512;

struct Vnni : Zmm {
  using A = Vec;
  using B = Vec;
  static constexpr int kCodeBytes = 4;
  static B load_b(const int8_t* p) { return load(p); }
  static A load_a(const uint8_t* codes) { return broadcast(codes); }
  static Vec mac(Vec acc, A a, B b) {
    asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
    return acc;
  }
};

struct Biased : Vnni {
  static constexpr int kBytes = 64;
  static constexpr bool kBiased = true;
  static Vec bias() { return _mm512_set1_epi8(-128); }
  static Vec load_a(const int8_t* p) { return _mm512_xor_si512(load(p), bias()); }
  static Vec tail_a(const int8_t* p, int64_t bytes) { return _mm512_xor_si512(tail_b(p, bytes), bias()); }
  static Vec tail_b(const int8_t* p, int64_t bytes) { return _mm512_maskz_loadu_epi8((uint64_t{1} << bytes) - 1, p); }
};

void gemv(const GemmBlock& block) {
  if (block.rows <= 6) return gemm<Vnni, 6, 4>(block);
  gemm<Vnni, 8, 2, Fetch::kL2>(block);
}

constexpr Products kProducts = {{"gemm_u8s8_6x64_avx512vnni", gemm<Vnni, 6, 4, Fetch::kNext>},
                                {"gemv_u8s8_8x32_avx512vnni", gemv},
                                {"dot_s8s8_4x4_avx512vnni", dot<Biased, 4, 4>},
                                {"backward_f32_6x64_avx512vnni", backward<FusedStep<V>, 6, 4>}};

constexpr Kernels kTable = INT8Q_KERNEL_TABLE("avx512vnni", CodeLayout::kU8, ToU8, "u8", kProducts);

constexpr Kernels with_bf16(Kernels table) {
  table.scale[2].run = scale_to_bf16;
  table.unpack_bf16 = {"unpack_bf16_avx512vnni", unpack<PairStep>};
  table.backward_bf16 = {"backward_bf16_6x64_avx512vnni", backward<PairStep, 6, 4>};
  return table;
}
constexpr Kernels kBf16Table = with_bf16(kTable);

}  // namespace

const Kernels& avx512vnni_kernels() { return kTable; }
const Kernels& avx512vnni_bf16_kernels() { return kBf16Table; }

}  // namespace int8q::cpu
