// SPDX-License-Identifier: Apache-2.0
//
// Tiles of Y, once for every vector type V: how rows are cut into them, and the epilogue.
#pragma once

#include "cpu/simd/rows.h"

namespace int8q::cpu {
namespace {

// To L1 (locality 3) or L2 (2). Inlined before g++ finds that such a function has no effect and drops its calls.
template <int kLocality = 3>
inline __attribute__((always_inline)) void prefetch(const void* p) {
  __builtin_prefetch(p, 0, kLocality);
}

template <int R>
struct Rows {
  static constexpr int kCount = R;
};

template <int R, class Tile>
inline void row_tile(int64_t row, int64_t rows, const Tile& tile) {
  if constexpr (R > 1) {
    if (rows < R) return row_tile<R - 1>(row, rows, tile);
  }
  tile(row, Rows<R>{});
}

// tile(row, Rows<n>) for as few tiles of n <= R rows as there can be, all of them equal or one row apart: one row's
// accumulators alone would not cover an instruction's latency.
template <int R, class Tile>
inline void for_each_row_tile(int64_t rows, const Tile& tile) {
  if (rows == 0) return;
  const int64_t tiles = (rows + R - 1) / R, least = rows / tiles, longer = rows % tiles;
  int64_t row = 0;
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t count = least + (t < longer ? 1 : 0);
    row_tile<R>(row, count, tile);
    row += count;
  }
}

// y = fma(acc, (row_stat * col_stat) / 16129, out) + bias (+ y), one rounding to D.
template <class V, int D>
void epilogue(const EpilogueBlock& block) {
  const auto inv = V::set(kInv16129);
  for (int64_t i = 0; i < block.rows; ++i) {
    const int32_t* acc = block.acc + i * block.acc_stride;
    const float* out = block.out == nullptr ? nullptr : block.out + i * block.acc_stride;
    uint8_t* y = block.y + i * block.y_stride;
    const auto row_stat = V::set(block.row_stats[i]);
    for_each_vector<V>(
        block.cols, [&](int64_t n, auto lanes) __attribute__((always_inline)) {
          const auto scale = V::mul(V::mul(row_stat, V::template load<0>(block.col_stats + n, lanes)), inv);
          const auto other = out == nullptr ? V::zero() : V::template load<0>(out + n, lanes);
          auto value = V::fma(V::to_float(V::load32(acc + n, lanes)), scale, other);
          if (block.bias != nullptr) value = V::add(value, V::template load<0>(block.bias + n, lanes));
          if (block.accumulate) value = V::add(value, V::template load<D>(y + n * kBytes<D>, lanes));
          V::template store<D>(y + n * kBytes<D>, value, lanes);
        });
  }
}

}  // namespace
}  // namespace int8q::cpu
