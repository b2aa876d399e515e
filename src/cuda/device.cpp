// SPDX-License-Identifier: Apache-2.0
#include "cuda/device.h"

#include <atomic>
#include <map>
#include <memory>
#include <mutex>

#include "cuda/kernels/shapes.h"

namespace int8q::cuda {
namespace {

constexpr int64_t kMostBlocks = 0x7fffffff;
constexpr int kRelaxed = 2;  // CU_STREAM_CAPTURE_MODE_RELAXED

template <class T>
constexpr Tile tile_of() {
  return {.m = T::kM, .n = T::kN, .threads = T::kThreads, .shared_bytes = T::shared_bytes};
}

template <int N>
constexpr Tile wgmma_tile() {
  Tile tile = tile_of<gpu::WgmmaTile<N>>();
  tile.threads = gpu::WgmmaTile<N>::kBlockThreads;
  return tile;
}

template <class Arch>
constexpr Shapes shapes_of() {
  return {.large = tile_of<gpu::LargeTile<Arch>>(),
          .small = tile_of<gpu::SmallTile<Arch>>(),
          .wgmma = gpu::kHasWgmma<Arch> ? std::array{wgmma_tile<128>(), wgmma_tile<256>()} : std::array<Tile, 2>{},
          .skinny_rows = gpu::kHasInt8Mma<Arch> ? 64 : 16};
}

Shapes shapes_of(int tag) {
  switch (tag) {
    case 70: return shapes_of<gpu::Sm70>();
    case 75: return shapes_of<gpu::Sm75>();
    case 80: return shapes_of<gpu::Sm80>();
    case 86: return shapes_of<gpu::Sm86>();
    case 90: return shapes_of<gpu::Sm90>();
    case 901: return shapes_of<gpu::Sm90a>();
    default: return shapes_of<gpu::Sm120>();
  }
}

int attribute(const Driver& driver, int device, Attribute which) {
  int value = 0;
  check(driver.cuDeviceGetAttribute(&value, which, device), "cuDeviceGetAttribute");
  return value;
}

int handle_of(const Driver& driver, int ordinal) {
  int device = 0;
  check(driver.cuDeviceGet(&device, ordinal), "cuDeviceGet");
  return device;
}

// Some thread may capture meanwhile, which opening a context and loading kernels do not disturb: nothing of it is on a stream.
class RelaxedCapture {
 public:
  explicit RelaxedCapture(const Driver& driver) : driver_(driver) { driver_.cuThreadExchangeStreamCaptureMode(&mode_); }
  ~RelaxedCapture() { driver_.cuThreadExchangeStreamCaptureMode(&mode_); }
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  const Driver& driver_;
  int mode_ = kRelaxed;
};

template <class Which>
std::string image_names(const Which& which) {
  std::string names;
  for (const Image& image : images()) {
    if (which(image)) names += (names.empty() ? "" : ", ") + std::string(image.name);
  }
  return names;
}
std::string image_names() {
  const std::string names = image_names([](const Image&) { return true; });
  return names.empty() ? "none: this build has no CUDA kernels" : names;
}

// Why a GPU without an image has none. who: the GPU.
std::string without_image(const std::string& who, int major, int minor) {
  const std::string runnable = image_names([&](const Image& image) { return runs_on(image, major, minor); });
  if (forced_image() == nullptr || runnable.empty()) return who + ", runs none of the kernels here, " + image_names();
  return "INT8Q_CUDA_IMAGE is " + std::string(forced_image()) + "; expected one of the kernels here that " + who +
         ", runs, " + runnable + "; or unset it";
}

// What to do where the driver does not take an image; empty: not an error of loading.
std::string remedy_of(int error, const Image& image) {
  switch (error) {
    case 220: return "restart the machine: an NVLink is at fault";          // CUDA_ERROR_NVLINK_UNCORRECTABLE
    case 221: return "install the driver's libnvidia-ptxjitcompiler.so.1";  // CUDA_ERROR_JIT_COMPILER_NOT_FOUND
    case 223: return "unset CUDA_DISABLE_JIT and CUDA_DISABLE_PTX_JIT";     // CUDA_ERROR_JIT_COMPILATION_DISABLED
    case 209:                                                               // CUDA_ERROR_NO_BINARY_FOR_GPU
    case 218:                                                               // CUDA_ERROR_INVALID_PTX
    case 219:                                                               // CUDA_ERROR_INVALID_GRAPHICS_CONTEXT
    case 222:                                                               // CUDA_ERROR_UNSUPPORTED_PTX_VERSION
      return "update the NVIDIA driver to one of CUDA " + version_text(image.driver) + " or later";
    default: return "";
  }
}

constexpr int kOutOfMemory = 2, kUnavailable = 46;  // CUDA_ERROR_OUT_OF_MEMORY, CUDA_ERROR_DEVICE_UNAVAILABLE

// For a GPU may have no room for a context or for kernels, belong to another process, or be in no state to work.
void check_opening(int error, const Device& device, const char* what) {
  if (error == kOutOfMemory) {
    fail(INT8Q_OUT_OF_MEMORY,
         "GPU %d, %s, has no memory left for int8q's context and kernels: %s: %s; see nvidia-smi for who has it",
         device.ordinal, device.name.c_str(), what, error_text(error).c_str());
  }
  if (error == kUnavailable) {
    fail(INT8Q_NO_DEVICE,
         "no usable GPU: GPU %d, %s, belongs to another process: %s: %s; end that, or set the compute mode to default by "
         "nvidia-smi -c 0",
         device.ordinal, device.name.c_str(), what, error_text(error).c_str());
  }
  if (error != 0) {
    fail(INT8Q_DEVICE_FAILED,
         "GPU %d, %s, does not start: %s: %s; start this process again, for an error of a kernel lasts as long as it does; "
         "if that does not help, see what dmesg says of NVRM",
         device.ordinal, device.name.c_str(), what, error_text(error).c_str());
  }
}

struct Opened {
  std::mutex mutex;
  std::map<int, std::unique_ptr<Device>> devices;
};
Opened& opened() {
  static Opened& all = *new Opened;  // outlives everything
  return all;
}

}  // namespace

Gpu describe_gpu(int ordinal) {
  const Driver& driver = require_driver();
  const int device = handle_of(driver, ordinal), version = look_for_driver().version;
  char name[256] = "";
  check(driver.cuDeviceGetName(name, sizeof name, device), "cuDeviceGetName");
  const int major = attribute(driver, device, kCapabilityMajor), minor = attribute(driver, device, kCapabilityMinor);
  Gpu gpu{.name = name, .major = major, .minor = minor, .image = image_for(major, minor), .state = "works", .why = ""};
  const std::string who = "GPU " + std::to_string(ordinal) + ", " + gpu.name + ", of compute capability " +
                          std::to_string(major) + "." + std::to_string(minor);
  if (gpu.image == nullptr) {
    gpu.state = "no kernels";
    gpu.why = without_image(who, major, minor);
  } else if (gpu.image->driver > version) {
    gpu.state = "driver too old";
    gpu.why = who + ", runs " + gpu.image->name + ", which takes an NVIDIA driver of CUDA " +
              version_text(gpu.image->driver) + " or later; this one is of CUDA " + version_text(version) + "; update it";
  }
  return gpu;
}

Device& Device::open(int ordinal) {
  const Driver& driver = require_driver();
  const int count = look_for_driver().devices;
  if (ordinal >= count) {
    fail(INT8Q_NO_DEVICE,
         "options->device is %d; expected a GPU's ordinal, 0 to %d, of those that CUDA_VISIBLE_DEVICES leaves", ordinal,
         count - 1);
  }
  const std::lock_guard lock(opened().mutex);
  auto& device = opened().devices[ordinal];
  if (device == nullptr) device = started(driver, ordinal);
  return *device;
}

void Device::try_open(int ordinal) {
  const Driver& driver = require_driver();
  const std::lock_guard lock(opened().mutex);
  if (opened().devices[ordinal] == nullptr) started(driver, ordinal)->close();
}

std::unique_ptr<Device> Device::started(const Driver& driver, int ordinal) {
  std::unique_ptr<Device> device(new Device(driver, ordinal));
  device->start();
  return device;
}

void Device::start() {
  const Gpu gpu = describe_gpu(ordinal);
  if (!gpu.why.empty()) fail(INT8Q_NO_DEVICE, "no usable GPU: %s", gpu.why.c_str());
  name = gpu.name, major = gpu.major, minor = gpu.minor, image = gpu.image;
  const int device = handle_of(driver, ordinal);
  multiprocessors = attribute(driver, device, kMultiprocessors);
  shared_bytes = attribute(driver, device, kSharedBytesOptin);
  reads_pageable_memory = attribute(driver, device, kPageableMemory) != 0;
  shapes = shapes_of(image->tag);
  const RelaxedCapture relaxed(driver);
  check_opening(driver.cuDevicePrimaryCtxRetain(&context, device), *this, "cuDevicePrimaryCtxRetain");
  try {
    load_kernels();
  } catch (...) {
    driver.cuDevicePrimaryCtxRelease(device);
    throw;
  }
}

void Device::expect_reachable(const void* p, const char* argument) const {
  if (p == nullptr) return;
  const auto knows = [&](PointerAttribute attribute, int& value) {
    return driver.cuPointerGetAttribute(&value, attribute, reinterpret_cast<DevicePointer>(p)) == 0;
  };
  int type = 0, owner = ordinal, managed = 0;
  if (!knows(kMemoryType, type)) {
    if (reads_pageable_memory) return;
    fail(INT8Q_INVALID_ARGUMENT,
         "%s is %p, which is no memory that CUDA knows; the context's is of GPU %d, %s: expected memory of that; "
         "copy it there by cudaMemcpy, or take a CPU context",
         argument, p, ordinal, name.c_str());
  }
  if (type != static_cast<int>(Copy2D::kDevice) || !knows(kDeviceOrdinal, owner) || owner == ordinal)
    return;  // any GPU reads the host's
  if (knows(kIsManaged, managed) && managed != 0) return;
  fail(INT8Q_INVALID_ARGUMENT,
       "%s is %p, memory of GPU %d; the context's is of GPU %d, %s: expected memory of that; copy it there by "
       "cudaMemcpyPeer, or take a context of GPU %d",
       argument, p, owner, ordinal, name.c_str(), owner);
}

void Device::expect_shared(int bytes) const {
  if (bytes >= 0 && bytes <= shared_bytes) return;
  fail(INT8Q_SIZE_OVERFLOW,
       "a row is too long for GPU %d, %s: it takes more than its %d bytes of shared memory; pass fewer columns", ordinal,
       name.c_str(), shared_bytes);
}

void Device::close() {
  const RelaxedCapture relaxed(driver);
  {
    const Current current(*this);
    cublaslt.reset();
    driver.cuModuleUnload(module_);
  }
  driver.cuDevicePrimaryCtxRelease(handle_of(driver, ordinal));
}

// With their limits, so that no launch has to load or set anything: it may be captured.
void Device::load_kernels() {
  const Current current(*this);
  const int error = driver.cuModuleLoadData(&module_, image->data);
  if (const std::string remedy = remedy_of(error, *image); !remedy.empty()) {
    fail(INT8Q_NO_DEVICE, "no usable GPU: GPU %d, %s, does not take the kernels for %s: %s; %s", ordinal, name.c_str(),
         image->name, error_text(error).c_str(), remedy.c_str());
  }
  check_opening(error, *this, "cuModuleLoadData");
  try {
    find_kernels();
    cublaslt = CublasLt::open();
  } catch (...) {
    driver.cuModuleUnload(module_);
    throw;
  }
}

void Device::find_kernels() {
  // Blocks that bring tiles to shared memory, as many an SM as it has room for, and leave little to a cache.
  constexpr bool kTiled = true;
  const auto load = [&](const std::string& kernel, bool tiled = false) {
    Function function;
    const std::string full_name = kernel + "_" + image->suffix;
    check(driver.cuModuleGetFunction(&function, module_, full_name.c_str()), full_name.c_str());
    check(driver.cuFuncSetAttribute(function, kFunctionSharedBytes, shared_bytes), full_name.c_str());
    if (tiled) check(driver.cuFuncSetAttribute(function, kFunctionCarveout, 100), full_name.c_str());
    return function;
  };
  const auto load_both = [&](const std::string& kernel, bool tiled = false) {
    return std::array<Function, 2>{load(kernel + "_unaligned", tiled), load(kernel, tiled)};
  };
  const char* const dtypes[] = {"f32", "f16", "bf16"};
  for (size_t d = 0; d < 3; ++d) kernels.quantize_rows[d] = load_both(std::string("quantize_rows_") + dtypes[d]);
  kernels.gemm = load_both("gemm_s8", kTiled);
  kernels.finish = load("finish_s8", kTiled);
  kernels.gemm_small = load("gemm_small_s8", kTiled);
  for (size_t i = 0; 8 << i <= shapes.skinny_rows; ++i) {
    kernels.skinny[i] = load_both("skinny_s8_" + std::to_string(8 << i));
    kernels.skinny_fused[i] = load("skinny_fused_" + std::to_string(8 << i));
  }
  const auto load_float_products = [&](gpu::Multiply how, const std::string& product) {
    const auto i = static_cast<size_t>(how);
    kernels.backward[i] = load_both("backward_" + product, kTiled);
    kernels.w8a16_few[i] = load_both("w8a16_skinny_" + product + "_16");
    kernels.w8a16[i] = load_both("w8a16_" + product, kTiled);
    if (how == gpu::Multiply::kF32) return;
    kernels.w8a16_skinny[i] = load_both("w8a16_skinny_" + product + "_48");
    kernels.w8a16_small[i] = load("w8a16_small_" + product, kTiled);
  };
  const auto load_wgmma = [&](gpu::Multiply how, const std::string& product) {
    for (size_t i = 0; i < 3; ++i) {
      const std::string end = product + "_" + std::to_string(64 << i);
      kernels.w8a16_wgmma[static_cast<size_t>(how)][i] = load("w8a16_wgmma_" + end, kTiled);
      kernels.backward_wgmma[static_cast<size_t>(how)][i] = load("backward_wgmma_" + end, kTiled);
    }
  };
  if (has_wgmma()) {
    kernels.gemm_wgmma = {load("gemm_wgmma_s8_128", kTiled), load("gemm_wgmma_s8_256", kTiled)};
    load_wgmma(gpu::Multiply::kF16, "f16");
    load_wgmma(gpu::Multiply::kBf16, "bf16");
  }
  if (image->tag >= 75) load_float_products(gpu::Multiply::kF16, "f16");
  if (image->tag >= 80) {
    load_float_products(gpu::Multiply::kBf16, "bf16");
  } else {
    load_float_products(gpu::Multiply::kF32, "f32");
  }
  kernels.finish_columns = load("finish_columns");
  kernels.list_columns = load("list_columns");
  kernels.copy_codes = load("copy_codes");
  kernels.dequantize_rows = load("dequantize_rows");
  kernels.dequantize_accumulators = load("dequantize_accumulators");
  kernels.count_outliers = load("count_outliers");
}

namespace {

// Some thread may capture meanwhile, which allocating does not disturb: the memory is there at once. The thread's mode before.
int enter(void* opaque) {
  const auto& device = *static_cast<Device*>(opaque);
  check(require_driver().cuCtxPushCurrent(device.context), "cuCtxPushCurrent");
  int mode = kRelaxed;
  device.driver.cuThreadExchangeStreamCaptureMode(&mode);
  return mode;
}
void leave(void* opaque, int mode) {
  const auto& device = *static_cast<Device*>(opaque);
  device.driver.cuThreadExchangeStreamCaptureMode(&mode);
  DriverContext popped;
  device.driver.cuCtxPopCurrent(&popped);
}

void* allocate(void* opaque, uint64_t bytes, uint64_t) {
  DevicePointer memory = 0;
  const int error = static_cast<Device*>(opaque)->driver.cuMemAlloc(&memory, bytes);
  if (error == kOutOfMemory) return nullptr;
  check(error, "cuMemAlloc");
  return reinterpret_cast<void*>(memory);
}
void deallocate(void* opaque, void* memory, uint64_t) {
  static_cast<Device*>(opaque)->driver.cuMemFree(reinterpret_cast<DevicePointer>(memory));
}

}  // namespace

Allocator Device::allocator(const int8q_allocator* theirs) {
  const int8q_allocator own{
      .size = sizeof(int8q_allocator), .reserved = 0, .opaque = this, .allocate = allocate, .deallocate = deallocate};
  return Allocator(theirs != nullptr ? *theirs : own, {.opaque = this, .enter = enter, .leave = leave});
}

void Queue::launch_with(Function function, int64_t blocks, int threads, int shared_bytes, void** parameters) {
  if (blocks > kMostBlocks) {
    fail(INT8Q_SIZE_OVERFLOW, "the result takes %lld blocks of a GPU; expected at most 2^31 - 1; pass fewer rows",
         static_cast<long long>(blocks));
  }
  device.expect_shared(shared_bytes);
  check(device.driver.cuLaunchKernel(function, static_cast<unsigned>(blocks), 1, 1, static_cast<unsigned>(threads), 1, 1,
                                     static_cast<unsigned>(shared_bytes), stream, parameters, nullptr),
        "cuLaunchKernel");
  count_launch();
}

void Queue::count_launch() { std::atomic_ref(launches).fetch_add(1, std::memory_order_relaxed); }

void Queue::upload(void* to, const void* from, int64_t bytes) {
  if (bytes == 0) return;
  check(device.driver.cuMemcpyHtoDAsync(reinterpret_cast<DevicePointer>(to), from, static_cast<size_t>(bytes), stream),
        "cuMemcpyHtoDAsync");
}

void Queue::download(void* to, const void* from, int64_t bytes) {
  if (bytes == 0) return;
  check(device.driver.cuMemcpyDtoHAsync(to, reinterpret_cast<DevicePointer>(from), static_cast<size_t>(bytes), stream),
        "cuMemcpyDtoHAsync");
}

void Queue::copy_rows(void* to, int64_t to_stride, const void* from, int64_t from_stride, int64_t bytes, int64_t rows,
                      bool to_host) {
  if (bytes == 0 || rows == 0) return;
  Copy2D copy{};
  copy.from_type = Copy2D::kDevice;
  copy.from_device = reinterpret_cast<DevicePointer>(from);
  copy.from_pitch = static_cast<size_t>(from_stride);
  copy.to_type = to_host ? Copy2D::kHost : Copy2D::kDevice;
  copy.to_host = to;
  copy.to_device = reinterpret_cast<DevicePointer>(to);
  copy.to_pitch = static_cast<size_t>(to_stride);
  copy.width_bytes = static_cast<size_t>(bytes);
  copy.height = static_cast<size_t>(rows);
  check(device.driver.cuMemcpy2DAsync(&copy, stream), "cuMemcpy2DAsync");
}

void Queue::wait() { check(device.driver.cuStreamSynchronize(stream), "cuStreamSynchronize"); }

}  // namespace int8q::cuda
