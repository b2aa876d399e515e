// SPDX-License-Identifier: Apache-2.0
//
// A CUDA driver without a GPU: what src/cuda/driver.h and tests/cuda/gpu.h call of libcuda.so.1, with the emulator as its device.
// Device memory is host memory that the emulator watches; a launch is over when it returns, a copy to the host when somebody has
// waited for its stream, and what a copy reads there has to stay until then.
//
// What is played, by environment variables: INT8Q_STUB_DRIVER, the version (13090); INT8Q_STUB_GPUS, the capabilities of its
// GPUs ("8.0"; "9.0,5.2"; empty: none); INT8Q_STUB_FAULT, the name of a function that fails from then on ("cuInit"; "cuInit=803"
// with that error).
//
// A stream that captures takes launches alone: what would wait or copy fails, as it would on a GPU, and so do allocating,
// freeing and loading by a thread that has not relaxed its mode. A function, stream or memory of one GPU is refused where
// another's context is current, and by another's kernels. int8q_stub_count tells how often a function was called, or a kernel
// launched; int8q_stub_idle_kernels names those that were loaded and never launched.
#include <algorithm>
#include <chrono>

#include "cuda/driver.h"
#include "cuda_emulation/libcuda_state.h"

using namespace int8q::emulation;
using int8q::cuda::Copy2D;
using Pointer = uint64_t;

extern "C" {
#define STUB __attribute__((visibility("default")))

STUB int64_t int8q_stub_count(const char* function) {
  const std::lock_guard lock(state().mutex);
  const auto found = state().calls.find(function);
  return found == state().calls.end() ? 0 : found->second;
}
STUB const char* int8q_stub_idle_kernels() {
  static std::string names;
  const std::lock_guard lock(state().mutex);
  names.clear();
  for (const auto& [name, count] : state().calls) {
    if (count == 0) names += (names.empty() ? "" : ", ") + name;
  }
  return names.c_str();
}

STUB int cuDriverGetVersion(int* version) {
  ENTER(kNothing);
  *version = std::atoi(environment("INT8Q_STUB_DRIVER", "13090"));
  return kSuccess;
}

STUB int cuInit(unsigned) {
  ENTER(kNothing);
  if (!state().initialized) state().gpus = played_gpus();  // whose addresses are their contexts
  if (state().gpus.empty()) return kNoDevice;
  state().initialized = true;
  return kSuccess;
}

STUB int cuGetErrorName(int error, const char** name) {
  static const std::map<int, const char*> names = {{kNoBinary, "CUDA_ERROR_NO_BINARY_FOR_GPU"},
                                                   {kUnsupportedPtx, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION"},
                                                   {kInvalidHandle, "CUDA_ERROR_INVALID_HANDLE"},
                                                   {kIllegalAddress, "CUDA_ERROR_ILLEGAL_ADDRESS"},
                                                   {kDriverMismatch, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"},
                                                   {kCaptureUnsupported, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"}};
  const auto found = names.find(error);
  *name = found == names.end() ? "CUDA_ERROR_OF_THE_STUB" : found->second;
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
    case int8q::cuda::kPageableMemory: *value = 0; return kSuccess;
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
  *module = new FakeModule{current.back()};  // as long as the process
  return kSuccess;
}
STUB int cuModuleUnload(void*) {
  ENTER(kContext);
  return kSuccess;
}
STUB int cuModuleGetFunction(void** function, void* module, const char* name) {
  ENTER(kSafe);
  const auto found = entries().find(key_of(name));
  if (found == entries().end()) return kNotFound;
  state().calls.try_emplace(found->first.first, 0);
  *function = new Kernel{static_cast<FakeModule*>(module)->context, found->second, found->first.first};  // likewise
  return kSuccess;
}
STUB int cuFuncSetAttribute(void* function, int attribute, int value) {
  ENTER(kSafe);
  const auto* gpu = static_cast<const Gpu*>(current.back());
  if (is_foreign(static_cast<const Kernel*>(function))) return kInvalidHandle;
  if (attribute == int8q::cuda::kFunctionCarveout) return value >= -1 && value <= 100 ? kSuccess : kInvalidValue;
  if (attribute != int8q::cuda::kFunctionSharedBytes || value > gpu->shared_kib() << 10) return kInvalidValue;
  static_cast<Kernel*>(function)->shared_bytes = value;
  return kSuccess;
}
STUB int cuLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                        unsigned block_y, unsigned block_z, unsigned shared_bytes, void* stream, void** parameters,
                        void** extra) {
  ENTER(kContext);
  const auto* kernel = static_cast<const Kernel*>(function);
  if (is_foreign(kernel) || is_foreign(static_cast<FakeStream*>(stream))) return kInvalidHandle;
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
                     interleave == kNotInterleaved && swizzle == (box[0] == 64 ? kSwizzled64 : kSwizzled128) &&
                     outside == kZerosOutside;
  return known ? encode_tensor_map(map, matrix, {sizes[0], sizes[1]}, strides[0], {box[0], box[1]}) : kInvalidValue;
}
STUB int cuMemAlloc_v2(Pointer* memory, size_t bytes) {
  ENTER(kSafe);
  if (bytes == 0) return kInvalidValue;
  if (bytes > kMostBytes) return kOutOfMemory;
  auto buffer = std::make_unique<Buffer<uint8_t>>(static_cast<int64_t>(bytes), "device memory");
  std::memset(buffer->device(), 0xa5, bytes);
  *memory = reinterpret_cast<Pointer>(buffer->device());
  state().memory[*memory] = {current.back(), std::move(buffer)};
  return kSuccess;
}
STUB int cuMemFree_v2(Pointer memory) {
  ENTER(kSafe);
  const auto found = state().memory.find(memory);
  if (found == state().memory.end() || is_foreign(&found->second)) return kInvalidValue;
  state().memory.erase(found);
  return kSuccess;
}
STUB int cuMemcpyHtoDAsync_v2(Pointer to, const void* from, size_t bytes, void* stream) {
  ENTER(kNoCapture);
  if (is_foreign(static_cast<FakeStream*>(stream))) return kInvalidHandle;
  return copy_in(to, from, bytes, &stream_of(stream)) ? kSuccess : kInvalidValue;
}
STUB int cuMemcpyDtoHAsync_v2(void* to, Pointer from, size_t bytes, void* stream) {
  ENTER(kNoCapture);
  if (is_foreign(static_cast<FakeStream*>(stream))) return kInvalidHandle;
  return copy_out(to, from, bytes, stream_of(stream)) ? kSuccess : kInvalidValue;
}
STUB int cuMemcpy2DAsync_v2(const Copy2D* copy, void* stream) {
  ENTER(kNoCapture);
  if (is_foreign(static_cast<FakeStream*>(stream))) return kInvalidHandle;
  if (copy->from_pitch < copy->width_bytes || copy->to_pitch < copy->width_bytes) return kInvalidValue;
  const bool from_host = copy->from_type == Copy2D::kHost, to_host = copy->to_type == Copy2D::kHost;
  if (from_host && to_host) return kInvalidValue;
  FakeStream& target = stream_of(stream);
  const size_t bytes = copy->width_bytes;
  for (size_t i = 0; i < copy->height; ++i) {
    const Pointer from = from_host ? reinterpret_cast<Pointer>(copy->from_host) + i * copy->from_pitch
                                   : copy->from_device + i * copy->from_pitch;
    if (!from_host && buffer_of(from, bytes) == nullptr) return kInvalidValue;
    const bool copied = to_host ? copy_out(static_cast<uint8_t*>(copy->to_host) + i * copy->to_pitch, from, bytes, target)
                                : copy_in(copy->to_device + i * copy->to_pitch, reinterpret_cast<const void*>(from), bytes,
                                          from_host ? &target : nullptr);
    if (!copied) return kInvalidValue;
  }
  return kSuccess;
}
STUB int cuStreamSynchronize(void* stream) {
  ENTER(kNoCapture);
  if (is_foreign(static_cast<FakeStream*>(stream))) return kInvalidHandle;
  return finish_copies(stream_of(stream));
}
STUB int cuPointerGetAttribute(void* value, int attribute, Pointer pointer) {
  ENTER(kContext);
  const Allocation* allocation = allocation_of(pointer, 1);
  if (allocation == nullptr) return kInvalidValue;
  switch (attribute) {
    case int8q::cuda::kMemoryType: *static_cast<unsigned*>(value) = Copy2D::kDevice; return kSuccess;
    case int8q::cuda::kIsManaged: *static_cast<int*>(value) = 0; return kSuccess;
    case int8q::cuda::kDeviceOrdinal:
      *static_cast<int*>(value) = static_cast<int>(static_cast<const Gpu*>(allocation->context) - state().gpus.data());
      return kSuccess;
    default: return kInvalidValue;
  }
}

// ---- What tests call beside that

STUB int cuStreamCreate(void** stream, unsigned) {
  ENTER(kContext);
  *stream = state().streams.emplace_back(std::make_unique<FakeStream>(FakeStream{current.back(), nullptr, {}})).get();
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
STUB int cuGraphGetNodes(void* graph, void** nodes, size_t* count) {
  ENTER(kContext);
  Graph& all = *static_cast<Graph*>(graph);
  if (nodes == nullptr) *count = all.size();
  *count = std::min(*count, all.size());
  for (size_t i = 0; nodes != nullptr && i < *count; ++i) nodes[i] = &all[i];
  return kSuccess;
}
// CUDA_KERNEL_NODE_PARAMS: the function, grid and block of three each, bytes of shared memory, and pointers that are not told.
STUB int cuGraphKernelNodeGetParams_v2(void* node, void* parameters) {
  ENTER(kContext);
  const Work& work = *static_cast<Work*>(node);
  const unsigned numbers[] = {
      static_cast<unsigned>(work.blocks),      1, 1, static_cast<unsigned>(work.kernel->entry.threads), 1, 1,
      static_cast<unsigned>(work.shared_bytes)};
  std::memcpy(parameters, &work.kernel, sizeof work.kernel);
  std::memcpy(static_cast<uint8_t*>(parameters) + sizeof work.kernel, numbers, sizeof numbers);
  return kSuccess;
}
STUB int cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
  ENTER(kContext);
  *executable = graph;
  return kSuccess;
}
STUB int cuGraphLaunch(void* executable, void* stream) {
  ENTER(kContext);
  if (is_foreign(static_cast<FakeStream*>(stream))) return kInvalidHandle;
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
  return copy_in(to, reinterpret_cast<const void*>(from), bytes, nullptr) ? kSuccess : kInvalidValue;
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
      NAMED(cuPointerGetAttribute),
      NAMED(cuStreamCreate),
      VERSIONED(cuStreamBeginCapture),
      NAMED(cuStreamEndCapture),
      NAMED(cuGraphGetNodes),
      VERSIONED(cuGraphKernelNodeGetParams),
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
