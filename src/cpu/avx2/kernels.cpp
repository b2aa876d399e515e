// SPDX-License-Identifier: Apache-2.0
//
// AVX2 + FMA + F16C: exact integer products by vpmaddwd (simd/pairs.h).
//
// gemm 4x16: 4 rows x 2 ymm = 8 accumulators, 4 halves of B, 2 broadcasts, 1 product = 15 of 16 registers.
#include "cpu/kernels.h"
#include "cpu/simd/dot.h"
#include "cpu/simd/gemm.h"
#include "cpu/simd/pairs.h"
#include "cpu/simd/table.h"
#include "cpu/simd/vec256.h"

namespace int8q::cpu {
namespace {

using V = Vec256;

constexpr Products kProducts = {{"gemm_s16s8_4x16_avx2", gemm<Pairs256, 4, 1>},
                                {"gemv_s16s8_4x16_avx2", gemm<Pairs256, 4, 1>},
                                {"dot_s8s8_2x4_avx2", dot<Dot256, 2, 4>},
                                {"backward_f32_4x16_avx2", backward<V, 4, 2>}};

constexpr Kernels kTable = INT8Q_KERNEL_TABLE("avx2", CodeLayout::kS16Pairs, ToPairs, "s16", kProducts);

}  // namespace

const Kernels& avx2_kernels() { return kTable; }

}  // namespace int8q::cpu
