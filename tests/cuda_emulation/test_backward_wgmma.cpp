// SPDX-License-Identifier: Apache-2.0
//
// backward_wgmma beside float64.
#include <gtest/gtest.h>

#include "cuda/kernels/w8a16_wgmma.h"
#include "cuda_emulation/backward_cases.h"

namespace int8q::gpu {
namespace {

template <class Tile>
void check_product(const Case& c) {
  check(c, [&](const Backward& p) {
    const BackwardByMaps maps{map_of(p.dy, p.m, p.n * 2, p.dy_stride, Tile::kM, Tile::kDepth * 2),
                              map_of(p.w, p.n, p.k, p.w_stride, Tile::kDepth, Tile::kN), p};
    emulation::launch(
        {.blocks = (c.m + Tile::kM - 1) / Tile::kM * ((c.k + Tile::kN - 1) / Tile::kN),
         .threads = Tile::kBlockThreads,
         .shared_bytes = Tile::kSharedBytes,
         .seed = c.seed,
         .most_shared_bytes = Sm90a::kSharedBytes},
        [&] { c.dy == Dtype::kF16 ? backward_wgmma<Sm90a, Tile, true>(maps) : backward_wgmma<Sm90a, Tile, false>(maps); });
  });
}

template <class Tile>
class BackwardByWgmma : public testing::Test {};
using Tiles = testing::Types<W8a16WgmmaTile<64, 64>, W8a16WgmmaTile<128, 128>, W8a16WgmmaTile<256, 128>>;
TYPED_TEST_SUITE(BackwardByWgmma, Tiles);

// More stages than there are, and than there are twice; tiles beside and below each other; sums of one product, which is rounded
// once.
TYPED_TEST(BackwardByWgmma, IsCloseToFloat64) {
  const float specials[] = {0.0f, std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()};
  uint64_t seed = 1;
  for (const auto& [m, n, k] : std::vector<std::array<int64_t, 3>>{{1, 1, 1},
                                                                   {3, 33, 17},
                                                                   {64, 64, 128},
                                                                   {65, 100, 130},
                                                                   {257, 40, 65},
                                                                   {130, 200, 9},
                                                                   {7, 2300, 67},
                                                                   {1, 2, 131},
                                                                   {1, 2, 130}}) {
    for (const Dtype dy : {Dtype::kF16, Dtype::kBf16}) {
      check_product<TypeParam>({.m = m,
                                .n = n,
                                .k = k,
                                .dy = dy,
                                .dx = static_cast<Dtype>(seed % 3),
                                .accumulate = seed % 2 == 0,
                                .aligned = true,
                                .seed = seed,
                                .special = n == 2 ? 0.0f : specials[seed / 2 % 3]});
      ++seed;
    }
  }
}

}  // namespace
}  // namespace int8q::gpu
