// SPDX-License-Identifier: Apache-2.0
//
// The gradient to the input, dX[M,K] += g[M,N] . Wq[N,K], once for every vector type V and for each multiply-add:
//
//   dx[R rows][C vectors of k] += g[R][s] . w[s][C vectors]      s over the block's steps of n
//
// A step loads C vectors of w and R broadcasts of g for R * C multiply-adds, whose accumulators stay in registers. Op says
// what a step is:
//   F, kLanes, B = load_b(p), load_a(p) (four bytes of g in each lane), mac(acc, a, b)
// A step of 16 columns is one cache line of w, 64 bytes.
#pragma once

#include "cpu/simd/tiles.h"

namespace int8q::cpu {
namespace {

// w = float(codes). Four groups of four rows are a 4 x 4 transpose of dwords: row r's 16 codes come together.
template <class V>
void unpack(const int8_t* panel, int64_t k_begin, int64_t k_count, void* w, int64_t w_stride) {
  for (int64_t j = 0; j < k_count; j += kPanelRows) {
    const int8_t* group = panel + (k_begin + j) * kPanelRows;
    auto* out = static_cast<float*>(static_cast<void*>(at(w, j / kPanelRows * w_stride)));
    for (int r = 0; r < kPanelRows; r += 4) {
      __m128 g[4];
      for (int i = 0; i < 4; ++i) g[i] = _mm_loadu_ps(reinterpret_cast<const float*>(group + i * 64 + r * 4));
      _MM_TRANSPOSE4_PS(g[0], g[1], g[2], g[3]);
      for (int i = 0; i < 4; ++i) {
        for (int v = 0; v < kPanelRows; v += V::kLanes) {
          const auto codes = V::to_float(V::widen_s8(_mm_castps_si128(g[i]), v));
          V::template store<0>(out + (r + i) * kPanelRows + v, codes, typename V::Whole{});
        }
      }
    }
  }
}

// Inlined before g++ finds such functions free of effects and drops their calls.
template <_mm_hint kHint>
inline __attribute__((always_inline)) void prefetch(const void* p) {
  _mm_prefetch(static_cast<const char*>(p), kHint);
}

// One n a step, one fma chain an element.
template <class V>
struct FusedStep {
  using F = typename V::F;
  using B = F;
  static constexpr int kLanes = V::kLanes;
  static constexpr int kN = 1;
  static F load(const float* p) { return V::template load<0>(p, typename V::Whole{}); }
  static void store(float* p, F f) { V::template store<0>(p, f, typename V::Whole{}); }
  static B load_b(const uint8_t* p) { return V::template load<0>(p, typename V::Whole{}); }
  static F load_a(const uint8_t* p) {
    float g;
    __builtin_memcpy(&g, p, sizeof g);
    return V::set(g);
  }
  static F mac(F acc, F a, B b) { return V::fma(a, b, acc); }
};

// What tile `index` of `count` asks for ahead, a line of each of these every 16 steps: its share of the codes that are unpacked
// next (they lie in runs of 1 KiB, too short for the hardware's prefetcher) and the rows of g of the next tile.
struct Ahead {
  const BackwardBlock& block;
  int64_t index;
  int64_t count;

  template <int R>
  __attribute__((always_inline)) void fetch(const uint8_t* next_g, int64_t line) const {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) prefetch<_MM_HINT_T0>(next_g + r * block.g_stride + line * 64);
    if (block.next == nullptr) return;
    for (int64_t p = index; p < block.next_count; p += count) {
      prefetch<_MM_HINT_T1>(block.next + p * block.next_stride + line * 64);
    }
  }
};

template <class Op, int R, int C>
void backward_tile(const BackwardBlock& block, int64_t row, int64_t col, const Ahead& ahead) {
  constexpr int kLanes = Op::kLanes, kPerPanel = kPanelRows / kLanes;
  typename Op::F acc[R][C];
  float* dx = block.dx + row * block.dx_stride + col;
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) acc[r][c] = Op::load(dx + r * block.dx_stride + c * kLanes);
  }
  const uint8_t* g = at(block.g, row * block.g_stride);
  const uint8_t* w = at(block.w, col / kPanelRows * block.w_stride);
  const auto step = [&](int64_t s) __attribute__((always_inline)) {
    typename Op::B b[C];
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) b[c] = Op::load_b(w + c / kPerPanel * block.w_stride + s * 64 + c % kPerPanel * kLanes * 4);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const auto a = Op::load_a(g + r * block.g_stride + s * 4);
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) acc[r][c] = Op::mac(acc[r][c], a, b[c]);
    }
  };
  const int64_t steps = (block.n + Op::kN - 1) / Op::kN;
  int64_t s = 0;
  for (; s + 16 <= steps; s += 16) {
    ahead.fetch<R>(g + R * block.g_stride, s / 16);
    for (int64_t i = 0; i < 16; ++i) step(s + i);
  }
  for (; s < steps; ++s) step(s);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) Op::store(dx + r * block.dx_stride + c * kLanes, acc[r][c]);
  }
}

template <class Op, int R, int C>
void backward_columns(const BackwardBlock& block, int64_t col) {
  int64_t index = 0;
  for_each_row_tile<R>(block.rows, [&](int64_t row, auto tile) {
    backward_tile<Op, decltype(tile)::kCount, C>(block, row, col, {block, index++, (block.rows + R - 1) / R});
  });
}

// R x C vectors: 6 x 4 of 32 zmm or 6 x 2 of 16 ymm are accumulators, C more hold w and one g. A multiple of 16 columns
// that is none of C vectors ends in tiles of 16.
template <class Op, int R, int C>
void backward(const BackwardBlock& block) {
  int64_t j = 0;
  for (; j + C * Op::kLanes <= block.k; j += C * Op::kLanes) backward_columns<Op, R, C>(block, j);
  for (; j < block.k; j += kPanelRows) backward_columns<Op, R, kPanelRows / Op::kLanes>(block, j);
}

}  // namespace
}  // namespace int8q::cpu
