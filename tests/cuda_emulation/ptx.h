// SPDX-License-Identifier: Apache-2.0
//
// cuda/kernels/ptx.h on the emulator.
#pragma once

#include <functional>

#include "cuda/kernels/arch.h"
#include "cuda_emulation/device.h"

namespace int8q::gpu::ptx {

using emulation::Site;

struct MatrixRow {
  uint8_t bytes[16];
};
// Each lane reads the row that it addresses; compute deals them out.
inline void load_matrices(const char* name, uint32_t at, uint32_t (&r)[4], emulation::WarpCompute compute,
                          const Site& site) {
  emulation::check_shared_alignment(at, 16, site);
  MatrixRow row;
  emulation::shared_memory().read(at, row.bytes, 16, site);
  emulation::warp_operation(name, &row, &r, compute, site);
}
inline void ldmatrix(uint32_t at, uint32_t (&r)[4], const Site& site = Site::current()) {
  const auto compute = [](const void* const* rows, void* const* outputs) {
    for (int lane = 0; lane < kWarp; ++lane) {
      auto& out = *static_cast<uint32_t(*)[4]>(outputs[lane]);
      for (int i = 0; i < 4; ++i) {
        std::memcpy(&out[i], static_cast<const MatrixRow*>(rows[i * 8 + lane / 4])->bytes + lane % 4 * 4, 4);
      }
    }
  };
  load_matrices("ldmatrix", at, r, compute, site);
}
inline void ldmatrix_trans(uint32_t at, uint32_t (&r)[4], const Site& site = Site::current()) {
  const auto compute = [](const void* const* rows, void* const* outputs) {
    for (int lane = 0; lane < kWarp; ++lane) {
      auto& out = *static_cast<uint32_t(*)[4]>(outputs[lane]);
      for (int i = 0; i < 8; ++i) {
        const auto* row = static_cast<const MatrixRow*>(rows[i / 2 * 8 + lane % 4 * 2 + i % 2]);
        std::memcpy(reinterpret_cast<uint8_t*>(&out[i / 2]) + i % 2 * 2, row->bytes + lane / 4 * 2, 2);
      }
    }
  };
  load_matrices("ldmatrix_trans", at, r, compute, site);
}

template <class Operation>
uint32_t of_halves(uint32_t a, uint32_t b, const Operation& operation) {
  uint32_t both = 0;
  for (int i = 0; i < 32; i += 16) {
    const float one = operation(f16_to_f32(static_cast<uint16_t>(a >> i)), f16_to_f32(static_cast<uint16_t>(b >> i)));
    both |= static_cast<uint32_t>(f32_to_f16(one)) << i;
  }
  return both;
}
inline uint32_t subtract_halves(uint32_t a, uint32_t b) { return of_halves(a, b, std::minus<float>()); }
inline uint32_t multiply_halves(uint32_t a, uint32_t b) { return of_halves(a, b, std::multiplies<float>()); }

// Each of two, rounded once.
template <class ToFloat, class Round>
uint32_t fma_of_two(uint32_t a, uint32_t b, uint32_t c, const ToFloat& to_float, const Round& round) {
  uint32_t both = 0;
  for (int i = 0; i < 32; i += 16) {
    const auto value = [&](uint32_t word) { return static_cast<double>(to_float(static_cast<uint16_t>(word >> i))); };
    both |= static_cast<uint32_t>(round(static_cast<float>(value(a) * value(b) + value(c)))) << i;
  }
  return both;
}
inline uint32_t fma_halves(uint32_t a, uint32_t b, uint32_t c) { return fma_of_two(a, b, c, f16_to_f32, f32_to_f16); }
inline uint32_t fma_bf16(uint32_t a, uint32_t b, uint32_t c) { return fma_of_two(a, b, c, bf16_to_f32, f32_to_bf16); }
inline uint32_t subtract_bf16(uint32_t a, uint32_t b) { return fma_bf16(b, 0xbf80bf80, a); }

inline uint32_t and_or(uint32_t a, uint32_t b, uint32_t c) { return (a & b) | c; }
inline uint32_t round_to_bf16(float low, float high) {
  return static_cast<uint32_t>(f32_to_bf16(low)) | static_cast<uint32_t>(f32_to_bf16(high)) << 16;
}

inline uint32_t round_to_f16(float low, float high) {
  return static_cast<uint32_t>(f32_to_f16(low)) | static_cast<uint32_t>(f32_to_f16(high)) << 16;
}

// Fragments of a[16][kDepth], b[8][kDepth], as cuda/kernels/ptx.h draws them.
struct Fragments {
  const uint32_t* a;
  const uint32_t* b;
};
template <class T, int kDepth>
void gather(const void* const* inputs, T (&a)[16][kDepth], T (&b)[8][kDepth]) {
  constexpr int kWord = 4 / sizeof(T), kHalf = kDepth / 2;
  for (int lane = 0; lane < kWarp; ++lane) {
    const auto* f = static_cast<const Fragments*>(inputs[lane]);
    const int g = lane / 4, q = lane % 4;
    for (int i = 0; i < 4; ++i) std::memcpy(&a[g + i % 2 * 8][i / 2 * kHalf + q * kWord], &f->a[i], 4);
    for (int i = 0; i < 2; ++i) std::memcpy(&b[g][i * kHalf + q * kWord], &f->b[i], 4);
  }
}
// Place of c[i] of a lane.
inline int fragment_row(int lane, int i) { return lane / 4 + i / 2 * 8; }
inline int fragment_col(int lane, int i) { return lane % 4 * 2 + i % 2; }

template <class Arch>
void mma_s8(int32_t (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const Site& site = Site::current()) {
  static_assert(kHasInt8Mma<Arch>);
  const Fragments input{a, b};
  const auto compute = [](const void* const* inputs, void* const* outputs) {
    int8_t x[16][32], w[8][32];
    gather(inputs, x, w);
    for (int lane = 0; lane < kWarp; ++lane) {
      auto& out = *static_cast<int32_t(*)[4]>(outputs[lane]);
      for (int i = 0; i < 4; ++i) {
        const int8_t *row = x[fragment_row(lane, i)], *col = w[fragment_col(lane, i)];
        int32_t sum = 0;
        for (int k = 0; k < 32; ++k) sum += row[k] * col[k];
        out[i] = static_cast<int32_t>(static_cast<uint32_t>(out[i]) + static_cast<uint32_t>(sum));
      }
    }
  };
  emulation::warp_operation("mma_s8", &input, &c, compute, site);
}

// Tensor cores sum the products of a call exactly enough and round once; here in double.
template <int kFloatDtype>
void mma_float(const char* name, float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const Site& site) {
  const Fragments input{a, b};
  const auto compute = [](const void* const* inputs, void* const* outputs) {
    uint16_t x[16][16], w[8][16];
    gather(inputs, x, w);
    for (int lane = 0; lane < kWarp; ++lane) {
      auto& out = *static_cast<float(*)[4]>(outputs[lane]);
      for (int i = 0; i < 4; ++i) {
        double sum = out[i];
        for (int k = 0; k < 16; ++k) {
          sum += static_cast<double>(int8q::load_element(kFloatDtype, &x[fragment_row(lane, i)][k], 0)) *
                 static_cast<double>(int8q::load_element(kFloatDtype, &w[fragment_col(lane, i)][k], 0));
        }
        out[i] = static_cast<float>(sum);
      }
    }
  };
  emulation::warp_operation(name, &input, &c, compute, site);
}
template <class Arch>
void mma_f16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const Site& site = Site::current()) {
  static_assert(kHasInt8Mma<Arch>);
  mma_float<INT8Q_F16>("mma_f16", c, a, b, site);
}
inline void mma_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const Site& site = Site::current()) {
  mma_float<INT8Q_BF16>("mma_bf16", c, a, b, site);
}

inline void copy_async(uint32_t at, const void* from, int valid, const Site& site = Site::current()) {
  emulation::copy_async(at, from, 16, valid, site);
}
inline void commit_copies() { emulation::commit_copies(); }
template <int kLeft>
void wait_copies(const Site& site = Site::current()) {
  emulation::wait_copies(kLeft, site);
}

}  // namespace int8q::gpu::ptx
