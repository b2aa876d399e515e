// SPDX-License-Identifier: Apache-2.0
//
// Codes as fp16 or bf16, which hold -128 .. 127 exactly, and products of tiles of them.
#pragma once

#include "cuda/kernels/ptx.h"
#include "cuda/kernels/shapes.h"

namespace int8q::gpu {

// Bytes 0 and 2, each code + 128, as fp16: 1024 + (code + 128) - 1152. Bytes 1 and 3 are 0x64.
INT8Q_DEVICE uint32_t f16_of_biased(uint32_t biased) { return ptx::subtract_halves(biased, 0x64806480); }

// Codes in bytes 0 and 2 as bf16: 128 + the lower seven bits, less 128 or, where the code is negative, 256.
INT8Q_DEVICE uint32_t bf16_of_codes(uint32_t codes) {
  return ptx::subtract_bf16(ptx::and_or(codes, 0x007f007f, 0x43004300), ptx::and_or(codes, 0x00800080, 0x43004300));
}

template <class Arch, Multiply kHow>
INT8Q_DEVICE void multiply_tile(float (&f)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (kHow == Multiply::kF16) {
    ptx::mma_f16<Arch>(f, a, b);
  } else {
    ptx::mma_bf16(f, a, b);
  }
}

}  // namespace int8q::gpu
