// SPDX-License-Identifier: Apache-2.0
//
// The stateless operations in floating point: scaled and mixed scaled products, dequantized accumulators and rows.
#include <limits>
#include <random>

#include "support/call.h"
#include "support/draw.h"
#include "support/oracle.h"
#include "support/shapes.h"

namespace int8q::test {
namespace {

void expect_floats(const Grid& y, const std::vector<float>& expected, const char* isa) {
  for (int64_t i = 0; i < y.rows(); ++i) {
    for (int64_t j = 0; j < y.cols(); ++j) {
      const float e = rounded_to(y.dtype(), expected[static_cast<size_t>(i * y.cols() + j)]);
      ASSERT_TRUE(same_bits(y.at(i, j), e)) << isa << " " << i << ", " << j << ": " << y.at(i, j) << " expected " << e;
    }
  }
  ASSERT_TRUE(y.gaps_untouched());
}

Grid codes_of(const Quantized& q, size_t gap, size_t offset) {
  Grid g(INT8Q_S8, q.rows, q.cols, static_cast<int64_t>(gap), static_cast<int64_t>(offset));
  for (int64_t i = 0; i < q.rows; ++i) {
    for (int64_t j = 0; j < q.cols; ++j) g.set_integer(i, j, q.codes[static_cast<size_t>(i * q.cols + j)]);
  }
  return g;
}

TEST(Scaled, EveryShapeDtypeMode) {
  const std::vector<Shape> list = shapes();
  const auto isas = runnable_isas();
  Draw draw = {{"mode", 4},     {"in", 3},       {"out", 3},      {"bias", 4},     {"threshold", 2},
               {"x gap", 3},    {"x offset", 4}, {"a gap", 3},    {"a offset", 4}, {"b gap", 3},
               {"b offset", 4}, {"y gap", 3},    {"y offset", 4}, {"threads", 2}};
  enum : size_t {
    kMode,
    kIn,
    kOut,
    kBias,
    kThreshold,
    kXGap,
    kXOffset,
    kAGap,
    kAOffset,
    kBGap,
    kBOffset,
    kYGap,
    kYOffset,
    kThreads
  };
  size_t cells = 0;
  for (size_t s = 0; s < list.size(); ++s) {
    const auto [m, n, k] = list[s];
    for (const int32_t mode : kModes) {
      const Draw::Cell d = draw.cell(s, {static_cast<size_t>(mode)});
      if (m > 0 && n > 0 && k > 0) draw.ran(d);
      const int32_t in = kFloatDtypes[d[kIn]], out = kFloatDtypes[d[kOut]];
      const float threshold = d[kThreshold] == 0 ? 6.0f : 1e-30f;
      Grid x(in, m, k, static_cast<int64_t>(d[kXGap]), static_cast<int64_t>(d[kXOffset]));
      Grid w(INT8Q_F32, n, k), bias(kFloatDtypes[d[kBias] % 3], 1, n);
      fill_activations(x, s);
      fill_normal(w, s + 7, 0.1f);
      fill_normal(bias, s + 8, 1.0f);
      const Quantized qx = quantize(x, mode, threshold);
      LayerOracle oracle{quantize(w, INT8Q_OUTLIERS_OFF, 0), {}, {}, {}, mode, threshold};
      const bool with_bias = d[kBias] < 3;
      for (int64_t j = 0; with_bias && j < n; ++j) oracle.bias.push_back(bias.at(0, j));
      std::vector<float> expected;
      for (int64_t i = 0; i < m; ++i) {
        for (int64_t j = 0; j < n; ++j) expected.push_back(oracle.forward(qx, i, j));
      }
      Grid a = codes_of(qx, d[kAGap], d[kAOffset]), b = codes_of(oracle.w, d[kBGap], d[kBOffset]);
      for (const cpu::Isa* isa : isas) {
        const ContextPtr context = make_context(static_cast<int32_t>(1 + d[kThreads]), isa->name);
        Grid y(out, m, n, static_cast<int64_t>(d[kYGap]), static_cast<int64_t>(d[kYOffset]));
        const int8q_matrix* bias_view = with_bias ? bias.view() : nullptr;
        if (mode == INT8Q_OUTLIERS_OFF) {
          ASSERT_CALL(int8q_scaled_multiply(context.get(), a.view(), qx.stats.data(), b.view(), oracle.w.stats.data(),
                                            bias_view, y.view()));
        } else {
          ASSERT_CALL(int8q_mixed_scaled_multiply(context.get(), x.view(), a.view(), qx.stats.data(), b.view(),
                                                  oracle.w.stats.data(), mode, threshold, qx.outlier_cols.data(),
                                                  static_cast<int64_t>(qx.outlier_cols.size()), bias_view, y.view()));
        }
        SCOPED_TRACE(::testing::Message() << "M " << m << " N " << n << " K " << k << " mode " << mode << " dtypes " << in
                                          << out);
        expect_floats(y, expected, isa->name);
        if (HasFatalFailure()) return;
        ++cells;
      }
    }
  }
  std::printf("%zu cells: %zu ISAs x %zu shapes x 4 modes\n", cells, isas.size(), list.size());
  EXPECT_EQ(cells, isas.size() * list.size() * 4);
  draw.expect_covered();
}

// The expression is what the header says also where codes and columns are not those of int8q_quantize_rows.
TEST(Scaled, MixedTakesAnyCodesAndColumns) {
  size_t cells = 0;
  for (const int64_t m : {1, 8, 9, 40, 200}) {
    for (const int64_t n : {1, 64, 70}) {
      for (const int64_t k : {33, 300, 600}) {
        for (const int32_t mode : {INT8Q_OUTLIERS_COLUMN, INT8Q_OUTLIERS_ELEMENT, INT8Q_OUTLIERS_ALL}) {
          std::mt19937_64 random(cells);
          Grid x(kFloatDtypes[cells % 3], m, k, 1, 1), bias(INT8Q_F16, 1, n);
          fill_normal(x, cells, 2.0f);
          fill_normal(bias, cells + 1, 1.0f);
          Quantized a = quantize(x, mode, 4.0f);
          LayerOracle oracle{{n, k, {}, {}, {}, {}}, {}, {}, {}, mode, 4.0f};
          for (int8_t& code : a.codes) code = static_cast<int8_t>(random());
          for (int64_t i = 0; i < n * k; ++i) oracle.w.codes.push_back(static_cast<int8_t>(random()));
          for (int64_t j = 0; j < n; ++j) {
            oracle.w.stats.push_back(static_cast<float>(j) * 0.01f);
            oracle.bias.push_back(bias.at(0, j));
          }
          a.outlier_cols.clear();
          for (int64_t j = 0; j < k; ++j) {
            if (k == 300 || random() % 3 == 0) a.outlier_cols.push_back(j);  // also all of them
          }
          std::vector<float> expected;
          for (int64_t i = 0; i < m; ++i) {
            for (int64_t j = 0; j < n; ++j) expected.push_back(oracle.forward(a, i, j));
          }
          Grid codes = codes_of(a, 2, 1), b = codes_of(oracle.w, 0, 0);
          for (const cpu::Isa* isa : runnable_isas()) {
            SCOPED_TRACE(::testing::Message() << "M " << m << " N " << n << " K " << k << " mode " << mode);
            Grid y(INT8Q_F32, m, n, 1, 1);
            ASSERT_CALL(int8q_mixed_scaled_multiply(
                make_context(3, isa->name).get(), x.view(), codes.view(), a.stats.data(), b.view(), oracle.w.stats.data(),
                mode, 4.0f, a.outlier_cols.data(), static_cast<int64_t>(a.outlier_cols.size()), bias.view(), y.view()));
            expect_floats(y, expected, isa->name);
            if (HasFatalFailure()) return;
            ++cells;
          }
        }
      }
    }
  }
  EXPECT_EQ(runnable_isas().size() * 135, cells);
}

TEST(Scaled, DequantizeAccumulatorsAndRows) {
  std::mt19937_64 random(5);
  const std::vector<float> odd = {0.0f,
                                  1.0f,
                                  3.75f,
                                  0x1p-130f,
                                  1e-20f,
                                  65504.0f,
                                  1e30f,
                                  std::numeric_limits<float>::infinity(),
                                  std::numeric_limits<float>::quiet_NaN()};
  const std::vector<Shape> list = shapes();
  Draw draw = {{"bias", 4},     {"acc gap", 3}, {"acc offset", 4}, {"q gap", 3},
               {"q offset", 4}, {"y gap", 3},   {"y offset", 4},   {"threads", 2}};
  enum : size_t { kBias, kAccGap, kAccOffset, kQGap, kQOffset, kYGap, kYOffset, kThreads };
  size_t cells = 0;
  for (size_t s = 0; s < list.size(); ++s) {
    const auto [m, n, k] = list[s];
    const Draw::Cell d = draw.cell(s, {});
    if (m > 0 && n > 0) draw.ran(d);
    const bool with_bias = d[kBias] < 3;
    Grid acc(INT8Q_S32, m, n, static_cast<int64_t>(d[kAccGap]), static_cast<int64_t>(d[kAccOffset]));
    Grid q(INT8Q_S8, m, n, static_cast<int64_t>(d[kQGap]), static_cast<int64_t>(d[kQOffset]));
    Grid bias(kFloatDtypes[d[kBias] % 3], 1, n);
    fill_normal(bias, 3, 1.0f);
    std::vector<float> rows, cols;
    for (int64_t i = 0; i < m; ++i) rows.push_back(odd[static_cast<size_t>(random() % odd.size())]);
    for (int64_t j = 0; j < n; ++j) cols.push_back(odd[static_cast<size_t>(random() % odd.size())]);
    std::vector<float> expected, expected_rows;
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 0; j < n; ++j) {
        acc.set_integer(i, j, static_cast<int32_t>(random() >> (33 + random() % 20)) * (random() % 2 == 0 ? 1 : -1));
        q.set_integer(i, j, static_cast<int8_t>(random()));
        const auto row = static_cast<size_t>(i), col = static_cast<size_t>(j);
        const float product = dequantize(acc.integer(i, j), rows[row], cols[col], 0.0f);
        expected.push_back(with_bias ? product + bias.at(0, j) : product);
        expected_rows.push_back((static_cast<float>(q.integer(i, j)) * rows[row]) * (1.0f / 127.0f));
      }
    }
    for (const cpu::Isa* isa : runnable_isas()) {
      for (const int32_t dtype : kFloatDtypes) {
        const ContextPtr context = make_context(static_cast<int32_t>(1 + d[kThreads]), isa->name);
        Grid y(dtype, m, n, static_cast<int64_t>(d[kYGap]), static_cast<int64_t>(d[kYOffset])), z = y;
        ASSERT_CALL(int8q_dequantize_accumulators(context.get(), acc.view(), rows.data(), cols.data(),
                                                  with_bias ? bias.view() : nullptr, y.view()));
        expect_floats(y, expected, isa->name);
        ASSERT_CALL(int8q_dequantize_rows(context.get(), q.view(), rows.data(), z.view()));
        expect_floats(z, expected_rows, isa->name);
        if (HasFatalFailure()) return;
        cells += 2;
      }
    }
    static_cast<void>(k);
  }
  std::printf("%zu cells: %zu ISAs x %zu shapes x 3 dtypes x 2 operations\n", cells, runnable_isas().size(), list.size());
  EXPECT_EQ(cells, runnable_isas().size() * list.size() * 6);
  draw.expect_covered();
}

}  // namespace
}  // namespace int8q::test
