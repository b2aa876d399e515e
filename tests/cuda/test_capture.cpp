// SPDX-License-Identifier: Apache-2.0
//
// Forward is one launch or two, backward one; they may be captured from the first call on, and a replay gives the same bytes.
#include <thread>

#include "cuda/layer_on_device.h"
#include "cuda/stream.h"

namespace int8q::test {
namespace {

// One launch for a few rows and where X stays in floating point, else two; for several layers of one input one more than
// there are.
void expect_launches(int32_t mode, int32_t dtype, int64_t m, bool one) {
  const ContextPtr there = make_gpu_context();
  constexpr int64_t kN = 48, kK = 128;
  const LayerOnDevice a(there.get(), kN, kK, mode), b(there.get(), kN, kK, mode, 9);
  Grid x = activations(dtype, m, kK), y(INT8Q_F16, m, kN);
  const DeviceGrid x_there(x), first(y), second(y), alone(y);
  const DeviceWorkspace workspace(there.get(), a.linear.get(), m);
  int64_t before = launches(there.get());
  ASSERT_CALL(
      int8q_forward(there.get(), a.linear.get(), x_there.view(), 0, first.view(), workspace.get(), workspace.bytes()));
  EXPECT_EQ(launches(there.get()) - before, one ? 1 : 2) << m;
  ASSERT_CALL(
      int8q_forward(there.get(), b.linear.get(), x_there.view(), 0, alone.view(), workspace.get(), workspace.bytes()));
  const int8q_linear* const both[] = {a.linear.get(), b.linear.get()};
  const int8q_matrix* const ys[] = {second.view(), first.view()};
  before = launches(there.get());
  const Grid of_a = first.download();
  ASSERT_CALL(int8q_forward_many(there.get(), both, 2, x_there.view(), 0, ys, workspace.get(), workspace.bytes()));
  EXPECT_EQ(launches(there.get()) - before, one ? 2 : 3) << m;
  EXPECT_EQ(second.download().bytes(), of_a.bytes());
  EXPECT_EQ(first.download().bytes(), alone.download().bytes());
}

TEST(CudaCapture, LaunchesAreCounted) {
  for (const int64_t m : {1, 5, 16, 30, 65, 300}) {
    expect_launches(INT8Q_OUTLIERS_COLUMN, INT8Q_F16, m, m <= gpu().shapes.skinny_rows);
    for (const int32_t dtype : kFloatDtypes) expect_launches(INT8Q_OUTLIERS_ALL, dtype, m, true);
  }
}

// Nothing is quantized, so that there is nothing to keep.
TEST(CudaCapture, FloatingPointNeedsNoWorkspace) {
  const ContextPtr there = make_gpu_context();
  const LayerOnDevice layer(there.get(), 16, 256, INT8Q_OUTLIERS_ALL);
  uint64_t bytes = 0;
  ASSERT_CALL(int8q_query_workspace(there.get(), layer.linear.get(), INT8Q_FORWARD, 1000, 0, &bytes));
  EXPECT_EQ(bytes, 64U);
}

// From the first call on, without a wait, an allocation or a copy; a replay gives what eager calls give.
void expect_capture(int32_t mode, int32_t dtype, int64_t m) {
  SCOPED_TRACE(::testing::Message() << "mode " << mode << ", dtype " << dtype << ", M " << m);
  const MoreOfDriver& more = more_of_driver();
  Stream stream;
  const ContextPtr there = make_gpu_context(stream.get()), eager = make_gpu_context();
  ASSERT_CALL(int8q_prepare_context(there.get()));
  constexpr int64_t kN = 32, kK = 96;
  const LayerOnDevice layer(there.get(), kN, kK, mode);
  Grid x = activations(dtype, m, kK), y(dtype, m, kN), dx(dtype, m, kK);
  const DeviceGrid x_there(x), y_there(y), dx_there(dx), y_eager(y), dx_eager(dx);
  const DeviceWorkspace workspace(there.get(), layer.linear.get(), m), own(there.get(), layer.linear.get(), m);
  const auto count = [&](const char* what) { return more.stub_count == nullptr ? 0 : more.stub_count(what); };
  const char* const forbidden[] = {"cuStreamSynchronize",  "cuMemAlloc_v2",      "cuMemFree_v2",     "cuMemcpyHtoDAsync_v2",
                                   "cuMemcpyDtoHAsync_v2", "cuMemcpy2DAsync_v2", "cuModuleLoadData", "cuModuleGetFunction"};
  std::vector<int64_t> before;
  for (const char* what : forbidden) before.push_back(count(what));
  stream.capture([&] {
    ASSERT_CALL(int8q_forward(there.get(), layer.linear.get(), x_there.view(), 0, y_there.view(), workspace.get(),
                              workspace.bytes()));
    ASSERT_CALL(int8q_backward(there.get(), layer.linear.get(), y_there.view(), 0, dx_there.view(), workspace.get(),
                               workspace.bytes()));
    for (size_t i = 0; i < std::size(forbidden); ++i) EXPECT_EQ(count(forbidden[i]), before[i]) << forbidden[i];
  });
  const size_t nodes = stream.captured().size();
  const bool one = mode == INT8Q_OUTLIERS_ALL || m <= gpu().shapes.skinny_rows;
  EXPECT_EQ(nodes, one ? 2U : 3U);                                    // forward and backward
  EXPECT_EQ(launches(there.get()), static_cast<int64_t>(nodes) + 1);  // the weights were quantized
  EXPECT_EQ(y_there.download().bytes(), y.bytes()) << "a capture ran";

  ASSERT_CALL(int8q_forward(eager.get(), layer.linear.get(), x_there.view(), 0, y_eager.view(), own.get(), own.bytes()));
  ASSERT_CALL(int8q_backward(eager.get(), layer.linear.get(), y_eager.view(), 0, dx_eager.view(), own.get(), own.bytes()));
  for (int run = 0; run < 3; ++run) {
    stream.replay();
    stream.wait();
    ASSERT_EQ(y_there.download().bytes(), y_eager.download().bytes());
    ASSERT_EQ(dx_there.download().bytes(), dx_eager.download().bytes());
  }
}

TEST(CudaCapture, TheFirstCallCanBeCaptured) {
  for (const int64_t m : {1, 30, 100, 300}) {
    expect_capture(INT8Q_OUTLIERS_COLUMN, INT8Q_F16, m);
    expect_capture(INT8Q_OUTLIERS_ELEMENT, INT8Q_F32, m);
    expect_capture(INT8Q_OUTLIERS_ALL, INT8Q_BF16, m);
    if (HasFatalFailure()) return;
  }
}

TEST(CudaCapture, StreamsAreChanged) {
  Stream stream;
  const ContextPtr there = make_gpu_context();
  const LayerOnDevice layer(there.get(), 16, 32);
  Grid x = activations(INT8Q_F32, 2, 32), y(INT8Q_F32, 2, 16);
  const DeviceGrid x_there(x), y_there(y);
  const DeviceWorkspace workspace(there.get(), layer.linear.get(), 2);
  stream.capture([&] {
    ASSERT_CALL(int8q_set_stream(there.get(), stream.get()));
    ASSERT_CALL(int8q_forward(there.get(), layer.linear.get(), x_there.view(), 0, y_there.view(), workspace.get(),
                              workspace.bytes()));
  });
  EXPECT_EQ(stream.captured().size(), 1U);
}

// Kernels are loaded while another thread captures. In a process of its own, which has not opened the GPU before.
TEST(CudaCaptureDeathTest, OpeningDisturbsNoCapture) {
  testing::GTEST_FLAG(death_test_style) = "threadsafe";
  const auto open = [] {
    const cuda::Driver& driver = cuda::require_driver();
    const MoreOfDriver& more = more_of_driver();
    cuda::DriverContext context = nullptr;
    void *stream = nullptr, *graph = nullptr;
    cuda::check(driver.cuDevicePrimaryCtxRetain(&context, 0), "cuDevicePrimaryCtxRetain");
    cuda::check(driver.cuCtxPushCurrent(context), "cuCtxPushCurrent");
    cuda::check(more.cuStreamCreate(&stream, 1), "cuStreamCreate");
    cuda::check(more.cuStreamBeginCapture(stream, 0), "cuStreamBeginCapture");
    bool opened = false;
    std::thread([&] { opened = make_gpu_context() != nullptr; }).join();
    cuda::check(more.cuStreamEndCapture(stream, &graph), "cuStreamEndCapture");
    int mode = 0;
    driver.cuThreadExchangeStreamCaptureMode(&mode);
    std::_Exit(opened && graph != nullptr && mode == 0 ? 0 : 1);
  };
  EXPECT_EXIT(open(), testing::ExitedWithCode(0), "");
}

// Scratch memory grows while somebody captures, too.
TEST(CudaCapture, AllocatingDisturbsNoCapture) {
  Stream stream;
  const ContextPtr there = make_gpu_context(stream.get());
  Grid x = activations(INT8Q_F32, 5, 33), q(INT8Q_S8, 5, 33);
  const DeviceGrid x_there(x), q_there(q);
  const DeviceArray<float> stats(std::vector<float>(5, 0.0f));
  stream.capture([&] {
    ASSERT_CALL(
        int8q_quantize_rows(there.get(), x_there.view(), 0, 0, q_there.view(), stats.get(), nullptr, nullptr, nullptr));
  });
  stream.replay();
  stream.wait();
  const Quantized want = quantize(x, INT8Q_OUTLIERS_COLUMN, 6.0f);
  const Grid got = q_there.download();
  for (int64_t i = 0; i < 5; ++i) {
    for (int64_t j = 0; j < 33; ++j) ASSERT_EQ(got.integer(i, j), want.codes[static_cast<size_t>(i * 33 + j)]);
  }
}

}  // namespace
}  // namespace int8q::test
