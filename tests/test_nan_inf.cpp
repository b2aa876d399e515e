// SPDX-License-Identifier: Apache-2.0
//
// NaN and Inf: never a silently finite number, and never outside their row.
#include <cmath>
#include <limits>

#include "support/call.h"
#include "support/oracle.h"

namespace int8q::test {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN(), kInf = std::numeric_limits<float>::infinity();
constexpr int64_t kN = 37, kK = 70;

struct Layer {
  ContextPtr context;
  LinearPtr linear;
  Layer(const cpu::Isa* isa, int32_t mode)
      : context(make_context(2, isa->name)),
        linear(make_linear(context.get(), random_mat(INT8Q_F32, kN, kK, 1), nullptr, mode)) {}
  std::vector<float> run(const Mat& x) const {
    Mat y(INT8Q_F32, x.c().rows, kN);
    EXPECT_STATUS(INT8Q_OK, forward(context.get(), linear.get(), x, y));
    return {y.as<float>(), y.as<float>() + x.c().rows * kN};
  }
};

// All rows but `row` are what they are without the bad value; returns row's values.
std::vector<float> changed_row(const Layer& layer, Mat x, int64_t row, int64_t col, float bad, float harmless) {
  x.set(row, col, harmless);
  const std::vector<float> before = layer.run(x);
  x.set(row, col, bad);
  const std::vector<float> after = layer.run(x);
  for (int64_t i = 0; i < x.c().rows; ++i) {
    for (int64_t j = 0; j < kN && i != row; ++j) {
      const auto at = static_cast<size_t>(i * kN + j);
      EXPECT_TRUE(same_bits(before[at], after[at])) << "row " << i << " changed with row " << row;
    }
  }
  return {after.begin() + row * kN, after.begin() + (row + 1) * kN};
}

TEST(NanInf, NanRowStaysAlone) {
  for (const cpu::Isa* isa : runnable_isas()) {
    for (const int32_t mode : kModes) {
      const Layer layer(isa, mode);
      for (const int32_t dtype : kFloatDtypes) {
        for (const int64_t m : {1, 4, 30}) {
          for (const int64_t col : {int64_t{0}, int64_t{1}, kK - 1}) {  // column 1 holds outliers
            for (const float y : changed_row(layer, random_input(dtype, m, kK, 3), m / 2, col, kNaN, 0.5f)) {
              ASSERT_TRUE(std::isnan(y)) << isa->name << " mode " << mode << " M " << m << " column " << col << ": " << y;
            }
          }
        }
      }
    }
  }
}

TEST(NanInf, InfIsAnOutlierAsInFloatingPoint) {
  for (const cpu::Isa* isa : runnable_isas()) {
    for (const int32_t mode : {INT8Q_OUTLIERS_COLUMN, INT8Q_OUTLIERS_ELEMENT, INT8Q_OUTLIERS_ALL}) {
      const Layer layer(isa, mode);
      std::vector<int8_t> codes(static_cast<size_t>(kN * kK));
      const int8q_matrix out = matrix(INT8Q_S8, kN, kK, codes.data());
      ASSERT_CALL(int8q_export_linear(layer.context.get(), layer.linear.get(), &out, nullptr, nullptr, nullptr, nullptr));
      for (const float inf : {kInf, -kInf}) {
        const std::vector<float> row = changed_row(layer, random_input(INT8Q_F32, 5, kK, 3), 2, 7, inf, 50.0f);
        for (int64_t j = 0; j < kN; ++j) {
          const int8_t w = codes[static_cast<size_t>(j * kK + 7)];
          const float expected = static_cast<float>(w) * inf;  // Inf, -Inf, or NaN for a zero weight
          ASSERT_TRUE(same_bits(row[static_cast<size_t>(j)], expected))
              << isa->name << " mode " << mode << " weight " << int{w};
        }
      }
    }
    const Layer off(isa, INT8Q_OUTLIERS_OFF);
    for (const float y : changed_row(off, random_input(INT8Q_F32, 5, kK, 3), 2, 7, -kInf, 0.5f))
      ASSERT_TRUE(std::isnan(y)) << isa->name;
  }
}

TEST(NanInf, BackwardKeepsNanInItsRow) {
  const Layer layer(runnable_isas().back(), INT8Q_OUTLIERS_COLUMN);
  Mat dy = random_mat(INT8Q_F32, 6, kN, 4), dx(INT8Q_F32, 6, kK);
  dy.set(3, 5, kNaN);
  ASSERT_CALL(backward(layer.context.get(), layer.linear.get(), dy, dx));
  for (int64_t i = 0; i < 6; ++i) {
    for (int64_t k = 0; k < kK; ++k) ASSERT_EQ(std::isnan(dx.as<float>()[i * kK + k]), i == 3) << i << ", " << k;
  }
}

TEST(NanInf, RefusedInWeightsByRow) {
  for (const cpu::Isa* isa : runnable_isas()) {
    const ContextPtr context = make_context(2, isa->name);
    const auto refused = [&](const Mat& w, const float* stats, const Mat* bias, const int8q_linear_options* options,
                             const char* row) {
      auto* linear = reinterpret_cast<int8q_linear*>(1);
      EXPECT_STATUS(INT8Q_NOT_FINITE, int8q_create_linear(context.get(), w.get(), stats,
                                                          bias != nullptr ? bias->get() : nullptr, options, &linear));
      EXPECT_NE(std::string(int8q_last_error()).find(row), std::string::npos) << int8q_last_error();
      EXPECT_EQ(linear, reinterpret_cast<int8q_linear*>(1));
    };
    for (const float bad : {kNaN, kInf, -kInf}) {
      for (const int32_t dtype : kFloatDtypes) {
        Mat w = random_mat(dtype, kN, kK, 1);
        w.set(23, kK - 1, bad);
        refused(w, nullptr, nullptr, nullptr, "23");
      }
      const Mat w = random_mat(INT8Q_F32, kN, kK, 1), codes = random_mat(INT8Q_S8, kN, kK, 1);
      Mat bias = random_mat(INT8Q_F32, 1, kN, 2);
      bias.set(0, 31, bad);
      refused(w, nullptr, &bias, nullptr, "31");
      std::vector<float> stats(static_cast<size_t>(kN), 1.0f);
      stats[19] = bad;
      refused(codes, stats.data(), nullptr, nullptr, "19");
      const int64_t col = 3;
      Mat kept = random_mat(INT8Q_F16, kN, 1, 5);
      kept.set(17, 0, bad);
      const int8q_linear_options options{sizeof options, 0, 0, 0, &col, 1, kept.get()};
      refused(w, nullptr, nullptr, &options, "17");
    }
    Mat large = random_mat(INT8Q_F32, kN, kK, 1);
    large.set(29, 3, 1e6f);  // finite, but not in fp16
    const int64_t col = 3;
    const int8q_linear_options options{sizeof options, 0, 0, 0, &col, 1, nullptr};
    refused(large, nullptr, nullptr, &options, "29");
  }
}

}  // namespace
}  // namespace int8q::test
