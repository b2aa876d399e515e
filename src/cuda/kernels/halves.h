// SPDX-License-Identifier: Apache-2.0
//
// Codes as fp16 or bf16, which hold -128 .. 127 exactly, and products of tiles of them.
#pragma once

#include "cuda/kernels/ptx.h"
#include "cuda/kernels/shapes.h"

namespace int8q::gpu {

// Bytes 0 and 2, each code + 128, as fp16: 1024 + (code + 128) - 1152. Bytes 1 and 3 are 0x64.
INT8Q_DEVICE uint32_t f16_of_biased(uint32_t biased) { return ptx::subtract_halves(biased, 0x64806480); }

// Codes in bytes 0 and 2, whatever is in the others, as bf16: 128 + the lower seven bits, less 128 or, where the code is
// negative, 256.
INT8Q_DEVICE uint32_t bf16_of_codes(uint32_t codes) {
  return ptx::subtract_bf16(ptx::and_or(codes, 0x007f007f, 0x43004300), ptx::and_or(codes, 0x00800080, 0x43004300));
}

// The same as fp16 or bf16; of fp16 1024 in the place of 128, and 1152 of 256.
template <bool kF16>
INT8Q_DEVICE uint32_t halves_of_codes(uint32_t codes) {
  if constexpr (!kF16) return bf16_of_codes(codes);
  return ptx::subtract_halves(ptx::and_or(codes, 0x007f007f, 0x64006400), ptx::and_or(codes, 0x00800080, 0x64006400));
}

// a * b + c of two each.
template <bool kF16>
INT8Q_DEVICE uint32_t fma_halves(uint32_t a, uint32_t b, uint32_t c) {
  return kF16 ? ptx::fma_halves(a, b, c) : ptx::fma_bf16(a, b, c);
}
// Of the lower one.
template <bool kF16>
INT8Q_DEVICE float float_of_half(uint32_t two) {
  return kF16 ? half_to_float(static_cast<uint16_t>(two)) : float_of(two << 16);
}

template <bool kF16>
INT8Q_DEVICE uint32_t round_to_halves(float low, float high) {
  return kF16 ? ptx::round_to_f16(low, high) : ptx::round_to_bf16(low, high);
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
