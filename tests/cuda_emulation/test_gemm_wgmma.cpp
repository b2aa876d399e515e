// SPDX-License-Identifier: Apache-2.0
//
// gemm_wgmma beside the oracle.
#include "cuda/kernels/gemm_wgmma.h"

#include <gtest/gtest.h>

#include "cuda_emulation/gemm_cases.h"

namespace int8q::gpu {
namespace {

template <class Tile>
void check_product(const Case& c) {
  check<Sm90a>(c, [&](const Gemm& p) {
    const GemmByMaps maps{map_of(p.codes, p.m, p.k, p.codes_stride, Tile::kM, Tile::kK),
                          map_of(p.w, p.n, p.k, p.w_stride, Tile::kN, Tile::kK), p};
    emulation::launch({.blocks = tiles_of<Tile>(c),
                       .threads = Tile::kBlockThreads,
                       .shared_bytes = Tile::shared_bytes(c.k, p.found != nullptr, c.kept > 0),
                       .seed = c.seed,
                       .most_shared_bytes = Sm90a::kSharedBytes},
                      [&] { gemm_wgmma<Sm90a, Tile>(maps); });
  });
}
void check_product(const Case& c) {
  check_product<WgmmaTile<128>>(c);
  check_product<WgmmaTile<256>>(c);
}

// One step of 128 k's, all stages at once, and each of them twice and more.
TEST(GemmByWgmma, AccumulatorsAreExact) {
  uint64_t seed = 0;
  for (const auto& [m, n, k] : std::vector<std::array<int64_t, 3>>{{1, 1, 1},
                                                                   {3, 5, 7},
                                                                   {64, 8, 32},
                                                                   {65, 257, 33},
                                                                   {128, 256, 128},
                                                                   {129, 130, 129},
                                                                   {5, 9, 512},
                                                                   {200, 7, 515},
                                                                   {17, 20, 1155}}) {
    for (const int32_t mode : {INT8Q_OUTLIERS_OFF, INT8Q_OUTLIERS_COLUMN}) {
      check_product({.m = m, .n = n, .k = k, .mode = mode, .accumulators = true, .seed = seed++});
    }
  }
}

TEST(GemmByWgmma, Floats) {
  for_each_float_case(133, [](Case c) {
    c.aligned = true;
    if (c.mode != INT8Q_OUTLIERS_ELEMENT) check_product(c);
  });
}

TEST(GemmByWgmma, NumbersOfOutlierColumns) {
  uint64_t seed = 1;
  for (const int columns : {1, 15, 16, 17, 32, 33}) {
    for (const Dtype x : {Dtype::kF32, Dtype::kF16}) {
      Case c{.m = 3, .n = 9, .k = 140, .x = x, .outlier_cols = columns, .exactly = true, .seed = seed++};
      check_product(c);
      c.kept = 2;
      check_product(c);
      c.accumulators = true;
      check_product(c);
    }
  }
}

}  // namespace
}  // namespace int8q::gpu
