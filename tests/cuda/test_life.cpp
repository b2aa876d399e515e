// SPDX-License-Identifier: Apache-2.0
//
// Contexts and linears of a GPU: making, copying from blobs, exporting, backward, sharing an input, what they refuse; and that
// forward is one launch or two, which may be captured, and gives the same bytes each time.
#include <cmath>
#include <cstdio>
#include <limits>
#include <thread>

#include "cuda/gpu.h"

namespace int8q::test {
namespace {

int64_t launches(int8q_context* context) {
  char text[1000];
  EXPECT_STATUS(INT8Q_OK, int8q_describe_context(context, text, sizeof text, nullptr));
  const char* at = std::strstr(text, "\"launches\": ");
  EXPECT_NE(at, nullptr) << text;
  return at == nullptr ? -1 : std::atoll(at + std::strlen("\"launches\": "));
}

struct LayerOnDevice {
  Grid weight, bias;
  DeviceGrid weight_there, bias_there;
  LinearPtr linear;

  static Grid filled(int32_t dtype, int64_t rows, int64_t cols, uint64_t seed, float scale) {
    Grid g(dtype, rows, cols);
    fill_normal(g, seed, scale);
    return g;
  }
  LayerOnDevice(int8q_context* context, int64_t n, int64_t k, int32_t mode = INT8Q_OUTLIERS_COLUMN, uint64_t seed = 1)
      : weight(filled(INT8Q_F16, n, k, seed, 0.1f)),
        bias(filled(INT8Q_F32, 1, n, seed + 1, 1.0f)),
        weight_there(weight),
        bias_there(bias) {
    int8q_linear_options options{};
    options.size = sizeof options;
    options.outlier_mode = mode;
    int8q_linear* raw = nullptr;
    EXPECT_STATUS(INT8Q_OK, int8q_create_linear(context, weight_there.view(), nullptr, bias_there.view(), &options, &raw));
    linear.reset(raw);
  }
};

Grid activations(int32_t dtype, int64_t m, int64_t k, uint64_t seed = 3) {
  Grid x(dtype, m, k);
  fill_activations(x, seed);
  return x;
}

TEST(CudaLife, ABlobComesAndGoesWithoutLoss) {
  const ContextPtr cpu = make_context(), there = make_gpu_context();
  for (const bool with_bias : {true, false}) {
    constexpr int64_t kN = 37, kK = 70;
    Grid w(INT8Q_F32, kN, kK), bias(INT8Q_F32, 1, kN);
    fill_normal(w, 1, 0.1f);
    fill_normal(bias, 2, 1.0f);
    const int64_t kept[] = {3, 69};
    int8q_linear_options options{};
    options.size = sizeof options;
    options.outlier_mode = INT8Q_OUTLIERS_ELEMENT;
    options.threshold = 4.5f;
    options.kept_cols = kept;
    options.kept_count = 2;
    int8q_linear *raw = nullptr, *copy = nullptr;
    ASSERT_CALL(int8q_create_linear(cpu.get(), w.view(), nullptr, with_bias ? bias.view() : nullptr, &options, &raw));
    const LinearPtr on_cpu(raw);
    const void* blob;
    uint64_t bytes;
    ASSERT_CALL(int8q_get_blob(raw, &blob, &bytes));
    ASSERT_CALL(int8q_open_linear(there.get(), blob, bytes, 0, &copy));
    const LinearPtr on_device(copy);

    int8q_linear_info info{}, want{};
    info.size = want.size = sizeof info;
    ASSERT_CALL(int8q_describe_linear(raw, &want));
    ASSERT_CALL(int8q_describe_linear(copy, &info));
    EXPECT_EQ(info.out_features, want.out_features);
    EXPECT_EQ(info.in_features, want.in_features);
    EXPECT_EQ(info.outlier_mode, want.outlier_mode);
    EXPECT_EQ(info.threshold, want.threshold);
    EXPECT_EQ(info.has_bias, want.has_bias);
    EXPECT_EQ(info.kept_count, want.kept_count);
    EXPECT_STATUS(INT8Q_UNSUPPORTED, int8q_get_blob(copy, &blob, &bytes));

    Grid q(INT8Q_S8, kN, kK, 3), b(INT8Q_F32, 1, kN), k16(INT8Q_F16, kN, 2, 1);
    Grid got_q = q, got_b = b, got_k16 = k16;
    std::vector<float> stats(kN);
    std::vector<int64_t> cols(2);
    ASSERT_CALL(int8q_export_linear(cpu.get(), raw, q.view(), stats.data(), with_bias ? b.view() : nullptr, cols.data(),
                                    k16.view()));
    const DeviceGrid q_there(got_q), b_there(got_b), k16_there(got_k16);
    const DeviceArray<float> stats_there(std::vector<float>(kN, 0.0f));
    const DeviceArray<int64_t> cols_there(std::vector<int64_t>(2, 0));
    ASSERT_CALL(int8q_export_linear(there.get(), copy, q_there.view(), stats_there.get(),
                                    with_bias ? b_there.view() : nullptr, cols_there.get(), k16_there.view()));
    EXPECT_EQ(q_there.download().bytes(), q.bytes());
    EXPECT_EQ(b_there.download().bytes(), b.bytes());
    EXPECT_EQ(k16_there.download().bytes(), k16.bytes());
    EXPECT_EQ(stats_there.values(), stats);
    EXPECT_EQ(cols_there.values(), cols);
  }
}

TEST(CudaLife, FloatWeightsGetTheCpusCodes) {
  const ContextPtr cpu = make_context(), there = make_gpu_context();
  for (const int32_t dtype : kFloatDtypes) {
    constexpr int64_t kN = 19, kK = 75;
    Grid w(dtype, kN, kK, 1), q(INT8Q_S8, kN, kK);
    fill_normal(w, 4, 0.2f);
    std::vector<float> stats(kN);
    ASSERT_CALL(
        int8q_quantize_rows(cpu.get(), w.view(), INT8Q_OUTLIERS_OFF, 0, q.view(), stats.data(), nullptr, nullptr, nullptr));
    Grid empty(INT8Q_S8, kN, kK);
    const DeviceGrid w_there(w), q_there(empty);
    const DeviceArray<float> stats_there(std::vector<float>(kN, 0.0f));
    int8q_linear* raw = nullptr;
    ASSERT_CALL(int8q_create_linear(there.get(), w_there.view(), nullptr, nullptr, nullptr, &raw));
    const LinearPtr linear(raw);
    ASSERT_CALL(int8q_export_linear(there.get(), raw, q_there.view(), stats_there.get(), nullptr, nullptr, nullptr));
    EXPECT_EQ(q_there.download().bytes(), q.bytes());
    EXPECT_EQ(stats_there.values(), stats);
  }
}

TEST(CudaLife, BackwardIsWithinItsBound) {
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
        const double unit = out == INT8Q_F32 ? 0x1p-24 : out == INT8Q_F16 ? 0x1p-11 : 0x1p-8;
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

// One launch for a few rows, else two; for several layers of one input one more than there are.
TEST(CudaLife, LaunchesAreCounted) {
  const ContextPtr there = make_gpu_context();
  constexpr int64_t kN = 48, kK = 128;
  const LayerOnDevice a(there.get(), kN, kK), b(there.get(), kN, kK, INT8Q_OUTLIERS_COLUMN, 9);
  for (const int64_t m : {1, 5, 16, 30, 65, 200}) {
    const bool fused = m <= gpu().shapes.skinny_rows;
    Grid x = activations(INT8Q_F16, m, kK), y(INT8Q_F16, m, kN);
    const DeviceGrid x_there(x), first(y), second(y), alone(y);
    const DeviceWorkspace workspace(there.get(), a.linear.get(), m);
    int64_t before = launches(there.get());
    ASSERT_CALL(
        int8q_forward(there.get(), a.linear.get(), x_there.view(), 0, first.view(), workspace.get(), workspace.bytes()));
    EXPECT_EQ(launches(there.get()) - before, fused ? 1 : 2) << m;
    ASSERT_CALL(
        int8q_forward(there.get(), b.linear.get(), x_there.view(), 0, alone.view(), workspace.get(), workspace.bytes()));
    const int8q_linear* const both[] = {a.linear.get(), b.linear.get()};
    const int8q_matrix* const ys[] = {second.view(), first.view()};
    before = launches(there.get());
    const Grid of_a = first.download();
    ASSERT_CALL(int8q_forward_many(there.get(), both, 2, x_there.view(), 0, ys, workspace.get(), workspace.bytes()));
    EXPECT_EQ(launches(there.get()) - before, fused ? 2 : 3) << m;
    EXPECT_EQ(second.download().bytes(), of_a.bytes());
    EXPECT_EQ(first.download().bytes(), alone.download().bytes());
  }
}

// With element scope a row's result does not depend on how many there are, nor on the kernel that this chooses.
TEST(CudaLife, ARowDependsOnNoOther) {
  const ContextPtr there = make_gpu_context();
  constexpr int64_t kN = 40, kK = 100;
  const LayerOnDevice layer(there.get(), kN, kK, INT8Q_OUTLIERS_ELEMENT);
  Grid x = activations(INT8Q_BF16, 130, kK), all(INT8Q_F32, 130, kN);
  const DeviceGrid x_there(x), all_there(all);
  const DeviceWorkspace workspace(there.get(), layer.linear.get(), 130);
  ASSERT_CALL(int8q_forward(there.get(), layer.linear.get(), x_there.view(), 0, all_there.view(), workspace.get(),
                            workspace.bytes()));
  const Grid want = all_there.download();
  for (const int64_t m : {1, 9, 40, 66}) {
    Grid few(INT8Q_BF16, m, kK), y(INT8Q_F32, m, kN);
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 0; j < kK; ++j) few.set(i, j, x.at(i, j));
    }
    const DeviceGrid few_there(few), y_there(y);
    ASSERT_CALL(int8q_forward(there.get(), layer.linear.get(), few_there.view(), 0, y_there.view(), workspace.get(),
                              workspace.bytes()));
    const Grid got = y_there.download();
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 0; j < kN; ++j)
        ASSERT_TRUE(same_bits(got.at(i, j), want.at(i, j))) << m << " rows, " << i << ", " << j;
    }
  }
}

// NaN stays in its row; so does Inf without outliers.
TEST(CudaLife, NanStaysInItsRow) {
  const ContextPtr there = make_gpu_context();
  for (const int32_t mode : {INT8Q_OUTLIERS_COLUMN, INT8Q_OUTLIERS_OFF, INT8Q_OUTLIERS_ELEMENT}) {
    for (const int64_t m : {3, 70}) {
      const LayerOnDevice layer(there.get(), 24, 64, mode);
      Grid x(INT8Q_F16, m, 64), y(INT8Q_F32, m, 24);
      fill_normal(x, 1, 1.0f);
      x.set(1, 5, std::numeric_limits<float>::quiet_NaN());
      const DeviceGrid x_there(x), y_there(y);
      const DeviceWorkspace workspace(there.get(), layer.linear.get(), m);
      ASSERT_CALL(int8q_forward(there.get(), layer.linear.get(), x_there.view(), 0, y_there.view(), workspace.get(),
                                workspace.bytes()));
      const Grid got = y_there.download();
      for (int64_t i = 0; i < m; ++i) {
        for (int64_t j = 0; j < 24; ++j)
          ASSERT_EQ(std::isnan(got.at(i, j)), i == 1) << "mode " << mode << ", " << i << ", " << j;
      }
    }
  }
}

// From the first call on, without a wait, an allocation or a copy; a replay gives what eager calls give.
TEST(CudaLife, TheFirstCallCanBeCaptured) {
  const MoreOfDriver& more = more_of_driver();
  const cuda::Current current(gpu());
  for (const int64_t m : {1, 30, 100}) {
    void *stream = nullptr, *graph = nullptr, *executable = nullptr;
    ASSERT_EQ(more.cuStreamCreate(&stream, 1), 0);
    const ContextPtr there = make_gpu_context(stream), eager = make_gpu_context();
    ASSERT_CALL(int8q_prepare_context(there.get()));
    constexpr int64_t kN = 32, kK = 96;
    const LayerOnDevice layer(there.get(), kN, kK);
    Grid x = activations(INT8Q_F16, m, kK), y(INT8Q_F16, m, kN), dx(INT8Q_F16, m, kK);
    const DeviceGrid x_there(x), y_there(y), dx_there(dx), y_eager(y), dx_eager(dx);
    const DeviceWorkspace workspace(there.get(), layer.linear.get(), m), own(there.get(), layer.linear.get(), m);
    const auto count = [&](const char* what) { return more.stub_count == nullptr ? 0 : more.stub_count(what); };
    const char* const forbidden[] = {"cuStreamSynchronize",  "cuMemAlloc_v2",        "cuMemFree_v2",
                                     "cuMemcpyHtoDAsync_v2", "cuMemcpyDtoHAsync_v2", "cuMemcpy2DAsync_v2",
                                     "cuModuleLoadData",     "cuModuleGetFunction"};
    std::vector<int64_t> before;
    for (const char* what : forbidden) before.push_back(count(what));
    ASSERT_EQ(more.cuStreamBeginCapture(stream, 0), 0);
    ASSERT_CALL(int8q_forward(there.get(), layer.linear.get(), x_there.view(), 0, y_there.view(), workspace.get(),
                              workspace.bytes()));
    ASSERT_CALL(int8q_backward(there.get(), layer.linear.get(), y_there.view(), 0, dx_there.view(), workspace.get(),
                               workspace.bytes()));
    ASSERT_EQ(more.cuStreamEndCapture(stream, &graph), 0);
    for (size_t i = 0; i < std::size(forbidden); ++i) EXPECT_EQ(count(forbidden[i]), before[i]) << forbidden[i];
    size_t nodes = 0;
    ASSERT_EQ(more.cuGraphGetNodes(graph, nullptr, &nodes), 0);
    EXPECT_EQ(nodes, m <= gpu().shapes.skinny_rows ? 2U : 3U);          // forward and backward
    EXPECT_EQ(launches(there.get()), static_cast<int64_t>(nodes) + 1);  // the weights were quantized
    EXPECT_EQ(y_there.download().bytes(), y.bytes()) << "a capture ran";

    ASSERT_CALL(int8q_forward(eager.get(), layer.linear.get(), x_there.view(), 0, y_eager.view(), own.get(), own.bytes()));
    ASSERT_CALL(
        int8q_backward(eager.get(), layer.linear.get(), y_eager.view(), 0, dx_eager.view(), own.get(), own.bytes()));
    ASSERT_EQ(more.cuGraphInstantiateWithFlags(&executable, graph, 0), 0);
    for (int run = 0; run < 3; ++run) {
      ASSERT_EQ(more.cuGraphLaunch(executable, stream), 0);
      ASSERT_EQ(gpu().driver.cuStreamSynchronize(stream), 0);
      ASSERT_EQ(y_there.download().bytes(), y_eager.download().bytes());
      ASSERT_EQ(dx_there.download().bytes(), dx_eager.download().bytes());
    }
  }
}

TEST(CudaLife, StreamsAreChanged) {
  const cuda::Current current(gpu());
  const MoreOfDriver& more = more_of_driver();
  void *stream = nullptr, *graph = nullptr;
  ASSERT_EQ(more.cuStreamCreate(&stream, 1), 0);
  const ContextPtr there = make_gpu_context();
  const LayerOnDevice layer(there.get(), 16, 32);
  Grid x = activations(INT8Q_F32, 2, 32), y(INT8Q_F32, 2, 16);
  const DeviceGrid x_there(x), y_there(y);
  const DeviceWorkspace workspace(there.get(), layer.linear.get(), 2);
  ASSERT_EQ(more.cuStreamBeginCapture(stream, 0), 0);
  ASSERT_CALL(int8q_set_stream(there.get(), stream));
  ASSERT_CALL(int8q_forward(there.get(), layer.linear.get(), x_there.view(), 0, y_there.view(), workspace.get(),
                            workspace.bytes()));
  ASSERT_EQ(more.cuStreamEndCapture(stream, &graph), 0);
  size_t nodes = 0;
  ASSERT_EQ(more.cuGraphGetNodes(graph, nullptr, &nodes), 0);
  EXPECT_EQ(nodes, 1U);
}

TEST(CudaLife, WhatIsRefused) {
  const ContextPtr there = make_gpu_context(), cpu = make_context();
  Grid w(INT8Q_F32, 8, 16), x(INT8Q_F32, 2, 16), y(INT8Q_F32, 2, 8);
  fill_normal(w, 1, 1.0f);
  fill_normal(x, 2, 1.0f);
  const DeviceGrid w_there(w), x_there(x), y_there(y);
  int8q_linear *raw = nullptr, *other = nullptr;
  ASSERT_CALL(int8q_create_linear(there.get(), w_there.view(), nullptr, nullptr, nullptr, &raw));
  ASSERT_CALL(int8q_create_linear(cpu.get(), w.view(), nullptr, nullptr, nullptr, &other));
  const LinearPtr linear(raw), of_cpu(other);
  const DeviceWorkspace workspace(there.get(), raw, 2);
  const auto names = [](const char* text) { return std::string(int8q_last_error()).find(text) != std::string::npos; };
  EXPECT_STATUS(INT8Q_INVALID_ARGUMENT,
                int8q_forward(cpu.get(), raw, x.view(), 0, y.view(), workspace.get(), workspace.bytes()));
  EXPECT_TRUE(names("linear is on GPU 0")) << int8q_last_error();
  EXPECT_STATUS(INT8Q_INVALID_ARGUMENT,
                int8q_forward(there.get(), other, x_there.view(), 0, y_there.view(), workspace.get(), workspace.bytes()));
  EXPECT_TRUE(names("linear is on the CPU")) << int8q_last_error();
  EXPECT_STATUS(INT8Q_BUFFER_TOO_SMALL,
                int8q_forward(there.get(), raw, x_there.view(), 0, y_there.view(), workspace.get(), 1));
  int8q_matrix odd = *x_there.view();
  odd.rows = 1;
  odd.data = static_cast<char*>(odd.data) + 2;
  EXPECT_STATUS(INT8Q_MISALIGNED,
                int8q_forward(there.get(), raw, &odd, 0, y_there.view(), workspace.get(), workspace.bytes()));
  EXPECT_STATUS(INT8Q_UNSUPPORTED,
                int8q_quantize_part(there.get(), raw, x_there.view(), workspace.get(), workspace.bytes(), 0, 1));
  EXPECT_STATUS(INT8Q_UNSUPPORTED, int8q_forward_part(there.get(), raw, x_there.view(), 0, y_there.view(), workspace.get(),
                                                      workspace.bytes(), 0, 1));
  alignas(64) static char blob[4096];
  EXPECT_STATUS(INT8Q_UNSUPPORTED,
                int8q_pack_linear(there.get(), w_there.view(), nullptr, nullptr, nullptr, blob, sizeof blob));
  EXPECT_STATUS(INT8Q_UNSUPPORTED, int8q_quantize_checkpoint(there.get(), "a", "b", nullptr, nullptr, nullptr));

  // On the device what is not finite is found when the linear is made.
  w.set(5, 3, std::numeric_limits<float>::infinity());
  const DeviceGrid bad(w);
  int8q_linear* none = nullptr;
  EXPECT_STATUS(INT8Q_NOT_FINITE, int8q_create_linear(there.get(), bad.view(), nullptr, nullptr, nullptr, &none));
  EXPECT_TRUE(names("row 5")) << int8q_last_error();
  EXPECT_EQ(none, nullptr);
}

// Where the driver is gone, at the end of a process say, destroying is quiet, and the handle's own memory is freed.
TEST(CudaLife, DestroyingWhereTheDriverIsGone) {
  if (more_of_driver().stub_count == nullptr) GTEST_SKIP() << "a GPU's driver does not fail to order";
  ContextPtr there = make_gpu_context();
  LayerOnDevice layer(there.get(), 16, 32);
  Grid x = activations(INT8Q_F32, 3, 33), q(INT8Q_S8, 3, 33);  // takes scratch memory
  const DeviceGrid x_there(x), q_there(q);
  const DeviceArray<float> stats(std::vector<float>(3, 0.0f));
  ASSERT_CALL(
      int8q_quantize_rows(there.get(), x_there.view(), 0, 0, q_there.view(), stats.get(), nullptr, nullptr, nullptr));
  setenv("INT8Q_STUB_FAULT", "cuCtxPushCurrent_v2", 1);
  EXPECT_STATUS(INT8Q_OK, int8q_destroy_linear(layer.linear.release()));
  EXPECT_STATUS(INT8Q_OK, int8q_destroy_context(there.release()));
  unsetenv("INT8Q_STUB_FAULT");
}

// Scratch memory grows while somebody captures, too.
TEST(CudaLife, AllocatingDisturbsNoCapture) {
  const cuda::Current current(gpu());
  const MoreOfDriver& more = more_of_driver();
  void *stream = nullptr, *graph = nullptr, *executable = nullptr;
  ASSERT_EQ(more.cuStreamCreate(&stream, 1), 0);
  const ContextPtr there = make_gpu_context(stream);
  Grid x = activations(INT8Q_F32, 5, 33), q(INT8Q_S8, 5, 33);
  const DeviceGrid x_there(x), q_there(q);
  const DeviceArray<float> stats(std::vector<float>(5, 0.0f));
  ASSERT_EQ(more.cuStreamBeginCapture(stream, 0), 0);
  ASSERT_CALL(
      int8q_quantize_rows(there.get(), x_there.view(), 0, 0, q_there.view(), stats.get(), nullptr, nullptr, nullptr));
  ASSERT_EQ(more.cuStreamEndCapture(stream, &graph), 0);
  ASSERT_EQ(more.cuGraphInstantiateWithFlags(&executable, graph, 0), 0);
  ASSERT_EQ(more.cuGraphLaunch(executable, stream), 0);
  ASSERT_EQ(gpu().driver.cuStreamSynchronize(stream), 0);
  const Quantized want = quantize(x, INT8Q_OUTLIERS_COLUMN, 6.0f);
  const Grid got = q_there.download();
  for (int64_t i = 0; i < 5; ++i) {
    for (int64_t j = 0; j < 33; ++j) ASSERT_EQ(got.integer(i, j), want.codes[static_cast<size_t>(i * 33 + j)]);
  }
}

// Weights whose reciprocal is beyond fp32 have finite gradients.
TEST(CudaLife, TinyWeights) {
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

// What the driver refuses is named, and nothing is held.
TEST(CudaLife, TheDriversErrorsAreNamed) {
  if (more_of_driver().stub_count == nullptr) GTEST_SKIP() << "a GPU's driver does not fail to order";
  const ContextPtr there = make_gpu_context();
  const LayerOnDevice layer(there.get(), 16, 32);
  Grid x = activations(INT8Q_F32, 2, 32), y(INT8Q_F32, 2, 16);
  const DeviceGrid x_there(x), y_there(y);
  const DeviceWorkspace workspace(there.get(), layer.linear.get(), 2);
  const int64_t freed = more_of_driver().stub_count("cuMemFree_v2"),
                allocated = more_of_driver().stub_count("cuMemAlloc_v2");
  setenv("INT8Q_STUB_FAULT", "cuLaunchKernel", 1);
  EXPECT_STATUS(INT8Q_DEVICE_FAILED, int8q_forward(there.get(), layer.linear.get(), x_there.view(), 0, y_there.view(),
                                                   workspace.get(), workspace.bytes()));
  EXPECT_NE(std::string(int8q_last_error()).find("cuLaunchKernel: CUDA_ERROR_ILLEGAL_ADDRESS"), std::string::npos)
      << int8q_last_error();
  int8q_linear* raw = nullptr;
  EXPECT_STATUS(INT8Q_DEVICE_FAILED,
                int8q_create_linear(there.get(), layer.weight_there.view(), nullptr, nullptr, nullptr, &raw));
  setenv("INT8Q_STUB_FAULT", "cuMemAlloc_v2", 1);
  EXPECT_STATUS(INT8Q_OUT_OF_MEMORY,
                int8q_create_linear(there.get(), layer.weight_there.view(), nullptr, nullptr, nullptr, &raw));
  unsetenv("INT8Q_STUB_FAULT");
  EXPECT_EQ(raw, nullptr);
  EXPECT_EQ(more_of_driver().stub_count("cuMemFree_v2") - freed,
            more_of_driver().stub_count("cuMemAlloc_v2") - allocated - 1);
  ASSERT_CALL(int8q_forward(there.get(), layer.linear.get(), x_there.view(), 0, y_there.view(), workspace.get(),
                            workspace.bytes()));
}

// The caller's allocator gets all that is asked of the device, and gets it back.
TEST(CudaLife, TheCallersAllocator) {
  struct Counts {
    int64_t held = 0, most = 0;
  } counts;
  const int8q_allocator allocator{sizeof allocator, 0, &counts,
                                  [](void* opaque, uint64_t bytes, uint64_t) -> void* {
                                    auto& c = *static_cast<Counts*>(opaque);
                                    c.held += static_cast<int64_t>(bytes);
                                    c.most = std::max(c.most, c.held);
                                    const cuda::Current current(gpu());
                                    cuda::DevicePointer memory = 0;
                                    return gpu().driver.cuMemAlloc(&memory, bytes) == 0 ? reinterpret_cast<void*>(memory)
                                                                                        : nullptr;
                                  },
                                  [](void* opaque, void* memory, uint64_t bytes) {
                                    static_cast<Counts*>(opaque)->held -= static_cast<int64_t>(bytes);
                                    const cuda::Current current(gpu());
                                    gpu().driver.cuMemFree(reinterpret_cast<cuda::DevicePointer>(memory));
                                  }};
  int8q_context_options options{};
  options.size = sizeof options;
  options.backend = INT8Q_BACKEND_CUDA;
  options.allocator = &allocator;
  {
    int8q_context* raw = nullptr;
    ASSERT_CALL(int8q_create_context(&options, &raw));
    const ContextPtr there(raw);
    const LayerOnDevice layer(raw, 16, 32);
    EXPECT_GE(counts.held, 16 * 32 + 16 * 8);
    Grid x = activations(INT8Q_F32, 3, 33), q(INT8Q_S8, 3, 33);  // takes scratch memory
    const DeviceGrid x_there(x), q_there(q);
    const DeviceArray<float> stats(std::vector<float>(3, 0.0f));
    ASSERT_CALL(int8q_quantize_rows(raw, x_there.view(), 0, 0, q_there.view(), stats.get(), nullptr, nullptr, nullptr));
  }
  EXPECT_EQ(counts.held, 0);
  EXPECT_GT(counts.most, 0);
}

// Each with a context and a stream of its own, at once.
TEST(CudaLife, ThreadsWithContextsOfTheirOwn) {
  constexpr int64_t kM = 70, kN = 40, kK = 96;
  std::vector<std::vector<uint8_t>> results(4);
  std::vector<std::thread> threads;
  for (size_t t = 0; t < results.size(); ++t) {
    threads.emplace_back([&results, t] {
      const cuda::Current current(gpu());
      void* stream = nullptr;
      ASSERT_EQ(more_of_driver().cuStreamCreate(&stream, 1), 0);
      const ContextPtr there = make_gpu_context(stream);
      const LayerOnDevice layer(there.get(), kN, kK);
      Grid x = activations(INT8Q_F16, kM, kK), y(INT8Q_F32, kM, kN);
      const DeviceGrid x_there(x), y_there(y);
      const DeviceWorkspace workspace(there.get(), layer.linear.get(), kM);
      for (int run = 0; run < 3; ++run) {
        ASSERT_CALL(int8q_forward(there.get(), layer.linear.get(), x_there.view(), 0, y_there.view(), workspace.get(),
                                  workspace.bytes()));
      }
      ASSERT_EQ(gpu().driver.cuStreamSynchronize(stream), 0);
      results[t] = y_there.download().bytes();
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const auto& result : results) EXPECT_EQ(result, results[0]);
  EXPECT_FALSE(results[0].empty());
}

TEST(CudaLife, TwoGpusAreApart) {
  if (cuda::look_for_driver().devices < 2) GTEST_SKIP() << "one GPU";
  int8q_context_options options{};
  options.size = sizeof options;
  options.backend = INT8Q_BACKEND_CUDA;
  options.device = 1;
  int8q_context* raw = nullptr;
  ASSERT_CALL(int8q_create_context(&options, &raw));
  const ContextPtr second(raw), first = make_gpu_context();
  char text[1000];
  ASSERT_CALL(int8q_describe_context(raw, text, sizeof text, nullptr));
  EXPECT_NE(std::strstr(text, "\"device\": 1"), nullptr) << text;
  const LayerOnDevice layer(first.get(), 16, 32);
  Grid x = activations(INT8Q_F32, 2, 32), y(INT8Q_F32, 2, 16);
  const DeviceGrid x_there(x), y_there(y);
  const DeviceWorkspace workspace(first.get(), layer.linear.get(), 2);
  EXPECT_STATUS(INT8Q_INVALID_ARGUMENT, int8q_forward(raw, layer.linear.get(), x_there.view(), 0, y_there.view(),
                                                      workspace.get(), workspace.bytes()));
  EXPECT_NE(std::string(int8q_last_error()).find("expected one made by a context of GPU 1"), std::string::npos)
      << int8q_last_error();
}

// A borrowed checkpoint's codes are read where they are.
TEST(CudaLife, BorrowedWeightsAreUsedInPlace) {
  const ContextPtr there = make_gpu_context();
  Grid codes(INT8Q_S8, 16, 64), x(INT8Q_F32, 1, 64), y(INT8Q_F32, 1, 16);
  for (int64_t i = 0; i < 16; ++i) {
    for (int64_t j = 0; j < 64; ++j) codes.set_integer(i, j, static_cast<int32_t>(i + j) % 100);
  }
  fill_normal(x, 1, 1.0f);
  DeviceGrid codes_there(codes);
  const DeviceGrid x_there(x), y_there(y);
  const DeviceArray<float> stats(std::vector<float>(16, 1.0f));
  int8q_linear_options options{};
  options.size = sizeof options;
  options.flags = INT8Q_BORROW_WEIGHT;
  int8q_linear* raw = nullptr;
  ASSERT_CALL(int8q_create_linear(there.get(), codes_there.view(), stats.get(), nullptr, &options, &raw));
  const LinearPtr linear(raw);
  int8q_linear_info info{};
  info.size = sizeof info;
  ASSERT_CALL(int8q_describe_linear(raw, &info));
  EXPECT_LT(info.blob_bytes, 16U * 64U);
  const DeviceWorkspace workspace(there.get(), raw, 1);
  ASSERT_CALL(int8q_forward(there.get(), raw, x_there.view(), 0, y_there.view(), workspace.get(), workspace.bytes()));
  int8q_linear* copied = nullptr;
  options.flags = 0;
  ASSERT_CALL(int8q_create_linear(there.get(), codes_there.view(), stats.get(), nullptr, &options, &copied));
  const LinearPtr copy(copied);
  const DeviceGrid y_copied(y);
  ASSERT_CALL(int8q_forward(there.get(), copied, x_there.view(), 0, y_copied.view(), workspace.get(), workspace.bytes()));
  EXPECT_EQ(y_there.download().bytes(), y_copied.download().bytes());

  int8q_matrix over = *y_there.view();
  over.data = codes_there.view()->data;
  EXPECT_STATUS(INT8Q_OVERLAP,
                int8q_forward(there.get(), raw, x_there.view(), 0, &over, workspace.get(), workspace.bytes()));
  EXPECT_STATUS(INT8Q_OVERLAP,
                int8q_export_linear(there.get(), raw, codes_there.view(), nullptr, nullptr, nullptr, nullptr));
  for (int64_t j = 0; j < 64; ++j) codes.set_integer(3, j, -codes.integer(3, j));
  codes_there.upload(codes);  // the caller's word that they stay, broken: the linear sees it
  ASSERT_CALL(int8q_forward(there.get(), raw, x_there.view(), 0, y_there.view(), workspace.get(), workspace.bytes()));
  const Grid changed = y_there.download(), before = y_copied.download();
  EXPECT_FLOAT_EQ(changed.at(0, 3), -before.at(0, 3));
}

}  // namespace
}  // namespace int8q::test
