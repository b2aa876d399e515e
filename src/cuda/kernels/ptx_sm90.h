// SPDX-License-Identifier: Apache-2.0
//
// What sm_90a has alone or began: barriers in shared memory that count bytes (mbarrier), copies of tiles by the copy engine
// (TMA), products by four warps at once from shared memory (wgmma).
//
//   barrier        A phase ends when `arrivals` threads have come and all bytes that were expected are there. wait_barrier
//                  returns once the phase of that parity has ended: 0 for the first, 1 for the second; at first 1 returns at
//                  once.
//   copy_tile      the box of a TensorMap whose first byte is (column, row), to rows of 128 bytes from a multiple of 1024 on:
//                  chunk c of 16 bytes of row r lies at c ^ (r % 8), or of a box of 64 bytes a row at c ^ (r / 2 % 4); what is
//                  outside of the matrix is zero, and counts
//   multiply_tile  c[64][8 * kTiles] += a[64][32] . b[8 * kTiles][32]^T of s8, by the four warps of a warpgroup, a and b as
//                  copy_tile lays them. Warp w of them has rows 16 w .. as kTiles fragments of 16 x 8, as mma_s8's (ptx.h).
//   multiply_tile  c[64][8 * kTiles] += a[64][16] . b[8 * kTiles][16]^T of halves, fp32 sums; a is the warp's fragment of
//                  its 16 rows, as mma_f16's
//
// The copy engine and wgmma see what threads stored only behind proxy_fence, and it is done behind a barrier, or
// wait_products. Between fence_products and wait_products nobody touches c, a or b.
//
// PTX ISA 8.8, sections 9.7.13.15 (mbarrier), 9.7.9.27 (cp.async.bulk.tensor), 9.7.15 (wgmma).
#pragma once

#include "cuda/kernels/arguments.h"

namespace int8q::gpu::ptx {

// How wgmma finds rows of 128 bytes from `address` of shared memory on: in sixteenths, where to begin and how far eight
// rows are from the next eight, and, in the highest bits, the swizzle, which goes by an address's own bits 7 to 9. Columns
// 32 bytes further begin 32 bytes further.
INT8Q_CONSTEXPR uint64_t rows_of_128_bytes(uint32_t address) {
  return (address & 0x3ffffu) >> 4 | uint64_t{1} << 16 | uint64_t{8 * 128 / 16} << 32 | uint64_t{1} << 62;
}

}  // namespace int8q::gpu::ptx

#if !defined(__CUDACC__)
#include "cuda_emulation/ptx_sm90.h"
#else

#include "cuda/kernels/ptx.h"

namespace int8q::gpu::ptx {

INT8Q_DEVICE void init_barrier(uint32_t at, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" : : "r"(shared_address(at)), "r"(arrivals) : "memory");
}
INT8Q_DEVICE void arrive(uint32_t at) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" : : "r"(shared_address(at)) : "memory");
}
INT8Q_DEVICE void arrive_and_expect(uint32_t at, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" : : "r"(shared_address(at)), "r"(bytes) : "memory");
}
INT8Q_DEVICE void wait_barrier(uint32_t at, uint32_t parity) {
  uint32_t ended = 0;
  while (ended == 0) {
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                 : "=r"(ended)
                 : "r"(shared_address(at)), "r"(parity)
                 : "memory");
  }
}

INT8Q_DEVICE void proxy_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// By one thread. `barrier` gets the bytes of the box.
INT8Q_DEVICE void copy_tile(uint32_t at, const TensorMap& map, int column, int row, uint32_t barrier) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
               :
               : "r"(shared_address(at)), "l"(&map), "r"(column), "r"(row), "r"(shared_address(barrier))
               : "memory");
}

// By all of a warpgroup; raising waits until there are as many.
template <int kRegisters>
INT8Q_DEVICE void lower_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" : : "n"(kRegisters));
}
template <int kRegisters>
INT8Q_DEVICE void raise_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" : : "n"(kRegisters));
}

INT8Q_DEVICE void fence_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// Behind what makes the fragments `a`, which a compiler would put off.
template <int kFragments>
INT8Q_DEVICE void fence_products(uint32_t (&a)[kFragments][4]) {
#pragma unroll
  for (int i = 0; i < kFragments; ++i)
    asm volatile("" : "+r"(a[i][0]), "+r"(a[i][1]), "+r"(a[i][2]), "+r"(a[i][3]) : : "memory");
  fence_products();
}
INT8Q_DEVICE void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until all but the last kLeft groups of this warp's products are done.
template <int kLeft>
INT8Q_DEVICE void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" : : "n"(kLeft) : "memory");
}

// The registers %0 .. of 8, 16 and 32 fragments, and what they are.
#define INT8Q_NAMES_32                                                                                             \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, " \
  "%24, %25, %26, %27, %28, %29, %30, %31"
#define INT8Q_NAMES_64                                                                                               \
  INT8Q_NAMES_32                                                                                                     \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, " \
  "%54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define INT8Q_NAMES_128                                                                                                \
  INT8Q_NAMES_64                                                                                                       \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, "   \
  "%86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, "   \
  "%107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, " \
  "%126, %127"
#define INT8Q_4(kind, j) kind(c[j][0]), kind(c[j][1]), kind(c[j][2]), kind(c[j][3])
#define INT8Q_16(kind, j) INT8Q_4(kind, j), INT8Q_4(kind, j + 1), INT8Q_4(kind, j + 2), INT8Q_4(kind, j + 3)
#define INT8Q_32(kind, j) INT8Q_16(kind, j), INT8Q_16(kind, j + 4)
#define INT8Q_64(kind, j) INT8Q_32(kind, j), INT8Q_32(kind, j + 8)
#define INT8Q_128(kind, j) INT8Q_64(kind, j), INT8Q_64(kind, j + 16)
// columns: of c; sums: registers of it, behind which operands are numbered.
#define INT8Q_MULTIPLY_CODES(columns, sums, a0, b0)                                                                      \
  asm volatile("wgmma.mma_async.sync.aligned.m64n" #columns "k32.s32.s8.s8 {" INT8Q_NAMES_##sums "}, " a0 ", " b0 ", 1;" \
               : INT8Q_##sums("+r", 0)                                                                                   \
               : "l"(rows_of_128_bytes(shared_address(a))), "l"(rows_of_128_bytes(shared_address(b))))
template <int kTiles>
INT8Q_DEVICE void multiply_tile(int32_t (&c)[kTiles][4], uint32_t a, uint32_t b) {
  if constexpr (kTiles == 16) {
    INT8Q_MULTIPLY_CODES(128, 64, "%64", "%65");
  } else {
    static_assert(kTiles == 32);
    INT8Q_MULTIPLY_CODES(256, 128, "%128", "%129");
  }
}
#undef INT8Q_MULTIPLY_CODES

#define INT8Q_MULTIPLY_HALVES(columns, type, sums, a0, a1, a2, a3, b0)                                       \
  asm volatile("wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32." type "." type " {" INT8Q_NAMES_##sums \
               "}, {" a0 ", " a1 ", " a2 ", " a3 "}, " b0 ", 1, 1, 1, 0;"                                    \
               : INT8Q_##sums("+f", 0)                                                                       \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(rows_of_128_bytes(shared_address(b))))
#define INT8Q_MULTIPLY_SOME_HALVES(type)                                           \
  if constexpr (kTiles == 8) {                                                     \
    INT8Q_MULTIPLY_HALVES(64, type, 32, "%32", "%33", "%34", "%35", "%36");        \
  } else if constexpr (kTiles == 16) {                                             \
    INT8Q_MULTIPLY_HALVES(128, type, 64, "%64", "%65", "%66", "%67", "%68");       \
  } else {                                                                         \
    static_assert(kTiles == 32);                                                   \
    INT8Q_MULTIPLY_HALVES(256, type, 128, "%128", "%129", "%130", "%131", "%132"); \
  }
template <bool kF16, int kTiles>
INT8Q_DEVICE void multiply_tile(float (&c)[kTiles][4], const uint32_t (&a)[4], uint32_t b) {
  if constexpr (kF16) {
    INT8Q_MULTIPLY_SOME_HALVES("f16")
  } else {
    INT8Q_MULTIPLY_SOME_HALVES("bf16")
  }
}
#undef INT8Q_MULTIPLY_SOME_HALVES
#undef INT8Q_MULTIPLY_HALVES
#undef INT8Q_128
#undef INT8Q_64
#undef INT8Q_32
#undef INT8Q_16
#undef INT8Q_4
#undef INT8Q_NAMES_128
#undef INT8Q_NAMES_64
#undef INT8Q_NAMES_32

}  // namespace int8q::gpu::ptx

#endif
