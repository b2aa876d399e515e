// SPDX-License-Identifier: Apache-2.0
//
// What stands behind a product whose sums lie in memory, since cuBLASLt made them:
//
//   acc = sums[M][N]     s32, one row after another; N is even
//   y   = what epilogue.h makes of it
//
// Bound by memory: 4 bytes an element are read beside what the epilogue reads and writes. A thread takes two neighbours, so four of
// them the 32 bytes of a sector. Tiles are the small ones, of which four share an SM, or three before sm_75.
#pragma once

#include "cuda/kernels/epilogue.h"

namespace int8q::gpu {

template <class Arch, class Tile>
class FinishBlock : GemmEpilogue<Arch, Tile> {
  using Epilogue = GemmEpilogue<Arch, Tile>;
  using Epilogue::acc_, Epilogue::row_, Epilogue::col_, Epilogue::p_;
  using Epilogue::kTilesM, Epilogue::kTilesN;

 public:
  INT8Q_DEVICE explicit FinishBlock(const Gemm& p) : Epilogue(p, block_index()) {}

  INT8Q_DEVICE void run() {
#pragma unroll
    for (int i = 0; i < kTilesM; ++i) {
#pragma unroll
      for (int c = 0; c < 4; c += 2) {
        const int64_t row = row_ + Epilogue::local_row(i, c);
#pragma unroll
        for (int j = 0; j < kTilesN; ++j) {
          const int64_t col = col_ + Epilogue::local_col(j, c);
          if (row >= p_.m || col >= p_.n) continue;
          const U32x2 two = load(reinterpret_cast<const U32x2*>(p_.partials + row * p_.n + col));
          acc_[i][j][c] = static_cast<int32_t>(two.x);
          acc_[i][j][c + 1] = static_cast<int32_t>(two.y);
        }
      }
    }
    Epilogue::template finish<Epilogue::Columns::kNone>();
  }
};

template <class Arch, class Tile>
INT8Q_DEVICE void finish_products(const Gemm& p) {
  FinishBlock<Arch, Tile>(p).run();
}

}  // namespace int8q::gpu
