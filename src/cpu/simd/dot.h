// SPDX-License-Identifier: Apache-2.0
//
// Row-major products for few rows of A, once for every dot-product instruction: c[i][n] = a[i] . b[n].
//
// A step loads kBytes of C rows of B, then of each of R rows of A, whose R * C products stay in registers. C rows of B stay
// in L1 for all rows of A: B is read from memory once. Op says what a vector is: Vec, load_a(p), load_b(p), tail_a(p, n),
// tail_b(p, n) of n bytes with zeros behind, mac(acc, a, b), sub(a, b), sum(acc).
//
// Exact for all int8. Without VNNI both sides are widened to s16 for vpmaddwd: a pair is at most 2 * 128 * 128. With VNNI a
// is u8 = a + 128, and one more row of A, all 128, gives what to subtract (kBiased). All wraps modulo 2^32; the true sum
// fits: at most 128 * 128 * 131,071 < 2^31.
#pragma once

#include "cpu/simd/tiles.h"

namespace int8q::cpu {
namespace {

// Adds the last k % kBytes elements; apart from dot_tile, whose registers it would take.
template <class Op>
__attribute__((noinline)) void add_tail(const DotBlock& block, int64_t row, int rows, int64_t col, int cols) {
  using Vec = typename Op::Vec;
  const int64_t rest = block.k % Op::kBytes, done = block.k - rest;
  for (int64_t c = col; c < col + cols; ++c) {
    const Vec w = Op::tail_b(block.b + c * block.b_stride + done, rest);
    for (int64_t r = row; r < row + rows; ++r) {
      Vec acc = Op::mac(Op::zero(), Op::tail_a(block.a + r * block.a_stride + done, rest), w);
      if (Op::kBiased) acc = Op::sub(acc, Op::mac(Op::zero(), Op::bias(), w));
      block.c[r * block.c_stride + c] += Op::sum(acc);
    }
  }
}

template <class Op, int R, int C>
inline __attribute__((always_inline)) void dot_tile(const DotBlock& block, int64_t row, int64_t col) {
  using Vec = typename Op::Vec;
  constexpr int kRows = R + (Op::kBiased ? 1 : 0);
  Vec acc[kRows][C];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) acc[r][c] = Op::zero();
  }
  const int8_t* a = block.a + row * block.a_stride;
  const int8_t* b = block.b + col * block.b_stride;
  for (int64_t k = Op::kBytes; k <= block.k; k += Op::kBytes, a += Op::kBytes, b += Op::kBytes) {
    Vec w[C];
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) w[c] = Op::load_b(b + c * block.b_stride);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Vec x = r < R ? Op::load_a(a + r * block.a_stride) : Op::bias();
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) acc[r][c] = Op::mac(acc[r][c], x, w[c]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      const Vec sum = Op::kBiased ? Op::sub(acc[r][c], acc[kRows - 1][c]) : acc[r][c];
      block.c[(row + r) * block.c_stride + col + c] = Op::sum(sum);
    }
  }
  if (block.k % Op::kBytes != 0) add_tail<Op>(block, row, R, col, C);
}

template <class Op, int R, int C>
void dot(const DotBlock& block) {
  int64_t n = 0;
  for (; n + C <= block.cols; n += C) {
    for_each_row_tile<R>(block.rows,
                         [&](int64_t row, auto tile) { dot_tile<Op, decltype(tile)::kCount, C>(block, row, n); });
  }
  for (; n < block.cols; ++n) {
    for_each_row_tile<R>(block.rows,
                         [&](int64_t row, auto tile) { dot_tile<Op, decltype(tile)::kCount, 1>(block, row, n); });
  }
}

}  // namespace
}  // namespace int8q::cpu
