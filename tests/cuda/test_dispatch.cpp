// SPDX-License-Identifier: Apache-2.0
//
// Which kernel multiplies: told by the stub, since on a GPU results are the same.
#include <thread>
#include <utility>

#include "cuda/layer_on_device.h"

namespace int8q::test {
namespace {

TEST(CudaDispatch, WgmmaMultipliesLargeResultsOfSm90a) {
  if (more_of_driver().stub_count == nullptr) GTEST_SKIP() << "a GPU's driver counts no launches";
  const ContextPtr there = make_gpu_context();
  const bool has_it = std::string(gpu().image->name) == "sm_90a";
  // Of which tiles, of 128 columns and of 256.
  const auto launched = [&](int64_t m, int64_t n, int64_t k, int32_t mode) {
    const LayerOnDevice layer(there.get(), n, k, mode);
    Grid x = activations(INT8Q_F16, m, k), y(INT8Q_F16, m, n);
    const DeviceGrid x_there(x), y_there(y);
    const DeviceWorkspace workspace(there.get(), layer.linear.get(), m);
    const auto count = [] {
      return std::pair(more_of_driver().stub_count("gemm_wgmma_s8_128"), more_of_driver().stub_count("gemm_wgmma_s8_256"));
    };
    const auto before = count();
    EXPECT_STATUS(INT8Q_OK, int8q_forward(there.get(), layer.linear.get(), x_there.view(), 0, y_there.view(),
                                          workspace.get(), workspace.bytes()));
    const auto after = count();
    return std::pair(after.first - before.first, after.second - before.second);
  };
  const std::pair<int64_t, int64_t> none{0, 0}, narrow{has_it ? 1 : 0, 0}, wide{0, has_it ? 1 : 0};
  for (const int32_t mode : {INT8Q_OUTLIERS_OFF, INT8Q_OUTLIERS_COLUMN}) {
    EXPECT_EQ(launched(300, 9, 40, mode), narrow);
    EXPECT_EQ(launched(300, 200, 40, mode), wide) << "three tiles for three SMs, of which narrow ones would be six";
  }
  EXPECT_EQ(launched(300, 9, 40, INT8Q_OUTLIERS_ELEMENT), none);
  EXPECT_EQ(launched(300, 9, 0, INT8Q_OUTLIERS_COLUMN), none) << "no map has columns of nothing";
}

// By tiles of 64, 128 or 256 rows, for more rows than skinny kernels take; 16-bit floats of aligned rows, and no kept columns.
TEST(CudaDispatch, WgmmaMultipliesHalvesOfSm90a) {
  if (more_of_driver().stub_count == nullptr) GTEST_SKIP() << "a GPU's driver counts no launches";
  const ContextPtr there = make_gpu_context();
  const bool has_it = std::string(gpu().image->name) == "sm_90a";
  const auto count = [](const std::string& kernel) { return more_of_driver().stub_count(kernel.c_str()); };
  const auto launched = [&](const std::string& kernel, const auto& call) {
    const int64_t before = count(kernel);
    ASSERT_CALL(call());
    EXPECT_EQ(count(kernel) - before, has_it ? 1 : 0) << kernel;
  };
  constexpr int64_t kN = 128, kK = 128;
  const LayerOnDevice layer(there.get(), kN, kK, INT8Q_OUTLIERS_ALL);
  for (const auto& [dtype, name] : {std::pair<int32_t, std::string>{INT8Q_F16, "f16_"}, {INT8Q_BF16, "bf16_"}}) {
    for (const auto& [rows, m] : {std::pair<std::string, int64_t>{"64", 50}, {"128", 300}, {"256", 600}}) {
      Grid x = activations(dtype, m, kK), y(dtype, m, kN), dy = activations(dtype, m, kN), dx(dtype, m, kK);
      const DeviceGrid x_there(x), y_there(y), dy_there(dy), dx_there(dx);
      const DeviceWorkspace workspace(there.get(), layer.linear.get(), m);
      const DeviceWorkspace for_dx(there.get(), layer.linear.get(), m, INT8Q_BACKWARD);
      launched("w8a16_wgmma_" + name + rows, [&] {
        return int8q_forward(there.get(), layer.linear.get(), x_there.view(), 0, y_there.view(), workspace.get(),
                             workspace.bytes());
      });
      launched("backward_wgmma_" + name + rows, [&] {
        return int8q_backward(there.get(), layer.linear.get(), dy_there.view(), 0, dx_there.view(), for_dx.get(),
                              for_dx.bytes());
      });
    }
  }
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

// Whose rows begin at multiples of 16 bytes: what it is told of every call that shares a plan.
TEST(CudaDispatch, CublasLtTakesAlignedWeightsAlone) {
  if (more_of_driver().stub_count == nullptr) GTEST_SKIP() << "a GPU's driver counts no launches";
  const ContextPtr there = make_gpu_context();
  const bool asked = std::getenv("INT8Q_CUDA_GEMM") != nullptr;
  constexpr int64_t kM = 80, kN = 12, kK = 48;
  Grid x = activations(INT8Q_F16, kM, kK), y(INT8Q_F16, kM, kN);
  const DeviceGrid x_there(x);
  const DeviceArray<float> stats(std::vector<float>(kN, 1.0f));
  std::vector<uint8_t> want;
  for (const auto& [gap, offset] : {std::pair<int64_t, int64_t>{0, 0}, {16, 16}, {0, 4}, {4, 0}}) {
    SCOPED_TRACE(::testing::Message() << "gap " << gap << ", offset " << offset);
    Grid codes(INT8Q_S8, kN, kK, gap, offset);
    for (int64_t i = 0; i < kN; ++i) {
      for (int64_t j = 0; j < kK; ++j) codes.set_integer(i, j, static_cast<int32_t>(i * 7 + j * 5) % 200 - 100);
    }
    const DeviceGrid codes_there(codes), y_there(y);
    int8q_linear_options options{};
    options.size = sizeof options;
    options.flags = INT8Q_BORROW_WEIGHT;
    int8q_linear* raw = nullptr;
    ASSERT_CALL(int8q_create_linear(there.get(), codes_there.view(), stats.get(), nullptr, &options, &raw));
    const LinearPtr linear(raw);
    const DeviceWorkspace workspace(there.get(), raw, kM);
    const int64_t before = more_of_driver().stub_count("finish_s8"), launched = launches(there.get());
    ASSERT_CALL(int8q_forward(there.get(), raw, x_there.view(), 0, y_there.view(), workspace.get(), workspace.bytes()));
    const bool taken = asked && gap % 16 == 0 && offset % 16 == 0;
    EXPECT_EQ(more_of_driver().stub_count("finish_s8") - before, taken ? 1 : 0);
    EXPECT_EQ(launches(there.get()) - launched, taken ? 3 : 2);
    const Grid got = y_there.download();
    if (want.empty()) want = got.bytes();
    EXPECT_EQ(got.bytes(), want);
  }
}

// Whichever comes first: cuBLASLt's sums are as wide as the widest.
TEST(CudaDispatch, SeveralLinearsTakeTheLargestWorkspace) {
  const ContextPtr there = make_gpu_context();
  const bool asked = std::getenv("INT8Q_CUDA_GEMM") != nullptr;
  constexpr int64_t kM = 80, kK = 48;
  const LayerOnDevice narrow(there.get(), 12, kK), wide(there.get(), 512, kK);
  Grid x = activations(INT8Q_F16, kM, kK), y12(INT8Q_F16, kM, 12), y512(INT8Q_F16, kM, 512);
  const DeviceGrid x_there(x), narrow_alone(y12), wide_alone(y512), narrow_y(y12), wide_y(y512);
  const DeviceWorkspace small(there.get(), narrow.linear.get(), kM), large(there.get(), wide.linear.get(), kM);
  EXPECT_EQ(small.bytes() < large.bytes(), asked);
  ASSERT_CALL(
      int8q_forward(there.get(), narrow.linear.get(), x_there.view(), 0, narrow_alone.view(), large.get(), large.bytes()));
  ASSERT_CALL(
      int8q_forward(there.get(), wide.linear.get(), x_there.view(), 0, wide_alone.view(), large.get(), large.bytes()));
  for (const bool narrow_first : {true, false}) {
    SCOPED_TRACE(narrow_first);
    const int8q_linear* const linears[] = {(narrow_first ? narrow : wide).linear.get(),
                                           (narrow_first ? wide : narrow).linear.get()};
    const int8q_matrix* const ys[] = {(narrow_first ? narrow_y : wide_y).view(), (narrow_first ? wide_y : narrow_y).view()};
    const auto forward = [&](const DeviceWorkspace& workspace) {
      return int8q_forward_many(there.get(), linears, 2, x_there.view(), 0, ys, workspace.get(), workspace.bytes());
    };
    EXPECT_STATUS(asked ? INT8Q_BUFFER_TOO_SMALL : INT8Q_OK, forward(small));
    ASSERT_CALL(forward(large));
    EXPECT_EQ(narrow_y.download().bytes(), narrow_alone.download().bytes());
    EXPECT_EQ(wide_y.download().bytes(), wide_alone.download().bytes());
  }
}

// However many sizes come, and from however many threads.
TEST(CudaDispatch, CublasLtsPlansAreBounded) {
  if (std::getenv("INT8Q_CUDA_GEMM") == nullptr) GTEST_SKIP() << "INT8Q_CUDA_GEMM does not ask for cuBLASLt";
  void* library = dlopen("libcublasLt.so.13", RTLD_NOW | RTLD_LOCAL);
  auto* live = library == nullptr ? nullptr : reinterpret_cast<int64_t (*)()>(dlsym(library, "int8q_stub_cublaslt_live"));
  if (live == nullptr) GTEST_SKIP() << "cuBLASLt does not say what it holds";
  constexpr int64_t kFirst = 65, kLast = 140, kN = 4, kK = 16, kObjects = 4;  // a description and three layouts
  const auto run = [&] {
    const ContextPtr there = make_gpu_context();
    const LayerOnDevice layer(there.get(), kN, kK);
    Grid x = activations(INT8Q_F16, kLast, kK), y(INT8Q_F16, kLast, kN);
    const DeviceGrid x_there(x), y_there(y);
    const DeviceWorkspace workspace(there.get(), layer.linear.get(), kLast);
    int8q_matrix some_x = *x_there.view(), some_y = *y_there.view();
    for (int64_t m = kFirst; m <= kLast; ++m) {
      some_x.rows = some_y.rows = m;
      ASSERT_CALL(int8q_forward(there.get(), layer.linear.get(), &some_x, 0, &some_y, workspace.get(), workspace.bytes()));
    }
  };
  std::thread other(run);
  run();
  other.join();
  EXPECT_EQ(live(), 64 * kObjects);
}

}  // namespace
}  // namespace int8q::test
