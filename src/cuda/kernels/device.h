// SPDX-License-Identifier: Apache-2.0
//
// What kernels may use of a GPU: coordinates, memory, barriers, warp operations, conversions. Kernels touch memory by
// nothing else, so that the same sources run in tests/cuda_emulation, which checks each access.
//
// Shared memory is one dynamic array a block; a place in it is a byte offset. Accesses are aligned to their size. Blocks and
// grids have one dimension. Compiled with -fmad=false: an fma is written where one is meant, as on the CPU.
#pragma once

#if !defined(__CUDACC__)
#include "cuda_emulation/device.h"
#else

#include "cuda/kernels/portable.h"

#define INT8Q_DEVICE __device__ __forceinline__

namespace int8q::gpu {

struct alignas(8) U32x2 {
  uint32_t x, y;
};
struct alignas(16) U32x4 {
  uint32_t x, y, z, w;
};

INT8Q_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
INT8Q_DEVICE int block_index() { return static_cast<int>(blockIdx.x); }
INT8Q_DEVICE int block_count() { return static_cast<int>(gridDim.x); }
INT8Q_DEVICE int lane_index() { return thread_index() % kWarp; }
INT8Q_DEVICE int warp_index() { return thread_index() / kWarp; }

// ---------------------------------------------------------------------------------------------------- Memory

extern __shared__ __align__(1024) uint8_t shared_bytes[];  // wgmma's swizzle repeats after so many

template <class T>
INT8Q_DEVICE T load(const T* p) {
  return *p;
}
template <class T>
INT8Q_DEVICE void store(T* p, T value) {
  *p = value;
}
// beside: a constant, which the instruction adds.
template <class T>
INT8Q_DEVICE T load_shared(uint32_t at, int beside = 0) {
  return *reinterpret_cast<const T*>(shared_bytes + at + beside);
}
template <class T>
INT8Q_DEVICE void store_shared(uint32_t at, T value) {
  *reinterpret_cast<T*>(shared_bytes + at) = value;
}
INT8Q_DEVICE void atomic_or_shared(uint32_t at, uint32_t bits) {
  atomicOr(reinterpret_cast<uint32_t*>(shared_bytes + at), bits);
}
INT8Q_DEVICE void atomic_add_shared(uint32_t at, int32_t value) {
  atomicAdd(reinterpret_cast<int32_t*>(shared_bytes + at), value);
}

// What this launch does not write, and hardly another thread of the SM reads; from sm_80 on L2 asks for the 256 bytes around it.
INT8Q_DEVICE U32x4 load_once(const U32x4* p) {
  U32x4 v;
#if __CUDA_ARCH__ >= 800
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
#else
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
#endif
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}
// What another block wrote in this launch is not in L1 as it was before.
INT8Q_DEVICE U32x4 load_from_l2(const U32x4* p) {
  const uint4 v = __ldcg(reinterpret_cast<const uint4*>(p));
  return {v.x, v.y, v.z, v.w};
}
// Returns what was there.
INT8Q_DEVICE uint32_t atomic_add(uint32_t* p, uint32_t value) { return atomicAdd(p, value); }
INT8Q_DEVICE void atomic_add(int64_t* p, int32_t value) {
  atomicAdd(reinterpret_cast<unsigned long long*>(p), static_cast<unsigned long long>(static_cast<int64_t>(value)));
}
// What this thread did or has seen is seen by whoever sees what it does from here on, on the whole device.
INT8Q_DEVICE void device_fence() { __threadfence(); }

// ---------------------------------------------------------------------------------------------------- Threads together

INT8Q_DEVICE void block_barrier() { __syncthreads(); }
// This thread, with all of its warp, leaves for good: barriers of the block are the others' from now on.
INT8Q_DEVICE void leave_block() {}
INT8Q_DEVICE void warp_barrier() { __syncwarp(); }
INT8Q_DEVICE uint32_t shuffle_xor(uint32_t value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
// From the lane `by` below, or the own value where there is none.
INT8Q_DEVICE uint32_t shuffle_up(uint32_t value, int by) { return __shfl_up_sync(0xffffffffu, value, by); }
INT8Q_DEVICE uint32_t shuffle(uint32_t value, int lane) { return __shfl_sync(0xffffffffu, value, lane); }

// ---------------------------------------------------------------------------------------------------- Numbers

INT8Q_DEVICE uint32_t bits_of(float f) { return __float_as_uint(f); }
INT8Q_DEVICE float float_of(uint32_t bits) { return __uint_as_float(bits); }
INT8Q_DEVICE float fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
INT8Q_DEVICE float divide(float a, float b) { return __fdiv_rn(a, b); }
INT8Q_DEVICE int32_t round_to_int(float f) { return __float2int_rn(f); }  // half to even
// c + the sum of the products of four s8 each.
INT8Q_DEVICE int32_t dot4(uint32_t a, uint32_t b, int32_t c) { return __dp4a(static_cast<int>(a), static_cast<int>(b), c); }
// Byte i of the result is byte (selector >> 4 i) % 8 of { a, b }.
INT8Q_DEVICE uint32_t byte_permute(uint32_t a, uint32_t b, uint32_t selector) { return __byte_perm(a, b, selector); }
INT8Q_DEVICE int count_bits(uint32_t bits) { return __popc(bits); }
INT8Q_DEVICE int lowest_bit(uint32_t bits) { return __ffs(static_cast<int>(bits)) - 1; }
INT8Q_DEVICE float half_to_float(uint16_t h) {
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
  return f;
}
INT8Q_DEVICE uint16_t float_to_half(float f) {  // half to even
  uint16_t h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
  return h;
}

}  // namespace int8q::gpu

#endif
