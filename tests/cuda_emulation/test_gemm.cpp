// SPDX-License-Identifier: Apache-2.0
//
// gemm, skinny and finish_products beside the oracle.
#include "cuda/kernels/gemm.h"

#include <gtest/gtest.h>

#include "cuda/kernels/finish_products.h"
#include "cuda/kernels/skinny.h"
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

template <class Arch, int kEights>
auto skinny_gemm(const Case& c, bool wants_fused) {
  const bool fused = wants_fused && c.aligned;
  return [c, fused](Gemm p) {
    if (fused) {  // which makes these for itself
      p.codes = nullptr;
      p.row_stats = nullptr;
      p.found = nullptr;
    }
    emulation::launch({.blocks = 1 + static_cast<int64_t>(c.seed % 3),
                       .threads = SkinnyShape::kThreads,
                       .shared_bytes = SkinnyShape::shared_bytes(kEights * 8, c.m, c.k, fused),
                       .seed = c.seed,
                       .most_shared_bytes = Arch::kSharedBytes},
                      [&] {
                        if (fused) {
                          skinny<Arch, kEights, true, true>(p);
                        } else {
                          c.aligned ? skinny<Arch, kEights, false, true>(p) : skinny<Arch, kEights, false, false>(p);
                        }
                      });
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

// Each block has its share of K, the last of them perhaps none; counters are as they were, so a second product may follow.
TYPED_TEST(GemmOnGpu, SplitsOfK) {
  uint64_t seed = 1;
  for (const auto& [m, n, k, splits] : std::vector<std::array<int64_t, 4>>{
           {3, 5, 7, 2}, {20, 9, 200, 3}, {5, 140, 320, 4}, {130, 20, 260, 2}, {7, 7, 130, 5}}) {
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
          std::memset(p.y, 0x5a, static_cast<size_t>(m * n) * 4);
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
  for (const int columns : {1, 8, 9, 15, 16, 17, 32, 33}) {
    for (const Dtype x : {Dtype::kF32, Dtype::kF16}) {
      for (const int32_t mode : {INT8Q_OUTLIERS_COLUMN, INT8Q_OUTLIERS_ELEMENT}) {
        Case c{.m = 3, .n = 9, .k = 70, .x = x, .mode = mode, .outlier_cols = columns, .exactly = true, .seed = seed++};
        check<TypeParam>(c, large_gemm<TypeParam>(c));
        c.accumulators = true;
        check<TypeParam>(c, large_gemm<TypeParam>(c));
      }
    }
  }
  const Case c{.m = 5, .n = 7, .k = 2100, .outlier_cols = 60, .seed = seed};
  check<TypeParam>(c, large_gemm<TypeParam>(c));
  check<TypeParam>(c, skinny_gemm<TypeParam, 1>(c, false));
}

TYPED_TEST(GemmOnGpu, SkinnyAccumulatorsAreExact) {
  uint64_t seed = 1;
  for (const auto& [n, k] :
       std::vector<std::array<int64_t, 2>>{{1, 1}, {15, 63}, {16, 64}, {33, 65}, {40, 515}, {5, 2100}}) {
    for (const bool aligned : {true, false}) {
      for (const int32_t mode : {INT8Q_OUTLIERS_OFF, INT8Q_OUTLIERS_COLUMN, INT8Q_OUTLIERS_ELEMENT}) {
        for (const bool fused : {true, false}) {
          Case c{.m = 1, .n = n, .k = k, .mode = mode, .accumulators = true, .aligned = aligned, .seed = seed++};
          check<TypeParam>(c, skinny_gemm<TypeParam, 1>(c, fused));
          c.m = 8 + static_cast<int64_t>(seed % 9);
          check<TypeParam>(c, skinny_gemm<TypeParam, 2>(c, fused));
        }
      }
    }
  }
  if constexpr (kHasInt8Mma<TypeParam>) {
    for (const bool fused : {true, false}) {
      const Case c{.m = 61, .n = 20, .k = 130, .accumulators = true, .seed = seed++};
      check<TypeParam>(c, skinny_gemm<TypeParam, 8>(c, fused));
    }
  }
}

// Outlier columns are brought 32 at a time: once a block, or where there are more for each 16 rows of W.
TYPED_TEST(GemmOnGpu, SkinnyNumbersOfOutlierColumns) {
  uint64_t seed = 1;
  for (const int columns : {1, 4, 31, 32, 33, 64, 70}) {
    for (const int32_t mode : {INT8Q_OUTLIERS_COLUMN, INT8Q_OUTLIERS_ELEMENT}) {
      for (const bool fused : {true, false}) {
        Case c{.m = 3, .n = 40, .k = 80, .mode = mode, .outlier_cols = columns, .exactly = true, .seed = seed++};
        check<TypeParam>(c, skinny_gemm<TypeParam, 1>(c, fused));
        c.accumulators = true;
        c.m = 11;
        check<TypeParam>(c, skinny_gemm<TypeParam, 2>(c, fused));
      }
    }
  }
  if constexpr (kHasInt8Mma<TypeParam>) {
    const Case c{.m = 50, .n = 20, .k = 100, .outlier_cols = 40, .exactly = true, .seed = seed};
    check<TypeParam>(c, skinny_gemm<TypeParam, 8>(c, true));
  }
}

// Rows are quantized by 8, 4 or 2 warps each, or 8 rows at once, of chunks that lanes have many or none of.
TYPED_TEST(GemmOnGpu, SkinnyRowsAreQuantizedByWarps) {
  uint64_t seed = 1;
  for (const int64_t m : {1, 2, 3, 4, 5, 8, 9, 16}) {
    for (const int64_t k : {5, 64, 1100, 2060}) {
      const Case c{.m = m, .n = 3, .k = k, .x = static_cast<Dtype>(seed % 3), .accumulators = seed % 2 == 0, .seed = seed};
      ++seed;
      m > 8 ? check<TypeParam>(c, skinny_gemm<TypeParam, 2>(c, true))
            : check<TypeParam>(c, skinny_gemm<TypeParam, 1>(c, true));
    }
  }
}

TYPED_TEST(GemmOnGpu, SkinnyFloats) {
  for (const bool fused : {true, false}) {
    for_each_float_case(5, [&](const Case& c) { check<TypeParam>(c, skinny_gemm<TypeParam, 1>(c, fused)); });
    if constexpr (kHasInt8Mma<TypeParam>) {
      for_each_float_case(29, [&](const Case& c) { check<TypeParam>(c, skinny_gemm<TypeParam, 4>(c, fused)); });
    }
  }
}

}  // namespace
}  // namespace int8q::gpu
