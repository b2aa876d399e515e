// SPDX-License-Identifier: Apache-2.0
//
// Kernels over tiles of Y and dX, once for every vector type V: outlier columns, epilogue, backward.
#pragma once

#include "cpu/simd/rows.h"

namespace int8q::cpu {
namespace {

template <class V, int D>
void epilogue(const EpilogueBlock& block) {
  using F = typename V::F;
  const F inv = V::set(kInv16129);
  for (int64_t i = 0; i < block.rows; ++i) {
    const int32_t* acc = block.acc + i * block.acc_stride;
    const float* out = block.out == nullptr ? nullptr : block.out + i * block.acc_stride;
    uint8_t* y = block.y + i * block.y_stride;
    const F row_stat = V::set(block.row_stats[i]);
    for (int64_t n = 0; n < block.cols; n += V::kLanes) {
      const int64_t count = block.cols - n;
      const F scale = V::mul(V::mul(row_stat, load_some<V, 0>(block.col_stats, n, count)), inv);
      // s32 moves through the fp32 loads as bits.
      const F sum = V::to_float(V::bits(load_some<V, 0>(acc, n, count)));
      F value = V::fma(sum, scale, out == nullptr ? V::zero() : load_some<V, 0>(out, n, count));
      if (block.bias != nullptr) value = V::add(value, load_some<V, 0>(block.bias, n, count));
      if (block.accumulate) value = V::add(value, load_some<V, D>(y, n, count));
      store_some<V, D>(y, n, count, value);
    }
  }
}

// The weights of one chunk of outlier columns for one panel, as floats and as codes: 64 x 16 x 8 bytes, in L1.
struct OutlierWeights {
  static constexpr int64_t kColumns = 64;
  alignas(64) float w[kColumns][kPanelRows];
  alignas(64) int32_t q[kColumns][kPanelRows];
};

template <class V>
void load_outlier_weights(const OutlierBlock& block, int64_t panel, int64_t first, int64_t count, OutlierWeights& weights) {
  using F = typename V::F;
  using I = typename V::I;
  const int64_t col = panel * kPanelRows;
  for (int64_t t = 0; t < count; ++t) {
    const int64_t c = block.cols[first + t];
    const auto* group = reinterpret_cast<const int32_t*>(block.panels + panel * block.panel_stride + c / kGroup * 64);
    const uint16_t* kept = block.kept[first + t];
    for (int n = 0; n < kPanelRows; n += V::kLanes) {
      const I q = V::byte_of_dword(V::load(group + n), static_cast<int>(c % kGroup));
      F w;
      if (kept != nullptr) {
        w = V::load_f16(kept + col + n);
      } else {
        w = V::mul(V::mul(V::to_float(q), V::load(block.col_stats + col + n)), V::set(kInv127));
      }
      V::store(&weights.w[t][n], w);
      V::store(&weights.q[t][n], q);
    }
  }
}

// R rows x one panel: accumulators stay in registers over the chunk's columns.
template <class V, int R>
void outlier_rows(const OutlierBlock& block, int64_t row, int64_t col, int64_t first, int64_t count,
                  const OutlierWeights& weights) {
  constexpr int kVecs = kPanelRows / V::kLanes;
  typename V::F out[R][kVecs];
  typename V::I acc[R][kVecs];
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < kVecs; ++v) {
      const int64_t at = (row + r) * block.acc_stride + col + v * V::kLanes;
      out[r][v] = V::load(block.out + at);
      acc[r][v] = V::load(block.acc + at);
    }
  }
  const float* x = block.x + row * block.x_stride + first;
  const int32_t* codes = block.codes == nullptr ? nullptr : block.codes + row * block.x_stride + first;
  for (int64_t t = 0; t < count; ++t) {
    for (int r = 0; r < R; ++r) {
      const float value = x[r * block.x_stride + t];
      if (codes != nullptr) {
        const typename V::I code = V::set(codes[r * block.x_stride + t]);
        for (int v = 0; v < kVecs; ++v) {
          acc[r][v] = V::sub(acc[r][v], V::mul_small(code, V::load(&weights.q[t][v * V::kLanes])));
        }
      }
      if (block.skip_zero && value == 0.0f) continue;
      for (int v = 0; v < kVecs; ++v) {
        out[r][v] = V::fma(V::set(value), V::load(&weights.w[t][v * V::kLanes]), out[r][v]);
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < kVecs; ++v) {
      const int64_t at = (row + r) * block.acc_stride + col + v * V::kLanes;
      V::store(block.out + at, out[r][v]);
      V::store(block.acc + at, acc[r][v]);
    }
  }
}

template <class V>
void outliers(const OutlierBlock& block) {
  constexpr int kRows = V::kLanes == 16 ? 4 : 2;  // 2 x kRows accumulators a row and vector, 8 of 16 or 32 registers
  OutlierWeights weights;
  for (int64_t first = 0; first < block.count; first += OutlierWeights::kColumns) {
    const int64_t left = block.count - first, count = left < OutlierWeights::kColumns ? left : OutlierWeights::kColumns;
    for (int64_t p = 0; p < block.panel_count; ++p) {
      load_outlier_weights<V>(block, p, first, count, weights);
      int64_t i = 0;
      for (; i + kRows <= block.rows; i += kRows) outlier_rows<V, kRows>(block, i, p * kPanelRows, first, count, weights);
      for (; i < block.rows; ++i) outlier_rows<V, 1>(block, i, p * kPanelRows, first, count, weights);
    }
  }
}

// Four groups of four rows are a 4 x 4 transpose of dwords: row r's 16 codes come together.
template <class V>
void unpack(const int8_t* panel, int64_t k_begin, int64_t k_count, float* w, int64_t w_stride) {
  for (int64_t j = 0; j < k_count; j += 16) {
    const int8_t* group = panel + (k_begin + j) * kPanelRows;
    for (int r = 0; r < kPanelRows; r += 4) {
      __m128 g[4];
      for (int i = 0; i < 4; ++i) g[i] = _mm_loadu_ps(reinterpret_cast<const float*>(group + i * 64 + r * 4));
      _MM_TRANSPOSE4_PS(g[0], g[1], g[2], g[3]);
      for (int i = 0; i < 4; ++i) {
        alignas(16) int8_t codes[16];
        _mm_store_ps(reinterpret_cast<float*>(codes), g[i]);
        for (int v = 0; v < 16; v += V::kLanes) {
          V::store(w + (r + i) * w_stride + j + v, V::to_float(V::load_s8(codes + v)));
        }
      }
    }
  }
}

// R rows x C vectors of dX, one fma chain an element: R * C accumulators, C loads of w and R broadcasts of g for R * C fmas.
template <class V, int R, int C>
void backward_tile(const BackwardBlock& block, int64_t row, int64_t col) {
  typename V::F acc[R][C];
  float* dx = block.dx + row * block.dx_stride + col;
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < C; ++c) acc[r][c] = V::load(dx + r * block.dx_stride + c * V::kLanes);
  }
  const float* g = block.g + row * block.g_stride;
  const float* w = block.w + col;
  for (int64_t n = 0; n < block.n; ++n, w += block.w_stride) {
    typename V::F b[C];
    for (int c = 0; c < C; ++c) b[c] = V::load(w + c * V::kLanes);
    for (int r = 0; r < R; ++r) {
      const typename V::F a = V::set(g[r * block.g_stride + n]);
      for (int c = 0; c < C; ++c) acc[r][c] = V::fma(a, b[c], acc[r][c]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < C; ++c) V::store(dx + r * block.dx_stride + c * V::kLanes, acc[r][c]);
  }
}

template <class V, int R, int C>
void backward_columns(const BackwardBlock& block, int64_t col) {
  int64_t i = 0;
  for (; i + R <= block.rows; i += R) backward_tile<V, R, C>(block, i, col);
  for (; i < block.rows; ++i) backward_tile<V, 1, C>(block, i, col);
}

// kRows x kVecs vectors: 6 x 4 of 32 zmm, 4 x 2 of 16 ymm.
template <class V, int kRows, int kVecs>
void backward(const BackwardBlock& block) {
  int64_t j = 0;
  for (; j + kVecs * V::kLanes <= block.k; j += kVecs * V::kLanes) backward_columns<V, kRows, kVecs>(block, j);
  for (; j < block.k; j += kPanelRows) backward_columns<V, kRows, kPanelRows / V::kLanes>(block, j);
}

}  // namespace
}  // namespace int8q::cpu
