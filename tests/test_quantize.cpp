// SPDX-License-Identifier: Apache-2.0
//
// int8q_quantize_rows: codes, stats and outlier columns, bit for bit, on every ISA.
#include <cmath>
#include <limits>

#include "support/call.h"
#include "support/draw.h"
#include "support/oracle.h"
#include "support/shapes.h"

namespace int8q::test {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

void expect_quantized(int8q_context* context, Grid& x, int32_t mode, float threshold, const Quantized& expected,
                      int64_t gap, int64_t offset) {
  const int64_t m = x.rows(), k = x.cols();
  Grid q(INT8Q_S8, m, k, gap, offset);
  std::vector<float> stats(static_cast<size_t>(m) + 1, -7.0f);
  std::vector<uint8_t> mask(static_cast<size_t>(k) + 1, 9);
  std::vector<int64_t> cols(static_cast<size_t>(k) + 1, -9);
  int64_t count = -1;
  ASSERT_CALL(
      int8q_quantize_rows(context, x.view(), mode, threshold, q.view(), stats.data(), mask.data(), cols.data(), &count));
  ASSERT_EQ(count, static_cast<int64_t>(expected.outlier_cols.size()));
  for (int64_t t = 0; t <= k; ++t) {
    ASSERT_EQ(cols[static_cast<size_t>(t)], t < count ? expected.outlier_cols[static_cast<size_t>(t)] : -9)
        << "cols[" << t << "]";
  }
  std::vector<uint8_t> expected_mask(static_cast<size_t>(k), 0);
  for (const int64_t c : expected.outlier_cols) expected_mask[static_cast<size_t>(c)] = 1;
  expected_mask.push_back(9);
  ASSERT_EQ(mask, expected_mask);
  for (int64_t i = 0; i < m; ++i) {
    ASSERT_TRUE(same_bits(stats[static_cast<size_t>(i)], expected.stats[static_cast<size_t>(i)]))
        << "row " << i << ": " << stats[static_cast<size_t>(i)] << " expected " << expected.stats[static_cast<size_t>(i)];
    for (int64_t j = 0; j < k; ++j) {
      ASSERT_EQ(q.integer(i, j), expected.codes[static_cast<size_t>(i * k + j)])
          << "code " << i << ", " << j << " of " << x.at(i, j);
    }
  }
  ASSERT_EQ(stats.back(), -7.0f);
  ASSERT_TRUE(q.gaps_untouched());
}

TEST(Quantize, EveryShapeDtypeModeThresholdLayout) {
  const std::vector<Shape> list = shapes();
  const auto isas = runnable_isas();
  Draw draw = {{"dtype", 3},    {"mode", 4},  {"threshold", 6}, {"x gap", 4},
               {"x offset", 4}, {"q gap", 3}, {"q offset", 4},  {"threads", 3}};
  enum : size_t { kDtype, kMode, kThreshold, kXGap, kXOffset, kQGap, kQOffset, kThreads };
  size_t cells = 0;
  for (size_t s = 0; s < list.size(); ++s) {
    for (size_t t = 0; t < 3; ++t) {
      for (const int32_t mode : kModes) {
        constexpr float kThresholds[] = {0.0f, 6.0f, 1e-30f, kInf, 3.3f, 20.1f};
        const Draw::Cell d = draw.cell(s, {t, static_cast<size_t>(mode)});
        if (list[s].m > 0 && list[s].k > 0) draw.ran(d);
        const int32_t dtype = kFloatDtypes[t];
        const float threshold = kThresholds[d[kThreshold]];
        Grid x(dtype, list[s].m, list[s].k, static_cast<int64_t>(d[kXGap]), static_cast<int64_t>(d[kXOffset]));
        fill_activations(x, s);
        const Quantized expected = quantize(x, mode, threshold);
        for (size_t i = 0; i < isas.size(); ++i) {
          SCOPED_TRACE(::testing::Message() << isas[i]->name << " M " << list[s].m << " K " << list[s].k << " dtype "
                                            << dtype << " mode " << mode << " threshold " << threshold);
          const ContextPtr context = make_context(static_cast<int32_t>(1 + (d[kThreads] + i) % 3), isas[i]->name);
          expect_quantized(context.get(), x, mode, threshold, expected, static_cast<int64_t>(d[kQGap]),
                           static_cast<int64_t>(d[kQOffset]));
          if (HasFatalFailure()) return;
          ++cells;
        }
      }
    }
  }
  std::printf("%zu cells: %zu ISAs x %zu shapes x 3 dtypes x 4 modes\n", cells, isas.size(), list.size());
  EXPECT_EQ(cells, isas.size() * list.size() * 12);
  draw.expect_covered();
}

// Ties, the smallest and largest absmax, zero rows, exact thresholds.
TEST(Quantize, HardRows) {
  const float denormal = std::numeric_limits<float>::denorm_min(), nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<std::vector<float>> rows = {{0, 0, 0, 0, 0},
                                                {-0.0f, 0, -0.0f, 0, 0},
                                                {127, 0.5f, 1.5f, 2.5f, -0.5f},
                                                {127, -1.5f, -2.5f, 126.5f, -126.5f},
                                                {0x1p-120f, 0x1p-121f, -0x1p-127f, 3e-37f, 0},
                                                {0x1.8p-121f, 0x1p-122f, -0x1p-122f, 1e-38f, 0},
                                                {0x1.02p-121f, 0x1.7p-122f, -0x1.3p-123f, 0x1p-127f, 0},
                                                {-0x1.1p-123f, 0x1.7p-124f, -0x1.3p-124f, 0x1.3p-125f, 0x1p-133f},
                                                {denormal, -denormal, 0, denormal, 0},
                                                {3 * denormal, denormal, -2 * denormal, 0, 0},
                                                {3.4e38f, -3.4e38f, 1e38f, 1, -1},
                                                {6, 5.9999995f, -6, 6.0000005f, 1},
                                                {1, 0.49606299f, 0.003937008f, -0.0039370076f, 1e-30f},
                                                {1, nan, 0.5f, 100.0f, 0},
                                                {nan, nan, nan, nan, nan},
                                                {1, -kInf, 0.5f, 2, 0},
                                                {kInf, nan, 0.5f, 2, 0}};
  size_t cells = 0;
  for (const int32_t dtype : kFloatDtypes) {
    for (size_t alone = 0; alone <= rows.size(); ++alone) {  // each row by itself, and all together
      const bool all = alone == rows.size();
      Grid x(dtype, all ? static_cast<int64_t>(rows.size()) : 1, 5);
      for (int64_t i = 0; i < x.rows(); ++i) {
        for (int64_t j = 0; j < 5; ++j) x.set(i, j, rows[all ? static_cast<size_t>(i) : alone][static_cast<size_t>(j)]);
      }
      for (const int32_t mode : kModes) {
        for (const float threshold : {0.0f, 6.0f, kInf}) {
          const Quantized expected = quantize(x, mode, threshold);
          for (const cpu::Isa* isa : runnable_isas()) {
            SCOPED_TRACE(::testing::Message() << isa->name << " dtype " << dtype << " row " << alone << " mode " << mode
                                              << " threshold " << threshold);
            expect_quantized(make_context(1, isa->name).get(), x, mode, threshold, expected, 0, 0);
            if (HasFatalFailure()) return;
            ++cells;
          }
        }
      }
    }
  }
  EXPECT_EQ(runnable_isas().size() * 3 * 18 * 4 * 3, cells);
}

TEST(Quantize, InliersOfOutlierColumnsCount) {
  Grid x(INT8Q_F32, 2, 3);
  const float values[2][3] = {{7, 1, 0.5f}, {5, 1, 0.5f}};
  for (int64_t i = 0; i < 2; ++i) {
    for (int64_t j = 0; j < 3; ++j) x.set(i, j, values[i][j]);
  }
  const ContextPtr context = make_context();
  Grid q(INT8Q_S8, 2, 3);
  float stats[2];
  ASSERT_CALL(int8q_quantize_rows(context.get(), x.view(), INT8Q_OUTLIERS_COLUMN, 4.0f, q.view(), stats, nullptr, nullptr,
                                  nullptr));
  EXPECT_EQ(stats[0], 1.0f);
  EXPECT_EQ(stats[1], 1.0f);
  ASSERT_CALL(int8q_quantize_rows(context.get(), x.view(), INT8Q_OUTLIERS_COLUMN, 6.0f, q.view(), stats, nullptr, nullptr,
                                  nullptr));
  EXPECT_EQ(stats[0], 1.0f);
  EXPECT_EQ(stats[1], 5.0f);
  EXPECT_EQ(q.integer(1, 0), 0) << "an inlier of an outlier column leaves the product";
}

}  // namespace
}  // namespace int8q::test
