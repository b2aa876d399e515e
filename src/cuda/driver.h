// SPDX-License-Identifier: Apache-2.0
//
// The CUDA driver, found by dlopen("libcuda.so.1") on the first use of a GPU. Types and numbers are those of CUDA 12.0's driver
// API, which later drivers keep.
#pragma once

#include <cstdint>
#include <string>

namespace int8q::cuda {

using DevicePointer = uint64_t;  // CUdeviceptr
using DriverContext = void*;     // CUcontext
using Module = void*;            // CUmodule
using Function = void*;          // CUfunction
using Stream = void*;            // CUstream
inline constexpr int kOldestDriver = 12000;

enum Attribute : int {
  kMultiprocessors = 16,
  kPageableMemory = 88,  // whether it reads any memory of the host
  kCapabilityMajor = 75,
  kCapabilityMinor = 76,
  kSharedBytesOptin = 97,
};
// Of cuPointerGetAttribute, which fails where CUDA knows nothing of the memory.
enum PointerAttribute : int { kMemoryType = 2, kIsManaged = 8, kDeviceOrdinal = 9 };
// Of cuFuncSetAttribute: the most dynamic shared memory of a block, and the percentage of an SM's that all shall have.
inline constexpr int kFunctionSharedBytes = 8, kFunctionCarveout = 9;

// Of cuTensorMapEncodeTiled.
enum TensorMapOptions : int {
  kOfBytes = 0,
  kNotInterleaved = 0,
  kSwizzled64 = 2,
  kSwizzled128 = 3,
  kPromotedTo256 = 3,
  kZerosOutside = 0
};

// name, parameters. Each returns a CUresult.
#define INT8Q_DRIVER_FUNCTIONS(F)                                                                               \
  F(cuInit, unsigned flags)                                                                                     \
  F(cuDriverGetVersion, int* version)                                                                           \
  F(cuGetErrorName, int error, const char** name)                                                               \
  F(cuGetErrorString, int error, const char** text)                                                             \
  F(cuDeviceGetCount, int* count)                                                                               \
  F(cuDeviceGet, int* device, int ordinal)                                                                      \
  F(cuDeviceGetName, char* name, int bytes, int device)                                                         \
  F(cuDeviceGetAttribute, int* value, int attribute, int device)                                                \
  F(cuDevicePrimaryCtxRetain, DriverContext* context, int device)                                               \
  F(cuDevicePrimaryCtxRelease, int device)                                                                      \
  F(cuThreadExchangeStreamCaptureMode, int* mode)                                                               \
  F(cuModuleUnload, Module module)                                                                              \
  F(cuCtxPushCurrent, DriverContext context)                                                                    \
  F(cuCtxPopCurrent, DriverContext* context)                                                                    \
  F(cuModuleLoadData, Module* module, const void* image)                                                        \
  F(cuModuleGetFunction, Function* function, Module module, const char* name)                                   \
  F(cuFuncSetAttribute, Function function, int attribute, int value)                                            \
  F(cuLaunchKernel, Function function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,     \
    unsigned block_y, unsigned block_z, unsigned shared_bytes, Stream stream, void** parameters, void** extra)  \
  F(cuTensorMapEncodeTiled, void* map, int type, uint32_t rank, void* matrix, const uint64_t* sizes,            \
    const uint64_t* strides, const uint32_t* box, const uint32_t* element_strides, int interleave, int swizzle, \
    int promotion, int outside)                                                                                 \
  F(cuMemAlloc, DevicePointer* memory, size_t bytes)                                                            \
  F(cuMemFree, DevicePointer memory)                                                                            \
  F(cuMemcpyHtoDAsync, DevicePointer to, const void* from, size_t bytes, Stream stream)                         \
  F(cuMemcpyDtoHAsync, void* to, DevicePointer from, size_t bytes, Stream stream)                               \
  F(cuMemcpy2DAsync, const struct Copy2D* copy, Stream stream)                                                  \
  F(cuStreamSynchronize, Stream stream)                                                                         \
  F(cuPointerGetAttribute, void* value, int attribute, DevicePointer pointer)

// CUDA_MEMCPY2D.
struct Copy2D {
  enum MemoryType : unsigned { kHost = 1, kDevice = 2 };

  size_t from_x, from_y;
  MemoryType from_type;
  const void* from_host;
  DevicePointer from_device;
  void* from_array;
  size_t from_pitch;
  size_t to_x, to_y;
  MemoryType to_type;
  void* to_host;
  DevicePointer to_device;
  void* to_array;
  size_t to_pitch;
  size_t width_bytes, height;
};
static_assert(sizeof(Copy2D) == 128);

struct Driver {
#define INT8Q_DECLARE(name, ...) int (*name)(__VA_ARGS__);
  INT8Q_DRIVER_FUNCTIONS(INT8Q_DECLARE)
#undef INT8Q_DECLARE
};

std::string version_text(int version);  // "12.8" of 12080

// What is there of CUDA. Looked for once a process: later answers are the same.
struct Presence {
  // kNoDriver: there is no libcuda.so.1. kFails: it does not load or start; or it is no driver, as the toolkit's stub.
  enum State { kNoDriver, kDriverTooOld, kFails, kNoGpu, kPresent };

  State state;
  std::string why;  // for people
  int version = 0;  // 12080 is 12.8; 0: not known
  int devices = 0;
  Driver driver{};  // kPresent
};
const Presence& look_for_driver();

// The driver, initialized, with a GPU or more; NO_DEVICE otherwise, and in a process that was forked from one that used it.
const Driver& require_driver();

// The name that the driver has for an error, and what it says of it. The driver is there.
std::string error_text(int error);

// DEVICE_FAILED unless a driver's call succeeded; `what` says which.
void check(int error, const char* what);

}  // namespace int8q::cuda
