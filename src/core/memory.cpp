// SPDX-License-Identifier: Apache-2.0
#include "core/memory.h"

#include <sys/mman.h>
#include <unistd.h>

namespace int8q {
namespace {

// From here on a page fault for every 4 KiB costs more than the packing that causes it, and a TLB miss for every 4 KiB a third
// of the bandwidth with which a product reads.
constexpr int64_t kLeastHuge = 2 << 20;

// Asks for huge pages, of the block's own pages only. Linux is free to refuse, and what it says changes nothing.
void prefer_huge_pages(void* memory, int64_t bytes) {
#if defined(MADV_HUGEPAGE)
  const int64_t page = sysconf(_SC_PAGESIZE), address = reinterpret_cast<int64_t>(memory);
  const int64_t begin = round_up(address, page), end = (address + bytes) / page * page;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), static_cast<size_t>(end - begin), MADV_HUGEPAGE);
#endif
}

}  // namespace

void* system_allocate(uint64_t bytes) {
  if (bytes > INT64_MAX - kAlignment) return nullptr;
  const int64_t whole = round_up(static_cast<int64_t>(bytes), kAlignment);
  void* memory = std::aligned_alloc(kAlignment, static_cast<size_t>(whole));
  if (memory != nullptr && whole >= kLeastHuge) prefer_huge_pages(memory, whole);
  return memory;
}

}  // namespace int8q
