// SPDX-License-Identifier: Apache-2.0
//
// Which kernel multiplies: told by the stub, since on a GPU results are the same.
#include "cuda/layer_on_device.h"

namespace int8q::test {
namespace {

TEST(CudaDispatch, WgmmaMultipliesLargeResultsOfSm90a) {
  if (more_of_driver().stub_count == nullptr) GTEST_SKIP() << "a GPU's driver counts no launches";
  const ContextPtr there = make_gpu_context();
  const bool has_it = std::string(gpu().image->name) == "sm_90a";
  const auto launched = [&](int64_t m, int64_t k, int32_t mode) {
    constexpr int64_t kN = 9;
    const LayerOnDevice layer(there.get(), kN, k, mode);
    Grid x = activations(INT8Q_F16, m, k), y(INT8Q_F16, m, kN);
    const DeviceGrid x_there(x), y_there(y);
    const DeviceWorkspace workspace(there.get(), layer.linear.get(), m);
    const int64_t before = more_of_driver().stub_count("gemm_wgmma_s8");
    EXPECT_STATUS(INT8Q_OK, int8q_forward(there.get(), layer.linear.get(), x_there.view(), 0, y_there.view(),
                                          workspace.get(), workspace.bytes()));
    return more_of_driver().stub_count("gemm_wgmma_s8") - before;
  };
  for (const int32_t mode : {INT8Q_OUTLIERS_OFF, INT8Q_OUTLIERS_COLUMN}) EXPECT_EQ(launched(300, 40, mode), has_it ? 1 : 0);
  EXPECT_EQ(launched(300, 40, INT8Q_OUTLIERS_ELEMENT), 0);
  EXPECT_EQ(launched(200, 40, INT8Q_OUTLIERS_COLUMN), 0) << "two tiles for three SMs";
  EXPECT_EQ(launched(300, 0, INT8Q_OUTLIERS_COLUMN), 0) << "no map has columns of nothing";
}

// By INT8Q_CUDA_GEMM=cublaslt, for more rows than skinny kernels take, and regular sizes.
TEST(CudaDispatch, CublasLtMultipliesWhereItIsAskedFor) {
  if (more_of_driver().stub_count == nullptr) GTEST_SKIP() << "a GPU's driver counts no launches";
  const ContextPtr there = make_gpu_context();
  const bool asked = std::getenv("INT8Q_CUDA_GEMM") != nullptr;
  const auto launched = [&](int64_t m, int64_t n, int64_t k) {
    const LayerOnDevice layer(there.get(), n, k);
    Grid x = activations(INT8Q_F16, m, k), y(INT8Q_F16, m, n);
    const DeviceGrid x_there(x), y_there(y);
    const DeviceWorkspace workspace(there.get(), layer.linear.get(), m);
    const int64_t before = more_of_driver().stub_count("finish_s8");
    EXPECT_STATUS(INT8Q_OK, int8q_forward(there.get(), layer.linear.get(), x_there.view(), 0, y_there.view(),
                                          workspace.get(), workspace.bytes()));
    return more_of_driver().stub_count("finish_s8") - before;
  };
  EXPECT_EQ(launched(80, 12, 40), asked ? 1 : 0);
  EXPECT_EQ(launched(5, 12, 40), 0);
  EXPECT_EQ(launched(80, 10, 40), 0) << "N is no multiple of 4";
  EXPECT_EQ(launched(80, 12, 42), 0) << "K is no multiple of 4";
  char text[1000];
  ASSERT_CALL(int8q_describe_context(there.get(), text, sizeof text, nullptr));
  EXPECT_NE(std::strstr(text, asked ? "\"gemm\": \"cuBLASLt 130000 of " : "\"gemm\": \"int8q\""), nullptr) << text;
}

}  // namespace
}  // namespace int8q::test
