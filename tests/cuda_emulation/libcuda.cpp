// SPDX-License-Identifier: Apache-2.0
//
// A CUDA driver without a GPU: what src/cuda/driver.h and tests/cuda/gpu.h call of libcuda.so.1, with the emulator as its device.
// Device memory is host memory that the emulator watches; a launch is over when it returns.
//
// What is played, by environment variables: INT8Q_STUB_DRIVER, the version (12090); INT8Q_STUB_GPUS, the capabilities of its
// GPUs ("8.0"; "9.0,5.2"; empty: none); INT8Q_STUB_FAULT, the name of a function that fails from then on.
//
// A stream that captures takes launches alone: what would wait or copy fails, as it would on a GPU, and so do allocating,
// freeing and loading by a thread that has not relaxed its mode. int8q_stub_count tells how often a function was called, or a
// kernel launched.
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <sstream>
#include <string>
#include <vector>

#include "cuda/driver.h"
#include "cuda_emulation/emulator.h"
#include "cuda_emulation/entries.h"

namespace int8q::emulation {
namespace {

enum Error {
  kSuccess = 0,
  kInvalidValue = 1,
  kOutOfMemory = 2,
  kNotInitialized = 3,
  kNoDevice = 100,
  kInvalidDevice = 101,
  kInvalidImage = 200,
  kInvalidContext = 201,
  kNotFound = 500,
  kIllegalAddress = 700,
  kLaunchOutOfResources = 701,
  kCaptureUnsupported = 900,
};

constexpr int kMultiprocessors = 3;
constexpr size_t kMostBytes = size_t{1} << 30;

struct Gpu {
  int major, minor;
  int capability() const { return major * 10 + minor; }
  // Of a block, opted in.
  int shared_kib() const {
    switch (capability()) {
      case 70: return 96;
      case 75: return 64;
      case 80:
      case 87: return 163;
      case 90:
      case 100: return 227;
      default: return 99;
    }
  }
};

struct Kernel {
  Entry entry;
  std::string name;             // without suffix
  int shared_bytes = 48 << 10;  // dynamic, at most
};

struct alignas(64) ArgumentBytes {
  uint8_t bytes[64];
};

struct Work {
  const Kernel* kernel;
  int64_t blocks;
  int shared_bytes;
  std::vector<ArgumentBytes> arguments;
};
using Graph = std::vector<Work>;

struct FakeStream {
  std::unique_ptr<Graph> capturing;
};

struct State {
  std::mutex mutex;
  std::map<std::string, int64_t> calls;
  bool initialized = false;
  std::vector<Gpu> gpus;
  std::map<uint64_t, std::unique_ptr<Buffer<uint8_t>>> memory;
  FakeStream default_stream;
  std::vector<std::unique_ptr<FakeStream>> streams;  // as long as the process, and so are graphs
  std::vector<std::unique_ptr<Graph>> graphs;
  int64_t captures = 0;
  int error = kSuccess;  // sticky
  uint64_t seed = 0;
};

State& state() {
  static State& all = *new State;
  return all;
}

constexpr int kRelaxed = 2;
thread_local std::vector<void*> current;  // contexts
thread_local int capture_mode = 0;

const char* environment(const char* name, const char* otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr ? otherwise : value;
}

std::vector<Gpu> played_gpus() {
  std::vector<Gpu> gpus;
  std::istringstream list(environment("INT8Q_STUB_GPUS", "8.0"));
  for (std::string one; std::getline(list, one, ',');)
    gpus.push_back({std::stoi(one), std::stoi(one.substr(one.find('.') + 1))});
  return gpus;
}

// Counts the call, and tells whether it may go on.
enum Needs { kNothing, kInit, kContext, kSafe, kNoCapture };  // kSafe: what a thread must not do while anybody captures
int enter(const char* name, Needs needs) {
  State& s = state();
  ++s.calls[name];
  if (std::strcmp(environment("INT8Q_STUB_FAULT", ""), name) == 0)
    return std::strcmp(name, "cuMemAlloc_v2") == 0 ? kOutOfMemory : kIllegalAddress;
  if (needs >= kInit && !s.initialized) return kNotInitialized;
  if (s.error != kSuccess) return s.error;
  if (needs >= kContext && current.empty()) return kInvalidContext;
  if (s.captures > 0 && (needs == kNoCapture || (needs == kSafe && capture_mode != kRelaxed))) return kCaptureUnsupported;
  return kSuccess;
}

#define ENTER(needs)                         \
  const std::lock_guard lock(state().mutex); \
  if (const int refused = enter(__func__, needs); refused != kSuccess) return refused

FakeStream& stream_of(void* stream) {
  return stream == nullptr ? state().default_stream : *static_cast<FakeStream*>(stream);
}

// The buffer that holds [at, at + bytes), or NULL.
Buffer<uint8_t>* buffer_of(uint64_t at, size_t bytes) {
  auto& memory = state().memory;
  auto after = memory.upper_bound(at);
  if (after == memory.begin()) return nullptr;
  auto& [begin, buffer] = *std::prev(after);
  return at + bytes <= begin + static_cast<uint64_t>(buffer->count()) ? buffer.get() : nullptr;
}

bool copy_in(uint64_t to, const void* from, size_t bytes) {
  Buffer<uint8_t>* buffer = buffer_of(to, bytes);
  if (buffer == nullptr) return false;
  const auto at = static_cast<int64_t>(to - reinterpret_cast<uint64_t>(buffer->device()));
  for (size_t i = 0; i < bytes; ++i) buffer->set(at + static_cast<int64_t>(i), static_cast<const uint8_t*>(from)[i]);
  return true;
}

// What no kernel wrote stays as allocation left it.
bool copy_out(void* to, uint64_t from, size_t bytes) {
  if (buffer_of(from, bytes) == nullptr) return false;
  std::memcpy(to, reinterpret_cast<const void*>(from), bytes);
  return true;
}

int run(const Work& work) {
  State& s = state();
  try {
    launch({.blocks = work.blocks,
            .threads = work.kernel->entry.threads,
            .shared_bytes = work.shared_bytes,
            .seed = s.seed++,
            .most_shared_bytes = work.kernel->shared_bytes},
           [&] { work.kernel->entry.run(work.arguments.data()); });
    return kSuccess;
  } catch (const Fault& fault) {
    std::fprintf(stderr, "libcuda stub: %s\n", fault.what());
    return s.error = kIllegalAddress;
  }
}

// "gemm_s8", 86 of "gemm_s8_sm89".
std::pair<std::string, int> key_of(const std::string& name) {
  static const std::map<std::string, int> tags = {{"sm70", 70},   {"sm75", 75}, {"sm80", 80},   {"sm86", 86},
                                                  {"sm89", 86},   {"sm90", 90}, {"sm90a", 901}, {"sm100", 90},
                                                  {"sm120", 120}, {"ptx80", 86}};
  const size_t end = name.rfind('_');
  const auto tag = tags.find(name.substr(end + 1));
  return {name.substr(0, end), tag == tags.end() ? 0 : tag->second};
}

}  // namespace
}  // namespace int8q::emulation

using namespace int8q::emulation;
using int8q::cuda::Copy2D;
using Pointer = uint64_t;

extern "C" {
#define STUB __attribute__((visibility("default")))

STUB int64_t int8q_stub_count(const char* function) {
  const std::lock_guard lock(state().mutex);
  return state().calls[function];
}

STUB int cuDriverGetVersion(int* version) {
  ENTER(kNothing);
  *version = std::atoi(environment("INT8Q_STUB_DRIVER", "12090"));
  return kSuccess;
}

STUB int cuInit(unsigned) {
  ENTER(kNothing);
  state().gpus = played_gpus();
  if (state().gpus.empty()) return kNoDevice;
  state().initialized = true;
  return kSuccess;
}

STUB int cuGetErrorName(int error, const char** name) {
  *name = error == kIllegalAddress       ? "CUDA_ERROR_ILLEGAL_ADDRESS"
          : error == kCaptureUnsupported ? "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"
                                         : "CUDA_ERROR_OF_THE_STUB";
  return kSuccess;
}
STUB int cuGetErrorString(int, const char** text) {
  *text = "said by the stub of libcuda";
  return kSuccess;
}

STUB int cuDeviceGetCount(int* count) {
  ENTER(kInit);
  *count = static_cast<int>(state().gpus.size());
  return kSuccess;
}
STUB int cuDeviceGet(int* device, int ordinal) {
  ENTER(kInit);
  if (ordinal < 0 || ordinal >= static_cast<int>(state().gpus.size())) return kInvalidDevice;
  *device = ordinal;
  return kSuccess;
}
STUB int cuDeviceGetName(char* name, int bytes, int device) {
  ENTER(kInit);
  const Gpu& gpu = state().gpus[static_cast<size_t>(device)];
  std::snprintf(name, static_cast<size_t>(bytes), "emulated GPU of capability %d.%d", gpu.major, gpu.minor);
  return kSuccess;
}
STUB int cuDeviceGetAttribute(int* value, int attribute, int device) {
  ENTER(kInit);
  const Gpu& gpu = state().gpus[static_cast<size_t>(device)];
  switch (attribute) {
    case int8q::cuda::kMultiprocessors: *value = kMultiprocessors; return kSuccess;
    case int8q::cuda::kCapabilityMajor: *value = gpu.major; return kSuccess;
    case int8q::cuda::kCapabilityMinor: *value = gpu.minor; return kSuccess;
    case int8q::cuda::kSharedBytesOptin: *value = gpu.shared_kib() << 10; return kSuccess;
    default: return kInvalidValue;
  }
}

STUB int cuDevicePrimaryCtxRetain(void** context, int device) {
  ENTER(kInit);
  *context = &state().gpus[static_cast<size_t>(device)];
  return kSuccess;
}
STUB int cuDevicePrimaryCtxRelease_v2(int) {
  ENTER(kInit);
  return kSuccess;
}
STUB int cuThreadExchangeStreamCaptureMode(int* mode) {
  ENTER(kInit);
  std::swap(*mode, capture_mode);
  return kSuccess;
}
STUB int cuCtxPushCurrent_v2(void* context) {
  ENTER(kInit);
  current.push_back(context);
  return kSuccess;
}
STUB int cuCtxPopCurrent_v2(void** context) {
  ENTER(kContext);
  *context = current.back();
  current.pop_back();
  return kSuccess;
}

STUB int cuModuleLoadData(void** module, const void* image) {
  ENTER(kSafe);
  const bool known =
      std::memcmp(image, "\177ELF", 4) == 0 || std::strstr(static_cast<const char*>(image), ".target") != nullptr;
  if (!known) return kInvalidImage;
  *module = const_cast<void*>(image);
  return kSuccess;
}
STUB int cuModuleUnload(void*) {
  ENTER(kContext);
  return kSuccess;
}
STUB int cuModuleGetFunction(void** function, void*, const char* name) {
  ENTER(kSafe);
  const auto found = entries().find(key_of(name));
  if (found == entries().end()) return kNotFound;
  *function = new Kernel{found->second, found->first.first};  // as long as the process
  return kSuccess;
}
STUB int cuFuncSetAttribute(void* function, int attribute, int value) {
  ENTER(kSafe);
  const auto* gpu = static_cast<const Gpu*>(current.back());
  if (attribute != int8q::cuda::kFunctionSharedBytes || value > gpu->shared_kib() << 10) return kInvalidValue;
  static_cast<Kernel*>(function)->shared_bytes = value;
  return kSuccess;
}
STUB int cuLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                        unsigned block_y, unsigned block_z, unsigned shared_bytes, void* stream, void** parameters,
                        void** extra) {
  ENTER(kContext);
  const auto* kernel = static_cast<const Kernel*>(function);
  if (grid_y != 1 || grid_z != 1 || block_y != 1 || block_z != 1 || extra != nullptr || grid_x == 0) return kInvalidValue;
  if (static_cast<int>(block_x) != kernel->entry.threads) return kLaunchOutOfResources;
  if (static_cast<int>(shared_bytes) > kernel->shared_bytes) return kInvalidValue;
  ++state().calls[kernel->name];
  const size_t bytes = kernel->entry.argument_bytes;
  Work work{kernel, grid_x, static_cast<int>(shared_bytes), std::vector<ArgumentBytes>((bytes + 63) / 64)};
  std::memcpy(work.arguments.data(), parameters[0], bytes);
  FakeStream& target = stream_of(stream);
  if (target.capturing != nullptr) {
    target.capturing->push_back(std::move(work));
    return kSuccess;
  }
  return run(work);
}

STUB int cuTensorMapEncodeTiled(void* map, int type, uint32_t rank, void* matrix, const uint64_t* sizes,
                                const uint64_t* strides, const uint32_t* box, const uint32_t* element_strides,
                                int interleave, int swizzle, int, int outside) {
  ENTER(kInit);
  using namespace int8q::cuda;
  const bool known = type == kOfBytes && rank == 2 && element_strides[0] == 1 && element_strides[1] == 1 &&
                     interleave == kNotInterleaved && swizzle == kSwizzled128 && outside == kZerosOutside;
  return known ? encode_tensor_map(map, matrix, {sizes[0], sizes[1]}, strides[0], {box[0], box[1]}) : kInvalidValue;
}
STUB int cuMemAlloc_v2(Pointer* memory, size_t bytes) {
  ENTER(kSafe);
  if (bytes == 0) return kInvalidValue;
  if (bytes > kMostBytes) return kOutOfMemory;
  auto buffer = std::make_unique<Buffer<uint8_t>>(static_cast<int64_t>(bytes), "device memory");
  std::memset(buffer->device(), 0xa5, bytes);
  *memory = reinterpret_cast<Pointer>(buffer->device());
  state().memory[*memory] = std::move(buffer);
  return kSuccess;
}
STUB int cuMemFree_v2(Pointer memory) {
  ENTER(kSafe);
  return state().memory.erase(memory) == 1 ? kSuccess : kInvalidValue;
}
STUB int cuMemcpyHtoDAsync_v2(Pointer to, const void* from, size_t bytes, void*) {
  ENTER(kNoCapture);
  return copy_in(to, from, bytes) ? kSuccess : kInvalidValue;
}
STUB int cuMemcpyDtoHAsync_v2(void* to, Pointer from, size_t bytes, void*) {
  ENTER(kNoCapture);
  return copy_out(to, from, bytes) ? kSuccess : kInvalidValue;
}
STUB int cuMemcpy2DAsync_v2(const Copy2D* copy, void*) {
  ENTER(kNoCapture);
  if (copy->from_pitch < copy->width_bytes || copy->to_pitch < copy->width_bytes) return kInvalidValue;
  std::vector<uint8_t> row(copy->width_bytes);
  for (size_t i = 0; i < copy->height; ++i) {
    if (copy->from_type == Copy2D::kHost) {
      std::memcpy(row.data(), static_cast<const uint8_t*>(copy->from_host) + i * copy->from_pitch, row.size());
    } else if (!copy_out(row.data(), copy->from_device + i * copy->from_pitch, row.size())) {
      return kInvalidValue;
    }
    if (copy->to_type == Copy2D::kHost) {
      std::memcpy(static_cast<uint8_t*>(copy->to_host) + i * copy->to_pitch, row.data(), row.size());
    } else if (!copy_in(copy->to_device + i * copy->to_pitch, row.data(), row.size())) {
      return kInvalidValue;
    }
  }
  return kSuccess;
}
STUB int cuStreamSynchronize(void*) {
  ENTER(kNoCapture);
  return kSuccess;
}

// ---- What tests call beside that

STUB int cuStreamCreate(void** stream, unsigned) {
  ENTER(kContext);
  *stream = state().streams.emplace_back(std::make_unique<FakeStream>()).get();
  return kSuccess;
}
STUB int cuStreamBeginCapture_v2(void* stream, int) {
  ENTER(kContext);
  stream_of(stream).capturing = std::make_unique<Graph>();
  ++state().captures;
  return kSuccess;
}
STUB int cuStreamEndCapture(void* stream, void** graph) {
  ENTER(kContext);
  *graph = state().graphs.emplace_back(std::move(stream_of(stream).capturing)).get();
  --state().captures;
  return kSuccess;
}
STUB int cuGraphGetNodes(void* graph, void**, size_t* count) {
  ENTER(kContext);
  *count = static_cast<Graph*>(graph)->size();
  return kSuccess;
}
STUB int cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
  ENTER(kContext);
  *executable = graph;
  return kSuccess;
}
STUB int cuGraphLaunch(void* executable, void*) {
  ENTER(kContext);
  for (const Work& work : *static_cast<Graph*>(executable)) {
    if (const int error = run(work); error != kSuccess) return error;
  }
  return kSuccess;
}

STUB int cuEventCreate(void** event, unsigned) {
  ENTER(kContext);
  *event = new std::chrono::steady_clock::time_point;
  return kSuccess;
}
STUB int cuEventRecord(void* event, void*) {
  ENTER(kNoCapture);
  *static_cast<std::chrono::steady_clock::time_point*>(event) = std::chrono::steady_clock::now();
  return kSuccess;
}
STUB int cuEventSynchronize(void*) {
  ENTER(kNoCapture);
  return kSuccess;
}
STUB int cuEventElapsedTime(float* ms, void* begin, void* end) {
  ENTER(kNoCapture);
  using Point = std::chrono::steady_clock::time_point;
  *ms = std::chrono::duration<float, std::milli>(*static_cast<Point*>(end) - *static_cast<Point*>(begin)).count();
  return kSuccess;
}
STUB int cuMemcpyDtoDAsync_v2(Pointer to, Pointer from, size_t bytes, void*) {
  ENTER(kNoCapture);
  if (buffer_of(from, bytes) == nullptr) return kInvalidValue;
  return copy_in(to, reinterpret_cast<const void*>(from), bytes) ? kSuccess : kInvalidValue;
}

// Names without version, as cuGetProcAddress has them; all are of before CUDA 12.0.
STUB int cuGetProcAddress_v2(const char* name, void** function, int, uint64_t, int*) {
  static const std::map<std::string, void*> all = {
#define NAMED(name) {#name, reinterpret_cast<void*>(&name)}
#define VERSIONED(name) \
  { #name, reinterpret_cast < void*>(&name##_v2) }
      NAMED(cuInit),
      NAMED(cuDriverGetVersion),
      NAMED(cuGetErrorName),
      NAMED(cuGetErrorString),
      NAMED(cuDeviceGetCount),
      NAMED(cuDeviceGet),
      NAMED(cuDeviceGetName),
      NAMED(cuDeviceGetAttribute),
      NAMED(cuDevicePrimaryCtxRetain),
      VERSIONED(cuDevicePrimaryCtxRelease),
      NAMED(cuThreadExchangeStreamCaptureMode),
      NAMED(cuModuleUnload),
      VERSIONED(cuCtxPushCurrent),
      VERSIONED(cuCtxPopCurrent),
      NAMED(cuModuleLoadData),
      NAMED(cuModuleGetFunction),
      NAMED(cuFuncSetAttribute),
      NAMED(cuLaunchKernel),
      NAMED(cuTensorMapEncodeTiled),
      VERSIONED(cuMemAlloc),
      VERSIONED(cuMemFree),
      VERSIONED(cuMemcpyHtoDAsync),
      VERSIONED(cuMemcpyDtoHAsync),
      VERSIONED(cuMemcpy2DAsync),
      NAMED(cuStreamSynchronize),
      NAMED(cuStreamCreate),
      VERSIONED(cuStreamBeginCapture),
      NAMED(cuStreamEndCapture),
      NAMED(cuGraphGetNodes),
      NAMED(cuGraphInstantiateWithFlags),
      NAMED(cuGraphLaunch),
      NAMED(cuEventCreate),
      NAMED(cuEventRecord),
      NAMED(cuEventSynchronize),
      NAMED(cuEventElapsedTime),
      VERSIONED(cuMemcpyDtoDAsync)};
  const auto found = all.find(name);
  *function = found == all.end() ? nullptr : found->second;
  return kSuccess;
}

}  // extern "C"
