// SPDX-License-Identifier: Apache-2.0
//
// Tensor-core products, ldmatrix and cp.async. Lane l of a warp has g = l / 4, q = l % 4:
//
//   ldmatrix  an 8 x 16-byte matrix, rows at the addresses that lanes 8i .. 8i + 7 give for matrix i:
//             r[i] = bytes 4q .. 4q + 3 of its row g
//   ..._trans r[i] = the two bytes 2g, 2g + 1 of its row 2q, then of its row 2q + 1
//   mma_s8    c[16][8] += a[16][32] . b[8][32]^T
//             a[0], a[1]: rows g, g + 8, k 4q .. 4q + 3;  a[2], a[3]: the same of k 16 ..;  b[0], b[1]: column g, k 4q .., 16 + 4q ..
//             c[0], c[1]: row g, columns 2q, 2q + 1;  c[2], c[3]: row g + 8
//   mma_f16,  c[16][8] += a[16][16] . b[8][16]^T, fp32 sums
//   mma_bf16  a[0], a[1]: rows g, g + 8, k 2q, 2q + 1;  a[2], a[3]: the same of k 8 ..;  b[0], b[1]: column g, k 2q .., 8 + 2q ..
//
// PTX ISA 8.8, sections 9.7.14.5 (matrix fragments) and 9.7.9.25 (cp.async).
#pragma once

#if !defined(__CUDACC__)
#include "cuda_emulation/ptx.h"
#else

#include "cuda/kernels/arch.h"
#include "cuda/kernels/device.h"

namespace int8q::gpu::ptx {

INT8Q_DEVICE uint32_t shared_address(uint32_t at) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared_bytes)) + at;
}

INT8Q_DEVICE void ldmatrix(uint32_t at, uint32_t (&r)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(at))
               : "memory");
}

INT8Q_DEVICE void ldmatrix_trans(uint32_t at, uint32_t (&r)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(at))
               : "memory");
}

// a - b of two halves each.
INT8Q_DEVICE uint32_t subtract_halves(uint32_t a, uint32_t b) {
  uint32_t difference;
  asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(difference) : "r"(a), "r"(b));
  return difference;
}

// a * b of two halves each.
INT8Q_DEVICE uint32_t multiply_halves(uint32_t a, uint32_t b) {
  uint32_t product;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
  return product;
}

// a * b + c of two halves each, of two bf16 each.
INT8Q_DEVICE uint32_t fma_halves(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t sum;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(b), "r"(c));
  return sum;
}
INT8Q_DEVICE uint32_t fma_bf16(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t sum;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(b), "r"(c));
  return sum;
}
// a - b; a subtraction of its own comes with sm_90 only.
INT8Q_DEVICE uint32_t subtract_bf16(uint32_t a, uint32_t b) { return fma_bf16(b, 0xbf80bf80, a); }

// a & b | c: one instruction, which the compiler does not make of two constants.
INT8Q_DEVICE uint32_t and_or(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t bits;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(bits) : "r"(a), "r"(b), "r"(c));
  return bits;
}

// Two floats as bf16, half to even, the first in the lower half; from sm_80 on.
INT8Q_DEVICE uint32_t round_to_bf16(float low, float high) {
  uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}

// The same as fp16.
INT8Q_DEVICE uint32_t round_to_f16(float low, float high) {
  uint32_t both;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}

template <class Arch>
INT8Q_DEVICE void mma_s8(int32_t (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (Arch::kVersion >= 80) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {  // a[i]: rows 8 (i % 2) .., k 16 (i / 2) ..
      asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
          : "+r"(c[i % 2 * 2]), "+r"(c[i % 2 * 2 + 1])
          : "r"(a[i]), "r"(b[i / 2]));
    }
  }
}

template <class Arch>
INT8Q_DEVICE void mma_f16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (Arch::kVersion >= 80) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
#pragma unroll
    for (int i = 0; i < 2; ++i) {  // k 8 i ..
      asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
          : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
          : "r"(a[i * 2]), "r"(a[i * 2 + 1]), "r"(b[i]));
    }
  }
}
INT8Q_DEVICE void mma_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// 16 bytes from global to shared memory, of which `valid` are read and the others are zero.
INT8Q_DEVICE void copy_async(uint32_t at, const void* from, int valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(shared_address(at)), "l"(__cvta_generic_to_global(from)), "r"(valid)
               : "memory");
}
INT8Q_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until all but the last kLeft groups of this thread's copies are there.
template <int kLeft>
INT8Q_DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;" : : "n"(kLeft) : "memory");
}

}  // namespace int8q::gpu::ptx

#endif
