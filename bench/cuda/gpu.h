// SPDX-License-Identifier: Apache-2.0
//
// A GPU as the benchmarks use it: one stream, device memory, times by CUDA events, graphs, and the bandwidth of its memory.
// All by the driver, as the library itself does; no toolkit is needed to build or to run this. Failures are
// std::runtime_error.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "cuda/driver.h"

namespace int8q::bench {

// What the library does without: name, parameters. Each returns a CUresult.
#define INT8Q_BENCH_DRIVER_FUNCTIONS(F)                                                    \
  F(cuStreamCreate, void** stream, unsigned flags)                                         \
  F(cuStreamBeginCapture, void* stream, int mode)                                          \
  F(cuStreamEndCapture, void* stream, void** graph)                                        \
  F(cuGraphInstantiateWithFlags, void** executable, void* graph, unsigned long long flags) \
  F(cuGraphLaunch, void* executable, void* stream)                                         \
  F(cuEventCreate, void** event, unsigned flags)                                           \
  F(cuEventRecord, void* event, void* stream)                                              \
  F(cuEventSynchronize, void* event)                                                       \
  F(cuEventElapsedTime, float* ms, void* begin, void* end)                                 \
  F(cuMemcpyDtoDAsync, cuda::DevicePointer to, cuda::DevicePointer from, size_t bytes, void* stream)

struct Settings {
  double sample_seconds = 0.01;
  int64_t rotated_bytes = int64_t{512} << 20;  // layers in turn take more than this, so that no cache holds the next one
};
Settings& settings();

// The first GPU that CUDA shows, with its primary context current on the thread that asks first.
struct Gpu {
  cuda::Driver driver;
#define INT8Q_DECLARE(name, ...) int (*name)(__VA_ARGS__);
  INT8Q_BENCH_DRIVER_FUNCTIONS(INT8Q_DECLARE)
#undef INT8Q_DECLARE
  std::string name, capability;
  int driver_version, multiprocessors;
  int64_t cache_bytes;  // L2; 0: not known
  void* stream;

  void wait() const;
  void check(int error, const char* what) const;
};
const Gpu& gpu();

// Bytes of the device, which nothing initializes.
class Memory {
 public:
  explicit Memory(int64_t bytes);
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  uint8_t* at(int64_t offset = 0) const { return reinterpret_cast<uint8_t*>(memory_) + offset; }
  int64_t bytes() const { return bytes_; }
  // Both wait.
  void upload(const void* from, int64_t bytes, int64_t offset = 0);
  void download(void* to, int64_t bytes, int64_t offset = 0) const;
  // The first `bytes` once more, at each further multiple of `stride` up to the end.
  void repeat(int64_t bytes, int64_t stride);

 private:
  cuda::DevicePointer memory_ = 0;
  int64_t bytes_;
};

// Calls between two events. A pass is one call after another, `calls` of them in turn; as a graph it is captured once and
// replayed.
class Timed {
 public:
  Timed(std::function<void()> call, int calls, bool graph);
  // Seconds a call, of as many passes as take settings().sample_seconds, after uncounted ones of a tenth of that.
  double sample();

 private:
  double run(int64_t passes);
  void pass();
  void capture();

  std::function<void()> call_;
  int calls_;
  void *begin_ = nullptr, *end_ = nullptr, *graph_ = nullptr;
  int64_t passes_ = 1;
};

// Median of a few samples.
double measure(Timed& timed);

// Bytes a second of a kernel that reads, once, more than any cache holds; and of cuMemcpyDtoDAsync, bytes read and written
// counted.
double measure_read();
double measure_copy();

}  // namespace int8q::bench
