// SPDX-License-Identifier: Apache-2.0
//
// Threads and blocks as the emulator's own files see them.
#pragma once

#include <array>
#include <boost/context/detail/fcontext.hpp>
#include <deque>
#include <exception>
#include <map>
#include <random>
#include <utility>

#include "cuda_emulation/emulator.h"

namespace int8q::emulation {

namespace context = boost::context::detail;

inline constexpr int kWarpgroup = 128;

struct AsyncCopy {
  int64_t to;
  const void* from;
  int count, valid;
  Site site;
};

enum class Waiting { kNothing, kBlockBarrier, kWarpOperation, kWarpgroupOperation, kMbarrier, kDone };

// A wgmma: of codes with both operands in shared memory, by their descriptors, or of 16-bit floats with b there alone.
struct Product {
  uint64_t a, b;
  int columns;
  int32_t dtype = 0;  // of a's in registers; 0: of codes
  const uint32_t* registers = nullptr;
  std::array<uint32_t, 4> fragment{};  // what was in them
};

struct Block;

struct Thread {
  Block* block;
  int index;
  Waiting waiting = Waiting::kNothing;
  Site site;
  std::deque<std::vector<AsyncCopy>> groups;  // committed, oldest first
  std::vector<AsyncCopy> open;
  context::fcontext_t fiber = nullptr;
  void* stack = nullptr;
  std::exception_ptr error;
  int64_t fenced_at = -1;                          // its block's epoch at its last fence
  std::vector<std::pair<int64_t, uint32_t>> seen;  // blocks by atomics since, with their epoch when they told
  bool stays = true;                               // in the block

  std::vector<uint32_t> told;  // warp -> its epochs below are over, by mbarriers that this thread waited at

  uint32_t proxy_fences = 0;
  std::map<int64_t, uint32_t>
      ended;             // mbarrier -> its phases that this thread has waited for, since the block's last barrier
  int64_t mbarrier = 0;  // that it waits at
  uint32_t parity = 0;
  std::deque<std::vector<Product>> products;  // committed, oldest first
  std::vector<Product> open_products;
  bool may_multiply = false;  // since its last fence
  void* sums = nullptr;       // of its products on their way, whose values are, of 32 bits each:
  std::vector<uint32_t> values;

  int warp() const { return index / kWarp; }
  size_t products_on_their_way() const {
    size_t count = open_products.size();
    for (const auto& group : products) count += group.size();
    return count;
  }
};

struct Warp {
  uint32_t epoch = 0;
  int arrived = 0;
  const char* name = nullptr;
  Site site;
  const void* inputs[kWarp];
  void* outputs[kWarp];
};

struct Warpgroup {
  int arrived = 0;
  const char* name = nullptr;
  Site site;
};

// Of arrivals and bytes, in shared memory.
struct Mbarrier {
  int arrivals, missing;
  int64_t bytes = 0;  // that are expected
  uint32_t phase = 0;
  Moment made;
  uint32_t proxy_fences;                // of who made it, by then
  std::vector<uint32_t> told, telling;  // as a thread's: by who arrived for phases that ended, for this one
};

// A box of a matrix on its way.
struct TileCopy {
  Thread* by;
  int64_t to, mbarrier;
  const void* map;
  int column, row;
  Site site;
};

struct Block {
  int64_t index;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  AlignedBytes storage{0, 1};
  std::unique_ptr<Memory> shared;
  uint32_t epoch = 0;
  int at_barrier = 0, done = 0, staying = 0;  // threads

  std::vector<Warpgroup> warpgroups;
  std::map<int64_t, Mbarrier> mbarriers;
  std::map<int64_t, uint32_t> ended;  // mbarrier -> phases that somebody had waited for before the block's last barrier
  std::vector<TileCopy> tiles;
  std::mt19937_64 random;  // which of them comes first
  int slow_warp = -1;      // which goes on when nobody else can
};

Thread& self();  // that runs
// Another thread does while it lives, without its fiber.
class As {
 public:
  explicit As(Thread& thread);
  ~As();
  As(const As&) = delete;
  As& operator=(const As&) = delete;

 private:
  Thread* before_;
};
void yield();  // to the scheduler until it resumes this thread
std::string describe(const Site& site);
std::string who(const Thread& t);

// ---- sm90.cpp for the scheduler

bool phase_has_ended(const Thread& waiting);
[[noreturn]] void explain_mbarrier(const Thread& waiting);
// One of the block's tiles comes; whether there was one.
bool deliver_tile(Block& block);
void check_tiles_came(const Block& block);

}  // namespace int8q::emulation
