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
// Ahead: whether row tiles prefetch B; the first one brings it to L1. Where several rows share a line of B and one or two
// panels are read at a time, the hardware's prefetcher alone leaves the memory idle between lines (on Zen 4 +10..50% for
// few rows from DRAM, +3% for 128). For one row, or four panels at once, it does better alone (-10%).
//
// Overflow: accumulators wrap modulo 2^32; the true sum, |sum| <= 127 * 127 * K or 128 * 128 * K, fits (core/blob.h).
#pragma once

#include "cpu/simd/tiles.h"

namespace int8q::cpu {
namespace {

// Bytes ahead of its use that B is asked for: one page, which the hardware's prefetcher does not cross.
inline constexpr int64_t kAhead = 4096;

enum class Ahead { kNothing, kFirstTile, kEveryTile };

template <class Op, int R, int P, bool kPrefetch>
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
      const int8_t* line = b0 + (v / kVecs) * block.panel_stride + g * 64;
      if (kPrefetch && v % kVecs == 0) {
        _mm_prefetch(reinterpret_cast<const char*>(line + kAhead), _MM_HINT_T0);
      }
      b[v] = Op::load_b(line + (v % kVecs) * (64 / kVecs));
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

template <class Op, int R, int P, Ahead kPrefetch>
void gemm_rows(const GemmBlock& block, int64_t panel) {
  for_each_row_tile<R>(block.rows, [&](int64_t row, auto tile) {
    constexpr int kRows = decltype(tile)::kCount;
    if (kPrefetch == Ahead::kFirstTile && row == 0) return gemm_tile<Op, kRows, P, true>(block, row, panel);
    gemm_tile<Op, kRows, P, kPrefetch == Ahead::kEveryTile>(block, row, panel);
  });
}

template <class Op, int R, int P, Ahead kPrefetch>
void gemm_last_panels(const GemmBlock& block, int64_t panel, int64_t panels) {
  if constexpr (P > 1) {
    if (panels < P) return gemm_last_panels<Op, R, P - 1, kPrefetch>(block, panel, panels);
  }
  gemm_rows<Op, R, P, kPrefetch>(block, panel);
}

// Tiles of up to R rows x P panels, the last ones of what is left over.
template <class Op, int R, int P, Ahead kPrefetch = Ahead::kNothing>
void gemm(const GemmBlock& block) {
  int64_t p = 0;
  for (; p + P <= block.panel_count; p += P) gemm_rows<Op, R, P, kPrefetch>(block, p);
  if (p < block.panel_count) gemm_last_panels<Op, R, P, kPrefetch>(block, p, block.panel_count - p);
}

}  // namespace
}  // namespace int8q::cpu
