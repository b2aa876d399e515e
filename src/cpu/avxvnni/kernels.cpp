// SPDX-License-Identifier: Apache-2.0
//
// AVX-VNNI: AVX2 with vpdpbusd on ymm, u8 codes.
//
// gemm 6x16: 6 rows x 2 ymm = 12 accumulators, 2 of B, 1 broadcast = 15 of 16 registers. vpdpbusd wraps (vpdpbusds would
// saturate); u8 * s8 <= 255 * 128, four of them 130,560. One-instruction assembly, since g++ 12 spills the intrinsic's
// accumulators. Test builds encode it as EVEX, which machines with AVX512-VNNI run.
#include "cpu/kernels.h"
#include "cpu/simd/dot.h"
#include "cpu/simd/gemm.h"
#include "cpu/simd/table.h"
#include "cpu/simd/vec256.h"

#if defined(INT8Q_TEST_HOOKS)
#define INT8Q_VPDPBUSD "%{evex%} vpdpbusd"
#else
#define INT8Q_VPDPBUSD "%{vex%} vpdpbusd"
#endif

namespace int8q::cpu {
namespace {

using V = Vec256;

struct Vnni256 {
  using Vec = __m256i;
  using A = Vec;
  using B = Vec;
  static constexpr int kVecs = 2;
  static constexpr int kCodeBytes = 4;

  static Vec load(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static void store(int32_t* p, Vec v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
  static B load_b(const int8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static A load_a(const uint8_t* codes) {
    int32_t group;
    __builtin_memcpy(&group, codes, 4);
    return _mm256_set1_epi32(group);
  }
  static Vec mac(Vec acc, A a, B b) {
    asm(INT8Q_VPDPBUSD " %2, %1, %0" : "+x"(acc) : "x"(a), "x"(b));
    return acc;
  }
};

constexpr Products kProducts = {{"gemm_u8s8_6x16_avxvnni", gemm<Vnni256, 6, 1>},
                                {"gemv_u8s8_6x16_avxvnni", gemm<Vnni256, 6, 1>},
                                {"dot_s8s8_2x4_avxvnni", dot<Dot256, 2, 4>},
                                {"backward_f32_4x16_avxvnni", backward<V, 4, 2>}};

constexpr Kernels kTable = INT8Q_KERNEL_TABLE("avxvnni", CodeLayout::kU8, ToU8, "u8", kProducts);

}  // namespace

const Kernels& avxvnni_kernels() { return kTable; }

}  // namespace int8q::cpu
