// SPDX-License-Identifier: Apache-2.0
//
// Contexts and linears of a GPU: making, copying from blobs, exporting, rows that do not depend on others, what is refused, and
// what becomes of them where the driver fails.
#include <cmath>
#include <cstdio>
#include <limits>
#include <thread>

#include "cuda/layer_on_device.h"

namespace int8q::test {
namespace {

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
  for (const int32_t mode : kModes) {
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

  // Memory of the host; of a GPU that reads it, it would do.
  if (!gpu().reads_pageable_memory) {
    int8q_linear* none = nullptr;
    Grid codes(INT8Q_S8, 8, 16), bias(INT8Q_F32, 1, 8);
    const DeviceGrid codes_there(codes);
    const std::vector<float> stats(8, 1.0f);
    EXPECT_STATUS(INT8Q_INVALID_ARGUMENT, int8q_create_linear(there.get(), w.view(), nullptr, nullptr, nullptr, &none));
    EXPECT_TRUE(names("weight->data is 0x") && names("memory of that")) << int8q_last_error();
    EXPECT_STATUS(INT8Q_INVALID_ARGUMENT,
                  int8q_create_linear(there.get(), codes_there.view(), stats.data(), nullptr, nullptr, &none));
    EXPECT_TRUE(names("col_stats is 0x")) << int8q_last_error();
    EXPECT_STATUS(INT8Q_INVALID_ARGUMENT,
                  int8q_create_linear(there.get(), w_there.view(), nullptr, bias.view(), nullptr, &none));
    EXPECT_TRUE(names("bias->data is 0x")) << int8q_last_error();
  }

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
  ASSERT_CALL(int8q_forward(first.get(), layer.linear.get(), x_there.view(), 0, y_there.view(), workspace.get(),
                            workspace.bytes()));
  const OnGpu on_second(1);
  Grid w = activations(INT8Q_F32, 16, 32);
  const DeviceGrid w_second(w);
  int8q_linear* none = nullptr;
  EXPECT_STATUS(INT8Q_INVALID_ARGUMENT,
                int8q_create_linear(first.get(), w_second.view(), nullptr, nullptr, nullptr, &none));
  EXPECT_NE(std::string(int8q_last_error()).find("memory of GPU 1; the context's is of GPU 0"), std::string::npos)
      << int8q_last_error();
  const LayerOnDevice other(raw, 16, 32);
  const DeviceGrid x_second(x), y_second(y);
  const DeviceWorkspace own(raw, other.linear.get(), 2);
  ASSERT_CALL(int8q_forward(raw, other.linear.get(), x_second.view(), 0, y_second.view(), own.get(), own.bytes()));
  EXPECT_EQ(y_second.download().bytes(), y_there.download().bytes());
}

// The driver that is played takes a function, a stream or memory in its own GPU's context alone, and kernels reach no other's.
TEST(CudaLifeDeathTest, TheStubsGpusAreApart) {
  if (more_of_driver().stub_count == nullptr || cuda::look_for_driver().devices < 2) GTEST_SKIP() << "not two played GPUs";
  testing::GTEST_FLAG(death_test_style) = "threadsafe";  // no CUDA after a fork
  constexpr int kInvalidValue = 1, kInvalidHandle = 400;
  cuda::Device &first = gpu(), &second = cuda::Device::open(1);
  const cuda::Driver& driver = first.driver;
  cuda::DevicePointer memory = 0;
  void* stream = nullptr;
  {
    const cuda::Current current(second);
    ASSERT_EQ(driver.cuMemAlloc(&memory, 64), 0);
    ASSERT_EQ(more_of_driver().cuStreamCreate(&stream, 1), 0);
  }
  const cuda::Current current(first);
  uint8_t bytes[64] = {};
  void* parameters[] = {bytes};
  EXPECT_EQ(driver.cuLaunchKernel(second.kernels.copy_codes, 1, 1, 1, 256, 1, 1, 0, nullptr, parameters, nullptr),
            kInvalidHandle);
  EXPECT_EQ(driver.cuStreamSynchronize(stream), kInvalidHandle);
  EXPECT_EQ(driver.cuMemcpyHtoDAsync(memory, bytes, 64, nullptr), kInvalidValue);
  EXPECT_EQ(driver.cuMemcpyDtoHAsync(bytes, memory, 64, nullptr), kInvalidValue);
  EXPECT_EQ(driver.cuMemFree(memory), kInvalidValue);
  const auto read_the_others = [&] {
    const ContextPtr there = make_gpu_context();
    const LayerOnDevice layer(there.get(), 16, 32);
    Grid x = activations(INT8Q_F32, 2, 32), y(INT8Q_F32, 2, 16);
    const DeviceGrid y_there(y);
    const DeviceWorkspace workspace(there.get(), layer.linear.get(), 2);
    const OnGpu on_second(1);
    const DeviceGrid x_second(x);
    std::_Exit(int8q_forward(there.get(), layer.linear.get(), x_second.view(), 0, y_there.view(), workspace.get(),
                             workspace.bytes()) == INT8Q_DEVICE_FAILED
                   ? 0
                   : 1);
  };
  EXPECT_EXIT(read_the_others(), testing::ExitedWithCode(0), "memory of another GPU");
}

// The driver that is played finishes copies where somebody waits for them, and refuses to where the host did not.
TEST(CudaLifeDeathTest, TheStubsCopiesAreWaitedFor) {
  if (more_of_driver().stub_count == nullptr) GTEST_SKIP() << "a GPU's driver copies as it likes";
  testing::GTEST_FLAG(death_test_style) = "threadsafe";
  const cuda::Current current(gpu());
  const cuda::Driver& driver = gpu().driver;
  cuda::DevicePointer memory = 0;
  uint8_t there[64], back[64];
  std::memset(there, 1, sizeof there);
  ASSERT_EQ(driver.cuMemAlloc(&memory, sizeof there), 0);
  ASSERT_EQ(driver.cuMemcpyHtoDAsync(memory, there, sizeof there, nullptr), 0);
  ASSERT_EQ(driver.cuMemcpyDtoHAsync(back, memory, sizeof back, nullptr), 0);
  EXPECT_NE(back[0], 1);
  ASSERT_EQ(driver.cuStreamSynchronize(nullptr), 0);
  EXPECT_EQ(back[0], 1);
  const auto change = [&] {
    driver.cuMemcpyHtoDAsync(memory, there, sizeof there, nullptr);
    there[63] = 2;
    std::_Exit(driver.cuStreamSynchronize(nullptr) == 0 ? 1 : 0);
  };
  EXPECT_EXIT(change(), testing::ExitedWithCode(0), "host memory was changed");
  ASSERT_EQ(driver.cuMemFree(memory), 0);
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
  EXPECT_EQ(info.blob_bytes, 0U);
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
  const int8q_linear* const both[] = {copied, raw};
  const int8q_matrix* const over_the_others[] = {&over, y_there.view()};
  EXPECT_STATUS(INT8Q_OVERLAP, int8q_forward_many(there.get(), both, 2, x_there.view(), 0, over_the_others, workspace.get(),
                                                  workspace.bytes()));
  EXPECT_STATUS(INT8Q_OVERLAP,
                int8q_export_linear(there.get(), raw, codes_there.view(), nullptr, nullptr, nullptr, nullptr));
  for (int64_t j = 0; j < 64; ++j) codes.set_integer(3, j, -codes.integer(3, j));
  codes_there.upload(codes);  // the caller's word that they stay, broken: the linear sees it
  ASSERT_CALL(int8q_forward(there.get(), raw, x_there.view(), 0, y_there.view(), workspace.get(), workspace.bytes()));
  const Grid changed = y_there.download(), before = y_copied.download();
  EXPECT_FLOAT_EQ(changed.at(0, 3), -before.at(0, 3));
}

// A borrowed bias is read where it is and as it is by then, in each dtype; beside copied weights, too.
TEST(CudaLife, ABorrowedBiasIsUsedInPlace) {
  const ContextPtr there = make_gpu_context();
  const LayerOnDevice without_bias(there.get(), 16, 64);
  for (const int32_t dtype : {INT8Q_F32, INT8Q_F16, INT8Q_BF16}) {
    SCOPED_TRACE(dtype_name(dtype));
    Grid bias(dtype, 1, 16), x = activations(INT8Q_F32, 2, 64), y(INT8Q_F32, 2, 16), exported(INT8Q_F32, 1, 16);
    fill_normal(bias, 5, 1.0f);
    DeviceGrid bias_there(bias);
    const DeviceGrid x_there(x), y_there(y), y_copied(y), exported_there(exported);
    LinearPtr linears[2];
    int8q_linear_options options{};
    options.size = sizeof options;
    for (LinearPtr& linear : linears) {
      options.flags = &linear == linears ? INT8Q_BORROW_BIAS : 0;
      int8q_linear* raw = nullptr;
      ASSERT_CALL(
          int8q_create_linear(there.get(), without_bias.weight_there.view(), nullptr, bias_there.view(), &options, &raw));
      linear.reset(raw);
    }
    const DeviceWorkspace workspace(there.get(), linears[0].get(), 2);
    const auto forward = [&](const LinearPtr& linear, const DeviceGrid& to) {
      ASSERT_CALL(
          int8q_forward(there.get(), linear.get(), x_there.view(), 0, to.view(), workspace.get(), workspace.bytes()));
    };
    forward(linears[0], y_there);
    forward(linears[1], y_copied);
    EXPECT_EQ(y_there.download().bytes(), y_copied.download().bytes());
    ASSERT_CALL(
        int8q_export_linear(there.get(), linears[0].get(), nullptr, nullptr, exported_there.view(), nullptr, nullptr));
    for (int64_t j = 0; j < 16; ++j) EXPECT_EQ(exported_there.download().at(0, j), bias.at(0, j));

    Grid other(dtype, 1, 16);
    for (int64_t j = 0; j < 16; ++j) other.set(0, j, std::numeric_limits<float>::infinity());
    bias_there.upload(other);
    forward(linears[0], y_there);
    forward(linears[1], y_copied);
    EXPECT_EQ(y_there.download().at(1, 3), std::numeric_limits<float>::infinity());
    EXPECT_LT(y_copied.download().at(1, 3), std::numeric_limits<float>::infinity());
    int8q_matrix over = *y_there.view();
    over.data = bias_there.view()->data;
    EXPECT_STATUS(INT8Q_OVERLAP, int8q_forward(there.get(), linears[0].get(), x_there.view(), 0, &over, workspace.get(),
                                               workspace.bytes()));
  }
}

}  // namespace
}  // namespace int8q::test
