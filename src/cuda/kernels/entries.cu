// SPDX-License-Identifier: Apache-2.0
//
// The kernels of one architecture. Compiled once for each with INT8Q_ARCH, the number of its tag in arch.h, and INT8Q_SUFFIX,
// the end of their names.
#include "cuda/kernels/backward.h"
#include "cuda/kernels/finish_products.h"
#include "cuda/kernels/gemm.h"
#include "cuda/kernels/gemm_wgmma.h"
#include "cuda/kernels/quantize_rows.h"
#include "cuda/kernels/skinny.h"
#include "cuda/kernels/stateless.h"
#include "cuda/kernels/w8a16_gemm.h"
#include "cuda/kernels/w8a16_skinny.h"
#include "cuda/kernels/w8a16_wgmma.h"

namespace int8q::gpu {

#define INT8Q_PASTE(a, b) a##b
#define INT8Q_JOIN(a, b) INT8Q_PASTE(a, b)
using Arch = INT8Q_JOIN(Sm, INT8Q_ARCH);

// A kernel with at most `threads` threads a block, `blocks` of which share an SM by their registers.
#if defined(__CUDACC__)
#define INT8Q_KERNEL(name, threads, blocks, Arguments) \
  extern "C" __global__ void __launch_bounds__(threads, blocks) INT8Q_JOIN(name##_, INT8Q_SUFFIX)(const __grid_constant__ Arguments p)
#else
#define INT8Q_KERNEL(name, threads, blocks, Arguments) INT8Q_EMULATED_KERNEL(name, threads, Arguments)
#endif

INT8Q_KERNEL(quantize_rows_f32, QuantizeRows::kThreads, 4, QuantizeRows) { quantize_rows<Dtype::kF32, true>(p); }
INT8Q_KERNEL(quantize_rows_f16, QuantizeRows::kThreads, 4, QuantizeRows) { quantize_rows<Dtype::kF16, true>(p); }
INT8Q_KERNEL(quantize_rows_bf16, QuantizeRows::kThreads, 4, QuantizeRows) { quantize_rows<Dtype::kBf16, true>(p); }
INT8Q_KERNEL(quantize_rows_f32_unaligned, QuantizeRows::kThreads, 4, QuantizeRows) { quantize_rows<Dtype::kF32, false>(p); }
INT8Q_KERNEL(quantize_rows_f16_unaligned, QuantizeRows::kThreads, 4, QuantizeRows) { quantize_rows<Dtype::kF16, false>(p); }
INT8Q_KERNEL(quantize_rows_bf16_unaligned, QuantizeRows::kThreads, 4, QuantizeRows) { quantize_rows<Dtype::kBf16, false>(p); }

INT8Q_KERNEL(gemm_s8, LargeTile<Arch>::kThreads, 2, Gemm) { gemm<Arch, LargeTile<Arch>, true, false>(p); }
INT8Q_KERNEL(gemm_s8_unaligned, LargeTile<Arch>::kThreads, 2, Gemm) { gemm<Arch, LargeTile<Arch>, false, false>(p); }
INT8Q_KERNEL(gemm_small_s8, SmallTile<Arch>::kThreads, INT8Q_ARCH >= 75 ? 4 : 3, Gemm) { gemm<Arch, SmallTile<Arch>, true, true>(p); }
#if INT8Q_ARCH == 901
INT8Q_KERNEL(gemm_wgmma_s8_128, WgmmaTile<128>::kBlockThreads, 1, GemmByMaps) { gemm_wgmma<Arch, WgmmaTile<128>>(p); }
INT8Q_KERNEL(gemm_wgmma_s8_256, WgmmaTile<256>::kBlockThreads, 1, GemmByMaps) { gemm_wgmma<Arch, WgmmaTile<256>>(p); }

// By tiles of so many rows and columns.
#define INT8Q_WGMMA_OF_HALVES(name, f16, rows, cols)                                                                     \
  INT8Q_KERNEL(w8a16_wgmma_##name##_##rows, (W8a16WgmmaTile<rows, cols>::kBlockThreads), 1, W8a16ByMaps) {               \
    w8a16_wgmma<Arch, W8a16WgmmaTile<rows, cols>, f16>(p);                                                               \
  }                                                                                                                      \
  INT8Q_KERNEL(backward_wgmma_##name##_##rows, (W8a16WgmmaTile<rows, cols>::kBlockThreads), 1, BackwardByMaps) {         \
    backward_wgmma<Arch, W8a16WgmmaTile<rows, cols>, f16>(p);                                                            \
  }
INT8Q_WGMMA_OF_HALVES(f16, true, 64, 64)
INT8Q_WGMMA_OF_HALVES(f16, true, 128, 128)
INT8Q_WGMMA_OF_HALVES(f16, true, 256, 128)
INT8Q_WGMMA_OF_HALVES(bf16, false, 64, 64)
INT8Q_WGMMA_OF_HALVES(bf16, false, 128, 128)
INT8Q_WGMMA_OF_HALVES(bf16, false, 256, 128)
#endif

INT8Q_KERNEL(finish_s8, SmallTile<Arch>::kThreads, INT8Q_ARCH >= 75 ? 4 : 3, Gemm) { finish_products<Arch, SmallTile<Arch>>(p); }

// For up to `rows` rows of activations.
#define INT8Q_SKINNY(rows)                                                                                                    \
  INT8Q_KERNEL(skinny_s8_##rows, SkinnyShape::kThreads, 2, Gemm) { skinny<Arch, rows / 8, false, true>(p); }                  \
  INT8Q_KERNEL(skinny_s8_##rows##_unaligned, SkinnyShape::kThreads, 2, Gemm) { skinny<Arch, rows / 8, false, false>(p); }     \
  INT8Q_KERNEL(skinny_fused_##rows, SkinnyShape::kThreads, 2, Gemm) { skinny<Arch, rows / 8, true, true>(p); }
INT8Q_SKINNY(8)
INT8Q_SKINNY(16)
#if INT8Q_ARCH >= 75
INT8Q_SKINNY(32)
INT8Q_SKINNY(64)
#endif

// For dY of fp16, of bf16 and fp32, and where there are no such products.
#define INT8Q_BACKWARD(name, how)                                                                                       \
  INT8Q_KERNEL(backward_##name, BackwardTile<how>::kThreads, 2, Backward) { backward<Arch, how, true>(p); }             \
  INT8Q_KERNEL(backward_##name##_unaligned, BackwardTile<how>::kThreads, 2, Backward) { backward<Arch, how, false>(p); }
#if INT8Q_ARCH >= 75
INT8Q_BACKWARD(f16, Multiply::kF16)
#endif
#if INT8Q_ARCH >= 80
INT8Q_BACKWARD(bf16, Multiply::kBf16)
#else
INT8Q_BACKWARD(f32, Multiply::kF32)
#endif

// The same for activations.
#define INT8Q_W8A16_SKINNY(name, how, rows)                                                      \
  INT8Q_KERNEL(w8a16_skinny_##name##_##rows, W8a16SkinnyShape::kThreads, 2, Gemm) {              \
    w8a16_skinny<Arch, how, rows / 8, true>(p);                                                  \
  }                                                                                              \
  INT8Q_KERNEL(w8a16_skinny_##name##_##rows##_unaligned, W8a16SkinnyShape::kThreads, 2, Gemm) {  \
    w8a16_skinny<Arch, how, rows / 8, false>(p);                                                 \
  }
#define INT8Q_W8A16(name, how)                                                          \
  INT8Q_W8A16_SKINNY(name, how, 16)                                                     \
  INT8Q_KERNEL(w8a16_##name, W8a16LargeTile<how>::kThreads, 2, Gemm) {                  \
    w8a16_gemm<Arch, W8a16LargeTile<how>, how, true>(p);                                \
  }                                                                                     \
  INT8Q_KERNEL(w8a16_##name##_unaligned, W8a16LargeTile<how>::kThreads, 2, Gemm) {      \
    w8a16_gemm<Arch, W8a16LargeTile<how>, how, false>(p);                               \
  }
// What has tensor cores takes more rows at once, and small tiles.
#define INT8Q_W8A16_MMA(name, how)                                            \
  INT8Q_W8A16(name, how)                                                      \
  INT8Q_W8A16_SKINNY(name, how, 48)                                           \
  INT8Q_KERNEL(w8a16_small_##name, W8a16SmallTile<how>::kThreads, 4, Gemm) {  \
    w8a16_gemm<Arch, W8a16SmallTile<how>, how, true>(p);                      \
  }
#if INT8Q_ARCH >= 75
INT8Q_W8A16_MMA(f16, Multiply::kF16)
#endif
#if INT8Q_ARCH >= 80
INT8Q_W8A16_MMA(bf16, Multiply::kBf16)
#else
INT8Q_W8A16(f32, Multiply::kF32)
#endif

INT8Q_KERNEL(finish_columns, FinishColumns::kThreads, 4, FinishColumns) { finish_columns(p); }
INT8Q_KERNEL(list_columns, ListColumns::kThreads, 4, ListColumns) { list_columns(p); }
INT8Q_KERNEL(copy_codes, CopyCodes::kThreads, 4, CopyCodes) { copy_codes(p); }
INT8Q_KERNEL(dequantize_rows, Dequantize::kThreads, 4, Dequantize) { dequantize<true>(p); }
INT8Q_KERNEL(dequantize_accumulators, Dequantize::kThreads, 4, Dequantize) { dequantize<false>(p); }
INT8Q_KERNEL(count_outliers, CountOutliers::kThreads, 4, CountOutliers) { count_outliers(p); }

}  // namespace int8q::gpu
