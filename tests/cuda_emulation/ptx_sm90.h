// SPDX-License-Identifier: Apache-2.0
//
// cuda/kernels/ptx_sm90.h on the emulator.
#pragma once

#include "cuda_emulation/ptx.h"

namespace int8q::gpu::ptx {

inline void init_barrier(uint32_t at, int arrivals, const Site& site = Site::current()) {
  emulation::init_mbarrier(at, arrivals, site);
}
inline void arrive(uint32_t at, const Site& site = Site::current()) { emulation::arrive(at, 0, site); }
inline void arrive_and_expect(uint32_t at, int bytes, const Site& site = Site::current()) {
  emulation::arrive(at, bytes, site);
}
inline void wait_barrier(uint32_t at, uint32_t parity, const Site& site = Site::current()) {
  emulation::wait_mbarrier(at, parity, site);
}
inline void proxy_fence() { emulation::proxy_fence(); }

inline void copy_tile(uint32_t at, const TensorMap& map, int column, int row, uint32_t barrier,
                      const Site& site = Site::current()) {
  emulation::copy_tile(at, &map, column, row, barrier, site);
}

template <int kRegisters>
void lower_registers(const Site& site = Site::current()) {
  emulation::change_registers("setmaxnreg.dec", kRegisters, site);
}
template <int kRegisters>
void raise_registers(const Site& site = Site::current()) {
  emulation::change_registers("setmaxnreg.inc", kRegisters, site);
}

inline void fence_products(const Site& site = Site::current()) { emulation::fence_products(site); }
template <int kFragments>
void fence_products(const uint32_t (&)[kFragments][4], const Site& site = Site::current()) {
  emulation::fence_products(site);
}
inline void commit_products(const Site& site = Site::current()) { emulation::commit_products(site); }
template <int kLeft>
void wait_products(const Site& site = Site::current()) {
  emulation::wait_products(kLeft, site);
}
template <int kTiles>
void multiply_tile(int32_t (&c)[kTiles][4], uint32_t a, uint32_t b, const Site& site = Site::current()) {
  emulation::multiply_tile(c[0], kTiles * 8, rows_of_128_bytes(a), rows_of_128_bytes(b), site);
}
template <bool kF16, int kTiles>
void multiply_tile(float (&c)[kTiles][4], const uint32_t (&a)[4], uint32_t b, const Site& site = Site::current()) {
  emulation::multiply_halves_tile(c[0], kTiles * 8, kF16 ? INT8Q_F16 : INT8Q_BF16, a, rows_of_128_bytes(b), site);
}

}  // namespace int8q::gpu::ptx
