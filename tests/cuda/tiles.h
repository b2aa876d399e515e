// SPDX-License-Identifier: Apache-2.0
//
// Results that each of wgmma's tiles takes, on a GPU of any number of multiprocessors: src/cuda/layer.cpp chooses by how many times
// these have to run blocks.
#pragma once

#include <vector>

#include "cuda/kernels/shapes.h"
#include "cuda/stream.h"

namespace int8q::test {

struct OfTile {
  int64_t rows, cols;
  size_t index;    // in the device's shapes or kernels
  Launch product;  // but for its shared memory, where that depends on more
};

inline int64_t blocks_of(int64_t rows, int64_t cols, int m, int n) { return (rows + m - 1) / m * ((cols + n - 1) / n); }

// The oracle is slow: rows beyond these repeat them. A tile has none twice.
inline constexpr int64_t kRowsOfOracle = 131;

// Of codes: by 128 columns where these are through at once, by 256 where only those are.
inline std::vector<OfTile> tiles_of_codes() {
  const int64_t sms = gpu().multiprocessors;
  std::vector<OfTile> tiles = {{128 * (sms / 10 + 1) - 3, 260, 0, {}}, {128 * (sms / 4 + 1) - 3, 500, 1, {}}};
  for (OfTile& t : tiles) {
    const cuda::Tile& tile = gpu().shapes.wgmma[t.index];
    if (gpu().has_wgmma()) t.product = {tile.threads, blocks_of(t.rows, t.cols, tile.m, tile.n), 0};
  }
  return tiles;
}

template <class Tile>
OfTile of_halves(int64_t rows, int64_t cols, size_t index) {
  return {rows, cols, index, {Tile::kBlockThreads, blocks_of(rows, cols, Tile::kM, Tile::kN), Tile::kSharedBytes}};
}
// Of 16-bit floats and codes, by 64, 128 and 256 rows.
inline std::vector<OfTile> tiles_of_halves() {
  const int64_t sms = gpu().multiprocessors;
  return {of_halves<gpu::W8a16WgmmaTile<64, 64>>(100, 60, 0),
          of_halves<gpu::W8a16WgmmaTile<128, 128>>(128 * (sms / 10 + 1) - 3, 260, 1),
          of_halves<gpu::W8a16WgmmaTile<256, 128>>(256 * (sms / 6 + 1) - 6, 380, 2)};
}

}  // namespace int8q::test
