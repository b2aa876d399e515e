// SPDX-License-Identifier: Apache-2.0
//
// The gradient to the input on a GPU, within bounds from the number of roundings.
#include <array>
#include <cmath>

#include "cuda/layer_on_device.h"

namespace int8q::test {
namespace {

TEST(CudaBackward, BackwardIsWithinItsBound) {
  const ContextPtr there = make_gpu_context();
  uint64_t seed = 0;
  for (const auto& [m, n, k] : std::vector<std::array<int64_t, 3>>{
           {1, 1, 1}, {3, 40, 33}, {65, 17, 100}, {130, 33, 64}, {2, 70, 130}, {0, 5, 5}, {5, 0, 7}, {5, 7, 0}}) {
    for (const int32_t in : kFloatDtypes) {
      for (const bool accumulate : {false, true}) {
        const int32_t out = kFloatDtypes[++seed % 3];
        SCOPED_TRACE(::testing::Message() << "M " << m << " N " << n << " K " << k << " in " << in << " out " << out);
        Grid w(INT8Q_F32, n, k), dy(in, m, n, static_cast<int64_t>(seed % 2)),
            dx(out, m, k, static_cast<int64_t>(seed % 3));
        fill_normal(w, seed, 0.1f);
        fill_normal(dy, seed + 1, seed % 4 == 0 ? 1e-4f : 1.0f);
        fill_normal(dx, seed + 2, 1.0f);
        const Quantized q = quantize(w, INT8Q_OUTLIERS_OFF, 0);
        const DeviceGrid w_there(w), dy_there(dy), dx_there(dx);
        int8q_linear* raw = nullptr;
        ASSERT_CALL(int8q_create_linear(there.get(), w_there.view(), nullptr, nullptr, nullptr, &raw));
        const LinearPtr linear(raw);
        const DeviceWorkspace workspace(there.get(), raw, m, INT8Q_BACKWARD);
        const int64_t before = launches(there.get());
        ASSERT_CALL(int8q_backward(there.get(), raw, dy_there.view(), accumulate ? INT8Q_ACCUMULATE : 0, dx_there.view(),
                                   workspace.get(), workspace.bytes()));
        EXPECT_EQ(launches(there.get()) - before, m == 0 || k == 0 ? 0 : 1);
        const Grid got = dx_there.download();
        const double unit = unit_roundoff(out);
        // Rounded are fp16's weights, twice, bf16's gradients, fp32's to 24 bits; small weights may be denormals of fp16.
        const double rounding = in == INT8Q_F32 ? 0x1p-22 : in == INT8Q_F16 ? 1.01 * 0x1p-10 : 0x1p-8;
        float greatest = 0;
        for (const float s : q.stats) greatest = std::max(greatest, s);
        for (int64_t i = 0; i < m; ++i) {
          for (int64_t j = 0; j < k; ++j) {
            double want = accumulate ? static_cast<double>(dx.at(i, j)) : 0, size = std::fabs(want), lost = 0;
            for (int64_t r = 0; r < n; ++r) {
              const double code = q.codes[static_cast<size_t>(r * k + j)];
              const double term =
                  static_cast<double>(dy.at(i, r)) * static_cast<double>(q.stats[static_cast<size_t>(r)]) / 127 * code;
              want += term;
              size += std::fabs(term);
              lost += 0x1p-25 * static_cast<double>(greatest) / 127 * std::fabs(static_cast<double>(dy.at(i, r))) *
                      (1 + std::fabs(code));
            }
            const double bound =
                (rounding + 2.0 * static_cast<double>(n + 8) * 0x1p-24) * size + lost + 1.01 * unit * std::fabs(want);
            ASSERT_NEAR(got.at(i, j), want, bound) << i << ", " << j;
          }
        }
        ASSERT_TRUE(got.gaps_untouched());
      }
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
