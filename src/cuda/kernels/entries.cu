// SPDX-License-Identifier: Apache-2.0
//
// The kernels of one architecture. Compiled once for each with INT8Q_ARCH, its tag, and INT8Q_SUFFIX, the end of their names.
#include "cuda/kernels/gemm.h"
#include "cuda/kernels/quantize_rows.h"

namespace int8q::gpu {

using Arch = INT8Q_ARCH;

#define INT8Q_PASTE(name, suffix) name##_##suffix
#define INT8Q_NAME(name, suffix) INT8Q_PASTE(name, suffix)
// A kernel with at most `threads` threads a block, `blocks` of which share an SM.
#define INT8Q_KERNEL(name, threads, blocks, Arguments) \
  extern "C" __global__ void __launch_bounds__(threads, blocks) INT8Q_NAME(name, INT8Q_SUFFIX)(const __grid_constant__ Arguments p)

INT8Q_KERNEL(quantize_rows_f32, QuantizeRows::kThreads, 4, QuantizeRows) { quantize_rows<Dtype::kF32, true>(p); }
INT8Q_KERNEL(quantize_rows_f16, QuantizeRows::kThreads, 4, QuantizeRows) { quantize_rows<Dtype::kF16, true>(p); }
INT8Q_KERNEL(quantize_rows_bf16, QuantizeRows::kThreads, 4, QuantizeRows) { quantize_rows<Dtype::kBf16, true>(p); }
INT8Q_KERNEL(quantize_rows_f32_unaligned, QuantizeRows::kThreads, 4, QuantizeRows) { quantize_rows<Dtype::kF32, false>(p); }
INT8Q_KERNEL(quantize_rows_f16_unaligned, QuantizeRows::kThreads, 4, QuantizeRows) { quantize_rows<Dtype::kF16, false>(p); }
INT8Q_KERNEL(quantize_rows_bf16_unaligned, QuantizeRows::kThreads, 4, QuantizeRows) { quantize_rows<Dtype::kBf16, false>(p); }

INT8Q_KERNEL(gemm_s8, LargeTile<Arch>::kThreads, 2, Gemm) { gemm<Arch, LargeTile<Arch>, true>(p); }
INT8Q_KERNEL(gemm_s8_unaligned, LargeTile<Arch>::kThreads, 2, Gemm) { gemm<Arch, LargeTile<Arch>, false>(p); }

}  // namespace int8q::gpu
