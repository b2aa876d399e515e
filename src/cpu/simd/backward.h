// SPDX-License-Identifier: Apache-2.0
//
// The gradient to the input, dX[M,K] += g[M,N] . Wq[N,K], once for every vector type V and for each multiply-add:
//
//   dx[R rows][C vectors of k] += g[R][s] . w[s][C vectors]      s over the block's steps of n
//
// A step loads C vectors of w and R broadcasts of g for R * C multiply-adds, whose accumulators stay in registers. Op says
// what a step is:
//   F, kLanes, kN (n of a step), B = load_b(p), load_a(p) (four bytes of g in each lane), mac(acc, a, b),
//   unpack(codes, w) of 16 rows x 16 columns
// A step of 16 columns is one cache line of w, 64 bytes.
//
// Every 16 steps the tile does a share of the next call's unpacking: conversions and shuffles go where multiply-adds do not,
// and hide behind those that wait already.
#pragma once

#include "cpu/simd/tiles.h"

namespace int8q::cpu {
namespace {

inline constexpr int64_t kGroupLine = kPanelRows * kGroup;  // bytes of four k of a panel

// One n a step, one fma chain an element.
template <class V>
struct FusedStep {
  using F = typename V::F;
  using B = F;
  static constexpr int kLanes = V::kLanes;
  static constexpr int kN = 1;
  static F zero() { return V::zero(); }
  static F load(const float* p) { return V::template load<0>(p, typename V::Whole{}); }
  static void store(float* p, F f) { V::template store<0>(p, f, typename V::Whole{}); }
  static B load_b(const uint8_t* p) { return V::template load<0>(p, typename V::Whole{}); }
  static F load_a(const uint8_t* p) {
    float g;
    __builtin_memcpy(&g, p, sizeof g);
    return V::set(g);
  }
  static F mac(F acc, F a, B b) { return V::fma(a, b, acc); }

  // Four groups of four rows are a 4 x 4 transpose of dwords: row r's 16 codes come together.
  static inline __attribute__((always_inline)) void unpack(const int8_t* codes, uint8_t* w) {
#pragma GCC unroll 4
    for (int r = 0; r < kPanelRows; r += 4) {
      __m128 g[4];
      for (int i = 0; i < 4; ++i) g[i] = _mm_loadu_ps(reinterpret_cast<const float*>(codes + i * kGroupLine + r * 4));
      _MM_TRANSPOSE4_PS(g[0], g[1], g[2], g[3]);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
#pragma GCC unroll 2
        for (int v = 0; v < kPanelRows; v += V::kLanes) {
          const auto row = V::to_float(V::widen_s8(_mm_castps_si128(g[i]), v));
          V::template store<0>(w + (r + i) * 64 + v * 4, row, typename V::Whole{});
        }
      }
    }
  }
};

template <class Op>
void unpack(const int8_t* panel, int64_t k_begin, int64_t k_count, void* w, int64_t w_stride) {
  for (int64_t j = 0; j < k_count; j += kPanelRows) {
    Op::unpack(panel + (k_begin + j) * kPanelRows, at(w, j / kPanelRows * w_stride));
  }
}

// The next call's unpacking, in squares of 16 rows x 16 columns, panel by panel. Their codes are fetched kAhead squares before.
template <class Op>
class Ahead {
 public:
  // `turns`: how often `turn` will be called.
  Ahead(const BackwardBlock& block, int64_t turns)
      : block_(block), turns_(turns), columns_(block.k / kPanelRows), squares_(block.next_count * columns_) {
    for (int64_t i = 0; i < kAhead; ++i) fetch();
  }

  inline __attribute__((always_inline)) void turn() {
    for (due_ += squares_; due_ >= turns_; due_ -= turns_) unpack_square();
  }

  void finish() {
    while (unpacked_.count < squares_) unpack_square();
  }

 private:
  static constexpr int64_t kAhead = 8;

  struct Square {
    int64_t count = 0, panel = 0, column = 0;
    void step(int64_t columns) {
      ++count;
      if (++column < columns) return;
      column = 0;
      ++panel;
    }
  };

  const int8_t* codes(const Square& s) const {
    return block_.next + s.panel * block_.next_stride + s.column * kPanelRows * kPanelRows;
  }

  inline __attribute__((always_inline)) void unpack_square() {
    fetch();
    Op::unpack(codes(unpacked_),
               at(block_.next_w, unpacked_.column * block_.w_stride + unpacked_.panel * (kPanelRows / Op::kN) * 64));
    unpacked_.step(columns_);
  }

  inline __attribute__((always_inline)) void fetch() {
    if (fetched_.count >= squares_) return;
    for (int i = 0; i < 4; ++i) prefetch(codes(fetched_) + i * kGroupLine);
    fetched_.step(columns_);
  }

  const BackwardBlock& block_;
  const int64_t turns_, columns_, squares_;
  int64_t due_ = 0;
  Square fetched_, unpacked_;
};

template <class Op>
int64_t steps_of(const BackwardBlock& block) {
  return (block.n + Op::kN - 1) / Op::kN;
}

template <class Op, int R, int C>
void backward_tile(const BackwardBlock& block, int64_t row, int64_t col, Ahead<Op>& ahead) {
  constexpr int kLanes = Op::kLanes, kPerPanel = kPanelRows / kLanes;
  typename Op::F acc[R][C];
  float* dx = block.dx + row * block.dx_stride + col;
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) acc[r][c] = Op::zero();
  }
  if (block.accumulate) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) acc[r][c] = Op::load(dx + r * block.dx_stride + c * kLanes);
    }
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
  const int64_t steps = steps_of<Op>(block);
  int64_t s = 0;
  for (; s + 16 <= steps; s += 16) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) prefetch(g + (R + r) * block.g_stride + s * 4);  // the next tile's
    ahead.turn();
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
void backward_columns(const BackwardBlock& block, int64_t col, Ahead<Op>& ahead) {
  for_each_row_tile<R>(
      block.rows, [&](int64_t row, auto tile) { backward_tile<Op, decltype(tile)::kCount, C>(block, row, col, ahead); });
}

// R x C vectors: 6 x 4 of 32 zmm or 6 x 2 of 16 ymm are accumulators, C more hold w and one g. A multiple of 16 columns
// that is none of C vectors ends in tiles of 16.
template <class Op, int R, int C>
void backward(const BackwardBlock& block) {
  constexpr int64_t kWide = C * Op::kLanes;
  const int64_t tiles = (block.rows + R - 1) / R * (block.k / kWide + block.k % kWide / kPanelRows);
  Ahead<Op> ahead(block, tiles * (steps_of<Op>(block) / 16));
  int64_t j = 0;
  for (; j + kWide <= block.k; j += kWide) backward_columns<Op, R, C>(block, j, ahead);
  for (; j < block.k; j += kPanelRows) backward_columns<Op, R, kPanelRows / Op::kLanes>(block, j, ahead);
  ahead.finish();
}

}  // namespace
}  // namespace int8q::cpu
