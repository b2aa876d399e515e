// SPDX-License-Identifier: Apache-2.0
//
// The outlier columns of a tile (arXiv 2208.07339, section 3.2), once for every vector type V:
//
//   acc[i][n] -= codes[i][t] * b[n][c_t]           two columns a vpmaddwd: s16 pairs of codes and of weights
//   out[i][n]  = fmaf(x[i][t], w[t][n], out[i][n])  t ascending: one chain an output, never split
//
// Weights of 32 columns of 4 panels are gathered once, as fp32 and as s16 pairs, 12 KiB in L1, and serve all rows. Each row
// tile then takes two loops a panel, with acc and with out in registers. A pair is at most 2 * 128 * 128; acc wraps.
#pragma once

#include "cpu/simd/tiles.h"

namespace int8q::cpu {
namespace {

// Up to 32 outlier columns: where they lie in a panel, and their weights in up to 4 panels.
struct OutlierChunk {
  static constexpr int64_t kColumns = 32;
  static constexpr int64_t kPanels = 4;
  int64_t first;
  int64_t count;
  bool any_kept;
  int64_t group[kColumns];  // bytes from the panel's begin
  int32_t shift[kColumns];  // left, to bring the column's byte to the top of its dword
  struct Weights {
    alignas(64) float w[kColumns][kPanelRows];
    alignas(64) int32_t pairs[kColumns / 2][kPanelRows];
  } panels[kPanels];
};

inline void start_chunk(const OutlierBlock& block, int64_t first, OutlierChunk& chunk) {
  const int64_t left = block.count - first;
  chunk.first = first;
  chunk.count = left < OutlierChunk::kColumns ? left : OutlierChunk::kColumns;
  chunk.any_kept = false;
  for (int64_t t = 0; t < chunk.count; ++t) {
    const uint32_t c = static_cast<uint32_t>(block.cols[first + t]);
    chunk.group[t] = static_cast<int64_t>(c / kGroup * 64);
    chunk.shift[t] = static_cast<int32_t>(24 - 8 * (c % kGroup));
    chunk.any_kept |= block.kept[first + t] != nullptr;
  }
}

template <class V>
void gather_weights(const OutlierBlock& block, int64_t panel, const OutlierChunk& chunk, OutlierChunk::Weights& weights) {
  using I = typename V::I;
  constexpr typename V::Whole kWhole{};
  const int64_t col = panel * kPanelRows;
  const auto inv = V::set(kInv127);
  for (int n = 0; n < kPanelRows; n += V::kLanes) {
    const int8_t* codes = block.panels + panel * block.panel_stride + n * kGroup;
    const auto stats = V::template load<0>(block.col_stats + col + n, kWhole);
    const auto column = [&](int64_t t) __attribute__((always_inline)) {
      const I q = V::top_byte(V::load32(codes + chunk.group[t], kWhole), chunk.shift[t]);
      V::template store<0>(&weights.w[t][n], V::mul(V::mul(V::to_float(q), stats), inv), kWhole);
      return q;
    };
    int64_t t = 0;
    for (; t + 2 <= chunk.count; t += 2) {
      const I even = column(t), odd = column(t + 1);
      V::store32(&weights.pairs[t / 2][n], V::pair(even, odd), kWhole);
    }
    if (t < chunk.count) V::store32(&weights.pairs[t / 2][n], column(t), kWhole);
    for (t = 0; chunk.any_kept && t < chunk.count; ++t) {
      const uint16_t* kept = block.kept[chunk.first + t];
      if (kept != nullptr) V::template store<0>(&weights.w[t][n], V::template load<1>(kept + col + n, kWhole), kWhole);
    }
  }
}

// acc of R rows x one panel, over one chunk.
template <class V, int R>
void subtract_codes(const OutlierBlock& block, int64_t row, int64_t col, const OutlierChunk& chunk,
                    const OutlierChunk::Weights& weights) {
  constexpr int kVecs = kPanelRows / V::kLanes;
  constexpr typename V::Whole kWhole{};
  typename V::I acc[R][kVecs];
  int32_t* to = block.acc + row * block.acc_stride + col;
  const int32_t* codes = block.codes + row * block.x_stride + chunk.first;
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < kVecs; ++v) acc[r][v] = V::load32(to + r * block.acc_stride + v * V::kLanes, kWhole);
  }
  const auto step = [&](int64_t t, const auto& pair_of) __attribute__((always_inline)) {
    for (int r = 0; r < R; ++r) {
      const auto pair = pair_of(codes + r * block.x_stride + t);
      for (int v = 0; v < kVecs; ++v) {
        const auto b = V::load32(&weights.pairs[t / 2][v * V::kLanes], kWhole);
        acc[r][v] = V::sub(acc[r][v], V::multiply_pairs(pair, b));
      }
    }
  };
  for (int64_t t = 0; t + 2 <= chunk.count; t += 2) step(t, [](const int32_t* p) { return V::broadcast_pair(p); });
  if (chunk.count % 2 != 0) step(chunk.count - 1, [](const int32_t* p) { return V::set(*p & 0xffff); });
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < kVecs; ++v) V::store32(to + r * block.acc_stride + v * V::kLanes, acc[r][v], kWhole);
  }
}

// out of R rows x one panel, over one chunk.
template <class V, int R, bool kSkipZero>
void add_columns(const OutlierBlock& block, int64_t row, int64_t col, const OutlierChunk& chunk,
                 const OutlierChunk::Weights& weights) {
  constexpr int kVecs = kPanelRows / V::kLanes;
  constexpr typename V::Whole kWhole{};
  typename V::F out[R][kVecs];
  float* to = block.out + row * block.acc_stride + col;
  const float* x = block.x + row * block.x_stride + chunk.first;
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < kVecs; ++v) out[r][v] = V::template load<0>(to + r * block.acc_stride + v * V::kLanes, kWhole);
  }
  for (int64_t t = 0; t < chunk.count; ++t) {
    for (int r = 0; r < R; ++r) {
      const auto value = V::set(x[r * block.x_stride + t]);
      for (int v = 0; v < kVecs; ++v) {
        const auto w = V::template load<0>(&weights.w[t][v * V::kLanes], kWhole);
        out[r][v] = kSkipZero ? V::fma_unless_zero(value, w, out[r][v]) : V::fma(value, w, out[r][v]);
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < kVecs; ++v) V::template store<0>(to + r * block.acc_stride + v * V::kLanes, out[r][v], kWhole);
  }
}

// R rows: 8 zmm or 6 x 2 ymm accumulators, as many as an fma's latency x throughput, 4 x 2, asks for.
template <class V>
void outliers(const OutlierBlock& block) {
  constexpr int R = V::kLanes == 16 ? 8 : 6;
  OutlierChunk chunk;
  const auto panels = [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) gather_weights<V>(block, p, chunk, chunk.panels[p - begin]);
    for_each_row_tile<R>(block.rows, [&](int64_t row, auto tile) {
      constexpr int kRows = decltype(tile)::kCount;
      for (int64_t p = begin; p < end; ++p) {
        const int64_t col = p * kPanelRows;
        const OutlierChunk::Weights& weights = chunk.panels[p - begin];
        if (block.codes != nullptr) subtract_codes<V, kRows>(block, row, col, chunk, weights);
        if (block.skip_zero) {
          add_columns<V, kRows, true>(block, row, col, chunk, weights);
        } else {
          add_columns<V, kRows, false>(block, row, col, chunk, weights);
        }
      }
    });
  };
  for (int64_t first = 0; first < block.count; first += OutlierChunk::kColumns) {
    start_chunk(block, first, chunk);
    for (int64_t p = 0; p < block.panel_count; p += OutlierChunk::kPanels) {
      const int64_t left = block.panel_count - p;
      panels(p, p + (left < OutlierChunk::kPanels ? left : OutlierChunk::kPanels));
    }
  }
}

}  // namespace
}  // namespace int8q::cpu
