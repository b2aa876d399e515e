// SPDX-License-Identifier: Apache-2.0
//
// A tile of results goes through shared memory, kRowsAtOnce rows at a time, so that a thread has eight neighbours to store.
//
// Element (row, col) lies at column col ^ 16 (row % 2) ^ 8 (row / 2 % 2) ^ 4 (col / 32 % 2). What goes through the 32 banks at
// once is in all of them then: of a fragment four rows of 8 columns, written by 8 bytes a lane, or two rows of 16, by 16 bytes;
// and half of each of eight neighbours of a row, read by 16 bytes.
#pragma once

#include "cuda/kernels/kept_columns.h"

namespace int8q::gpu {

template <class Tile>
struct Results {
  static constexpr int kRowsAtOnce = Tile::kRowsAtOnce;

  INT8Q_DEVICE static uint32_t at(int row, int col) {
    const int column = col ^ row % 2 * 16 ^ row / 2 % 2 * 8 ^ col / 32 % 2 * 4;
    return static_cast<uint32_t>((row % kRowsAtOnce * Tile::kN + column) * 4);
  }

  // The same of row and col + beside, which have no bit in common: one instruction from tile to tile of a warp.
  INT8Q_DEVICE static uint32_t at(int row, int col, int beside) { return at(row, col) ^ at(0, beside); }

  // write(first) stores the bits of this thread's elements of rows [first, first + kRowsAtOnce) to at(row, col). Then body(row,
  // bits) of eight elements of a row, inside of rows x cols or partly: neighbours, or with kApart four of each half, which what
  // is of 32 bits leaves by in whole sectors. body is begin(col): a thread's are of the same columns, for which it calls begin
  // once, unless most of the sums still wait in registers. Begins with a barrier.
  template <bool kApart = false, class Write, class Begin>
  INT8Q_DEVICE static void exchange(int64_t rows, int64_t cols, const Write& write, const Begin& begin) {
    constexpr int kOfARow = Tile::kN / kChunk, kColumns = kApart ? 4 : 8, kNext = kApart ? Tile::kN / 2 : 4;
    static_assert(Tile::kThreads % kOfARow == 0);
    constexpr bool kHolds = kRowsAtOnce * 2 >= Tile::kM;
#pragma unroll 1
    for (int first = 0; first < Tile::kM; first += kRowsAtOnce) {
      block_barrier();  // all have read what was there
      write(first);
      block_barrier();
      [[maybe_unused]] const auto body = begin(thread_index() % kOfARow * kColumns);
#pragma unroll 1
      for (int i = thread_index(); i < kRowsAtOnce * kOfARow; i += Tile::kThreads) {
        const int row = first + i / kOfARow, col = i % kOfARow * kColumns;
        if (row >= rows || col >= cols) continue;
        const U32x4 low = load_shared<U32x4>(at(row, col)), high = load_shared<U32x4>(at(row, col + kNext));
        const uint32_t bits[kChunk] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
        if constexpr (kHolds) {
          body(row, bits);
        } else {
          begin(col)(row, bits);
        }
      }
    }
  }
};

// Columns [col, col + 8) of Y: y = f * (col_stats / 127) + kept columns + bias, rounded once.
struct ResultColumns {
  int64_t col;
  float factor[kChunk], bias[kChunk];

  INT8Q_DEVICE ResultColumns(const Gemm& p, int64_t first) : col(first) {
    load_chunk(Dtype::kF32, reinterpret_cast<const uint8_t*>(p.col_stats), col, p.n, factor);
#pragma unroll
    for (int e = 0; e < kChunk; ++e) factor[e] *= 1.0f / 127.0f;
    if (p.bias != nullptr) load_chunk(p.bias_dtype, static_cast<const uint8_t*>(p.bias), col, p.n, bias);
  }

  // Those of a row. keeps: kept columns are added, where `bitmap` has them.
  INT8Q_DEVICE void store(const Gemm& p, int64_t row, const uint32_t (&f)[kChunk], bool keeps, uint32_t bitmap) const {
    uint8_t* y = p.y + row * p.y_stride;
    float value[kChunk];
#pragma unroll
    for (int e = 0; e < kChunk; ++e) value[e] = float_of(f[e]) * factor[e];
    if (keeps) add_kept_columns(p, bitmap, row, col, value);
    if (p.bias != nullptr) {
#pragma unroll
      for (int e = 0; e < kChunk; ++e) value[e] += bias[e];
    }
    if (p.accumulate) add_chunk(p.y_dtype, y, col, p.n, value);
    store_chunk(p.y_dtype, y, col, p.n, value);
  }
};

// Columns [col, col + 8) of a row of dX: f * (greatest / 127), rounded once.
INT8Q_DEVICE void store_gradient(const Backward& p, int64_t row, int64_t col, const uint32_t (&f)[kChunk]) {
  const float scale = p.greatest * (1.0f / 127.0f);
  uint8_t* dx = p.dx + row * p.dx_stride;
  float value[kChunk];
#pragma unroll
  for (int e = 0; e < kChunk; ++e) value[e] = float_of(f[e]) * scale;
  if (p.accumulate) add_chunk(p.dx_dtype, dx, col, p.k, value);
  store_chunk(p.dx_dtype, dx, col, p.k, value);
}

}  // namespace int8q::gpu
