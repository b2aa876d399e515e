// SPDX-License-Identifier: Apache-2.0
//
// A context: a kernel table, threads and an allocator; or a GPU's queue and its memory. Made and destroyed by api/context.cpp.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>

#include "core/memory.h"
#include "core/pool.h"
#include "cpu/kernels.h"
#include "cpu/registry.h"
#include "cuda/device.h"
#include "int8q/int8q.h"

// The ABI's opaque type is the library's own.
struct int8q_context {
  static constexpr uint64_t kMagic = 0x69387143'6f6e7478u;  // "i8qContx"

  uint64_t magic = kMagic;
  const int8q::cpu::Kernels* kernels;
  int8q::Allocator handles;    // host memory
  int8q::Allocator allocator;  // of all else: host memory, or the GPU's
  std::optional<int8q::cuda::Queue> gpu;
  int8q::Pool pool;
  std::atomic<uint64_t> scratch_owner{0};  // 0 free, else 1 + the fork generation of the call that has it
  int8q::Buffer scratch;                   // of the stateless operations and of packing; grows on need

  int8q_context(const int8q::cpu::Kernels& table, const int8q::Allocator& memory, int threads,
                const int8q_parallel_runner* runner)
      : kernels(&table), handles(memory), allocator(memory), pool(memory, threads, runner), scratch(memory) {}
  int8q_context(const int8q::cpu::Kernels& table, const int8q::Allocator& device_memory, const int8q::cuda::Queue& queue)
      : kernels(&table), allocator(device_memory), gpu(queue), pool(handles, 1, nullptr), scratch(device_memory) {}
};

namespace int8q {

using Context = int8q_context;

// Exclusive use of a context's scratch memory for one stateless call; INT8Q_BUSY if another call has it. A lease that a
// fork cut off (its thread does not exist in the child) counts as free.
class ScratchLease {
 public:
  explicit ScratchLease(Context& context) : context_(context) {
    const uint64_t mine = fork_generation() + 1;
    uint64_t owner = context_.scratch_owner.load(std::memory_order_relaxed);
    if (owner == mine || !context_.scratch_owner.compare_exchange_strong(owner, mine, std::memory_order_acquire)) {
      fail(INT8Q_BUSY, "context is inside another call that uses its scratch memory; make one context a thread");
    }
  }
  ~ScratchLease() { context_.scratch_owner.store(0, std::memory_order_release); }
  ScratchLease(const ScratchLease&) = delete;
  ScratchLease& operator=(const ScratchLease&) = delete;

  // At least `bytes` bytes, 64-byte aligned, contents undefined; valid until the next reserve or the lease's end.
  void* reserve(uint64_t bytes) { return context_.scratch.reserve(bytes); }

 private:
  Context& context_;
};

}  // namespace int8q
