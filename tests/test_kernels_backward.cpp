// SPDX-License-Identifier: Apache-2.0
//
// The kernels of the gradient to the input, of every ISA, against plain loops.
#include "support/kernel_cases.h"

namespace int8q::test {
namespace {

using cpu::Kernels;

TEST(KernelsBackward, Unpack) {
  Cells cells("unpack");
  constexpr int64_t kPadded = 192;
  GuardedMemory in(kPadded * 16);
  for (const cpu::Isa* isa : runnable_isas()) {
    const Kernels& kernels = isa->kernels();
    Random random(7);
    for (int64_t begin = 0; begin < kPadded; begin += 16) {
      for (int64_t count = 0; begin + count <= kPadded; count += 16) {
        for (const int64_t stride : {256, 320}) {  // floats from 16 columns to the next
          auto* panel = reinterpret_cast<int8_t*>(in.place_aligned(kPadded * 16));
          for (int64_t j = 0; j < kPadded * 16; ++j) panel[j] = provoking_code(random, true);
          Aligned<float> w(count / 16 * stride + 16);
          for (int64_t j = 0; j < w.count(); ++j) w[j] = -7.5f;
          kernels.unpack.run(panel, begin, count, w.get(), stride * 4);
          for (int64_t j = 0; j < w.count(); ++j) {
            const int64_t k = begin + j / stride * 16 + j % 16, row = j % stride / 16;
            const bool gap = k >= begin + count || row >= 16;
            ASSERT_EQ(gap ? -7.5f : static_cast<float>(panel_code(panel, 0, row, k)), w[j])
                << kernels.unpack.name << " row " << row << " column " << k << (gap ? ", which is none" : "");
          }
          cells.add();
        }
      }
    }
  }
  EXPECT_EQ(isa_count() * (13 * 12 / 2 + 12) * 2, cells.count());
}

// dX of one block; w in panels of 16 columns.
void check_backward(const Kernels& kernels, int64_t rows, int64_t n, int64_t k, Random& random) {
  const int64_t g_stride = n + random.below(2) * 16, w_stride = (n + random.below(2)) * 16,
                dx_stride = k + random.below(2) * 16;
  Aligned<float> g(rows * (g_stride + 1)), w((k / 16) * (w_stride + 16)), dx(rows * dx_stride);
  for (int64_t i = 0; i < g.count(); ++i)
    g[i] = random.below(15) == 0 ? provoking(random, 0, 100, i % 11 == 0) : random.uniform(-2.0f, 2.0f);
  for (int64_t i = 0; i < w.count(); ++i) w[i] = static_cast<float>(provoking_code(random, true));
  std::vector<float> right(static_cast<size_t>(dx.count()));
  for (int64_t i = 0; i < dx.count(); ++i) dx[i] = right[static_cast<size_t>(i)] = random.uniform(-9.0f, 9.0f);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < k; ++j) {
      float& sum = right[static_cast<size_t>(i * dx_stride + j)];
      for (int64_t t = 0; t < n; ++t) sum = std::fmaf(g[i * g_stride + t], w[j / 16 * w_stride + t * 16 + j % 16], sum);
    }
  }
  std::vector<int8_t> next(1024);
  kernels.backward.run({.rows = rows,
                        .n = n,
                        .k = k,
                        .g = g.get(),
                        .g_stride = g_stride * 4,
                        .w = w.get(),
                        .w_stride = w_stride * 4,
                        .next = random.below(2) == 0 ? next.data() : nullptr,
                        .next_stride = 64,
                        .next_count = random.below(4),
                        .dx = dx.get(),
                        .dx_stride = dx_stride});
  for (int64_t i = 0; i < dx.count(); ++i) {
    ASSERT_TRUE(same_float(right[static_cast<size_t>(i)], dx[i]))
        << kernels.backward.name << " at row " << i / dx_stride << " column " << i % dx_stride;
  }
}

TEST(KernelsBackward, Multiply) {
  Cells cells("backward");
  for (const cpu::Isa* isa : runnable_isas()) {
    Random random(15);
    for (int64_t rows = 1; rows <= 17; ++rows) {
      for (const int64_t n : {0, 1, 2, 5, 15, 16, 17, 63, 64}) {
        for (const int64_t k : {16, 32, 48, 64, 80}) {
          SCOPED_TRACE(::testing::Message() << "rows " << rows << " n " << n << " k " << k);
          ASSERT_NO_FATAL_FAILURE(check_backward(isa->kernels(), rows, n, k, random));
          cells.add();
        }
      }
    }
  }
  EXPECT_EQ(isa_count() * 17 * 9 * 5, cells.count());
}

}  // namespace
}  // namespace int8q::test
