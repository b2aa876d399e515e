// SPDX-License-Identifier: Apache-2.0
//
// w8a16_skinny and w8a16_gemm beside float64.
#include <gtest/gtest.h>

#include "cuda/kernels/w8a16_gemm.h"
#include "cuda/kernels/w8a16_skinny.h"
#include "cuda_emulation/w8a16_cases.h"

namespace int8q::gpu {
namespace {

template <class Arch>
constexpr bool has(Multiply how) {
  return how == Multiply::kF16 ? Arch::kVersion >= 75 : how == Multiply::kBf16 ? Arch::kVersion >= 80 : Arch::kVersion < 80;
}

// body(tag): how X is multiplied, as a constant.
template <class Arch, class Body>
void with_product(Dtype x, const Body& body) {
  if constexpr (has<Arch>(Multiply::kF16)) {
    if (x == Dtype::kF16) return body(std::integral_constant<Multiply, Multiply::kF16>());
  }
  if constexpr (has<Arch>(Multiply::kBf16)) {
    body(std::integral_constant<Multiply, Multiply::kBf16>());
  } else {
    body(std::integral_constant<Multiply, Multiply::kF32>());
  }
}

template <class Arch>
void check_skinny(const Case& c) {
  with_product<Arch>(c.x, [&](auto tag) {
    constexpr Multiply kHow = tag();
    constexpr int kMost = W8a16SkinnyShape::most_rows(kHow);
    if (c.m > kMost) return;
    check(c, [&](const Gemm& p) {
      emulation::launch({.blocks = 2,
                         .threads = W8a16SkinnyShape::kThreads,
                         .shared_bytes = W8a16SkinnyShape::shared_bytes(c.m),
                         .seed = c.seed,
                         .most_shared_bytes = Arch::kSharedBytes},
                        [&] {
                          if (c.m <= W8a16SkinnyShape::kFew)
                            return c.aligned ? w8a16_skinny<Arch, kHow, 2, true>(p) : w8a16_skinny<Arch, kHow, 2, false>(p);
                          c.aligned ? w8a16_skinny<Arch, kHow, kMost / 8, true>(p)
                                    : w8a16_skinny<Arch, kHow, kMost / 8, false>(p);
                        });
    });
  });
}

template <class Arch>
void check_gemm(const Case& c, bool small) {
  with_product<Arch>(c.x, [&](auto tag) {
    constexpr Multiply kHow = tag();
    const auto launch = [&](auto tile, const Gemm& p, const auto& kernel) {
      using Tile = decltype(tile);
      emulation::launch({.blocks = (c.m + Tile::kM - 1) / Tile::kM * ((c.n + Tile::kN - 1) / Tile::kN),
                         .threads = Tile::kThreads,
                         .shared_bytes = Tile::kSharedBytes,
                         .seed = c.seed,
                         .most_shared_bytes = Arch::kSharedBytes},
                        [&] { kernel(p); });
    };
    using Large = W8a16LargeTile<kHow>;
    check(c, [&](const Gemm& p) {
      if constexpr (kHow != Multiply::kF32) {
        using Small = W8a16SmallTile<kHow>;
        if (small && c.aligned) return launch(Small(), p, [&](const Gemm& q) { w8a16_gemm<Arch, Small, kHow, true>(q); });
      }
      launch(Large(), p, [&](const Gemm& q) {
        c.aligned ? w8a16_gemm<Arch, Large, kHow, true>(q) : w8a16_gemm<Arch, Large, kHow, false>(q);
      });
    });
  });
}

template <class A>
class W8a16OnGpu : public testing::Test {};
TYPED_TEST_SUITE(W8a16OnGpu, Architectures);

TYPED_TEST(W8a16OnGpu, SkinnyIsCloseToFloat64) {
  for_each_case({{1, 1, 1},
                 {1, 33, 1},
                 {4, 16, 16},
                 {3, 40, 100},
                 {8, 17, 520},
                 {9, 16, 1100},
                 {16, 5, 2070},
                 {17, 16, 64},
                 {40, 21, 650},
                 {48, 16, 48}},
                check_skinny<TypeParam>);
}

TYPED_TEST(W8a16OnGpu, GemmIsCloseToFloat64) {
  for (const bool small : {false, true}) {
    for_each_case({{1, 1, 1}, {3, 33, 17}, {40, 64, 32}, {65, 66, 40}, {129, 65, 33}, {7, 130, 100}, {70, 9, 200}},
                  [&](const Case& c) { check_gemm<TypeParam>(c, small); });
  }
}

}  // namespace
}  // namespace int8q::gpu
