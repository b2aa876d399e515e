// SPDX-License-Identifier: Apache-2.0
//
// What the products of floating-point activations and int8 weights (W8A16) share:
//
//   f = x . codes^T            summed in fp32: |x * code| <= 2^7 |x|, so fp16 x cannot overflow
//   y = f * (col_stats / 127) + x . kept + bias, rounded once
//
// Codes become fp16 or bf16, which hold -128 .. 127 exactly, in registers. fp16 and bf16 x are multiplied as they are; fp32
// x as three bf16 terms of eight bits each, exactly but for what is below 2^-133. Before sm_80 bf16 and fp32, before sm_75
// all, are multiplied in fp32. Of kept columns x is 0 in f.
#pragma once

#include "cuda/kernels/halves.h"
#include "cuda/kernels/kept_columns.h"

namespace int8q::gpu {

// ---- Codes

// Four codes as halves: bytes 0 and 1, bytes 2 and 3.
template <Multiply kHow>
INT8Q_DEVICE void widen(uint32_t codes, uint32_t& low, uint32_t& high) {
  if constexpr (kHow == Multiply::kF16) {
    const uint32_t biased = codes ^ 0x80808080;
    low = f16_of_biased(byte_permute(biased, 0x64, 0x4140));
    high = f16_of_biased(byte_permute(biased, 0x64, 0x4342));
  } else {
    low = bf16_of_codes(byte_permute(codes, 0, 0x4140));
    high = bf16_of_codes(byte_permute(codes, 0, 0x4342));
  }
}

INT8Q_DEVICE float code_at(uint32_t codes, int byte) { return static_cast<float>(static_cast<int8_t>(codes >> byte * 8)); }

// ---- Activations: eight of a row from column k on, a multiple of 8; 0 outside of X and in kept columns

// A bit an element.
INT8Q_DEVICE uint32_t kept_of_chunk(const Gemm& p, int64_t k) {
  return p.kept_count > 0 ? load(p.kept_bitmap + k / 32) >> k % 32 & 0xffu : 0;
}

template <bool kAligned>
INT8Q_DEVICE void load_floats(const Gemm& p, Dtype dtype, int64_t row, int64_t k, float (&v)[kChunk]) {
  if (row >= p.m || k >= p.k) {
#pragma unroll
    for (int e = 0; e < kChunk; ++e) v[e] = 0.0f;
    return;
  }
  load_chunk(dtype, p.x + row * p.x_stride, k, p.k, kAligned, v);
  const uint32_t kept = kept_of_chunk(p, k);
  if (kept == 0) return;
#pragma unroll
  for (int e = 0; e < kChunk; ++e) v[e] = (kept >> e & 1) != 0 ? 0.0f : v[e];
}

// Of 16 bits each, as they are.
template <bool kAligned>
INT8Q_DEVICE U32x4 load_halves(const Gemm& p, int64_t row, int64_t k) {
  if (row >= p.m || k >= p.k) return {0, 0, 0, 0};
  uint32_t words[kChunk / 2];
  load_bits(reinterpret_cast<const uint16_t*>(p.x + row * p.x_stride), k, p.k, kAligned, words);
  const uint32_t kept = kept_of_chunk(p, k);
  if (kept != 0) {
#pragma unroll
    for (int e = 0; e < kChunk; ++e) words[e / 2] &= (kept >> e & 1) != 0 ? 0xffff0000u >> e % 2 * 16 : 0xffffffffu;
  }
  return {words[0], words[1], words[2], words[3]};
}

INT8Q_DEVICE int terms_of(Dtype x) { return x == Dtype::kF32 ? 3 : 1; }

}  // namespace int8q::gpu
