// SPDX-License-Identifier: Apache-2.0
//
// The integer GEMM over packed panels, once for every dot-product instruction:
//
//   acc[R rows][P panels] += codes[R][4 g .. 4 g + 3] . panel[16][4 g .. 4 g + 3]      g over the block's groups
//
// A step of one group loads P panels' cache lines and R broadcast code groups, and does R * P dot products whose
// accumulators stay in registers. Op says what a vector is:
//   Vec, kVecs (vectors a panel), kGroupBytes (of a panel), kCodeBytes (of a row of codes), B = load_b(p), A = load_a(codes),
//   mac(acc, a, b); kMacsOfPairs: mac_pair(acc, acc, codes, b, b) does those of two vectors of B, where order matters.
//
// B comes to L1 with the first row tile and serves the others from there or from L2, which hides behind R * P products. What
// comes from memory is asked for ahead (effects on Zen 4):
//   kNext  many rows: the first P row tiles bring the panels of the next step, one each (four panels, 36 rows: +7%)
//   kL1    every row tile asks for lines one page ahead, which the hardware's prefetcher does not cross (one panel, 32 rows:
//          +9%)
//   kL2    the first row tile does so, into L2: L1's few outstanding misses are left to the loads (8 rows from DRAM on one
//          thread: -16% of the time)
//   kNone  one row, or four panels at once: the hardware does better alone
//
// Overflow: accumulators wrap modulo 2^32; the true sum, |sum| <= 127 * 127 * K or 128 * 128 * K, fits (core/blob.h).
#pragma once

#include "cpu/simd/tiles.h"

namespace int8q::cpu {
namespace {

enum class Fetch { kNone, kNext, kL1, kL2 };

inline constexpr int64_t kAhead = 4096;

template <class Op, int R, int P, Fetch kFetch>
inline __attribute__((always_inline)) void gemm_tile(const GemmBlock& block, int64_t row, int64_t panel,
                                                     const int8_t* next) {
  constexpr int kVecs = Op::kVecs, kLanes = kPanelRows / kVecs;
  using Vec = typename Op::Vec;
  int32_t* c = block.acc + row * block.acc_stride + panel * kPanelRows;
  Vec acc[R][P * kVecs];
#pragma GCC unroll 8
  for (int v = 0; v < P * kVecs; ++v) {
    const Vec start = Op::load(block.start + panel * kPanelRows + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      acc[r][v] = block.accumulate ? Op::add(start, Op::load(c + r * block.acc_stride + v * kLanes)) : start;
    }
  }
  const uint8_t* codes = block.codes + row * block.code_stride;
  const int8_t* b0 = block.panels + panel * block.panel_stride;
  for (int64_t g = 0; g < block.groups; ++g) {
    if (kFetch == Fetch::kNext) prefetch(next + g * Op::kGroupBytes);
    const auto load_b = [&](int v) __attribute__((always_inline)) {
      const int8_t* line = b0 + (v / kVecs) * block.panel_stride + g * Op::kGroupBytes;
      if (v % kVecs == 0 && kFetch == Fetch::kL1) prefetch(line + kAhead);
      if (v % kVecs == 0 && kFetch == Fetch::kL2) prefetch<2>(line + kAhead);
      return Op::load_b(line + (v % kVecs) * (Op::kGroupBytes / kVecs));
    };
    const uint8_t* a = codes + g * Op::kCodeBytes;
    if constexpr (Op::kMacsOfPairs) {
#pragma GCC unroll 8
      for (int v = 0; v < P * kVecs; v += 2) {
        const typename Op::B even = load_b(v), odd = load_b(v + 1);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) Op::mac_pair(acc[r][v], acc[r][v + 1], a + r * block.code_stride, even, odd);
      }
    } else {
      typename Op::B b[P * kVecs];
#pragma GCC unroll 8
      for (int v = 0; v < P * kVecs; ++v) b[v] = load_b(v);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const typename Op::A x = Op::load_a(a + r * block.code_stride);
#pragma GCC unroll 8
        for (int v = 0; v < P * kVecs; ++v) acc[r][v] = Op::mac(acc[r][v], x, b[v]);
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < P * kVecs; ++v) Op::store(c + r * block.acc_stride + v * kLanes, acc[r][v]);
  }
}

// next: the panels after these P, or NULL.
template <class Op, int R, int P, Fetch kFetch>
void gemm_rows(const GemmBlock& block, int64_t panel, const int8_t* next) {
  int64_t fetched = next == nullptr ? P : 0;
  for_each_row_tile<R>(block.rows, [&](int64_t row, auto tile) {
    constexpr int kRows = decltype(tile)::kCount;
    if (kFetch == Fetch::kL1 || (kFetch == Fetch::kL2 && row == 0)) {
      return gemm_tile<Op, kRows, P, kFetch>(block, row, panel, nullptr);
    }
    if (kFetch == Fetch::kNext && fetched < P) {
      return gemm_tile<Op, kRows, P, Fetch::kNext>(block, row, panel, next + fetched++ * block.panel_stride);
    }
    gemm_tile<Op, kRows, P, Fetch::kNone>(block, row, panel, nullptr);
  });
}

template <class Op, int R, int P, Fetch kFetch>
void gemm_last_panels(const GemmBlock& block, int64_t panel, int64_t panels) {
  if constexpr (P > 1) {
    if (panels < P) return gemm_last_panels<Op, R, P - 1, kFetch>(block, panel, panels);
  }
  gemm_rows<Op, R, P, kFetch>(block, panel, block.next);
}

// Tiles of up to R rows x P panels, the last ones of what is left over.
template <class Op, int R, int P, Fetch kFetch = Fetch::kNone>
void gemm(const GemmBlock& block) {
  int64_t p = 0;
  for (; p + P < block.panel_count; p += P) {
    gemm_rows<Op, R, P, kFetch>(block, p, block.panels + (p + P) * block.panel_stride);
  }
  if (p < block.panel_count) gemm_last_panels<Op, R, P, kFetch>(block, p, block.panel_count - p);
}

// Op over groups whose codes are widened already: both halves of a vector of B lie one after the other.
template <class Op>
struct Wide : Op {
  static constexpr int kGroupBytes = 2 * Op::kGroupBytes;
  static typename Op::B load_b(const int8_t* p) { return {Op::load(p), Op::load(p + sizeof(typename Op::Vec))}; }
  static void store_b(int8_t* p, const typename Op::B& b) {
    Op::store(p, b.even);
    Op::store(p + sizeof(typename Op::Vec), b.odd);
  }
};

// For instructions that take s16: each panel's codes are widened once, `kGroups` groups at a time, into L1 (16 KiB) for all
// row tiles, whose loops then are products and additions only.
template <class Op, int R, int P>
void gemm_widened(const GemmBlock& block) {
  constexpr int64_t kGroups = 128 / P, kVecs = Op::kVecs;
  alignas(64) int8_t wide[P][kGroups][Wide<Op>::kGroupBytes];
  alignas(64) static constexpr int32_t zeros[P * kPanelRows] = {};
  for (int64_t p = 0; p < block.panel_count; p += P) {
    const int64_t panels = block.panel_count - p < P ? block.panel_count - p : P;
    int64_t g = 0;
    do {
      const int64_t groups = block.groups - g < kGroups ? block.groups - g : kGroups;
      for (int64_t i = 0; i < panels; ++i) {
        const int8_t* lines = block.panels + (p + i) * block.panel_stride + g * Op::kGroupBytes;
        for (int64_t t = 0; t < groups * kVecs; ++t) {
          prefetch<2>(lines + t * (Op::kGroupBytes / kVecs) + kAhead);
          Wide<Op>::store_b(wide[i][0] + t * (Wide<Op>::kGroupBytes / kVecs),
                            Op::load_b(lines + t * (Op::kGroupBytes / kVecs)));
        }
      }
      gemm<Wide<Op>, R, P>({.codes = block.codes + g * Op::kCodeBytes,
                            .code_stride = block.code_stride,
                            .rows = block.rows,
                            .panels = wide[0][0],
                            .panel_stride = sizeof wide[0],
                            .panel_count = panels,
                            .groups = groups,
                            .start = g == 0 ? block.start + p * kPanelRows : zeros,
                            .accumulate = block.accumulate || g > 0,
                            .next = nullptr,
                            .acc = block.acc + p * kPanelRows,
                            .acc_stride = block.acc_stride});
      g += kGroups;
    } while (g < block.groups);
  }
}

}  // namespace
}  // namespace int8q::cpu
