// SPDX-License-Identifier: Apache-2.0
//
// The gradient to the input on a GPU, within bounds from the number of roundings.
#include <cmath>

#include "cuda/layer_on_device.h"
#include "cuda/shapes.h"
#include "cuda/tiles.h"

namespace int8q::test {
namespace {

// Its rows, and what becomes of them.
struct Gradient {
  Grid w, dy, dx;
  Quantized q;
  bool accumulate;

  Gradient(const Shape& s, int32_t in, int32_t out, int64_t gap_in, int64_t gap_out, bool adds, uint64_t seed)
      : w(INT8Q_F32, s.n, s.k), dy(in, s.m, s.n, gap_in), dx(out, s.m, s.k, gap_out), accumulate(adds) {
    fill_normal(w, seed, 0.1f);
    fill_normal(dy, seed + 1, seed % 4 == 0 ? 1e-4f : 1.0f);
    fill_normal(dx, seed + 2, 1.0f);
    q = quantize(w, INT8Q_OUTLIERS_OFF, 0);
  }

  // Rows beyond dy's repeat them.
  void expect(const Grid& got) const {
    const int64_t n = w.rows(), k = w.cols();
    // Rounded are fp16's weights, twice, bf16's gradients or weights, fp32's to 24 bits; small weights may be denormals of fp16.
    const double rounding = dy.dtype() == INT8Q_F32 ? 0x1p-22 : dy.dtype() == INT8Q_F16 ? 1.01 * 0x1p-10 : 0x1p-8;
    float greatest = 0;
    for (const float s : q.stats) greatest = std::max(greatest, s);
    std::vector<double> row(static_cast<size_t>(n)), scaled = row;
    for (int64_t i = 0; i < dy.rows(); ++i) {
      for (size_t r = 0; r < row.size(); ++r) {
        row[r] = static_cast<double>(dy.at(i, static_cast<int64_t>(r)));
        scaled[r] = row[r] * static_cast<double>(q.stats[r]) / 127;
      }
      for (int64_t j = 0; j < k; ++j) {
        double want = accumulate ? static_cast<double>(dx.at(i, j)) : 0, size = std::fabs(want), lost = 0;
        for (size_t r = 0; r < row.size(); ++r) {
          const double code = q.codes[r * static_cast<size_t>(k) + static_cast<size_t>(j)], term = scaled[r] * code;
          want += term;
          size += std::fabs(term);
          lost += std::fabs(row[r]) * (1 + std::fabs(code));
        }
        lost *= 0x1p-25 * static_cast<double>(greatest) / 127;
        if (dx.dtype() == INT8Q_F16) lost += 0x1p-25;  // half of a denormal's last bit
        const double bound = (rounding + 2.0 * static_cast<double>(n + 8) * 0x1p-24) * size + lost +
                             1.01 * unit_roundoff(dx.dtype()) * std::fabs(want);
        ASSERT_NEAR(got.at(i, j), want, bound) << i << ", " << j;
      }
    }
    expect_repeated(got, dy.rows());
    ASSERT_TRUE(got.gaps_untouched());
  }
};

TEST(CudaBackward, EveryShapeDtype) {
  const ContextPtr there = make_gpu_context();
  const bool emulated = more_of_driver().stub_count != nullptr;  // which has time for one dtype
  std::vector<Shape> list = device_shapes();
  list.insert(list.end(), {{65, 17, 100}, {130, 33, 64}, {2, 70, 130}, {0, 5, 5}, {5, 0, 7}, {5, 7, 0}});
  for (size_t i = 0; i < list.size(); ++i) {
    const Shape& s = list[i];
    for (size_t d = 0; d < std::size(kFloatDtypes); ++d) {
      if (emulated && s.n != 0 && d != i % 3) continue;
      const int32_t in = kFloatDtypes[d], out = kFloatDtypes[(i / 3 + d) % 3];
      const uint64_t seed = i * 3 + d;
      SCOPED_TRACE(::testing::Message() << "M " << s.m << " N " << s.n << " K " << s.k << " in " << in << " out " << out);
      Gradient g(s, in, out, static_cast<int64_t>(i / 3 % 2), static_cast<int64_t>(i / 2 % 3), i / 4 % 2 == 0, seed);
      const DeviceGrid w(g.w), dy(g.dy), dx(g.dx);
      int8q_linear* raw = nullptr;
      ASSERT_CALL(int8q_create_linear(there.get(), w.view(), nullptr, nullptr, nullptr, &raw));
      const LinearPtr linear(raw);
      const DeviceWorkspace workspace(there.get(), raw, s.m, INT8Q_BACKWARD);
      const int64_t before = launches(there.get());
      ASSERT_CALL(int8q_backward(there.get(), raw, dy.view(), g.accumulate ? INT8Q_ACCUMULATE : 0, dx.view(),
                                 workspace.get(), workspace.bytes()));
      EXPECT_EQ(launches(there.get()) - before, s.m == 0 || s.k == 0 ? 0 : 1);
      g.expect(dx.download());
      if (HasFatalFailure()) return;
    }
  }
}

// Of wgmma's by a graph, whose rows repeat themselves; and of as large results what other architectures take.
TEST(CudaBackward, EachTile) {
  constexpr int64_t kN = 11 * 64 + 8;  // stages come round
  uint64_t seed = 0;
  for (const OfTile& tile : tiles_of_halves()) {
    for (const int32_t in : {INT8Q_F16, INT8Q_BF16}) {
      SCOPED_TRACE(::testing::Message() << tile.rows << " rows, dtype " << in);
      Stream stream;
      const ContextPtr there = make_gpu_context(stream.get());
      const int32_t out = kFloatDtypes[++seed % 3];
      Gradient g({std::min(kRowsOfOracle, tile.rows), kN, tile.cols}, in, out, 0, static_cast<int64_t>(seed % 3),
                 seed / 2 % 2 == 0, seed);
      Grid all_dy = repeated(g.dy, tile.rows, 0), all_dx = repeated(g.dx, tile.rows, static_cast<int64_t>(seed % 3));
      const DeviceGrid w(g.w), dy(all_dy), dx(all_dx);
      int8q_linear* raw = nullptr;
      ASSERT_CALL(int8q_create_linear(there.get(), w.view(), nullptr, nullptr, nullptr, &raw));
      const LinearPtr linear(raw);
      const DeviceWorkspace workspace(there.get(), raw, tile.rows, INT8Q_BACKWARD);
      stream.capture([&] {
        ASSERT_CALL(int8q_backward(there.get(), raw, dy.view(), g.accumulate ? INT8Q_ACCUMULATE : 0, dx.view(),
                                   workspace.get(), workspace.bytes()));
      });
      if (gpu().has_wgmma()) expect_kernel(stream.captured(), tile.product);
      stream.replay();
      stream.wait();
      g.expect(dx.download());
      if (HasFatalFailure()) return;
    }
  }
}

// Weights whose reciprocal is beyond fp32 have finite gradients.
TEST(CudaBackward, TinyWeights) {
  const ContextPtr there = make_gpu_context();
  Grid w(INT8Q_F32, 4, 32), dy(INT8Q_F32, 2, 4), dx(INT8Q_F32, 2, 32);
  for (int64_t i = 0; i < 4; ++i) {
    for (int64_t j = 0; j < 32; ++j) w.set(i, j, static_cast<float>(j + 1) * 1e-41f);
  }
  fill_normal(dy, 1, 1.0f);
  const DeviceGrid w_there(w), dy_there(dy), dx_there(dx);
  int8q_linear* raw = nullptr;
  ASSERT_CALL(int8q_create_linear(there.get(), w_there.view(), nullptr, nullptr, nullptr, &raw));
  const LinearPtr linear(raw);
  const DeviceWorkspace workspace(there.get(), raw, 2, INT8Q_BACKWARD);
  ASSERT_CALL(int8q_backward(there.get(), raw, dy_there.view(), 0, dx_there.view(), workspace.get(), workspace.bytes()));
  const Grid got = dx_there.download();
  for (int64_t i = 0; i < 2; ++i) {
    for (int64_t j = 0; j < 32; ++j) ASSERT_LT(std::fabs(got.at(i, j)), 1e-37f) << i << ", " << j;
  }
}

}  // namespace
}  // namespace int8q::test
