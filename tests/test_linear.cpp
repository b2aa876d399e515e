// SPDX-License-Identifier: Apache-2.0
//
// The linear layer forward: every ISA, shape, dtype in and out, mode, threshold, kept columns, bias, accumulation, stride and
// alignment against the oracle; and the ways to run it (whole, many, parts) against each other.
#include <Eigen/Core>
#include <cmath>
#include <thread>

#include "support/call.h"
#include "support/oracle.h"
#include "support/shapes.h"

namespace int8q::test {
namespace {

enum class Kept { kNone, kFromWeights, kGiven };

// One cell of the grid: a layer with its input and its expected values before rounding.
struct Case {
  Grid weight, bias, x, kept_weights;
  LayerOracle oracle;
  Quantized qx;
  bool from_codes, with_bias, accumulate;
  int8q_linear_options options;
  int32_t out;
  int64_t gap;

  Case(const Shape& s, size_t seed, int32_t mode, int32_t in, int32_t out_dtype);
  LinearPtr make(int8q_context* context);
  Grid output() const;
  void expect(const Grid& before, const Grid& y, const char* isa) const;
};

Case::Case(const Shape& s, size_t seed, int32_t mode, int32_t in, int32_t out_dtype)
    : weight(kFloatDtypes[seed % 3], s.n, s.k, static_cast<int64_t>(seed % 2), static_cast<int64_t>(seed % 4)),
      bias(kFloatDtypes[(seed / 3) % 3], 1, s.n),
      x(in, s.m, s.k, static_cast<int64_t>(seed % 3), static_cast<int64_t>(seed % 4)),
      kept_weights(INT8Q_F16, s.n, s.k < 4 ? 0 : 3),
      from_codes(seed % 4 == 3),
      with_bias(seed % 3 != 0),
      accumulate(seed % 5 == 0),
      options{},
      out(out_dtype),
      gap(static_cast<int64_t>(seed % 3)) {
  constexpr float kThresholds[] = {0.0f, 6.0f, 1e-30f};
  fill_activations(x, seed);
  fill_normal(weight, seed + 1, 0.1f);
  fill_normal(bias, seed + 2, 1.0f);
  fill_normal(kept_weights, seed + 3, 0.1f);
  const float threshold = kThresholds[seed % 3];
  oracle = {quantize(weight, INT8Q_OUTLIERS_OFF, 0), {}, {}, {}, mode, threshold};
  for (int64_t j = 0; with_bias && j < s.n; ++j) oracle.bias.push_back(bias.at(0, j));
  const Kept kept = s.k < 4 ? Kept::kNone : from_codes ? Kept::kGiven : static_cast<Kept>(seed / 2 % 3);
  if (kept != Kept::kNone) oracle.kept_cols = {1, s.k / 2, s.k - 1};
  for (int64_t j = 0; j < s.n; ++j) {
    for (size_t t = 0; t < oracle.kept_cols.size(); ++t) {
      const float w =
          kept == Kept::kGiven ? kept_weights.at(j, static_cast<int64_t>(t)) : weight.at(j, oracle.kept_cols[t]);
      oracle.kept.push_back(to_f16(w));
    }
  }
  options = {sizeof options,
             mode,
             threshold,
             0,
             oracle.kept_cols.data(),
             static_cast<int64_t>(oracle.kept_cols.size()),
             kept == Kept::kGiven ? kept_weights.view() : nullptr};
  qx = quantize(x, mode, threshold);
}

LinearPtr Case::make(int8q_context* context) {
  Grid codes(INT8Q_S8, weight.rows(), weight.cols(), gap, gap);
  for (int64_t i = 0; i < codes.rows(); ++i) {
    for (int64_t j = 0; j < codes.cols(); ++j)
      codes.set_integer(i, j, oracle.w.codes[static_cast<size_t>(i * codes.cols() + j)]);
  }
  int8q_linear* linear = nullptr;
  EXPECT_STATUS(INT8Q_OK, int8q_create_linear(context, from_codes ? codes.view() : weight.view(),
                                              from_codes ? oracle.w.stats.data() : nullptr,
                                              with_bias ? bias.view() : nullptr, &options, &linear));
  return LinearPtr(linear);
}

Grid Case::output() const {
  Grid y(out, x.rows(), weight.rows(), gap, gap);
  for (int64_t i = 0; i < y.rows(); ++i) {
    for (int64_t j = 0; j < y.cols(); ++j) y.set(i, j, static_cast<float>((i * 7 + j) % 13) * 0.25f);
  }
  return y;
}

void Case::expect(const Grid& before, const Grid& y, const char* isa) const {
  for (int64_t i = 0; i < y.rows(); ++i) {
    for (int64_t j = 0; j < y.cols(); ++j) {
      float value = oracle.forward(qx, i, j);
      if (accumulate) value = value + before.at(i, j);
      const float e = rounded_to(out, value);
      ASSERT_TRUE(same_bits(y.at(i, j), e)) << isa << " " << i << ", " << j << ": " << y.at(i, j) << " expected " << e;
    }
  }
  ASSERT_TRUE(y.gaps_untouched());
}

TEST(Linear, EveryShapeDtypeMode) {
  const std::vector<Shape> list = shapes();
  const auto isas = runnable_isas();
  size_t cells = 0, seed = 0;
  for (const Shape& shape : list) {
    for (const int32_t mode : {INT8Q_OUTLIERS_COLUMN, INT8Q_OUTLIERS_OFF, INT8Q_OUTLIERS_ELEMENT}) {
      for (const int32_t in : kFloatDtypes) {
        const int32_t out = kFloatDtypes[(seed + seed / 3) % 3];
        Case c(shape, seed++, mode, in, out);
        const Grid before = c.output();
        Grid first = before;
        for (size_t i = 0; i < isas.size(); ++i) {
          SCOPED_TRACE(::testing::Message() << "M " << shape.m << " N " << shape.n << " K " << shape.k << " mode " << mode
                                            << " in " << in << " out " << out << " seed " << seed - 1);
          const ContextPtr context = make_context(static_cast<int32_t>(1 + (seed + i) % 3), isas[i]->name);
          const LinearPtr linear = c.make(context.get());
          Grid y = before;
          const Workspace workspace = make_workspace(context.get(), linear.get(), shape.m);
          ASSERT_CALL(int8q_forward(context.get(), linear.get(), c.x.view(), c.accumulate ? INT8Q_ACCUMULATE : 0, y.view(),
                                    workspace.get(), workspace.bytes()));
          // The oracle once; the other ISAs must give the same bytes.
          if (i == 0) {
            c.expect(before, y, isas[i]->name);
            first = Grid(y);
          } else {
            ASSERT_EQ(y.bytes(), first.bytes()) << isas[i]->name;
          }
          if (HasFatalFailure()) return;
          ++cells;
        }
      }
    }
  }
  std::printf("%zu cells: %zu ISAs x %zu shapes x 3 modes x 3 dtypes\n", cells, isas.size(), list.size());
  EXPECT_EQ(cells, isas.size() * list.size() * 9);
}

// Without outliers forward is quantize, multiply, dequantize, bit for bit.
TEST(Linear, IsTheStatelessOperationsWithoutOutliers) {
  for (const cpu::Isa* isa : runnable_isas()) {
    for (const int64_t m : {1, 7, 40}) {
      constexpr int64_t kN = 83, kK = 130;
      const ContextPtr context = make_context(2, isa->name);
      Grid x(INT8Q_BF16, m, kK), w(INT8Q_F32, kN, kK), qx(INT8Q_S8, m, kK), qw(INT8Q_S8, kN, kK), acc(INT8Q_S32, m, kN);
      Grid y(INT8Q_F16, m, kN), z(INT8Q_F16, m, kN), bias(INT8Q_F16, 1, kN);
      fill_normal(x, 1, 1.0f);  // |x| < 6
      fill_normal(w, 2, 0.1f);
      fill_normal(bias, 3, 1.0f);
      std::vector<float> row_stats(static_cast<size_t>(m)), col_stats(static_cast<size_t>(kN));
      int64_t outliers = -1;
      ASSERT_CALL(
          int8q_quantize_rows(context.get(), x.view(), 0, 6.0f, qx.view(), row_stats.data(), nullptr, nullptr, &outliers));
      ASSERT_EQ(outliers, 0);
      ASSERT_CALL(int8q_quantize_rows(context.get(), w.view(), INT8Q_OUTLIERS_OFF, 0, qw.view(), col_stats.data(), nullptr,
                                      nullptr, nullptr));
      ASSERT_CALL(int8q_multiply(context.get(), qx.view(), qw.view(), acc.view()));
      ASSERT_CALL(int8q_dequantize_accumulators(context.get(), acc.view(), row_stats.data(), col_stats.data(), bias.view(),
                                                y.view()));
      int8q_linear* raw = nullptr;
      ASSERT_CALL(int8q_create_linear(context.get(), w.view(), nullptr, bias.view(), nullptr, &raw));
      const LinearPtr linear(raw);
      const Workspace workspace = make_workspace(context.get(), raw, m);
      ASSERT_CALL(int8q_forward(context.get(), raw, x.view(), 0, z.view(), workspace.get(), workspace.bytes()));
      ASSERT_EQ(y.bytes(), z.bytes()) << isa->name << " M " << m;
    }
  }
}

TEST(Linear, ManyFromOneInput) {
  for (const cpu::Isa* isa : runnable_isas()) {
    for (const int64_t m : {1, 5, 33}) {
      const ContextPtr context = make_context(2, isa->name);
      const Mat x = random_input(INT8Q_BF16, m, 96, 4);
      std::vector<LinearPtr> linears;
      std::vector<Mat> together, apart;
      uint64_t bytes = 0;
      for (const int64_t n : {96, 7, 200}) {
        linears.push_back(make_linear(context.get(), random_mat(INT8Q_F32, n, 96, static_cast<uint64_t>(n))));
        together.emplace_back(INT8Q_F32, m, n);
        apart.emplace_back(INT8Q_F32, m, n);
        bytes = std::max(bytes, make_workspace(context.get(), linears.back().get(), m).bytes());
      }
      const int8q_linear* handles[] = {linears[0].get(), linears[1].get(), linears[2].get()};
      const int8q_matrix* ys[] = {together[0].get(), together[1].get(), together[2].get()};
      const Workspace workspace(bytes);
      ASSERT_CALL(int8q_forward_many(context.get(), handles, 3, x.get(), 0, ys, workspace.get(), workspace.bytes()));
      for (size_t i = 0; i < 3; ++i) {
        ASSERT_CALL(forward(context.get(), linears[i].get(), x, apart[i]));
        ASSERT_EQ(together[i].bytes(), apart[i].bytes()) << isa->name << " linear " << i;
      }
    }
  }
}

// Parts in any order, and on threads of the caller's with a barrier between the phases.
TEST(Linear, Parts) {
  for (const cpu::Isa* isa : runnable_isas()) {
    for (const int64_t m : {1, 6, 70}) {
      const ContextPtr context = make_context(1, isa->name);
      const LinearPtr linear = make_linear(context.get(), random_mat(INT8Q_F32, 150, 77, 1));
      const Mat x = random_input(INT8Q_F16, m, 77, 2);
      const Mat whole(INT8Q_F32, m, 150);
      ASSERT_CALL(forward(context.get(), linear.get(), x, whole));
      for (const int32_t parts : {1, 2, 3, 5, 64}) {
        const Workspace workspace = make_workspace(context.get(), linear.get(), m, INT8Q_FORWARD, parts);
        const Mat backwards(INT8Q_F32, m, 150), threaded(INT8Q_F32, m, 150);
        for (int32_t p = parts - 1; p >= 0; --p) {
          ASSERT_CALL(
              int8q_quantize_part(context.get(), linear.get(), x.get(), workspace.get(), workspace.bytes(), p, parts));
        }
        for (int32_t p = 0; p < parts; ++p) {
          const int32_t part = (p * 3 + 1) % parts;
          if (parts % 3 == 0) continue;
          ASSERT_CALL(int8q_forward_part(context.get(), linear.get(), x.get(), 0, backwards.get(), workspace.get(),
                                         workspace.bytes(), part, parts));
        }
        if (parts % 3 != 0) {
          ASSERT_EQ(backwards.bytes(), whole.bytes()) << isa->name << " parts " << parts;
        }
        const auto on_threads = [&](const auto& body) {
          std::vector<std::thread> threads;
          for (int32_t p = 0; p < parts; ++p) threads.emplace_back([&body, p] { EXPECT_STATUS(INT8Q_OK, body(p)); });
          for (std::thread& t : threads) t.join();
        };
        on_threads([&](int32_t p) {
          return int8q_quantize_part(context.get(), linear.get(), x.get(), workspace.get(), workspace.bytes(), p, parts);
        });
        on_threads([&](int32_t p) {
          return int8q_forward_part(context.get(), linear.get(), x.get(), 0, threaded.get(), workspace.get(),
                                    workspace.bytes(), p, parts);
        });
        ASSERT_EQ(threaded.bytes(), whole.bytes()) << isa->name << " parts " << parts;
      }
    }
  }
}

// An independent float reference: docs/numerics.md bounds what quantization may change. Outlier columns are exact but for
// the weights' rounding, so only the inliers' part of the bound applies to x.
TEST(Linear, WithinTheQuantizationBoundOfEigen) {
  using RowMatrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  constexpr int64_t kM = 24, kN = 70, kK = 600;
  Grid x(INT8Q_F32, kM, kK), w(INT8Q_F32, kN, kK), y(INT8Q_F32, kM, kN);
  fill_activations(x, 11);
  fill_normal(w, 12, 0.05f);
  RowMatrix ex(kM, kK), ew(kN, kK);
  for (int64_t k = 0; k < kK; ++k) {
    for (int64_t i = 0; i < kM; ++i) ex(i, k) = static_cast<double>(x.at(i, k));
    for (int64_t j = 0; j < kN; ++j) ew(j, k) = static_cast<double>(w.at(j, k));
  }
  const RowMatrix exact = ex * ew.transpose();
  const Eigen::VectorXd c = ew.cwiseAbs().rowwise().maxCoeff();
  for (const int32_t mode : {INT8Q_OUTLIERS_COLUMN, INT8Q_OUTLIERS_OFF, INT8Q_OUTLIERS_ELEMENT}) {
    const ContextPtr context = make_context();
    const int8q_linear_options options{sizeof options, mode, 6.0f, 0, nullptr, 0, nullptr};
    int8q_linear* raw = nullptr;
    ASSERT_CALL(int8q_create_linear(context.get(), w.view(), nullptr, nullptr, &options, &raw));
    const LinearPtr linear(raw);
    const Workspace workspace = make_workspace(context.get(), raw, kM);
    ASSERT_CALL(int8q_forward(context.get(), raw, x.view(), 0, y.view(), workspace.get(), workspace.bytes()));
    double error = 0;
    for (int64_t i = 0; i < kM; ++i) {
      double r = 0;
      for (int64_t k = 0; k < kK; ++k) {
        const double a = std::fabs(ex(i, k));
        if (mode == INT8Q_OUTLIERS_OFF || a < 6.0) r = std::max(r, a);
      }
      for (int64_t j = 0; j < kN; ++j) {
        double bound = 0;
        for (int64_t k = 0; k < kK; ++k) {
          bound += std::fabs(ew(j, k)) * r / 254 + std::fabs(ex(i, k)) * c(j) / 254 + r * c(j) / (254.0 * 254.0);
        }
        // fp32 rounding of up to K fmas and the epilogue.
        bound = bound * (1 + 0x1p-20) + 0x1p-23 * static_cast<double>(kK) * ex.row(i).cwiseAbs().dot(ew.row(j).cwiseAbs());
        const double difference = std::fabs(static_cast<double>(y.at(i, j)) - exact(i, j));
        ASSERT_LE(difference, bound) << "mode " << mode << " " << i << ", " << j;
        error = std::max(error, difference);
      }
    }
    EXPECT_GT(error, 0) << "int8 cannot be exact here: the bound was not tested";
  }
}

}  // namespace
}  // namespace int8q::test
