// SPDX-License-Identifier: Apache-2.0
//
// backward beside float64.
#include "cuda/kernels/backward.h"

#include <gtest/gtest.h>

#include <bit>

#include "cuda_emulation/backward_cases.h"

namespace int8q::gpu {
namespace {

template <class Arch>
void launch_backward(const Backward& p, const Case& c) {
  const auto launch = [&](auto tile, auto kernel) {
    using Tile = decltype(tile);
    emulation::launch({.blocks = (c.m + Tile::kM - 1) / Tile::kM * ((c.k + Tile::kN - 1) / Tile::kN),
                       .threads = Tile::kThreads,
                       .shared_bytes = Tile::kSharedBytes,
                       .seed = c.seed,
                       .most_shared_bytes = Arch::kSharedBytes},
                      kernel);
  };
  if constexpr (Arch::kVersion >= 75) {
    if (c.dy == Dtype::kF16) {
      return launch(BackwardTile<Multiply::kF16>(), [&] {
        c.aligned ? backward<Arch, Multiply::kF16, true>(p) : backward<Arch, Multiply::kF16, false>(p);
      });
    }
  }
  if constexpr (Arch::kVersion >= 80) {
    return launch(BackwardTile<Multiply::kBf16>(), [&] {
      c.aligned ? backward<Arch, Multiply::kBf16, true>(p) : backward<Arch, Multiply::kBf16, false>(p);
    });
  }
  launch(BackwardTile<Multiply::kF32>(),
         [&] { c.aligned ? backward<Arch, Multiply::kF32, true>(p) : backward<Arch, Multiply::kF32, false>(p); });
}

template <class Arch>
void check_kernel(const Case& c) {
  check(c, [&](const Backward& p) { launch_backward<Arch>(p, c); });
}

template <class A>
class BackwardOnGpu : public testing::Test {};
TYPED_TEST_SUITE(BackwardOnGpu, Architectures);

TYPED_TEST(BackwardOnGpu, IsCloseToFloat64) {
  uint64_t seed = 1;
  for (const auto& [m, n, k] : std::vector<std::array<int64_t, 3>>{
           {1, 1, 1}, {3, 33, 17}, {16, 16, 16}, {40, 32, 128}, {129, 65, 40}, {7, 100, 130}, {5, 31, 200}}) {
    for (const Dtype dy : {Dtype::kF32, Dtype::kF16, Dtype::kBf16}) {
      for (const bool aligned : {true, false}) {
        check_kernel<TypeParam>({.m = m,
                                 .n = n,
                                 .k = k,
                                 .dy = dy,
                                 .dx = static_cast<Dtype>(seed % 3),
                                 .accumulate = seed % 2 == 0,
                                 .aligned = aligned,
                                 .seed = seed,
                                 .special = {}});
        ++seed;
      }
    }
  }
}

// Also a NaN whose upper half is that of Inf.
TYPED_TEST(BackwardOnGpu, NanAndInfStayInTheirRow) {
  uint64_t seed = 1;
  for (const uint32_t bits : {0x7f800000u, 0xff800000u, 0x7f800001u, 0x7fc00000u}) {
    for (const Dtype dy : {Dtype::kF32, Dtype::kF16, Dtype::kBf16}) {
      check_kernel<TypeParam>({.m = 3,
                               .n = 40,
                               .k = 17,
                               .dy = dy,
                               .dx = static_cast<Dtype>(seed % 3),
                               .accumulate = false,
                               .aligned = seed % 2 == 0,
                               .seed = seed,
                               .special = std::bit_cast<float>(bits)});
      ++seed;
    }
  }
}

}  // namespace
}  // namespace int8q::gpu
