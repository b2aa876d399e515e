// SPDX-License-Identifier: Apache-2.0
//
// The caller's or the system's allocator, buffers over it, and the carving of one block into aligned arrays.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <utility>

#include "core/error.h"
#include "core/math.h"

namespace int8q {

inline constexpr int64_t kAlignment = 64;

// aligned_alloc, with huge pages for large blocks where the system has them; NULL where memory ends.
void* system_allocate(uint64_t bytes);

// What is to be the case while an allocator is called: of a GPU's, that its device is current. enter throws an Error where it
// cannot be; what it returns leave gets. Calls may nest: an allocator is free to call the library.
struct AllocatorScope {
  void* opaque = nullptr;
  int (*enter)(void* opaque) = nullptr;
  void (*leave)(void* opaque, int before) = nullptr;
};

class Allocator {
 public:
  Allocator() = default;  // aligned_alloc and free
  explicit Allocator(const int8q_allocator& callers, const AllocatorScope& scope = {}) : callers_(callers), scope_(scope) {}

  // 64-byte aligned; OUT_OF_MEMORY otherwise.
  void* allocate(uint64_t bytes, const char* what) const {
    const Entered entered(scope_);
    void* memory =
        callers_.allocate != nullptr ? callers_.allocate(callers_.opaque, bytes, kAlignment) : system_allocate(bytes);
    if (memory == nullptr) {
      fail(INT8Q_OUT_OF_MEMORY, "%s: allocating %llu bytes failed; free memory or pass smaller sizes", what,
           static_cast<unsigned long long>(bytes));
    }
    if (reinterpret_cast<uintptr_t>(memory) % kAlignment != 0) {
      callers_.deallocate(callers_.opaque, memory, bytes);
      fail(INT8Q_OUT_OF_MEMORY,
           "%s: allocating %llu bytes, options->allocator->allocate returned %p; expected a multiple of 64, its argument "
           "`alignment`",
           what, static_cast<unsigned long long>(bytes), memory);
    }
    return memory;
  }

  // Of a GPU that cannot be reached any more, after a fork or its driver's end, memory has gone with it.
  void deallocate(void* memory, uint64_t bytes) const noexcept {
    if (memory == nullptr) return;
    try {
      const Entered entered(scope_);
      callers_.allocate != nullptr ? callers_.deallocate(callers_.opaque, memory, bytes) : std::free(memory);
    } catch (const Error&) {
    }
  }

 private:
  class Entered {
   public:
    explicit Entered(const AllocatorScope& scope) : scope_(scope) {
      if (scope_.enter != nullptr) before_ = scope_.enter(scope_.opaque);
    }
    ~Entered() {
      if (scope_.leave != nullptr) scope_.leave(scope_.opaque, before_);
    }
    Entered(const Entered&) = delete;
    Entered& operator=(const Entered&) = delete;

   private:
    const AllocatorScope& scope_;
    int before_ = 0;
  };

  int8q_allocator callers_{};
  AllocatorScope scope_{};
};

// A block that grows by replacement and is freed with its owner.
class Buffer {
 public:
  explicit Buffer(const Allocator& allocator) : allocator_(allocator) {}
  ~Buffer() { allocator_.deallocate(memory_, bytes_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  void* reserve(uint64_t bytes) {
    if (bytes > bytes_) {
      // Freed first: the old and the new are never held at once. Forgotten before that: a fork may come in between.
      void* old = std::exchange(memory_, nullptr);
      allocator_.deallocate(old, std::exchange(bytes_, 0));
      memory_ = allocator_.allocate(bytes, "scratch memory");
      bytes_ = bytes;
    }
    return memory_;
  }

 private:
  Allocator allocator_;
  void* memory_ = nullptr;
  uint64_t bytes_ = 0;
};

// Carves consecutive 64-byte aligned arrays out of one block. With a null base it only adds up the bytes, so that one
// function states a layout for both the query and the use.
class Carver {
 public:
  explicit Carver(void* base) : base_(static_cast<char*>(base)) {}

  template <class T>
  T* take(int64_t count, const char* what) {
    const int64_t bytes = checked_mul(count, static_cast<int64_t>(sizeof(T)), what);
    T* array = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ = checked_add(used_, round_up(checked_add(bytes, kAlignment, what) - kAlignment, kAlignment), what);
    return array;
  }

  int64_t used() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

}  // namespace int8q
