// SPDX-License-Identifier: Apache-2.0
//
// The integer GEMM over packed panels, once for every dot-product instruction:
//
//   acc[R rows][P panels] += codes[R][4 g .. 4 g + 3] . panel[16][4 g .. 4 g + 3]      g over the block's groups
//
// A step of one group loads P panels' cache lines and R broadcast code groups, and does R * P dot products whose
// accumulators stay in registers. Op says what a vector is:
//   Vec, kVecs (vectors a panel), kCodeBytes (code bytes a group), B = load_b(p), A = load_a(codes), mac(acc, a, b).
//
// Overflow: accumulators wrap modulo 2^32; the true sum, |sum| <= 127 * 127 * K or 128 * 128 * K, fits (core/blob.h).
#pragma once

#include "cpu/kernels.h"

namespace int8q::cpu {
namespace {

template <class Op, int R, int P>
inline __attribute__((always_inline)) void gemm_tile(const GemmBlock& block, int64_t row, int64_t panel) {
  constexpr int kVecs = Op::kVecs;
  using Vec = typename Op::Vec;
  int32_t* c = block.acc + row * block.acc_stride + panel * kPanelRows;
  Vec acc[R][P * kVecs];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < P * kVecs; ++v) acc[r][v] = Op::load(c + r * block.acc_stride + v * (kPanelRows / kVecs));
  }
  const uint8_t* codes = block.codes + row * block.code_stride;
  const int8_t* b0 = block.panels + panel * block.panel_stride;
  for (int64_t g = 0; g < block.groups; ++g) {
    typename Op::B b[P * kVecs];
#pragma GCC unroll 8
    for (int v = 0; v < P * kVecs; ++v) {
      b[v] = Op::load_b(b0 + (v / kVecs) * block.panel_stride + g * 64 + (v % kVecs) * (64 / kVecs));
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const typename Op::A a = Op::load_a(codes + r * block.code_stride + g * Op::kCodeBytes);
#pragma GCC unroll 8
      for (int v = 0; v < P * kVecs; ++v) acc[r][v] = Op::mac(acc[r][v], a, b[v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < P * kVecs; ++v) Op::store(c + r * block.acc_stride + v * (kPanelRows / kVecs), acc[r][v]);
  }
}

// Rows [row, row + rows), rows <= R, of P panels.
template <class Op, int R, int P>
void gemm_rows(const GemmBlock& block, int64_t row, int64_t rows, int64_t panel) {
  if constexpr (R > 1) {
    if (rows < R) return gemm_rows<Op, R - 1, P>(block, row, rows, panel);
  }
  gemm_tile<Op, R, P>(block, row, panel);
}

template <class Op, int R, int P>
void gemm_panels(const GemmBlock& block, int64_t panel) {
  for (int64_t i = 0; i < block.rows; i += R) {
    const int64_t left = block.rows - i;
    gemm_rows<Op, R, P>(block, i, left < R ? left : R, panel);
  }
}

// Tiles of R x P panels; what is left over of the panels goes one by one.
template <class Op, int R, int P>
void gemm(const GemmBlock& block) {
  int64_t p = 0;
  for (; p + P <= block.panel_count; p += P) gemm_panels<Op, R, P>(block, p);
  for (; p < block.panel_count; ++p) gemm_panels<Op, R, 1>(block, p);
}

}  // namespace
}  // namespace int8q::cpu
