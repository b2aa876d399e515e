// SPDX-License-Identifier: Apache-2.0
//
// The linear layer forward: every ISA, shape, dtype in and out, mode, threshold, kept columns, bias, accumulation, stride and
// alignment against the oracle; and the ways to run it (whole, many, parts) against each other.
#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <thread>

#include "support/call.h"
#include "support/draw.h"
#include "support/guarded_memory.h"
#include "support/oracle.h"
#include "support/shapes.h"

namespace int8q::test {
namespace {

enum class Kept { kNone, kFromWeights, kGiven };

enum : size_t {
  kMode,
  kIn,
  kOut,
  kWeight,
  kBias,
  kThreshold,
  kKept,
  kAccumulate,
  kXGap,
  kXOffset,
  kWeightGap,
  kWeightOffset,
  kYGap,
  kYOffset,
  kThreads
};

Draw forward_draw() {
  return {{"mode", 4},  {"in", 3},         {"out", 3},    {"weight", 4},   {"bias", 4},       {"threshold", 4},
          {"kept", 3},  {"accumulate", 2}, {"x gap", 3},  {"x offset", 4}, {"weight gap", 3}, {"weight offset", 4},
          {"y gap", 3}, {"y offset", 4},   {"threads", 3}};
}

constexpr size_t kS8Weight = 3, kNoBias = 3;  // behind the float dtypes

int64_t length(size_t drawn) { return static_cast<int64_t>(drawn); }

// What a cell cannot have: S8 weights give no kept columns, and three columns are not kept of fewer than four.
Draw::Cell possible(Draw::Cell d, const Shape& shape) {
  if (shape.k < 4) d[kKept] = static_cast<size_t>(Kept::kNone);
  if (d[kWeight] == kS8Weight && d[kKept] == static_cast<size_t>(Kept::kFromWeights))
    d[kKept] = static_cast<size_t>(Kept::kGiven);
  return d;
}

// One cell of the grid: a layer with its input and its expected values before rounding.
struct Case {
  Draw::Cell drawn;
  Grid weight, bias, x, kept_weights;
  LayerOracle oracle;
  Quantized qx;
  bool from_codes, with_bias, accumulate;
  int8q_linear_options options;
  int32_t out;

  Case(const Shape& s, size_t seed, const Draw::Cell& d);
  LinearPtr make(int8q_context* context);
  Grid output() const;
  void expect(const Grid& before, const Grid& y, const char* isa) const;
};

Case::Case(const Shape& s, size_t seed, const Draw::Cell& d)
    : drawn(d),
      weight(kFloatDtypes[d[kWeight] % 3], s.n, s.k, length(d[kWeightGap]), length(d[kWeightOffset])),
      bias(kFloatDtypes[d[kBias] % 3], 1, s.n),
      x(kFloatDtypes[d[kIn]], s.m, s.k, length(d[kXGap]), length(d[kXOffset])),
      kept_weights(INT8Q_F16, s.n, s.k < 4 ? 0 : 3),
      from_codes(d[kWeight] == kS8Weight),
      with_bias(d[kBias] != kNoBias),
      accumulate(d[kAccumulate] == 1),
      options{},
      out(kFloatDtypes[d[kOut]]) {
  constexpr float kThresholds[] = {0.0f, 6.0f, 1e-30f, 1.5f};  // the last: most columns hold outliers and inliers
  fill_activations(x, seed);
  fill_normal(weight, seed + 1, 0.1f);
  fill_normal(bias, seed + 2, 1.0f);
  fill_normal(kept_weights, seed + 3, 0.1f);
  const int32_t mode = kModes[d[kMode]];
  const float threshold = kThresholds[d[kThreshold]];
  oracle = {quantize(weight, INT8Q_OUTLIERS_OFF, 0), {}, {}, {}, mode, threshold};
  for (int64_t j = 0; with_bias && j < s.n; ++j) oracle.bias.push_back(bias.at(0, j));
  const auto kept = static_cast<Kept>(d[kKept]);
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
  Grid codes(INT8Q_S8, weight.rows(), weight.cols(), length(drawn[kWeightGap]), length(drawn[kWeightOffset]));
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
  Grid y(out, x.rows(), weight.rows(), length(drawn[kYGap]), length(drawn[kYOffset]));
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
  Draw draw = forward_draw();
  size_t cells = 0, seed = 0;
  for (size_t s = 0; s < list.size(); ++s) {
    const Shape& shape = list[s];
    for (size_t mode = 0; mode < std::size(kModes); ++mode) {
      for (size_t in = 0; in < 3; ++in) {
        const Draw::Cell drawn = possible(draw.cell(s, {mode, in}), shape);
        if (shape.m > 0 && shape.n > 0 && shape.k > 0) draw.ran(drawn);
        Case c(shape, seed++, drawn);
        const Grid before = c.output();
        Grid first = before;
        for (size_t i = 0; i < isas.size(); ++i) {
          SCOPED_TRACE(::testing::Message() << "M " << shape.m << " N " << shape.n << " K " << shape.k << " drawn "
                                            << ::testing::PrintToString(drawn));
          const ContextPtr context = make_context(static_cast<int32_t>(1 + (drawn[kThreads] + i) % 3), isas[i]->name);
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
  std::printf("%zu cells: %zu ISAs x %zu shapes x 4 modes x 3 dtypes\n", cells, isas.size(), list.size());
  EXPECT_EQ(cells, isas.size() * list.size() * 12);
  draw.expect_covered({{kWeight, kS8Weight, kKept, static_cast<size_t>(Kept::kFromWeights)}});
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

// Layers that share their input: different N, bias, kept columns.
struct Layers {
  std::vector<LinearPtr> linears;
  std::vector<const int8q_linear*> handles;
  uint64_t workspace_bytes = 0;

  Layers(int8q_context* context, int64_t m, int64_t k, int32_t mode, int32_t parts) {
    for (const int64_t n : {96, 7, 200}) {
      const Mat w = random_mat(INT8Q_F32, n, k, static_cast<uint64_t>(n)), bias = random_mat(INT8Q_F16, 1, n, 5);
      const int64_t kept[] = {1, k / 2};
      const int8q_linear_options options{sizeof options, mode, 6.0f, 0, kept, n == 200 ? 2 : 0, nullptr};
      int8q_linear* raw = nullptr;
      EXPECT_STATUS(INT8Q_OK,
                    int8q_create_linear(context, w.get(), nullptr, n == 7 ? nullptr : bias.get(), &options, &raw));
      linears.emplace_back(raw);
      handles.push_back(raw);
      workspace_bytes = std::max(workspace_bytes, make_workspace(context, raw, m, INT8Q_FORWARD, parts).bytes());
    }
  }
  std::vector<Mat> outputs(int64_t m) const {
    std::vector<Mat> ys;
    for (const int64_t n : {96, 7, 200}) ys.push_back(random_mat(n == 7 ? INT8Q_BF16 : INT8Q_F32, m, n, 6));
    return ys;
  }
};

// What each layer alone gives.
std::vector<Mat> one_by_one(int8q_context* context, const Layers& layers, const Mat& x, uint32_t flags) {
  std::vector<Mat> ys = layers.outputs(x.c().rows);
  for (size_t i = 0; i < ys.size(); ++i) {
    EXPECT_STATUS(INT8Q_OK, forward(context, layers.handles[i], x, ys[i], flags));
  }
  return ys;
}

void expect_same(const std::vector<Mat>& expected, const std::vector<Mat>& ys) {
  for (size_t i = 0; i < ys.size(); ++i) ASSERT_EQ(expected[i].bytes(), ys[i].bytes()) << "linear " << i;
}

// Calls body(context, layers' mode, x, flags) for each ISA, mode, M, dtype and flag.
template <class Body>
size_t for_each_shared_input(const Body& body) {
  size_t cells = 0;
  for (const cpu::Isa* isa : runnable_isas()) {
    const ContextPtr context = make_context(2, isa->name);
    for (const int32_t mode : kModes) {
      for (const int64_t m : {0, 1, 6, 33, 200}) {
        for (const uint32_t flags : {uint32_t{0}, static_cast<uint32_t>(INT8Q_ACCUMULATE)}) {
          const Mat x = random_input(kFloatDtypes[cells % 3], m, 96, cells);
          SCOPED_TRACE(::testing::Message() << isa->name << " mode " << mode << " M " << m << " flags " << flags);
          body(context.get(), mode, x, flags);
          if (::testing::Test::HasFailure()) return cells;
          ++cells;
        }
      }
    }
  }
  return cells;
}

TEST(Linear, ManyFromOneInput) {
  const size_t cells = for_each_shared_input([](int8q_context* context, int32_t mode, const Mat& x, uint32_t flags) {
    const int64_t m = x.c().rows;
    const Layers layers(context, m, 96, mode, 0);
    const std::vector<Mat> expected = one_by_one(context, layers, x, flags), together = layers.outputs(m);
    const int8q_matrix* ys[] = {together[0].get(), together[1].get(), together[2].get()};
    const Workspace workspace(layers.workspace_bytes);
    ASSERT_CALL(
        int8q_forward_many(context, layers.handles.data(), 3, x.get(), flags, ys, workspace.get(), workspace.bytes()));
    expect_same(expected, together);
  });
  EXPECT_EQ(runnable_isas().size() * 40, cells);
}

// Odd parts upwards, then even ones downwards.
std::vector<int32_t> odd_order(int32_t parts) {
  std::vector<int32_t> order;
  for (int32_t p = 1; p < parts; p += 2) order.push_back(p);
  for (int32_t p = (parts - 1) / 2 * 2; p >= 0; p -= 2) order.push_back(p);
  return order;
}

// One quantization in parts for several layers: parts in odd orders on one thread, and on threads with a barrier between.
TEST(Linear, Parts) {
  const size_t cells = for_each_shared_input([](int8q_context* context, int32_t mode, const Mat& x, uint32_t flags) {
    const int64_t m = x.c().rows;
    for (const int32_t parts : {1, 2, 3, 4, 5, 64}) {
      SCOPED_TRACE(parts);
      const Layers layers(context, m, 96, mode, parts);
      const std::vector<Mat> expected = one_by_one(context, layers, x, flags);
      for (const bool threaded : {false, true}) {
        const std::vector<Mat> ys = layers.outputs(m);
        const Workspace workspace(layers.workspace_bytes);
        const auto quantize = [&](int32_t p) {
          return int8q_quantize_part(context, layers.handles[0], x.get(), workspace.get(), workspace.bytes(), p, parts);
        };
        const auto multiply = [&](int32_t p) {
          int32_t status = INT8Q_OK;
          for (size_t i = 0; i < ys.size() && status == INT8Q_OK; ++i) {
            status = int8q_forward_part(context, layers.handles[i], x.get(), flags, ys[i].get(), workspace.get(),
                                        workspace.bytes(), p, parts);
          }
          return status;
        };
        const auto run = [&](const auto& body) {
          std::vector<std::thread> threads;
          for (const int32_t p : odd_order(parts)) {
            if (threaded) {
              threads.emplace_back([&body, p] { EXPECT_STATUS(INT8Q_OK, body(p)); });
            } else {
              EXPECT_STATUS(INT8Q_OK, body(p));
            }
          }
          for (std::thread& t : threads) t.join();
        };
        run(quantize);
        run(multiply);
        expect_same(expected, ys);
      }
    }
  });
  EXPECT_EQ(runnable_isas().size() * 40, cells);
}

// Codes of one value at the K where s32 ends: every partial sum of every kernel must still be right.
TEST(Linear, LargestK) {
  struct Extreme {
    int64_t k;
    int8_t weight;
    float x;
  };
  for (const Extreme& e : {Extreme{kLargestK, 127, 2.0f}, Extreme{kLargestK, -127, 2.0f},
                           Extreme{kLargestForeignK, -128, -2.0f}, Extreme{kLargestForeignK, -128, 2.0f}}) {
    constexpr int64_t kN = 17;
    Mat w(INT8Q_S8, kN, e.k);
    for (int64_t i = 0; i < kN * e.k; ++i) w.as<int8_t>()[i] = e.weight;
    const std::vector<float> stats(static_cast<size_t>(kN), 0.5f);
    const int32_t acc = static_cast<int32_t>(e.k) * e.weight * (e.x > 0 ? 127 : -127);
    const float expected = dequantize(acc, 2.0f, 0.5f, 0.0f);
    Mat rows(INT8Q_BF16, 19, e.k);
    for (int64_t i = 0; i < 19 * e.k; ++i) rows.as<uint16_t>()[i] = to_bf16(e.x);
    for (const cpu::Isa* isa : runnable_isas()) {
      const ContextPtr context = make_context(2, isa->name);
      int8q_linear* raw = nullptr;
      ASSERT_CALL(int8q_create_linear(context.get(), w.get(), stats.data(), nullptr, nullptr, &raw));
      const LinearPtr linear(raw);
      for (const int64_t m : {1, 19}) {
        const int8q_matrix x = matrix(INT8Q_BF16, m, e.k, rows.as<uint16_t>());
        Mat y(INT8Q_F32, m, kN), dx(INT8Q_F32, m, e.k);
        const Workspace workspace = make_workspace(context.get(), raw, m);
        ASSERT_CALL(int8q_forward(context.get(), raw, &x, 0, y.get(), workspace.get(), workspace.bytes()));
        for (int64_t i = 0; i < m * kN; ++i) {
          ASSERT_EQ(expected, y.as<float>()[i]) << isa->name << " M " << m << " K " << e.k << " weight " << int{e.weight};
        }
        if (m > 1) continue;
        ASSERT_CALL(backward(context.get(), raw, y, dx));
        float g = 0;
        for (int64_t n = 0; n < kN; ++n) g = std::fmaf(expected * (0.5f * (1.0f / 127.0f)), e.weight, g);
        for (int64_t k = 0; k < e.k; ++k) ASSERT_EQ(g, dx.as<float>()[k]) << isa->name << " column " << k;
      }
    }
  }
}

TEST(Linear, DeeperIsRefused) {
  const ContextPtr context = make_context(2);
  const std::vector<float> stats(3, 1.0f);
  int8q_linear* linear = nullptr;
  const Mat longer(INT8Q_S8, 3, kLargestK + 1);
  EXPECT_STATUS(INT8Q_SIZE_OVERFLOW,
                int8q_create_linear(context.get(), longer.get(), stats.data(), nullptr, nullptr, &linear));
  Mat foreign(INT8Q_S8, 3, kLargestForeignK + 1);
  std::memset(foreign.as<int8_t>(), 1, static_cast<size_t>(3 * (kLargestForeignK + 1)));
  ASSERT_CALL(int8q_create_linear(context.get(), foreign.get(), stats.data(), nullptr, nullptr, &linear));
  ASSERT_CALL(int8q_destroy_linear(linear));
  linear = nullptr;
  foreign.as<int8_t>()[3 * (kLargestForeignK + 1) - 1] = -128;
  EXPECT_STATUS(INT8Q_SIZE_OVERFLOW,
                int8q_create_linear(context.get(), foreign.get(), stats.data(), nullptr, nullptr, &linear));
  EXPECT_NE(std::string(int8q_last_error()).find("row 2"), std::string::npos) << int8q_last_error();
  EXPECT_EQ(nullptr, linear);
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
  for (const int32_t mode : kModes) {
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
        if (mode == INT8Q_OUTLIERS_OFF || (mode != INT8Q_OUTLIERS_ALL && a < 6.0)) r = std::max(r, a);
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

// Without a barrier between its phases a part-wise call finds whatever is in the workspace where its outlier columns should
// be: Y is undefined, but nothing outside x, y and the workspace is touched.
TEST(Linear, APartWithoutItsBarrierStaysInItsMemory) {
  const ContextPtr context = make_context();
  for (const int64_t k : {1, 63, 65, 600, 640}) {
    const LinearPtr linear = make_linear(context.get(), random_mat(INT8Q_F32, 20, k, 1));
    uint64_t bytes = 0;
    ASSERT_CALL(int8q_query_workspace(context.get(), linear.get(), INT8Q_FORWARD, 1, 1, &bytes));
    GuardedMemory x_memory(k * 4), y_memory(20 * 4), memory(static_cast<int64_t>(bytes) + 64);
    uint8_t* x = x_memory.place(k * 4, Place::kAtEnd);
    uint8_t* y = y_memory.place(20 * 4, Place::kAtEnd);
    uint8_t* workspace = memory.place_aligned(static_cast<int64_t>(bytes));
    std::fill_n(workspace, bytes, uint8_t{0xff});
    const int8q_matrix in = matrix(INT8Q_F32, 1, k, x), out = matrix(INT8Q_F32, 1, 20, y);
    ASSERT_CALL(int8q_forward_part(context.get(), linear.get(), &in, 0, &out, workspace, bytes, 0, 1));
    EXPECT_TRUE(x_memory.intact() && y_memory.intact() && memory.intact()) << "K " << k;
  }
}

}  // namespace
}  // namespace int8q::test
