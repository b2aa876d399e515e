// SPDX-License-Identifier: Apache-2.0
//
// The linear layer on a GPU: shapes, dtypes, modes, kept columns, strides and alignments beside the oracle's exact value, within
// bounds from the number of roundings; its life, and that it does the same on each run.
#include <cmath>
#include <optional>
#include <utility>

#include "cuda/gpu.h"
#include "cuda/shapes.h"
#include "cuda/tiles.h"
#include "support/draw.h"

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
  kWGap,
  kWOffset,
  kYGap,
  kBorrow
};

enum : size_t { kColumn, kOff, kElement, kAll };  // of kModes
enum : size_t { kF32, kF16, kBf16 };              // of kFloatDtypes

constexpr float kThresholds[] = {0.0f, 1e-30f, 1.5f};
constexpr size_t kS8Weight = 3, kNoBias = 3;

Draw layer_draw() {
  return {{"mode", 4},  {"in", 3},         {"out", 3},   {"weight", 4},   {"bias", 4},       {"threshold", 3},
          {"kept", 3},  {"accumulate", 2}, {"x gap", 3}, {"x offset", 3}, {"weight gap", 3}, {"weight offset", 3},
          {"y gap", 3}, {"borrow", 2}};
}

int64_t bytes_of(const Draw::Cell& drawn, size_t which, int64_t unit) { return static_cast<int64_t>(drawn[which]) * unit; }

// A value and what roundings may add to it.
struct Bounded {
  double value, bound;
};

// A layer, its input, and what comes of them.
struct Case {
  Draw::Cell drawn;
  Grid weight, bias, x, kept_weights, before;
  LayerOracle oracle;
  Quantized qx;
  bool from_codes, with_bias, accumulate;
  int8q_linear_options options{};

  Case(const Shape& s, size_t seed, const Draw::Cell& d)
      : drawn(d),
        weight(kFloatDtypes[d[kWeight] % 3], s.n, s.k, bytes_of(d, kWGap, 1), bytes_of(d, kWOffset, 4)),
        bias(kFloatDtypes[d[kBias] % 3], 1, s.n),
        x(kFloatDtypes[d[kIn]], s.m, s.k, bytes_of(d, kXGap, 1), bytes_of(d, kXOffset, 4)),
        kept_weights(INT8Q_F16, s.n, s.k < 4 ? 0 : 3, 1),
        before(kFloatDtypes[d[kOut]], s.m, s.n, bytes_of(d, kYGap, 1)),
        from_codes(d[kWeight] == kS8Weight),
        with_bias(d[kBias] != kNoBias),
        accumulate(d[kAccumulate] == 1) {
    fill_activations(x, seed);
    fill_normal(weight, seed + 1, 0.1f);
    fill_normal(bias, seed + 2, 1.0f);
    fill_normal(kept_weights, seed + 3, 0.1f);
    fill_normal(before, seed + 4, 1.0f);
    const int32_t mode = kModes[d[kMode]];
    oracle = {quantize(weight, INT8Q_OUTLIERS_OFF, 0), {}, {}, {}, mode, kThresholds[d[kThreshold]]};
    for (int64_t j = 0; with_bias && j < s.n; ++j) oracle.bias.push_back(bias.at(0, j));
    const auto kept = s.k < 4 ? Kept::kNone : from_codes && d[kKept] == 1 ? Kept::kGiven : static_cast<Kept>(d[kKept]);
    if (kept != Kept::kNone) oracle.kept_cols = {1, s.k / 2, s.k - 1};
    for (int64_t j = 0; j < s.n; ++j) {
      for (size_t t = 0; t < oracle.kept_cols.size(); ++t) {
        oracle.kept.push_back(
            to_f16(kept == Kept::kGiven ? kept_weights.at(j, static_cast<int64_t>(t)) : weight.at(j, oracle.kept_cols[t])));
      }
    }
    options = {sizeof options,
               mode,
               oracle.threshold,
               from_codes && d[kBorrow] == 1 ? static_cast<uint32_t>(INT8Q_BORROW_WEIGHT) : 0,
               oracle.kept_cols.data(),
               static_cast<int64_t>(oracle.kept_cols.size()),
               nullptr};
    qx = quantize(x, mode, oracle.threshold);
  }

  Grid codes() const {
    Grid q(INT8Q_S8, weight.rows(), weight.cols(), bytes_of(drawn, kWGap, 1), bytes_of(drawn, kWOffset, 1));
    for (int64_t i = 0; i < q.rows(); ++i) {
      for (int64_t j = 0; j < q.cols(); ++j) q.set_integer(i, j, oracle.w.codes[static_cast<size_t>(i * q.cols() + j)]);
    }
    return q;
  }

  // y(i, j) exactly, and how far fp32 sums and factors, rounded one by one, may be from it.
  Bounded exact(int64_t i, int64_t j) const {
    const int64_t k = weight.cols();
    const double row = static_cast<double>(qx.stats[static_cast<size_t>(i)]),
                 col = static_cast<double>(oracle.w.stats[static_cast<size_t>(j)]);
    const int8_t *a = qx.codes.data() + i * k, *b = oracle.w.codes.data() + j * k;
    const double product = dot(a, b, k) * row * col / 16129;
    double outliers = 0, magnitude = std::fabs(product);
    for (const int64_t c : qx.outlier_cols) {
      const float value = x.at(i, c);
      if (oracle.mode == INT8Q_OUTLIERS_ELEMENT && !is_outlier(value, oracle.mode, oracle.threshold)) continue;
      double w = b[c] * col / 127;
      for (size_t t = 0; t < oracle.kept_cols.size(); ++t) {
        if (oracle.kept_cols[t] == c)
          w = static_cast<double>(from_f16(oracle.kept[static_cast<size_t>(j) * oracle.kept_cols.size() + t]));
      }
      outliers += static_cast<double>(value) * w;
      magnitude += std::fabs(static_cast<double>(value) * w);
    }
    double value = product + outliers;
    if (with_bias) value += static_cast<double>(oracle.bias[static_cast<size_t>(j)]);
    if (accumulate) value += static_cast<double>(before.at(i, j));
    magnitude += std::fabs(value - product - outliers);
    // Tensor cores truncate, which counts double; fp32 x as three bf16 terms: three times as many sums, so outlier columns of any.
    const bool one_term = oracle.mode == INT8Q_OUTLIERS_ALL && x.dtype() != INT8Q_F32;
    const double sums = (one_term ? 2.0 : 6.0) * static_cast<double>(qx.outlier_cols.size()) + 8;
    return {value, sums * 0x1p-24 * magnitude + 1.01 * unit_roundoff(before.dtype()) * std::fabs(value) + 0x1p-24};
  }

  // Rows beyond x's repeat them.
  void expect(const Grid& y) const {
    for (int64_t i = 0; i < x.rows(); ++i) {
      for (int64_t j = 0; j < y.cols(); ++j) {
        const Bounded want = exact(i, j);
        ASSERT_NEAR(y.at(i, j), want.value, want.bound) << i << ", " << j;
      }
    }
    expect_repeated(y, x.rows());
    ASSERT_TRUE(y.gaps_untouched());
  }
};

// A case's weights on the device, and the linear over them.
struct OnDevice {
  std::unique_ptr<DeviceGrid> weight, bias, kept;
  std::unique_ptr<DeviceArray<float>> stats;
  LinearPtr linear;

  OnDevice(int8q_context* context, Case& c) {
    Grid codes = c.codes();
    weight = std::make_unique<DeviceGrid>(c.from_codes ? codes : c.weight);
    if (c.from_codes) stats = std::make_unique<DeviceArray<float>>(c.oracle.w.stats);
    bias = std::make_unique<DeviceGrid>(c.bias);
    kept = std::make_unique<DeviceGrid>(c.kept_weights);
    if (c.drawn[kKept] == static_cast<size_t>(Kept::kGiven) || c.from_codes) c.options.kept_weights = kept->view();
    if (c.oracle.kept_cols.empty()) c.options.kept_weights = nullptr;
    int8q_linear* raw = nullptr;
    EXPECT_STATUS(INT8Q_OK, int8q_create_linear(context, weight->view(), stats ? stats->get() : nullptr,
                                                c.with_bias ? bias->view() : nullptr, &c.options, &raw));
    linear.reset(raw);
  }
};

void expect_forward(int8q_context* context, Case& c) {
  const OnDevice layer(context, c);
  ASSERT_NE(layer.linear, nullptr);
  const DeviceGrid x(c.x), y(c.before);
  const DeviceWorkspace workspace(context, layer.linear.get(), c.x.rows());
  ASSERT_CALL(int8q_forward(context, layer.linear.get(), x.view(), c.accumulate ? INT8Q_ACCUMULATE : 0, y.view(),
                            workspace.get(), workspace.bytes()));
  c.expect(y.download());
}

TEST(CudaLayer, EveryShapeDtypeMode) {
  const std::vector<Shape> list = device_shapes();
  const ContextPtr context = make_gpu_context();
  Draw draw = layer_draw();
  size_t cells = 0;
  for (size_t s = 0; s < list.size(); ++s) {
    for (size_t mode = 0; mode < std::size(kModes); ++mode) {
      const Draw::Cell drawn = draw.cell(s, {mode, (s + mode) % 3});
      SCOPED_TRACE(::testing::Message() << "M " << list[s].m << " N " << list[s].n << " K " << list[s].k << " drawn "
                                        << ::testing::PrintToString(drawn));
      Case c(list[s], ++cells, drawn);
      expect_forward(context.get(), c);
      if (HasFatalFailure()) return;
    }
  }
  std::printf("%zu cells: %zu shapes x 4 modes on %s\n", cells, list.size(), gpu().name.c_str());
}

// By a graph, of so many rows, which repeat the case's; where cuBLASLt multiplies, which no graph can have, by a call. product: a
// kernel of the graph, with any shared memory if it has 0.
void expect_many_rows(Case& c, int64_t rows, const std::optional<Launch>& product) {
  Stream stream;
  const ContextPtr context = make_gpu_context(stream.get());
  const OnDevice layer(context.get(), c);
  ASSERT_NE(layer.linear, nullptr);
  Grid all_x = repeated(c.x, rows, 0), before = repeated(c.before, rows, bytes_of(c.drawn, kYGap, 1));
  const DeviceGrid x(all_x), y(before);
  const DeviceWorkspace workspace(context.get(), layer.linear.get(), rows);
  const auto forward = [&] {
    ASSERT_CALL(int8q_forward(context.get(), layer.linear.get(), x.view(), c.accumulate ? INT8Q_ACCUMULATE : 0, y.view(),
                              workspace.get(), workspace.bytes()));
  };
  if (gpu().cublaslt != nullptr) {
    forward();
  } else {
    stream.capture(forward);
    if (product) expect_kernel(stream.captured(), *product);
    stream.replay();
  }
  stream.wait();
  const Grid once = y.download();
  c.expect(once);
  if (c.accumulate || gpu().cublaslt != nullptr) return;
  stream.replay();
  stream.wait();
  EXPECT_EQ(y.download().bytes(), once.bytes());
}

Draw::Cell aligned_cell(size_t seed, size_t mode, size_t dtype) {
  Draw::Cell drawn = layer_draw().cell(seed, {mode, dtype});
  for (const size_t place : {kXGap, kXOffset, kWGap, kWOffset, kThreshold}) drawn[place] = 0;
  return drawn;
}

// Blocks of the kernels for few rows take 16 rows of W twice and more.
TEST(CudaLayer, FewRowsOfManyColumns) {
  enum : size_t { kUsual = 0, kLow = 2 };  // of kThresholds: few outlier columns, or more than are brought at once
  struct OfCell {
    int64_t rows;
    size_t mode, dtype, threshold;
    int64_t depth = 560;
  };
  const int64_t blocks = 2 * gpu().multiprocessors, cols = 16 * (2 * blocks + 1) + 5;
  size_t seed = 200;
  for (const OfCell& cell :
       {OfCell{1, kColumn, kBf16, kUsual}, OfCell{8, kColumn, kF16, kUsual}, OfCell{8, kColumn, kBf16, kLow},
        OfCell{16, kOff, kF32, kUsual}, OfCell{16, kElement, kF16, kUsual}, OfCell{40, kColumn, kBf16, kUsual},
        OfCell{40, kColumn, kF16, kUsual, 400}, OfCell{8, kAll, kBf16, kUsual}, OfCell{40, kAll, kF16, kUsual}}) {
    Draw::Cell drawn = aligned_cell(++seed, cell.mode, cell.dtype);
    drawn[kThreshold] = cell.threshold;
    SCOPED_TRACE(::testing::Message() << cell.rows << " rows, drawn " << ::testing::PrintToString(drawn));
    Case c({cell.rows, cols, cell.depth}, seed, drawn);
    const bool few = cell.rows <= 16;  // for any architecture
    expect_many_rows(c, cell.rows, few ? std::optional(Launch{gpu::SkinnyShape::kThreads, blocks, 0}) : std::nullopt);
    if (HasFatalFailure()) return;
  }
}

constexpr int64_t kStagesComeRound = 10 * 128 + 8;  // steps and a tail, which ends within 16 codes

// Borrowed codes, too, lie where wgmma's kernels find them.
Draw::Cell tile_cell(size_t seed, size_t mode, size_t dtype) {
  Draw::Cell drawn = aligned_cell(seed, mode, dtype);
  drawn[kWGap] = 8;  // rows of a multiple of 16
  return drawn;
}

// Where a GPU is full of tiles those of sm_80 are large, too.
TEST(CudaLayer, EachTileOfCodes) {
  size_t seed = 0;
  for (const OfTile& tile : tiles_of_codes()) {
    std::vector<std::pair<size_t, size_t>> cells = {
        {kColumn, kF16}, {kColumn, kBf16}, {kOff, tile.index == 0 ? kF16 : kBf16}};
    if (tile.index == 1) cells.push_back({kElement, kF32});
    if (tile.index == 1 && !small_grid()) cells.push_back({kColumn, kF32});
    for (const auto& [mode, dtype] : cells) {
      const Draw::Cell drawn = tile_cell(++seed, mode, dtype);
      SCOPED_TRACE(::testing::Message() << tile.rows << " rows, drawn " << ::testing::PrintToString(drawn));
      Case c({std::min(kRowsOfOracle, tile.rows), tile.cols, kStagesComeRound}, seed, drawn);
      expect_many_rows(c, tile.rows, gpu().has_wgmma() && mode != kElement ? std::optional(tile.product) : std::nullopt);
      if (HasFatalFailure()) return;
    }
  }
}

TEST(CudaLayer, EachTileOfFloats) {
  size_t seed = 100;
  for (const OfTile& tile : tiles_of_halves()) {
    std::vector<std::pair<size_t, Kept>> cells = {{kF16, Kept::kNone}, {kBf16, Kept::kNone}};
    if (tile.index != 1) cells.emplace_back(kF16, Kept::kFromWeights);  // which wgmma's have no place for
    if (tile.index != 0 && !small_grid()) cells.emplace_back(kF32, Kept::kFromWeights);
    for (const auto& [dtype, kept] : cells) {
      Draw::Cell drawn = tile_cell(++seed, kAll, dtype);
      drawn[kKept] = static_cast<size_t>(kept);
      SCOPED_TRACE(::testing::Message() << tile.rows << " rows, drawn " << ::testing::PrintToString(drawn));
      Case c({std::min(kRowsOfOracle, tile.rows), tile.cols, kStagesComeRound}, seed, drawn);
      expect_many_rows(c, tile.rows, gpu().has_wgmma() && kept == Kept::kNone ? std::optional(tile.product) : std::nullopt);
      if (HasFatalFailure()) return;
    }
  }
}

}  // namespace
}  // namespace int8q::test
