// SPDX-License-Identifier: Apache-2.0
//
// skinny beside the oracle.
#include "cuda/kernels/skinny.h"

#include <gtest/gtest.h>

#include "cuda_emulation/gemm_cases.h"

namespace int8q::gpu {
namespace {

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

template <class A>
class SkinnyOnGpu : public testing::Test {};
TYPED_TEST_SUITE(SkinnyOnGpu, Architectures);

TYPED_TEST(SkinnyOnGpu, AccumulatorsAreExact) {
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

// A block takes the next 16 rows of W while it finishes those before, where K ends with a warp's steps or one k later; M that is
// less than eights and that is all of them, whose sums lie side by side with those of the next 16 rows.
TYPED_TEST(SkinnyOnGpu, OneBlockTakesAllRows) {
  constexpr uint64_t kSeed = 3;  // % 3 is 0
  for (const bool fused : {true, false}) {
    for (const int64_t k : {1024, 1025, 2048, 2049}) {
      for (const int64_t m : {2, 8}) {
        Case c{.m = m, .n = 40, .k = k, .mode = INT8Q_OUTLIERS_OFF, .accumulators = true, .seed = kSeed};
        check<TypeParam>(c, skinny_gemm<TypeParam, 1>(c, fused));
        c.mode = INT8Q_OUTLIERS_COLUMN, c.accumulators = false, c.outlier_cols = m == 2 ? 5 : 40, c.kept = 2;
        check<TypeParam>(c, skinny_gemm<TypeParam, 1>(c, fused));
      }
    }
    const Case c{.m = 16, .n = 90, .k = 600, .outlier_cols = 7, .seed = kSeed, .kept = 2};
    check<TypeParam>(c, skinny_gemm<TypeParam, 2>(c, fused));
    if constexpr (kHasInt8Mma<TypeParam>) {
      const Case of_32{.m = 32, .n = 40, .k = fused ? 510 : 2570, .outlier_cols = 7, .seed = kSeed, .kept = 2};
      check<TypeParam>(of_32, skinny_gemm<TypeParam, 4>(of_32, fused));
      const Case of_64{.m = fused ? 33 : 64, .n = 40, .k = fused ? 496 : 2570, .outlier_cols = 7, .seed = kSeed, .kept = 2};
      check<TypeParam>(of_64, skinny_gemm<TypeParam, 8>(of_64, fused));
    }
  }
}

// Outlier columns are brought 32 at a time: once a block, or where there are more for each 16 rows of W.
TYPED_TEST(SkinnyOnGpu, NumbersOfOutlierColumns) {
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
    const Case c{.m = 50, .n = 20, .k = 100, .outlier_cols = 40, .exactly = true, .seed = seed++};
    check<TypeParam>(c, skinny_gemm<TypeParam, 8>(c, true));
  }
  // As a bitmap of more words than a warp has lanes.
  const Case c{.m = 5, .n = 7, .k = 2100, .outlier_cols = 60, .seed = seed};
  check<TypeParam>(c, skinny_gemm<TypeParam, 1>(c, false));
}

// Rows are quantized by 8, 4 or 2 warps each, or 8 rows at once, of chunks that lanes have many or none of.
TYPED_TEST(SkinnyOnGpu, RowsAreQuantizedByWarps) {
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

TYPED_TEST(SkinnyOnGpu, Floats) {
  for (const bool fused : {true, false}) {
    for_each_float_case(5, [&](const Case& c) { check<TypeParam>(c, skinny_gemm<TypeParam, 1>(c, fused)); });
    if constexpr (kHasInt8Mma<TypeParam>) {
      for_each_float_case(29, [&](const Case& c) { check<TypeParam>(c, skinny_gemm<TypeParam, 4>(c, fused)); });
    }
  }
}

}  // namespace
}  // namespace int8q::gpu
