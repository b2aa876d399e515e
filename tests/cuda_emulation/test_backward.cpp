// SPDX-License-Identifier: Apache-2.0
//
// The gradient to the input beside float64, within a bound from norms and machine epsilon.
#include "cuda/kernels/backward.h"

#include <gtest/gtest.h>

#include <bit>
#include <optional>

#include "cuda/kernels/w8a16_wgmma.h"
#include "cuda_emulation/cases.h"

namespace int8q::gpu {
namespace {

using emulation::Buffer;
using test::Grid;
using test::Random;

struct Case {
  int64_t m, n, k;
  Dtype dy, dx;
  bool accumulate, aligned;
  uint64_t seed;
  std::optional<float> special;  // an element of dY's row 0
};

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

// By wgmma, where there is a tile for it.
template <class Arch, class Tile>
void launch_backward(const Backward& p, const Case& c) {
  if constexpr (std::is_void_v<Tile>) {
    launch_backward<Arch>(p, c);
  } else {
    const BackwardByMaps maps{map_of(p.dy, p.m, p.n * 2, p.dy_stride, Tile::kM, Tile::kDepth * 2),
                              map_of(p.w, p.n, p.k, p.w_stride, Tile::kDepth, Tile::kN), p};
    emulation::launch(
        {.blocks = (c.m + Tile::kM - 1) / Tile::kM * ((c.k + Tile::kN - 1) / Tile::kN),
         .threads = Tile::kBlockThreads,
         .shared_bytes = Tile::kSharedBytes,
         .seed = c.seed,
         .most_shared_bytes = Arch::kSharedBytes},
        [&] { c.dy == Dtype::kF16 ? backward_wgmma<Arch, Tile, true>(maps) : backward_wgmma<Arch, Tile, false>(maps); });
  }
}

// Of what is rounded before the product, relative; fp16's weights twice.
double rounding(Dtype dy) { return dy == Dtype::kF16 ? 1.01 * 0x1p-10 : dy == Dtype::kBf16 ? 0x1p-8 : 0x1p-23; }

template <class Arch, class Tile = void>
void check(const Case& c) {
  SCOPED_TRACE(std::to_string(c.m) + " x " + std::to_string(c.n) + " x " + std::to_string(c.k) + ", dY " +
               std::to_string(static_cast<int>(c.dy)) + ", dX " + std::to_string(static_cast<int>(c.dx)) +
               (c.accumulate ? ", accumulate" : "") + (c.aligned ? "" : ", unaligned") + ", seed " +
               std::to_string(c.seed));
  Random random(c.seed);
  Grid dy(abi(c.dy), c.m, c.n), w(INT8Q_S8, c.n, c.k), dx(abi(c.dx), c.m, c.k);
  std::vector<float> col_stats(static_cast<size_t>(c.n));
  float greatest = 0;
  for (int64_t n = 0; n < c.n; ++n) {
    for (int64_t j = 0; j < c.k; ++j) w.set_integer(n, j, test::provoking_code(random, false));
    for (int64_t i = 0; i < c.m; ++i) dy.set(i, n, random.uniform(-2, 2) * (c.seed % 5 == 0 ? 1e-4f : 1.0f));
    col_stats[static_cast<size_t>(n)] = random.below(9) == 0 ? 0.0f : random.uniform(0.1f, 2.0f);
    greatest = std::max(greatest, col_stats[static_cast<size_t>(n)]);
  }
  if (c.special) dy.set(0, c.n / 2, *c.special);
  for (int64_t i = 0; i < c.m; ++i) {
    for (int64_t j = 0; j < c.k; ++j) dx.set(i, j, random.uniform(-5, 5));
  }
  const int64_t alignment = c.aligned ? 16 : 1;
  const emulation::Matrix dy_device(dy, alignment, c.seed), w_device(w, alignment, c.seed),
      dx_device(dx, alignment, c.seed + 1);
  const Buffer<float> stats_device(col_stats, "col_stats");
  launch_backward<Arch, Tile>({.m = c.m,
                               .n = c.n,
                               .k = c.k,
                               .dy = dy_device.data(),
                               .dy_stride = dy_device.stride(),
                               .dy_dtype = c.dy,
                               .w = reinterpret_cast<const int8_t*>(w_device.data()),
                               .w_stride = w_device.stride(),
                               .col_stats = stats_device.device(),
                               .greatest = greatest,
                               .dx = dx_device.data(),
                               .dx_stride = dx_device.stride(),
                               .dx_dtype = c.dx,
                               .accumulate = c.accumulate},
                              c);
  const double eps = c.dx == Dtype::kF32 ? 0x1p-24 : c.dx == Dtype::kF16 ? 0x1p-11 : 0x1p-8;
  for (int64_t i = 0; i < c.m; ++i) {
    for (int64_t j = 0; j < c.k; ++j) {
      double sum = 0, magnitudes = 0, lost = 0;
      for (int64_t n = 0; n < c.n; ++n) {
        const double term = static_cast<double>(dy.at(i, n)) * static_cast<double>(col_stats[static_cast<size_t>(n)]) /
                            127 * w.integer(n, j);
        sum += term;
        magnitudes += std::fabs(term);
        lost += std::fabs(static_cast<double>(dy.at(i, n))) * (1 + std::abs(w.integer(n, j)));
      }
      const double before = c.accumulate ? static_cast<double>(dx.at(i, j)) : 0, want = sum + before;
      const float got = dx_device.element(abi(c.dx), i, j);
      if (!std::isfinite(want)) {
        ASSERT_TRUE(std::isnan(want) ? std::isnan(got) : static_cast<double>(got) == want) << got << " for " << want;
        continue;
      }
      // dY's ratio or, of fp16, the weights' is rounded (denormals absolutely), each of n sums and the factors in fp32, the
      // result to dX's type.
      const double bound = (rounding(c.dy) + (static_cast<double>(c.n) + 8) * 0x1p-24) * magnitudes +
                           (c.dy == Dtype::kF16 ? 0x1p-25 * lost * static_cast<double>(greatest) / 127 : 0) +
                           1.01 * eps * std::fabs(want) + 0x1p-24 * (1 + std::fabs(before));
      ASSERT_NEAR(got, want, bound) << "row " << i << ", column " << j;
    }
  }
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
        check<TypeParam>({.m = m,
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
      check<TypeParam>({.m = 3,
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
      check<Sm90a, TypeParam>({.m = m,
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
