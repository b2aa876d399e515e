// SPDX-License-Identifier: Apache-2.0
#include "gpu.h"

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <stdexcept>
#include <type_traits>
#include <utility>
#include <vector>

namespace int8q::bench {
namespace {

constexpr int kCacheBytes = 38;       // CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE
constexpr unsigned kNonBlocking = 1;  // CU_STREAM_NON_BLOCKING
constexpr int kRelaxed = 2;           // CU_STREAM_CAPTURE_MODE_RELAXED

Gpu open() {
  const cuda::Presence& found = cuda::look_for_driver();
  if (found.state != cuda::Presence::kPresent) throw std::runtime_error("no usable GPU: " + found.why);
  Gpu g{};
  g.driver = found.driver;
  g.driver_version = found.version;
  void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  using GetProcAddress = int (*)(const char*, void**, int, uint64_t, int*);
  auto* find = reinterpret_cast<GetProcAddress>(dlsym(library, "cuGetProcAddress_v2"));
  const auto resolve = [&](const char* name, auto& function) {
    void* address = nullptr;
    if (find == nullptr || find(name, &address, cuda::kOldestDriver, 0, nullptr) != 0 || address == nullptr)
      throw std::runtime_error(std::string("libcuda.so.1 lacks ") + name);
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(address);
  };
#define INT8Q_RESOLVE(name, ...) resolve(#name, g.name);
  INT8Q_BENCH_DRIVER_FUNCTIONS(INT8Q_RESOLVE)
#undef INT8Q_RESOLVE

  int device = 0, major = 0, minor = 0, cache = 0;
  char name[256] = "";
  g.check(g.driver.cuDeviceGet(&device, 0), "cuDeviceGet");
  g.check(g.driver.cuDeviceGetName(name, sizeof name, device), "cuDeviceGetName");
  g.check(g.driver.cuDeviceGetAttribute(&major, cuda::kCapabilityMajor, device), "cuDeviceGetAttribute");
  g.check(g.driver.cuDeviceGetAttribute(&minor, cuda::kCapabilityMinor, device), "cuDeviceGetAttribute");
  g.check(g.driver.cuDeviceGetAttribute(&g.multiprocessors, cuda::kMultiprocessors, device), "cuDeviceGetAttribute");
  if (g.driver.cuDeviceGetAttribute(&cache, kCacheBytes, device) == 0) g.cache_bytes = cache;
  g.name = name;
  g.capability = std::to_string(major) + "." + std::to_string(minor);
  cuda::DriverContext context = nullptr;
  g.check(g.driver.cuDevicePrimaryCtxRetain(&context, device), "cuDevicePrimaryCtxRetain");
  g.check(g.driver.cuCtxPushCurrent(context), "cuCtxPushCurrent");
  g.check(g.cuStreamCreate(&g.stream, kNonBlocking), "cuStreamCreate");
  return g;
}

// Four loads of 16 bytes are under way in each thread. What was seen is stored, lest the loads be left out.
constexpr int kReadThreads = 256, kReadBlocksPerSm = 8, kReadUnroll = 4, kReadBytes = 16;
constexpr const char* kReadKernel = R"(
.version 7.0
.target sm_70
.address_size 64
.visible .entry read_all(.param .u64 from_, .param .u64 count_, .param .u64 to_)  // from [count] of 16 bytes
{
  .reg .pred %more, %none;
  .reg .b32 %seen, %width, %block, %thread, %blocks, %v<16>;
  .reg .b64 %from, %count, %to, %i, %wide, %step, %step_bytes, %a, %b, %c, %d;

  ld.param.u64 %from, [from_];
  ld.param.u64 %count, [count_];
  ld.param.u64 %to, [to_];
  cvta.to.global.u64 %from, %from;
  cvta.to.global.u64 %to, %to;
  mov.u32 %width, %ntid.x;
  mov.u32 %block, %ctaid.x;
  mov.u32 %thread, %tid.x;
  mov.u32 %blocks, %nctaid.x;
  mul.wide.u32 %i, %block, %width;
  cvt.u64.u32 %wide, %thread;
  add.s64 %i, %i, %wide;
  mul.wide.u32 %step, %blocks, %width;
  shl.b64 %step_bytes, %step, 4;
  mov.u32 %seen, 0;
  setp.ge.u64 %none, %i, %count;
  @%none bra DONE;
LOOP:
  shl.b64 %a, %i, 4;
  add.s64 %a, %from, %a;
  add.s64 %b, %a, %step_bytes;
  add.s64 %c, %b, %step_bytes;
  add.s64 %d, %c, %step_bytes;
  ld.global.v4.u32 {%v0, %v1, %v2, %v3}, [%a];
  ld.global.v4.u32 {%v4, %v5, %v6, %v7}, [%b];
  ld.global.v4.u32 {%v8, %v9, %v10, %v11}, [%c];
  ld.global.v4.u32 {%v12, %v13, %v14, %v15}, [%d];
  or.b32 %v0, %v0, %v1;
  or.b32 %v2, %v2, %v3;
  or.b32 %v4, %v4, %v5;
  or.b32 %v6, %v6, %v7;
  or.b32 %v8, %v8, %v9;
  or.b32 %v10, %v10, %v11;
  or.b32 %v12, %v12, %v13;
  or.b32 %v14, %v14, %v15;
  or.b32 %v0, %v0, %v2;
  or.b32 %v4, %v4, %v6;
  or.b32 %v8, %v8, %v10;
  or.b32 %v12, %v12, %v14;
  or.b32 %v0, %v0, %v4;
  or.b32 %v8, %v8, %v12;
  or.b32 %seen, %seen, %v0;
  or.b32 %seen, %seen, %v8;
  shl.b64 %wide, %step, 2;
  add.s64 %i, %i, %wide;
  setp.lt.u64 %more, %i, %count;
  @%more bra LOOP;
DONE:
  setp.eq.u32 %none, %seen, 0;
  @%none bra END;
  st.global.u32 [%to], %seen;
END:
  ret;
}
)";

cuda::Function read_kernel() {
  static const cuda::Function function = [] {
    cuda::Module module = nullptr;
    cuda::Function found = nullptr;
    gpu().check(gpu().driver.cuModuleLoadData(&module, kReadKernel), "cuModuleLoadData of the kernel that reads");
    gpu().check(gpu().driver.cuModuleGetFunction(&found, module, "read_all"),
                "cuModuleGetFunction of the kernel that reads");
    return found;
  }();
  return function;
}

// What is swept: 1 GiB, and eight times the cache at least.
Memory& swept() {
  static Memory& memory = *[] {
    auto* made = new Memory(std::max({2 * settings().rotated_bytes, 8 * gpu().cache_bytes, int64_t{1} << 20}));
    const std::vector<uint8_t> ones(1 << 20, 1);
    made->upload(ones.data(), static_cast<int64_t>(ones.size()));
    made->repeat(static_cast<int64_t>(ones.size()), static_cast<int64_t>(ones.size()));
    return made;
  }();
  return memory;
}

}  // namespace

void Gpu::check(int error, const char* what) const {
  if (error == 0) return;
  const char *error_name = nullptr, *text = nullptr;
  driver.cuGetErrorName(error, &error_name);
  driver.cuGetErrorString(error, &text);
  throw std::runtime_error(std::string(what) + ": " + (error_name == nullptr ? std::to_string(error) : error_name) +
                           (text == nullptr ? "" : std::string(" (") + text + ")"));
}

void Gpu::wait() const { check(driver.cuStreamSynchronize(stream), "cuStreamSynchronize"); }

const Gpu& gpu() {
  static const Gpu& opened = *new Gpu(open());  // never closed: the driver may be gone before static objects are
  return opened;
}

Memory::Memory(int64_t bytes) : bytes_(bytes) {
  const std::string what = "cuMemAlloc of " + std::to_string(bytes) + " bytes";
  gpu().check(gpu().driver.cuMemAlloc(&memory_, static_cast<size_t>(std::max<int64_t>(bytes, 1))), what.c_str());
}

Memory::~Memory() { gpu().driver.cuMemFree(memory_); }

void Memory::upload(const void* from, int64_t bytes, int64_t offset) {
  const auto to = memory_ + static_cast<uint64_t>(offset);
  gpu().check(gpu().driver.cuMemcpyHtoDAsync(to, from, static_cast<size_t>(bytes), gpu().stream), "cuMemcpyHtoDAsync");
  gpu().wait();
}

void Memory::download(void* to, int64_t bytes, int64_t offset) const {
  const auto from = memory_ + static_cast<uint64_t>(offset);
  gpu().check(gpu().driver.cuMemcpyDtoHAsync(to, from, static_cast<size_t>(bytes), gpu().stream), "cuMemcpyDtoHAsync");
  gpu().wait();
}

void Memory::repeat(int64_t bytes, int64_t stride) {
  for (int64_t to = stride; to + bytes <= bytes_; to += stride) {
    gpu().check(
        gpu().cuMemcpyDtoDAsync(memory_ + static_cast<uint64_t>(to), memory_, static_cast<size_t>(bytes), gpu().stream),
        "cuMemcpyDtoDAsync");
  }
  gpu().wait();
}

Settings& settings() {
  static Settings chosen;
  return chosen;
}

Timed::Timed(std::function<void()> call, int calls, bool graph) : call_(std::move(call)), calls_(calls) {
  gpu().check(gpu().cuEventCreate(&begin_, 0), "cuEventCreate");
  gpu().check(gpu().cuEventCreate(&end_, 0), "cuEventCreate");
  // Before the capture: scratch memory grows and kernels load at the first call.
  for (int i = 0; i < calls_; ++i) call_();
  gpu().wait();
  if (graph) capture();
  double seconds = run(passes_);
  while (seconds < settings().sample_seconds / 4 && passes_ < 1 << 16) {
    passes_ *= 2;
    seconds = run(passes_);
  }
  passes_ =
      std::max<int64_t>(1, std::llround(std::ceil(static_cast<double>(passes_) * settings().sample_seconds / seconds)));
}

void Timed::capture() {
  void* captured = nullptr;
  gpu().check(gpu().cuStreamBeginCapture(gpu().stream, kRelaxed), "cuStreamBeginCapture");
  try {
    for (int i = 0; i < calls_; ++i) call_();
  } catch (...) {
    gpu().cuStreamEndCapture(gpu().stream, &captured);  // the next row's work shall not be captured
    throw;
  }
  gpu().check(gpu().cuStreamEndCapture(gpu().stream, &captured), "cuStreamEndCapture");
  gpu().check(gpu().cuGraphInstantiateWithFlags(&graph_, captured, 0), "cuGraphInstantiateWithFlags");
}

void Timed::pass() {
  if (graph_ != nullptr) return gpu().check(gpu().cuGraphLaunch(graph_, gpu().stream), "cuGraphLaunch");
  for (int i = 0; i < calls_; ++i) call_();
}

double Timed::run(int64_t passes) {
  float ms = 0.0f;
  gpu().check(gpu().cuEventRecord(begin_, gpu().stream), "cuEventRecord");
  for (int64_t i = 0; i < passes; ++i) pass();
  gpu().check(gpu().cuEventRecord(end_, gpu().stream), "cuEventRecord");
  gpu().check(gpu().cuEventSynchronize(end_), "cuEventSynchronize");
  gpu().check(gpu().cuEventElapsedTime(&ms, begin_, end_), "cuEventElapsedTime");
  return std::max(1e-3 * static_cast<double>(ms), 1e-9);
}

double Timed::sample() {
  constexpr int64_t kWarmShare = 10;
  if (passes_ >= kWarmShare) run(passes_ / kWarmShare);
  return run(passes_) / static_cast<double>(passes_ * calls_);
}

double measure(Timed& timed) {
  std::array<double, 5> samples;
  for (double& seconds : samples) seconds = timed.sample();
  std::sort(samples.begin(), samples.end());
  return samples[samples.size() / 2];
}

double measure_read() {
  static Memory& found = *new Memory(sizeof(uint32_t));
  const int64_t blocks = int64_t{kReadBlocksPerSm} * gpu().multiprocessors;
  const int64_t whole = blocks * kReadThreads * kReadUnroll * kReadBytes;  // of one trip of all threads
  const int64_t bytes = swept().bytes() / whole * whole;
  if (bytes == 0) throw std::runtime_error("too little memory to sweep");
  static Timed& timed = *new Timed(
      [=] {
        uint64_t from = reinterpret_cast<uint64_t>(swept().at()), count = static_cast<uint64_t>(bytes / kReadBytes),
                 to = reinterpret_cast<uint64_t>(found.at());
        void* parameters[] = {&from, &count, &to};
        gpu().check(gpu().driver.cuLaunchKernel(read_kernel(), static_cast<unsigned>(blocks), 1, 1, kReadThreads, 1, 1, 0,
                                                gpu().stream, parameters, nullptr),
                    "cuLaunchKernel of the kernel that reads");
      },
      1, false);
  return static_cast<double>(bytes) / timed.sample();
}

double measure_copy() {
  const int64_t half = swept().bytes() / 2;
  static Timed& timed = *new Timed(
      [=] {
        const auto from = reinterpret_cast<cuda::DevicePointer>(swept().at());
        gpu().check(
            gpu().cuMemcpyDtoDAsync(from + static_cast<uint64_t>(half), from, static_cast<size_t>(half), gpu().stream),
            "cuMemcpyDtoDAsync");
      },
      1, false);
  return 2.0 * static_cast<double>(half) / timed.sample();
}

}  // namespace int8q::bench
