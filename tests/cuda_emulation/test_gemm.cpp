// SPDX-License-Identifier: Apache-2.0
//
// gemm and finish_products beside the oracle.
#include "cuda/kernels/gemm.h"

#include <gtest/gtest.h>

#include "cuda/kernels/finish_products.h"
#include "cuda_emulation/gemm_cases.h"

namespace int8q::gpu {
namespace {

template <class Arch, class Tile = LargeTile<Arch>, bool kSplits = false>
auto large_gemm(const Case& c) {
  return [c](const Gemm& p) {
    emulation::launch({.blocks = tiles_of<Tile>(c) * c.splits,
                       .threads = Tile::kThreads,
                       .shared_bytes = Tile::shared_bytes(c.k, p.found != nullptr, false),
                       .seed = c.seed,
                       .most_shared_bytes = Arch::kSharedBytes},
                      [&] { c.aligned ? gemm<Arch, Tile, true, kSplits>(p) : gemm<Arch, Tile, false, kSplits>(p); });
  };
}

// Of sums that somebody else has made of all codes.
template <class Arch>
auto finish_of_sums(const Case& c) {
  return [c](Gemm p) {
    using Tile = SmallTile<Arch>;
    std::vector<int32_t> made(static_cast<size_t>(c.m * c.n));
    for (int64_t i = 0; i < c.m * c.n; ++i) {
      const int8_t *codes = p.codes + i / c.n * p.codes_stride, *w = p.w + i % c.n * p.w_stride;
      for (int64_t k = 0; k < c.k; ++k) made[static_cast<size_t>(i)] += codes[k] * w[k];
    }
    Buffer<int32_t> sums(made, "sums");
    p.partials = sums.device();
    emulation::launch({.blocks = tiles_of<Tile>(c),
                       .threads = Tile::kThreads,
                       .shared_bytes = Tile::shared_bytes(c.k, p.found != nullptr, false),
                       .seed = c.seed,
                       .most_shared_bytes = Arch::kSharedBytes},
                      [&] { finish_products<Arch, Tile>(p); });
  };
}

template <class A>
class GemmOnGpu : public testing::Test {};
TYPED_TEST_SUITE(GemmOnGpu, Architectures);

TYPED_TEST(GemmOnGpu, AccumulatorsAreExact) {
  uint64_t seed = 1;
  for (const auto& [m, n, k] : std::vector<std::array<int64_t, 3>>{
           {1, 1, 1}, {3, 5, 7}, {16, 8, 32}, {17, 9, 33}, {128, 128, 64}, {129, 130, 65}, {5, 131, 320}, {200, 7, 515}}) {
    for (const bool aligned : {true, false}) {
      for (const int32_t mode : {INT8Q_OUTLIERS_OFF, INT8Q_OUTLIERS_COLUMN, INT8Q_OUTLIERS_ELEMENT}) {
        const Case c{.m = m, .n = n, .k = k, .mode = mode, .accumulators = true, .aligned = aligned, .seed = seed++};
        check<TypeParam>(c, large_gemm<TypeParam>(c));
      }
    }
  }
}

TYPED_TEST(GemmOnGpu, FinishesSums) {
  uint64_t seed = 1;
  for (const auto& [m, n, k] : std::vector<std::array<int64_t, 3>>{{1, 4, 4}, {17, 12, 32}, {65, 68, 64}, {129, 4, 320}}) {
    for (const int32_t mode : {INT8Q_OUTLIERS_OFF, INT8Q_OUTLIERS_COLUMN, INT8Q_OUTLIERS_ELEMENT}) {
      for (const bool accumulators : {true, false}) {
        Case c{.m = m, .n = n, .k = k, .mode = mode, .accumulators = accumulators, .seed = seed++};
        c.accumulate = seed % 2 == 0;
        check<TypeParam>(c, finish_of_sums<TypeParam>(c));
      }
    }
  }
}

// Each block has its share of K, the last of them perhaps none, or all of it; counters are as they were, so a second product may follow.
TYPED_TEST(GemmOnGpu, SplitsOfK) {
  uint64_t seed = 1;
  for (const auto& [m, n, k, splits] : std::vector<std::array<int64_t, 4>>{
           {3, 5, 7, 2}, {20, 9, 200, 3}, {5, 140, 320, 4}, {130, 20, 260, 2}, {7, 7, 130, 5}, {65, 70, 200, 1}}) {
    for (const int32_t mode : {INT8Q_OUTLIERS_OFF, INT8Q_OUTLIERS_COLUMN}) {
      for (const bool accumulators : {true, false}) {
        const Case c{.m = m,
                     .n = n,
                     .k = k,
                     .mode = mode,
                     .accumulators = accumulators,
                     .splits = static_cast<int>(splits),
                     .seed = seed};
        ++seed;
        const auto once = large_gemm<TypeParam, SmallTile<TypeParam>, true>(c);
        check<TypeParam>(c, [&](const Gemm& p) {
          once(p);
          if (!accumulators) return;
          std::memset(p.y, 0x5a, static_cast<size_t>(p.m * p.n) * 4);
          once(p);
        });
      }
    }
  }
}

TYPED_TEST(GemmOnGpu, Floats) {
  for_each_float_case(33, [](const Case& c) { check<TypeParam>(c, large_gemm<TypeParam>(c)); });
}

// Columns are brought 32, 16 or 8 at a time; from 16 of a block on they come as a bitmap, here of more words than a warp has
// lanes.
TYPED_TEST(GemmOnGpu, NumbersOfOutlierColumns) {
  uint64_t seed = 1;
  for (const int columns : {1, 8, 9, 15, 16, 17, 32, 33, 70}) {  // 70: all
    for (const Dtype x : {Dtype::kF32, Dtype::kF16}) {
      for (const int32_t mode : {INT8Q_OUTLIERS_COLUMN, INT8Q_OUTLIERS_ELEMENT}) {
        Case c{.m = 3, .n = 10, .k = 70, .x = x, .mode = mode, .outlier_cols = columns, .exactly = true, .seed = seed++};
        check<TypeParam>(c, large_gemm<TypeParam>(c));
        c.accumulators = true;
        check<TypeParam>(c, large_gemm<TypeParam>(c));
        check<TypeParam>(c, finish_of_sums<TypeParam>(c));  // subtracts what the product passes over
      }
    }
  }
  const Case c{.m = 5, .n = 7, .k = 2100, .outlier_cols = 60, .seed = seed};
  check<TypeParam>(c, large_gemm<TypeParam>(c));
}

}  // namespace
}  // namespace int8q::gpu
