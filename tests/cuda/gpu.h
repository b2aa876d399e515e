// SPDX-License-Identifier: Apache-2.0
//
// A GPU for tests of the C boundary: what libcuda.so.1 offers, be it a driver or the stub of tests/cuda_emulation.
#pragma once

#include <dlfcn.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cuda/device.h"
#include "support/call.h"
#include "support/oracle.h"

namespace int8q::test {

// CUDA_KERNEL_NODE_PARAMS, as a driver of any version begins to fill it.
struct KernelNode {
  void* function;
  unsigned grid[3], block[3];
  unsigned shared_bytes;
  void* more[8];
};

// Functions of the driver that the library does without.
struct MoreOfDriver {
  int (*cuStreamCreate)(void** stream, unsigned flags);
  int (*cuStreamBeginCapture)(void* stream, int mode);
  int (*cuStreamEndCapture)(void* stream, void** graph);
  int (*cuGraphGetNodes)(void* graph, void** nodes, size_t* count);
  int (*cuGraphKernelNodeGetParams)(void* node, KernelNode* parameters);
  int (*cuGraphInstantiateWithFlags)(void** executable, void* graph, unsigned long long flags);
  int (*cuGraphLaunch)(void* executable, void* stream);
  int64_t (*stub_count)(const char* function);  // or of launches of a kernel; NULL on a GPU
  const char* (*stub_idle_kernels)();           // likewise
};

inline const MoreOfDriver& more_of_driver() {
  static const MoreOfDriver more = [] {
    void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    auto* find = reinterpret_cast<int (*)(const char*, void**, int, uint64_t, int*)>(dlsym(library, "cuGetProcAddress_v2"));
    MoreOfDriver m{};
    const auto resolve = [&](const char* name, auto& function) {
      void* address = nullptr;
      EXPECT_EQ(find(name, &address, cuda::kOldestDriver, 0, nullptr), 0) << name;
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(address);
    };
    resolve("cuStreamCreate", m.cuStreamCreate);
    resolve("cuStreamBeginCapture", m.cuStreamBeginCapture);
    resolve("cuStreamEndCapture", m.cuStreamEndCapture);
    resolve("cuGraphGetNodes", m.cuGraphGetNodes);
    resolve("cuGraphKernelNodeGetParams", m.cuGraphKernelNodeGetParams);
    resolve("cuGraphInstantiateWithFlags", m.cuGraphInstantiateWithFlags);
    resolve("cuGraphLaunch", m.cuGraphLaunch);
    m.stub_count = reinterpret_cast<int64_t (*)(const char*)>(dlsym(library, "int8q_stub_count"));
    m.stub_idle_kernels = reinterpret_cast<const char* (*)()>(dlsym(library, "int8q_stub_idle_kernels"));
    return m;
  }();
  return more;
}

inline double unit_roundoff(int32_t dtype) { return dtype == INT8Q_F32 ? 0x1p-24 : dtype == INT8Q_F16 ? 0x1p-11 : 0x1p-8; }

inline thread_local int gpu_ordinal = 0;
inline cuda::Device& gpu() { return cuda::Device::open(gpu_ordinal); }

// gpu() is another one while it lives.
class OnGpu {
 public:
  explicit OnGpu(int ordinal) : before_(std::exchange(gpu_ordinal, ordinal)) {}
  ~OnGpu() { gpu_ordinal = before_; }
  OnGpu(const OnGpu&) = delete;
  OnGpu& operator=(const OnGpu&) = delete;

 private:
  const int before_;
};

inline ContextPtr make_gpu_context(void* stream = nullptr) {
  int8q_context_options options{};
  options.size = sizeof options;
  options.backend = INT8Q_BACKEND_CUDA;
  options.device = gpu_ordinal;
  options.stream = stream;
  int8q_context* context = nullptr;
  EXPECT_STATUS(INT8Q_OK, int8q_create_context(&options, &context));
  return ContextPtr(context);
}

// So many bytes on the device, from a multiple of 256 on; none at all take one.
class DeviceBytes {
 public:
  explicit DeviceBytes(int64_t bytes) : bytes_(bytes) {
    const cuda::Current current(gpu_);
    cuda::check(gpu_.driver.cuMemAlloc(&memory_, static_cast<size_t>(std::max<int64_t>(bytes, 1))), "cuMemAlloc");
  }
  ~DeviceBytes() {
    const cuda::Current current(gpu_);
    gpu_.driver.cuMemFree(memory_);
  }
  DeviceBytes(const DeviceBytes&) = delete;
  DeviceBytes& operator=(const DeviceBytes&) = delete;

  template <class T = void>
  T* get() const {
    return reinterpret_cast<T*>(memory_);
  }
  void upload(const void* from) {
    const cuda::Current current(gpu_);
    cuda::Queue{gpu_, nullptr}.upload(get(), from, bytes_);
    cuda::Queue{gpu_, nullptr}.wait();
  }
  void download(void* to) const {
    const cuda::Current current(gpu_);
    cuda::Queue{gpu_, nullptr}.download(to, get(), bytes_);
    cuda::Queue{gpu_, nullptr}.wait();
  }
  int64_t bytes() const { return bytes_; }

 private:
  cuda::Device& gpu_ = gpu();
  int64_t bytes_;
  cuda::DevicePointer memory_ = 0;
};

// An array of T on the device.
template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(const std::vector<T>& values)
      : memory_(static_cast<int64_t>(values.size() * sizeof(T))), count_(values.size()) {
    memory_.upload(values.data());
  }
  T* get() const { return memory_.get<T>(); }
  std::vector<T> values() const {
    std::vector<T> copy(count_);
    memory_.download(copy.data());
    return copy;
  }

 private:
  DeviceBytes memory_;
  size_t count_;
};

// A Grid's bytes on the device up to its last element, what is no element included, at the same alignment.
class DeviceGrid {
 public:
  explicit DeviceGrid(Grid& grid) : grid_(grid), memory_(bytes_of(grid)), view_(*grid.view()) {
    memory_.upload(grid.bytes().data());
    if (view_.data != nullptr)
      view_.data = memory_.get<uint8_t>() + (static_cast<const uint8_t*>(view_.data) - grid.bytes().data());
  }
  const int8q_matrix* view() const { return &view_; }
  void upload(const Grid& grid) { memory_.upload(grid.bytes().data()); }
  // What is there now.
  Grid download() const {
    Grid copy = grid_;
    memory_.download(const_cast<uint8_t*>(copy.bytes().data()));
    return copy;
  }

 private:
  static int64_t bytes_of(Grid& grid) {
    const int8q_matrix& v = *grid.view();
    const int64_t begin = static_cast<const uint8_t*>(v.data) - grid.bytes().data();
    return v.rows == 0 || v.cols == 0 ? begin : begin + ((v.rows - 1) * v.row_stride + v.cols) * dtype_bytes(v.dtype);
  }

  Grid grid_;
  DeviceBytes memory_;
  int8q_matrix view_;
};

inline int64_t row_bytes(const Grid& grid) { return grid.cols() * dtype_bytes(grid.dtype()); }
inline const uint8_t* bytes_of_row(Grid& grid, int64_t i) {
  return static_cast<const uint8_t*>(grid.view()->data) + i * grid.view()->row_stride * dtype_bytes(grid.dtype());
}

// So many rows, which repeat the grid's.
inline Grid repeated(Grid& grid, int64_t rows, int64_t gap) {
  Grid more(grid.dtype(), rows, grid.cols(), gap);
  for (int64_t i = 0; i < rows; ++i)
    std::memcpy(const_cast<uint8_t*>(bytes_of_row(more, i)), bytes_of_row(grid, i % grid.rows()),
                static_cast<size_t>(row_bytes(grid)));
  return more;
}

// That rows from `rows` on are those before, bit for bit.
inline void expect_repeated(Grid grid, int64_t rows) {
  for (int64_t i = rows; i < grid.rows(); ++i)
    ASSERT_EQ(std::memcmp(bytes_of_row(grid, i), bytes_of_row(grid, i % rows), static_cast<size_t>(row_bytes(grid))), 0)
        << i;
}

struct DeviceWorkspace {
  DeviceBytes memory;

  DeviceWorkspace(int8q_context* context, const int8q_linear* linear, int64_t rows, int32_t operation = INT8Q_FORWARD)
      : memory(static_cast<int64_t>(query(context, linear, rows, operation))) {}
  void* get() const { return memory.get(); }
  uint64_t bytes() const { return static_cast<uint64_t>(memory.bytes()); }

 private:
  static uint64_t query(int8q_context* context, const int8q_linear* linear, int64_t rows, int32_t operation) {
    uint64_t bytes = 0;
    EXPECT_STATUS(INT8Q_OK, int8q_query_workspace(context, linear, operation, rows, 0, &bytes));
    return bytes;
  }
};

}  // namespace int8q::test
