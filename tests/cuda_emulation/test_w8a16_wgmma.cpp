// SPDX-License-Identifier: Apache-2.0
//
// w8a16_wgmma beside float64.
#include <gtest/gtest.h>

#include "cuda/kernels/w8a16_wgmma.h"
#include "cuda_emulation/w8a16_cases.h"

namespace int8q::gpu {
namespace {

template <class Tile>
void check_wgmma(const Case& c) {
  check(c, [&](const Gemm& p) {
    const W8a16ByMaps maps{map_of(p.x, p.m, p.k * 2, p.x_stride, Tile::kM, Tile::kDepth * 2),
                           map_of(p.w, p.n, p.k, p.w_stride, Tile::kN, Tile::kDepth), p};
    emulation::launch(
        {.blocks = (c.m + Tile::kM - 1) / Tile::kM * ((c.n + Tile::kN - 1) / Tile::kN),
         .threads = Tile::kBlockThreads,
         .shared_bytes = Tile::kSharedBytes,
         .seed = c.seed,
         .most_shared_bytes = Sm90a::kSharedBytes},
        [&] { c.x == Dtype::kF16 ? w8a16_wgmma<Sm90a, Tile, true>(maps) : w8a16_wgmma<Sm90a, Tile, false>(maps); });
  });
}

// More stages than there are, and than there are twice; tiles beside and below each other.
TEST(W8a16ByWgmma, IsCloseToFloat64) {
  for_each_case({{1, 1, 1}, {3, 33, 17}, {64, 128, 64}, {65, 130, 100}, {257, 65, 40}, {130, 9, 200}, {7, 67, 2300}},
                [](Case c) {
                  c.kept = false;
                  if (c.x == Dtype::kF32 || !c.aligned) return;
                  check_wgmma<W8a16WgmmaTile<64, 64>>(c);
                  check_wgmma<W8a16WgmmaTile<128, 128>>(c);
                  check_wgmma<W8a16WgmmaTile<256, 128>>(c);
                });
}

}  // namespace
}  // namespace int8q::gpu
