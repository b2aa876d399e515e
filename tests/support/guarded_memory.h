// SPDX-License-Identifier: Apache-2.0
//
// Memory between two pages that may not be touched: a read or write one byte too far is a crash, a write into the rest of
// the inner pages is found by its canary.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace int8q::test {

// Where bytes lie between the guards. Odd leaves one byte free, Two leaves two: rows of four-byte elements then start at
// 0, 3, 1 and 2 bytes behind an aligned address.
enum class Place { kAtEnd, kAtBegin, kOddEnd, kOddBegin, kTwoEnd };
inline constexpr Place kPlaces[] = {Place::kAtEnd, Place::kAtBegin, Place::kOddEnd, Place::kOddBegin, Place::kTwoEnd};

class GuardedMemory {
 public:
  explicit GuardedMemory(int64_t most_bytes) : page_(sysconf(_SC_PAGESIZE)) {
    inner_ = (most_bytes + 2 + page_ - 1) / page_ * page_;
    void* memory = mmap(nullptr, static_cast<size_t>(inner_ + 2 * page_), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    base_ = static_cast<uint8_t*>(memory);
    if (mprotect(base_ + page_, static_cast<size_t>(inner_), PROT_READ | PROT_WRITE) != 0) std::abort();
  }
  ~GuardedMemory() { munmap(base_, static_cast<size_t>(inner_ + 2 * page_)); }
  GuardedMemory(const GuardedMemory&) = delete;
  GuardedMemory& operator=(const GuardedMemory&) = delete;

  // `bytes` bytes of 0xa5, canaries around them.
  uint8_t* place(int64_t bytes, Place where) {
    std::memset(base_ + page_, kCanary, static_cast<size_t>(inner_));
    const int64_t odd = where == Place::kTwoEnd ? 2 : where == Place::kOddEnd || where == Place::kOddBegin ? 1 : 0;
    const bool at_begin = where == Place::kAtBegin || where == Place::kOddBegin;
    begin_ = base_ + page_ + (at_begin ? odd : inner_ - bytes - odd);
    end_ = begin_ + bytes;
    return begin_;
  }

  // 64-byte aligned workspace of a multiple of 64 bytes that ends at the guard.
  uint8_t* place_aligned(int64_t bytes) { return place((bytes + 63) / 64 * 64, Place::kAtEnd); }

  // Nothing was written between the guards and what place() gave.
  bool intact() const {
    for (const uint8_t* p = base_ + page_; p != base_ + page_ + inner_; ++p) {
      if ((p < begin_ || p >= end_) && *p != kCanary) return false;
    }
    return true;
  }

 private:
  static constexpr uint8_t kCanary = 0xa5;
  int64_t page_, inner_;
  uint8_t* base_ = nullptr;
  uint8_t* begin_ = nullptr;
  uint8_t* end_ = nullptr;
};

}  // namespace int8q::test
