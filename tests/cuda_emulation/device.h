// SPDX-License-Identifier: Apache-2.0
//
// cuda/kernels/device.h on the emulator.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "core/dtype.h"
#include "cuda/kernels/portable.h"
#include "cuda_emulation/emulator.h"

#define INT8Q_DEVICE inline

namespace int8q::gpu {

using emulation::block_count;
using emulation::block_index;
using emulation::Site;
using emulation::thread_index;

struct alignas(8) U32x2 {
  uint32_t x, y;
};
struct alignas(16) U32x4 {
  uint32_t x, y, z, w;
};

inline int lane_index() { return thread_index() % kWarp; }
inline int warp_index() { return thread_index() / kWarp; }

// ---------------------------------------------------------------------------------------------------- Memory

template <class T>
T load(const T* p, const Site& site = Site::current()) {
  const auto [memory, at] = emulation::global_place(p, sizeof(T), site);
  T value;
  memory.read(at, &value, sizeof(T), site);
  return value;
}
template <class T>
void store(T* p, T value, const Site& site = Site::current()) {
  const auto [memory, at] = emulation::global_place(p, sizeof(T), site);
  memory.write(at, &value, sizeof(T), site);
}
template <class T>
T load_shared(uint32_t at, int beside = 0, const Site& site = Site::current()) {
  at += static_cast<uint32_t>(beside);
  emulation::check_shared_alignment(at, sizeof(T), site);
  T value;
  emulation::shared_memory().read(at, &value, sizeof(T), site);
  return value;
}
template <class T>
void store_shared(uint32_t at, T value, const Site& site = Site::current()) {
  emulation::check_shared_alignment(at, sizeof(T), site);
  emulation::shared_memory().write(at, &value, sizeof(T), site);
}
inline void atomic_or_shared(uint32_t at, uint32_t bits, const Site& site = Site::current()) {
  emulation::check_shared_alignment(at, 4, site);
  emulation::shared_memory().atomic(
      at, 4, [bits](uint64_t word) { return word | bits; }, site);
}
inline void atomic_add_shared(uint32_t at, int32_t value, const Site& site = Site::current()) {
  emulation::check_shared_alignment(at, 4, site);
  emulation::shared_memory().atomic(
      at, 4, [value](uint64_t word) { return word + static_cast<uint32_t>(value); }, site);
}

inline U32x4 load_once(const U32x4* p, const Site& site = Site::current()) { return load(p, site); }
inline U32x4 load_from_l2(const U32x4* p, const Site& site = Site::current()) { return load(p, site); }
inline uint32_t atomic_add(uint32_t* p, uint32_t value, const Site& site = Site::current()) {
  const auto [memory, at] = emulation::global_place(p, 4, site);
  const uint64_t before = memory.atomic(
      at, 4, [value](uint64_t word) { return word + value; }, site);
  emulation::note_atomic(p);
  return static_cast<uint32_t>(before);
}
inline void atomic_add(int64_t* p, int32_t value, const Site& site = Site::current()) {
  const auto [memory, at] = emulation::global_place(p, 8, site);
  memory.atomic(
      at, 8, [value](uint64_t word) { return word + static_cast<uint64_t>(int64_t{value}); }, site);
  emulation::note_atomic(p);
}
inline void device_fence() { emulation::device_fence(); }

// ---------------------------------------------------------------------------------------------------- Threads together

inline void block_barrier(const Site& site = Site::current()) { emulation::block_barrier(site); }
inline void leave_block(const Site& site = Site::current()) { emulation::leave_block(site); }
inline void warp_barrier(const Site& site = Site::current()) { emulation::warp_barrier(site); }

// Each lane gets the value of lane source(lane, by).
template <int (*source)(int lane, int by)>
uint32_t shuffled(const char* name, uint32_t value, int by, const Site& site) {
  struct Input {
    uint32_t value;
    int by;
  };
  const Input input{value, by};
  uint32_t output;
  const auto compute = [](const void* const* inputs, void* const* outputs) {
    for (int lane = 0; lane < kWarp; ++lane) {
      const int from = source(lane, static_cast<const Input*>(inputs[lane])->by);
      *static_cast<uint32_t*>(outputs[lane]) = static_cast<const Input*>(inputs[from])->value;
    }
  };
  emulation::warp_operation(name, &input, &output, compute, site);
  return output;
}
inline int lane_xor(int lane, int mask) { return lane ^ mask; }
inline int lane_below(int lane, int by) { return lane >= by ? lane - by : lane; }
inline int lane_itself(int, int from) { return from % kWarp; }

inline uint32_t shuffle_xor(uint32_t value, int mask, const Site& site = Site::current()) {
  return shuffled<lane_xor>("shuffle_xor", value, mask, site);
}
inline uint32_t shuffle_up(uint32_t value, int by, const Site& site = Site::current()) {
  return shuffled<lane_below>("shuffle_up", value, by, site);
}
inline uint32_t shuffle(uint32_t value, int lane, const Site& site = Site::current()) {
  return shuffled<lane_itself>("shuffle", value, lane, site);
}

// ---------------------------------------------------------------------------------------------------- Numbers

inline uint32_t bits_of(float f) { return std::bit_cast<uint32_t>(f); }
inline float float_of(uint32_t bits) { return std::bit_cast<float>(bits); }
inline float fma(float a, float b, float c) { return std::fmaf(a, b, c); }
inline float divide(float a, float b) { return a / b; }
inline int32_t round_to_int(float f) {  // as cvt: saturates, and NaN is 0
  const float rounded = std::nearbyintf(f);
  if (std::isnan(f)) return 0;
  return rounded >= 0x1p31f ? INT32_MAX : rounded < -0x1p31f ? INT32_MIN : static_cast<int32_t>(rounded);
}
inline int32_t dot4(uint32_t a, uint32_t b, int32_t c) {
  for (int i = 0; i < 32; i += 8) c += static_cast<int8_t>(a >> i) * static_cast<int8_t>(b >> i);
  return c;
}
inline uint32_t byte_permute(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
  uint32_t permuted = 0;
  for (int i = 0; i < 4; ++i) permuted |= static_cast<uint32_t>(bytes >> (selector >> i * 4 & 7) * 8 & 0xff) << i * 8;
  return permuted;
}
inline int count_bits(uint32_t bits) { return std::popcount(bits); }
inline int lowest_bit(uint32_t bits) { return std::countr_zero(bits); }
inline float half_to_float(uint16_t h) { return f16_to_f32(h); }
inline uint16_t float_to_half(float f) { return f32_to_f16(f); }

}  // namespace int8q::gpu
