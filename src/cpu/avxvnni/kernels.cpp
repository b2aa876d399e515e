// SPDX-License-Identifier: Apache-2.0
//
// AVX-VNNI: AVX2 with vpdpbusd on ymm, u8 codes. It wraps (vpdpbusds would saturate); u8 * s8 <= 255 * 128, four of them
// 130,560. One-instruction assembly, since g++ 12 spills the intrinsic's accumulators. Test builds encode it as EVEX, which
// machines with AVX512-VNNI run.
//
// gemm 6x16: 6 rows x 2 ymm = 12 accumulators, 2 of B, 1 broadcast = 15 of 16 registers.
// dot 4x2: (4 + 1) x 2 accumulators, 2 of B, 1 of A, the 128s = 14.
// backward 6x16: 6 x 2 accumulators, 2 of w, 1 of g = 15.
#include "cpu/kernels.h"
#include "cpu/simd/backward.h"
#include "cpu/simd/dot.h"
#include "cpu/simd/gemm.h"
#include "cpu/simd/ops256.h"
#include "cpu/simd/table.h"

#if defined(INT8Q_TEST_HOOKS)
#define INT8Q_VPDPBUSD "%{evex%} vpdpbusd"
#else
#define INT8Q_VPDPBUSD "%{vex%} vpdpbusd"
#endif

namespace int8q::cpu {
namespace {

using V = Vec256;

struct Vnni : Ymm {
  using A = Vec;
  using B = Vec;
  static constexpr int kCodeBytes = 4;
  static B load_b(const int8_t* p) { return load(p); }
  static A load_a(const uint8_t* codes) { return broadcast(codes); }
  static Vec mac(Vec acc, A a, B b) {
    asm(INT8Q_VPDPBUSD " %2, %1, %0" : "+x"(acc) : "x"(a), "x"(b));
    return acc;
  }
};

struct Biased : Vnni {
  static constexpr int kBytes = 32;
  static constexpr bool kBiased = true;
  static Vec bias() { return _mm256_set1_epi8(-128); }
  static Vec load_a(const int8_t* p) { return _mm256_xor_si256(load(p), bias()); }
  static Vec tail_a(const int8_t* p, int64_t bytes) { return _mm256_xor_si256(V::load_bytes(p, bytes), bias()); }
  static Vec tail_b(const int8_t* p, int64_t bytes) { return V::load_bytes(p, bytes); }
};

// One row: two panels at once cover vpdpbusd's latency.
void gemv(const GemmBlock& block) {
  if (block.rows == 1) return gemm<Vnni, 1, 2>(block);
  gemm<Vnni, 6, 1, Fetch::kL1>(block);
}

constexpr Products kProducts = {{"gemm_u8s8_6x16_avxvnni", gemm<Vnni, 6, 1, Fetch::kL1>},
                                {"gemv_u8s8_6x16_avxvnni", gemv},
                                {"dot_s8s8_4x2_avxvnni", dot<Biased, 4, 2>},
                                {"backward_f32_6x16_avxvnni", backward<FusedStep<V>, 6, 2>}};

constexpr Kernels kTable = INT8Q_KERNEL_TABLE("avxvnni", CodeLayout::kU8, ToU8, "u8", kProducts);

}  // namespace

const Kernels& avxvnni_kernels() { return kTable; }

}  // namespace int8q::cpu
