// SPDX-License-Identifier: Apache-2.0
//
// The caller's memory on a GPU: all of it comes from there and goes back, aligned; a callback may call the library itself.
#include <functional>
#include <utility>

#include "cuda/layer_on_device.h"

namespace int8q::test {
namespace {

// An allocator over cuMemAlloc that keeps count.
struct CountingAllocator {
  int8q_allocator c{sizeof(int8q_allocator), 0, this, allocate, deallocate};
  int64_t held = 0, most = 0;
  uint64_t shift = 0;           // bytes behind what the driver gives
  std::function<void()> first;  // called once, by allocate

  ContextPtr make_context() {
    int8q_context_options options{};
    options.size = sizeof options;
    options.backend = INT8Q_BACKEND_CUDA;
    options.allocator = &c;
    int8q_context* context = nullptr;
    EXPECT_STATUS(INT8Q_OK, int8q_create_context(&options, &context));
    return ContextPtr(context);
  }

 private:
  static void* allocate(void* opaque, uint64_t bytes, uint64_t) {
    auto& self = *static_cast<CountingAllocator*>(opaque);
    if (const auto call = std::exchange(self.first, nullptr)) call();
    const cuda::Current current(gpu());
    cuda::DevicePointer memory = 0;
    if (gpu().driver.cuMemAlloc(&memory, bytes + self.shift) != 0) return nullptr;
    self.held += static_cast<int64_t>(bytes);
    self.most = std::max(self.most, self.held);
    return reinterpret_cast<void*>(memory + self.shift);
  }
  static void deallocate(void* opaque, void* memory, uint64_t bytes) {
    auto& self = *static_cast<CountingAllocator*>(opaque);
    self.held -= static_cast<int64_t>(bytes);
    const cuda::Current current(gpu());
    EXPECT_EQ(gpu().driver.cuMemFree(reinterpret_cast<cuda::DevicePointer>(memory) - self.shift), 0);
  }
};

// It gets all that is asked of the device, and gets it back.
TEST(CudaAllocator, EveryByteIsGivenBack) {
  CountingAllocator allocator;
  {
    const ContextPtr there = allocator.make_context();
    const LayerOnDevice layer(there.get(), 16, 32);
    EXPECT_GE(allocator.held, 16 * 32 + 16 * 8);
    Grid x = activations(INT8Q_F32, 3, 33), q(INT8Q_S8, 3, 33);  // takes scratch memory
    const DeviceGrid x_there(x), q_there(q);
    const DeviceArray<float> stats(std::vector<float>(3, 0.0f));
    ASSERT_CALL(
        int8q_quantize_rows(there.get(), x_there.view(), 0, 0, q_there.view(), stats.get(), nullptr, nullptr, nullptr));
  }
  EXPECT_EQ(allocator.held, 0);
  EXPECT_GT(allocator.most, 0);
}

TEST(CudaAllocator, MisalignedMemoryIsRefused) {
  CountingAllocator allocator;
  const ContextPtr there = allocator.make_context();
  Grid w(INT8Q_F32, 8, 16);
  fill_normal(w, 1, 1.0f);
  const DeviceGrid w_there(w);
  allocator.shift = 32;
  int8q_linear* raw = nullptr;
  EXPECT_STATUS(INT8Q_OUT_OF_MEMORY, int8q_create_linear(there.get(), w_there.view(), nullptr, nullptr, nullptr, &raw));
  EXPECT_NE(std::strstr(int8q_last_error(), "a multiple of 64"), nullptr) << int8q_last_error();
  EXPECT_EQ(raw, nullptr);
  EXPECT_EQ(allocator.held, 0);
}

// Which has memory of its own to ask for: the thread's capture mode is what it was afterwards.
TEST(CudaAllocator, ACallbackMayMakeALinear) {
  constexpr int kThreadLocal = 1;  // CU_STREAM_CAPTURE_MODE_THREAD_LOCAL, which the thread has chosen
  const ContextPtr inner = make_gpu_context();
  CountingAllocator allocator;
  bool made = false;
  allocator.first = [&] { made = LayerOnDevice(inner.get(), 8, 16).linear != nullptr; };
  const ContextPtr outer = allocator.make_context();
  int mode = kThreadLocal;
  ASSERT_EQ(gpu().driver.cuThreadExchangeStreamCaptureMode(&mode), 0);
  const int before = mode;
  const LayerOnDevice layer(outer.get(), 8, 16);
  mode = before;
  ASSERT_EQ(gpu().driver.cuThreadExchangeStreamCaptureMode(&mode), 0);
  EXPECT_EQ(mode, kThreadLocal);
  EXPECT_TRUE(made);
}

}  // namespace
}  // namespace int8q::test
