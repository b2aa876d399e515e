// SPDX-License-Identifier: Apache-2.0
//
// The outlier columns of a tile (arXiv 2208.07339, section 3.2), once for every vector type V.
//
// `columns` gathers their codes from a panel into a small one of the same layout, which gemm then subtracts from the integer
// product, and from which `outliers` adds them in floating point:
//
//   out[i][n] = fmaf(x[i][t], w[t][n], out[i][n])   t ascending: one chain an output, never split
//
// Weights of 32 columns of 4 panels become fp32 once, 8 KiB in L1, and serve all rows.
#pragma once

#include "cpu/simd/tiles.h"

namespace int8q::cpu {
namespace {

template <class V>
void columns(const int8_t* panel, const int32_t* cols, int64_t count, int8_t* small, int32_t* sums) {
  constexpr typename V::Whole kWhole{};
  for (int n = 0; n < kPanelRows; n += V::kLanes) {
    auto sum = V::set(0);
    for (int64_t t = 0; t < count; t += kGroup) {
      auto group = V::set(0);
      for (int64_t j = 0; j < kGroup && t + j < count; ++j) {
        const auto c = static_cast<uint32_t>(cols[t + j]);
        const auto from = V::load32(panel + static_cast<int64_t>(c / kGroup) * 64 + n * kGroup, kWhole);
        group = V::insert_byte(group, static_cast<int>(j), from, static_cast<int>(c % kGroup));
      }
      V::store32(small + t * kPanelRows + n * kGroup, group, kWhole);
      sum = V::add_quads(sum, group);
    }
    V::store32(sums + n, sum, kWhole);
  }
}

struct OutlierWeights {
  static constexpr int64_t kColumns = 32;
  static constexpr int64_t kPanels = 4;
  alignas(64) float w[kColumns][kPanels * kPanelRows];
};

// Columns [first, first + count) of the block's panels.
template <class V>
void find_weights(const OutlierBlock& block, int64_t first, int64_t count, OutlierWeights& weights) {
  constexpr typename V::Whole kWhole{};
  const auto inv = V::set(kInv127);
  for (int64_t n = 0; n < block.panel_count * kPanelRows; n += V::kLanes) {
    const auto stats = V::template load<0>(block.col_stats + n, kWhole);
    const int8_t* codes = block.panels + n / kPanelRows * block.panel_stride + n % kPanelRows * kGroup;
    for (int64_t t = 0; t < count; ++t) {
      const uint16_t* kept = block.kept[first + t];
      if (kept != nullptr) {
        V::template store<0>(&weights.w[t][n], V::template load<1>(kept + n, kWhole), kWhole);
        continue;
      }
      const auto group = V::load32(codes + (first + t) / kGroup * 64, kWhole);
      const auto q = V::signed_byte(group, static_cast<int>((first + t) % kGroup));
      V::template store<0>(&weights.w[t][n], V::mul(V::mul(V::to_float(q), stats), inv), kWhole);
    }
  }
}

// R rows x C vectors of out, from column `col`: C loads of w and R broadcasts of x for R * C fmas.
template <class V, int R, int C, bool kSkipZero>
void add_columns(const OutlierBlock& block, int64_t row, int64_t col, int64_t first, int64_t count,
                 const OutlierWeights& weights) {
  constexpr typename V::Whole kWhole{};
  typename V::F out[R][C];
  float* to = block.out + row * block.out_stride + col;
  const bool start = block.start && first == 0;
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < C; ++v) {
      out[r][v] = start ? V::zero() : V::template load<0>(to + r * block.out_stride + v * V::kLanes, kWhole);
    }
  }
  const float* x = block.x + row * block.x_stride + first;
  for (int64_t t = 0; t < count; ++t) {
    typename V::F w[C];
#pragma GCC unroll 8
    for (int v = 0; v < C; ++v) w[v] = V::template load<0>(&weights.w[t][col + v * V::kLanes], kWhole);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const auto value = V::set(x[r * block.x_stride + t]);
#pragma GCC unroll 8
      for (int v = 0; v < C; ++v) {
        out[r][v] = kSkipZero ? V::fma_unless_zero(value, w[v], out[r][v]) : V::fma(value, w[v], out[r][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < C; ++v) V::template store<0>(to + r * block.out_stride + v * V::kLanes, out[r][v], kWhole);
  }
}

template <class V, int C, bool kSkipZero>
void add_to_vectors(const OutlierBlock& block, int64_t col, int64_t first, int64_t count, const OutlierWeights& weights) {
  constexpr int R = kSkipZero && V::kLanes == 8 ? 5 : 6;  // a mask takes a ymm, too
  for_each_row_tile<R>(block.rows, [&](int64_t row, auto tile) {
    add_columns<V, decltype(tile)::kCount, C, kSkipZero>(block, row, col, first, count, weights);
  });
}

// Tiles of up to 6 rows x 4 zmm or 6 x 2 ymm, as in backward; single panels are what is left of four.
template <class V, bool kSkipZero>
void add_chunk(const OutlierBlock& block, int64_t first, int64_t count, const OutlierWeights& weights) {
  constexpr int kPanelVecs = kPanelRows / V::kLanes, kMost = V::kLanes == 16 ? 4 : kPanelVecs;
  const int64_t cols = block.panel_count * kPanelRows;
  int64_t col = 0;
  for (; col + kMost * V::kLanes <= cols; col += kMost * V::kLanes) {
    add_to_vectors<V, kMost, kSkipZero>(block, col, first, count, weights);
  }
  for (; col < cols; col += kPanelRows) add_to_vectors<V, kPanelVecs, kSkipZero>(block, col, first, count, weights);
}

template <class V>
void outliers(const OutlierBlock& block) {
  OutlierWeights weights;
  for (int64_t first = 0; first < block.count; first += OutlierWeights::kColumns) {
    const int64_t left = block.count - first, count = left < OutlierWeights::kColumns ? left : OutlierWeights::kColumns;
    find_weights<V>(block, first, count, weights);
    if (block.skip_zero) {
      add_chunk<V, true>(block, first, count, weights);
    } else {
      add_chunk<V, false>(block, first, count, weights);
    }
  }
}

}  // namespace
}  // namespace int8q::cpu
