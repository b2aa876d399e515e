// SPDX-License-Identifier: Apache-2.0
//
// Counting outlier columns over batches, naming them, and keeping them in fp16.
#include <cmath>

#include "support/call.h"
#include "support/oracle.h"

namespace int8q::test {
namespace {

TEST(Calibration, CountsRowsOverBatches) {
  for (const cpu::Isa* isa : runnable_isas()) {
    for (const int32_t dtype : kFloatDtypes) {
      for (const int64_t k : {1, 64, 65, 131}) {
        const ContextPtr context = make_context(3, isa->name);
        std::vector<int64_t> counts(static_cast<size_t>(k), 0), expected(static_cast<size_t>(k), 0);
        for (const int64_t m : {0, 1, 40}) {
          Grid x(dtype, m, k, 1, 3);
          fill_activations(x, static_cast<uint64_t>(m));
          ASSERT_CALL(int8q_count_outliers(context.get(), x.view(), 0.0f, counts.data()));
          for (int64_t i = 0; i < m; ++i) {
            for (int64_t j = 0; j < k; ++j) expected[static_cast<size_t>(j)] += std::fabs(x.at(i, j)) >= 6.0f;
          }
        }
        ASSERT_EQ(counts, expected) << isa->name << " dtype " << dtype << " K " << k;
        ASSERT_GT(counts.back(), 0);
      }
    }
  }
}

TEST(Calibration, SelectsByFraction) {
  const std::vector<int64_t> counts = {0, 6, 5, 100, 1, 0, 7};
  const auto select = [&](double fraction) {
    std::vector<int64_t> cols(counts.size(), -1);
    int64_t count = -1;
    EXPECT_STATUS(INT8Q_OK, int8q_select_outlier_cols(counts.data(), 7, 100, fraction, cols.data(), &count));
    for (size_t i = static_cast<size_t>(count); i < cols.size(); ++i) EXPECT_EQ(cols[i], -1);
    cols.resize(static_cast<size_t>(count));
    return cols;
  };
  EXPECT_EQ(select(0.06), (std::vector<int64_t>{1, 3, 6}));
  EXPECT_EQ(select(0.0), (std::vector<int64_t>{1, 2, 3, 4, 6})) << "a column that never was an outlier is none";
  EXPECT_EQ(select(1.0), (std::vector<int64_t>{3}));
  int64_t cols[7], count;
  for (const double bad : {-0.01, 1.01, std::nan("")}) {
    EXPECT_STATUS(INT8Q_INVALID_ARGUMENT, int8q_select_outlier_cols(counts.data(), 7, 100, bad, cols, &count));
  }
  EXPECT_STATUS(INT8Q_INVALID_ARGUMENT, int8q_select_outlier_cols(counts.data(), 7, 0, 0.5, cols, &count));
}

// What it is for: kept columns bring Y closer to the float product.
TEST(Calibration, KeptColumnsAreMoreAccurate) {
  constexpr int64_t kM = 32, kN = 64, kK = 256;
  const ContextPtr context = make_context(2);
  Grid x(INT8Q_F32, kM, kK), w(INT8Q_F32, kN, kK), y(INT8Q_F32, kM, kN);
  fill_activations(x, 1);
  fill_normal(w, 2, 0.06f);
  std::vector<int64_t> counts(static_cast<size_t>(kK)), cols(static_cast<size_t>(kK));
  int64_t count = 0;
  ASSERT_CALL(int8q_count_outliers(context.get(), x.view(), 6.0f, counts.data()));
  ASSERT_CALL(int8q_select_outlier_cols(counts.data(), kK, kM, 0.06, cols.data(), &count));
  ASSERT_EQ(count, 3);
  const auto error = [&](int64_t kept) {
    const int8q_linear_options options{sizeof options, 0, 0, 0, cols.data(), kept, nullptr};
    int8q_linear* raw = nullptr;
    EXPECT_STATUS(INT8Q_OK, int8q_create_linear(context.get(), w.view(), nullptr, nullptr, &options, &raw));
    const LinearPtr linear(raw);
    const Workspace workspace = make_workspace(context.get(), raw, kM);
    EXPECT_STATUS(INT8Q_OK, int8q_forward(context.get(), raw, x.view(), 0, y.view(), workspace.get(), workspace.bytes()));
    double sum = 0;
    for (int64_t i = 0; i < kM; ++i) {
      for (int64_t j = 0; j < kN; ++j) {
        double exact = 0;
        for (int64_t k = 0; k < kK; ++k) exact += static_cast<double>(x.at(i, k)) * static_cast<double>(w.at(j, k));
        sum += (static_cast<double>(y.at(i, j)) - exact) * (static_cast<double>(y.at(i, j)) - exact);
      }
    }
    return std::sqrt(sum);
  };
  EXPECT_LT(error(count), error(0));
}

}  // namespace
}  // namespace int8q::test
