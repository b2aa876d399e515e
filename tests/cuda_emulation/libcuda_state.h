// SPDX-License-Identifier: Apache-2.0
//
// What the driver without a GPU (libcuda.cpp) keeps: what it plays, its GPUs' memory, functions, streams and graphs, each of one
// GPU's context, and whether a call may go on.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "cuda_emulation/emulator.h"
#include "cuda_emulation/entries.h"
#include "cuda_emulation/reach.h"

namespace int8q::emulation {
enum Error {
  kSuccess = 0,
  kInvalidValue = 1,
  kOutOfMemory = 2,
  kNotInitialized = 3,
  kNoDevice = 100,
  kInvalidDevice = 101,
  kInvalidImage = 200,
  kInvalidContext = 201,
  kNoBinary = 209,
  kUnsupportedPtx = 222,
  kInvalidHandle = 400,
  kNotFound = 500,
  kIllegalAddress = 700,
  kLaunchOutOfResources = 701,
  kDriverMismatch = 803,
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

// `context`, here and below: the Gpu whose it is.
struct FakeModule {
  const void* context;
};

struct Kernel {
  const void* context;
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

// Between host and device, on the host's side: what was there when it was called for, or what comes there when somebody waits.
struct HostCopy {
  void* host;
  std::vector<uint8_t> bytes;
  bool to_host;
};

struct FakeStream {
  const void* context = nullptr;
  std::unique_ptr<Graph> capturing;
  std::vector<HostCopy> copies;
};

struct Allocation {
  const void* context;
  std::unique_ptr<Buffer<uint8_t>> buffer;
};

struct State {
  std::mutex mutex;
  std::map<std::string, int64_t> calls;  // of functions, and launches of kernels that were loaded
  bool initialized = false;
  std::vector<Gpu> gpus;
  std::map<uint64_t, Allocation> memory;
  FakeStream default_stream;
  std::vector<std::unique_ptr<FakeStream>> streams;  // as long as the process, and so are graphs
  std::vector<std::unique_ptr<Graph>> graphs;
  int64_t captures = 0;
  int error = kSuccess;  // sticky
  uint64_t seed = 0;
};

inline State& state() {
  static State& all = *new State;
  return all;
}

constexpr int kRelaxed = 2;
inline thread_local std::vector<void*> current;  // contexts
inline thread_local int capture_mode = 0;

inline const char* environment(const char* name, const char* otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr ? otherwise : value;
}

inline std::vector<Gpu> played_gpus() {
  std::vector<Gpu> gpus;
  std::istringstream list(environment("INT8Q_STUB_GPUS", "8.0"));
  for (std::string one; std::getline(list, one, ',');)
    gpus.push_back({std::stoi(one), std::stoi(one.substr(one.find('.') + 1))});
  return gpus;
}

// What INT8Q_STUB_FAULT has to do with this function.
inline int played_fault(const char* name) {
  const std::string fault = environment("INT8Q_STUB_FAULT", "");
  const size_t end = fault.find('=');
  if (fault.substr(0, end) != name) return kSuccess;
  if (end != std::string::npos) return std::stoi(fault.substr(end + 1));
  return std::strcmp(name, "cuMemAlloc_v2") == 0 ? kOutOfMemory : kIllegalAddress;
}

// Counts the call, and tells whether it may go on.
enum Needs { kNothing, kInit, kContext, kSafe, kNoCapture };  // kSafe: what a thread must not do while anybody captures
inline int enter(const char* name, Needs needs) {
  State& s = state();
  ++s.calls[name];
  if (const int fault = played_fault(name); fault != kSuccess) return fault;
  if (needs >= kInit && !s.initialized) return kNotInitialized;
  if (s.error != kSuccess) return s.error;
  if (needs >= kContext && current.empty()) return kInvalidContext;
  if (s.captures > 0 && (needs == kNoCapture || (needs == kSafe && capture_mode != kRelaxed))) return kCaptureUnsupported;
  return kSuccess;
}

#define ENTER(needs)                         \
  const std::lock_guard lock(state().mutex); \
  if (const int refused = enter(__func__, needs); refused != kSuccess) return refused

// Of another context than the current one. NULL, the default stream, is everybody's.
template <class T>
bool is_foreign(const T* thing) {
  return thing != nullptr && thing->context != current.back();
}

inline FakeStream& stream_of(void* stream) {
  return stream == nullptr ? state().default_stream : *static_cast<FakeStream*>(stream);
}

// What holds [at, at + bytes), or NULL.
inline Allocation* allocation_of(uint64_t at, size_t bytes) {
  auto& memory = state().memory;
  auto after = memory.upper_bound(at);
  if (after == memory.begin()) return nullptr;
  auto& [begin, allocation] = *std::prev(after);
  return at + bytes <= begin + static_cast<uint64_t>(allocation.buffer->count()) ? &allocation : nullptr;
}

// The current context's buffer that holds [at, at + bytes), or NULL. A driver with one address space would take another's.
inline Buffer<uint8_t>* buffer_of(uint64_t at, size_t bytes) {
  const Allocation* allocation = allocation_of(at, bytes);
  return allocation == nullptr || is_foreign(allocation) ? nullptr : allocation->buffer.get();
}

// From device memory or, of the host, from what stays as it is until somebody waits for the stream.
inline bool copy_in(uint64_t to, const void* from, size_t bytes, FakeStream* host_of) {
  Buffer<uint8_t>* buffer = buffer_of(to, bytes);
  if (buffer == nullptr) return false;
  const auto* values = static_cast<const uint8_t*>(from);
  buffer->put(static_cast<int64_t>(to - reinterpret_cast<uint64_t>(buffer->device())), values, static_cast<int64_t>(bytes));
  if (host_of != nullptr && bytes > 0)
    host_of->copies.push_back({const_cast<void*>(from), {values, values + bytes}, false});
  return true;
}

// What no kernel wrote stays as allocation left it. It is there when somebody has waited for the stream.
inline bool copy_out(void* to, uint64_t from, size_t bytes, FakeStream& stream) {
  if (buffer_of(from, bytes) == nullptr) return false;
  if (bytes == 0) return true;
  const auto* values = reinterpret_cast<const uint8_t*>(from);
  stream.copies.push_back({to, {values, values + bytes}, true});
  std::memset(to, 0x5a, bytes);
  return true;
}

inline int finish_copies(FakeStream& stream) {
  for (const HostCopy& copy : std::exchange(stream.copies, {})) {
    if (copy.to_host) {
      std::memcpy(copy.host, copy.bytes.data(), copy.bytes.size());
    } else if (std::memcmp(copy.host, copy.bytes.data(), copy.bytes.size()) != 0) {
      std::fprintf(stderr, "libcuda stub: host memory was changed before somebody waited for its copy\n");
      return state().error = kIllegalAddress;
    }
  }
  return kSuccess;
}

inline const void* running;  // its context

inline int run(const Work& work) {
  State& s = state();
  running = work.kernel->context;
  if (s.gpus.size() > 1) {
    reaches = [](const void* p) {
      const Allocation* allocation = allocation_of(reinterpret_cast<uint64_t>(p), 1);
      return allocation == nullptr || allocation->context == running;
    };
  }
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
inline std::pair<std::string, int> key_of(const std::string& name) {
  static const std::map<std::string, int> tags = {{"sm70", 70},   {"sm75", 75}, {"sm80", 80},   {"sm86", 86},
                                                  {"sm89", 86},   {"sm90", 90}, {"sm90a", 901}, {"sm100", 90},
                                                  {"sm120", 120}, {"ptx80", 86}};
  const size_t end = name.rfind('_');
  const auto tag = tags.find(name.substr(end + 1));
  return {name.substr(0, end), tag == tags.end() ? 0 : tag->second};
}

}  // namespace int8q::emulation
