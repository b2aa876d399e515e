// SPDX-License-Identifier: Apache-2.0
//
// A tile of results goes through shared memory, kRowsAtOnce rows at a time, so that a thread has eight neighbours to store:
// element (row, col) lies at column col ^ 8 (row % 8), which spreads the eight rows of a fragment over the banks.
#pragma once

#include "cuda/kernels/elements.h"

namespace int8q::gpu {

template <class Tile>
struct Results {
  static constexpr int kRowsAtOnce = Tile::kRowsAtOnce;

  INT8Q_DEVICE static uint32_t at(int row, int col) {
    return static_cast<uint32_t>((row % kRowsAtOnce * Tile::kN + (col ^ row % 8 * 8)) * 4);
  }

  // write(first) stores the bits of this thread's elements of rows [first, first + kRowsAtOnce) to at(row, col). Then
  // body(row, col, bits) of each eighth of a row of the tile, inside of rows x cols or partly. Begins with a barrier.
  template <class Write, class Body>
  INT8Q_DEVICE static void exchange(int64_t rows, int64_t cols, const Write& write, const Body& body) {
#pragma unroll 1
    for (int first = 0; first < Tile::kM; first += kRowsAtOnce) {
      block_barrier();  // all have read what was there
      write(first);
      block_barrier();
#pragma unroll 1
      for (int i = thread_index(); i < kRowsAtOnce * Tile::kN / kChunk; i += Tile::kThreads) {
        const int row = first + i / (Tile::kN / kChunk), col = i % (Tile::kN / kChunk) * kChunk;
        if (row >= rows || col >= cols) continue;
        const U32x4 low = load_shared<U32x4>(at(row, col)), high = load_shared<U32x4>(at(row, col) + 16);
        const uint32_t bits[kChunk] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
        body(row, col, bits);
      }
    }
  }
};

}  // namespace int8q::gpu
