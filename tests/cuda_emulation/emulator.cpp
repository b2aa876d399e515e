// SPDX-License-Identifier: Apache-2.0
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <random>

#include "cuda_emulation/engine.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace int8q::emulation {
namespace {

constexpr int kResident = 3;  // blocks at a time
constexpr size_t kStackBytes = size_t{256} << 10;
// Stacks begin this far apart within theirs, so that caches hold the tops of all: pages alike would share few of their sets.
constexpr size_t kStaggerBytes = 17 * 64, kStaggers = 61;
constexpr size_t kSharedAlignment = 128;

// Block `to` knows from its epoch `since` on what block `of` did before its epoch `until`.
struct Told {
  uint32_t of, until, to, since;
};

struct Engine {
  const std::function<void()>* kernel = nullptr;
  int64_t blocks = 0;
  uint32_t launch = 0;
  std::vector<Told> told;                                                          // of this launch
  std::map<const void*, std::vector<std::pair<int64_t, uint32_t>>> announcements;  // word -> blocks, epochs
  Thread* running = nullptr;
  context::fcontext_t scheduler = nullptr;
  const void* scheduler_stack = nullptr;
  size_t scheduler_bytes = 0;
  std::vector<void*> free_stacks;
};

Engine engine;

}  // namespace

Thread& self() {
  if (engine.running == nullptr) throw std::logic_error("device code outside of a launch");
  return *engine.running;
}

As::As(Thread& thread) : before_(engine.running) { engine.running = &thread; }
As::~As() { engine.running = before_; }

std::string describe(const Site& site) {
  const std::string file = site.file_name();
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(site.line());
}

std::string who(const Thread& t) {
  return "thread " + std::to_string(t.index) + " of block " + std::to_string(t.block->index);
}

void fault(FaultKind kind, const std::string& what, const Site& site) {
  throw Fault(kind, describe(site) + ": " + who(self()) + " " + what);
}

Moment now() {
  const Thread& t = self();
  return {engine.launch, static_cast<uint32_t>(t.block->index), static_cast<uint32_t>(t.index), t.block->epoch,
          t.block->warps[static_cast<size_t>(t.warp())].epoch};
}

// ---------------------------------------------------------------------------------------------------- Fibers

namespace {

void* take_stack() {
  if (!engine.free_stacks.empty()) {
    void* stack = engine.free_stacks.back();
    engine.free_stacks.pop_back();
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(stack, kStackBytes);  // a fiber that a fault cut off left its frames there
#endif
    return stack;
  }
  void* stack = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stack == MAP_FAILED) throw std::bad_alloc();
  return stack;
}

// ASan must know which stack is in use.
void leave_for([[maybe_unused]] void** fake, [[maybe_unused]] const void* bottom, [[maybe_unused]] size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(fake, bottom, bytes);
#endif
}
void arrive([[maybe_unused]] void* fake, [[maybe_unused]] const void** bottom, [[maybe_unused]] size_t* bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, bottom, bytes);
#endif
}

}  // namespace

void yield() {
  Thread& t = self();
  void* fake = nullptr;
  leave_for(t.waiting == Waiting::kDone ? nullptr : &fake, engine.scheduler_stack, engine.scheduler_bytes);
  const context::transfer_t back = context::jump_fcontext(engine.scheduler, nullptr);
  arrive(fake, &engine.scheduler_stack, &engine.scheduler_bytes);
  engine.scheduler = back.fctx;
}

namespace {

void fiber_main(context::transfer_t from) {
  arrive(nullptr, &engine.scheduler_stack, &engine.scheduler_bytes);
  engine.scheduler = from.fctx;
  Thread& t = self();
  try {
    (*engine.kernel)();
    if (!t.open.empty() || !t.groups.empty() || t.products_on_their_way() > 0) {
      fault(FaultKind::kUnfinished, "leaves with copies or products on their way", Site::current());
    }
  } catch (...) {
    t.error = std::current_exception();
  }
  t.waiting = Waiting::kDone;
  ++t.block->done;
  yield();
}

void resume(Thread& t) {
  engine.running = &t;
  if (t.fiber == nullptr) {
    t.stack = take_stack();
    const size_t bytes = kStackBytes - static_cast<size_t>(t.index) % kStaggers * kStaggerBytes;
    t.fiber = context::make_fcontext(static_cast<uint8_t*>(t.stack) + bytes, bytes, fiber_main);
  }
  void* fake = nullptr;
  leave_for(&fake, t.stack, kStackBytes);
  const context::transfer_t back = context::jump_fcontext(t.fiber, nullptr);
  arrive(fake, nullptr, nullptr);
  t.fiber = back.fctx;
  engine.running = nullptr;
  if (t.error) std::rethrow_exception(t.error);
}

void release_stacks(Block& block) {
  for (Thread& t : block.threads) {
    if (t.stack != nullptr) engine.free_stacks.push_back(t.stack);
    t.stack = nullptr;
  }
}

std::unique_ptr<Block> make_block(int64_t index, const LaunchShape& shape) {
  auto block = std::make_unique<Block>();
  block->index = index;
  block->threads.resize(static_cast<size_t>(shape.threads));
  for (int t = 0; t < shape.threads; ++t) {
    block->threads[static_cast<size_t>(t)].block = block.get();
    block->threads[static_cast<size_t>(t)].index = t;
  }
  block->staying = shape.threads;
  block->random.seed(shape.seed);
  if (shape.seed % 2 == 1)
    block->slow_warp = static_cast<int>(block->random() % static_cast<uint64_t>(shape.threads / kWarp));
  block->warps.resize(static_cast<size_t>(shape.threads / kWarp));
  block->warpgroups.resize(static_cast<size_t>((shape.threads + kWarpgroup - 1) / kWarpgroup));
  block->storage = AlignedBytes(shape.shared_bytes, kSharedAlignment);
  block->shared = std::make_unique<Memory>(block->storage.get(), shape.shared_bytes, "shared memory");
  return block;
}

// Nobody in the block can go on.
void explain_deadlock(const Block& block) {
  const Thread* stuck = nullptr;
  for (const Thread& t : block.threads) {
    if (t.waiting == Waiting::kMbarrier) explain_mbarrier(t);
    if (stuck == nullptr && t.waiting != Waiting::kDone) stuck = &t;
  }
  const Warp& warp = block.warps[static_cast<size_t>(stuck->warp())];
  const Warpgroup& group = block.warpgroups[static_cast<size_t>(stuck->index / kWarpgroup)];
  const auto reached = [](int count, int all, const char* what) {
    return std::to_string(count) + " of " + std::to_string(all) + " " + what;
  };
  const auto [name, how_many] = stuck->waiting == Waiting::kBlockBarrier
                                    ? std::pair("a barrier", reached(block.at_barrier, block.staying, "threads"))
                                : stuck->waiting == Waiting::kWarpgroupOperation
                                    ? std::pair(group.name, reached(group.arrived, kWarpgroup, "threads"))
                                    : std::pair(warp.name, reached(warp.arrived, kWarp, "lanes"));
  throw Fault(FaultKind::kDivergence, describe(stuck->site) + ": " + who(*stuck) + " waits at " + name + ", which " +
                                          how_many + " have reached; others wait elsewhere or have left");
}

// One turn of all threads that can run, of the slow warp or of the others; whether there was one.
bool run_turn(Block& block, const std::vector<int>& order, bool slow) {
  bool ran = false;
  for (const int index : order) {
    Thread& t = block.threads[static_cast<size_t>(index)];
    if ((t.warp() == block.slow_warp) != slow) continue;
    if (t.waiting == Waiting::kMbarrier && phase_has_ended(t)) t.waiting = Waiting::kNothing;
    if (t.waiting != Waiting::kNothing) continue;
    resume(t);
    ran = true;
  }
  return ran;
}

}  // namespace

void launch(const LaunchShape& shape, const std::function<void()>& kernel) {
  const auto refuse = [](const std::string& what) { throw Fault(FaultKind::kLimit, what); };
  if (shape.blocks < 1 || shape.blocks > 0x7fffffff)
    refuse(std::to_string(shape.blocks) + " blocks; expected 1 to 2^31 - 1");
  if (shape.threads < kWarp || shape.threads > 1024 || shape.threads % kWarp != 0) {
    refuse(std::to_string(shape.threads) + " threads a block; expected whole warps, at most 1024");
  }
  if (shape.shared_bytes < 0 || shape.shared_bytes > shape.most_shared_bytes) {
    refuse(std::to_string(shape.shared_bytes) + " bytes of shared memory; expected at most " +
           std::to_string(shape.most_shared_bytes));
  }
  engine.kernel = &kernel;
  engine.blocks = shape.blocks;
  ++engine.launch;
  engine.told.clear();
  engine.announcements.clear();

  std::vector<int64_t> blocks(static_cast<size_t>(shape.blocks));
  std::iota(blocks.begin(), blocks.end(), int64_t{0});
  std::vector<int> order(static_cast<size_t>(shape.threads));
  std::iota(order.begin(), order.end(), 0);
  std::mt19937_64 random(shape.seed);
  if (shape.seed != 0) {
    std::shuffle(blocks.begin(), blocks.end(), random);
    std::shuffle(order.begin(), order.end(), random);
  }
  std::vector<std::unique_ptr<Block>> resident;
  size_t next = 0;
  try {
    while (next < blocks.size() || !resident.empty()) {
      while (resident.size() < kResident && next < blocks.size()) resident.push_back(make_block(blocks[next++], shape));
      for (auto& block : resident) {
        const bool ran = run_turn(*block, order, false) || run_turn(*block, order, true) || deliver_tile(*block);
        if (!ran) explain_deadlock(*block);
        if (block->done == shape.threads) {
          check_tiles_came(*block);
          release_stacks(*block);
          block.reset();
        }
      }
      std::erase(resident, nullptr);
    }
  } catch (...) {
    engine.running = nullptr;
    for (auto& block : resident) {
      if (block) release_stacks(*block);
    }
    throw;
  }
}

// ---------------------------------------------------------------------------------------------------- What device.h calls

int thread_index() { return self().index; }
int block_index() { return static_cast<int>(self().block->index); }
int block_count() { return static_cast<int>(engine.blocks); }
Memory& shared_memory() { return *self().block->shared; }

bool has_been_told(const Moment& other) {
  const Moment mine = now();
  return std::ranges::any_of(engine.told, [&](const Told& t) {
    return t.of == other.block && other.block_epoch < t.until && t.to == mine.block && mine.block_epoch >= t.since;
  });
}

bool has_mbarriers() { return !self().block->mbarriers.empty(); }

bool knows_by_mbarrier(const Moment& then) {
  const std::vector<uint32_t>& told = self().told;
  return !told.empty() && told[then.thread / kWarp] > then.warp_epoch;
}

void device_fence() {
  Thread& t = self();
  t.fenced_at = t.block->epoch;
  for (const auto& [block, epoch] : t.seen) {
    engine.told.push_back({static_cast<uint32_t>(block), epoch, static_cast<uint32_t>(t.block->index), t.block->epoch + 1});
  }
  t.seen.clear();
}

void note_atomic(const void* word) {
  Thread& t = self();
  auto& announced = engine.announcements[word];
  t.seen.insert(t.seen.end(), announced.begin(), announced.end());
  if (t.fenced_at == t.block->epoch) announced.emplace_back(t.block->index, t.block->epoch);
}

namespace {

// If all are there who stay in the block.
bool open_barrier(Block& block) {
  if (block.at_barrier < block.staying) return false;
  block.at_barrier = 0;
  ++block.epoch;
  for (Thread& t : block.threads) {
    if (t.waiting == Waiting::kBlockBarrier) t.waiting = Waiting::kNothing;
    for (const auto& [barrier, phases] : t.ended) block.ended[barrier] = std::max(block.ended[barrier], phases);
    t.ended.clear();
  }
  return true;
}

}  // namespace

void block_barrier(const Site& site) {
  Thread& t = self();
  Block& block = *t.block;
  t.site = site;
  if (block.at_barrier > 0) {
    for (const Thread& other : block.threads) {
      if (other.waiting == Waiting::kBlockBarrier && other.site.line() != site.line()) {
        fault(FaultKind::kDivergence,
              "waits at a barrier while thread " + std::to_string(other.index) + " waits at " + describe(other.site), site);
      }
      if (other.waiting == Waiting::kBlockBarrier) break;
    }
  }
  if (!t.stays) fault(FaultKind::kDivergence, "waits at a barrier after it has left the block", site);
  ++block.at_barrier;
  if (open_barrier(block)) return;
  t.waiting = Waiting::kBlockBarrier;
  yield();
}

void leave_block(const Site& site) {
  warp_operation(
      "leave_block", nullptr, nullptr, [](const void* const*, void* const*) {}, site);
  Thread& t = self();
  t.stays = false;
  --t.block->staying;
  if (t.block->at_barrier > 0) open_barrier(*t.block);
}

void warp_operation(const char* name, const void* input, void* output, WarpCompute compute, const Site& site) {
  Thread& t = self();
  Warp& warp = t.block->warps[static_cast<size_t>(t.warp())];
  t.site = site;
  if (warp.arrived == 0) {
    warp.name = name;
    warp.site = site;
  } else if ((warp.name != name && std::strcmp(warp.name, name) != 0) || warp.site.line() != site.line()) {
    fault(FaultKind::kDivergence,
          std::string("is at ") + name + " while other lanes are at " + warp.name + ", " + describe(warp.site), site);
  }
  warp.inputs[t.index % kWarp] = input;
  warp.outputs[t.index % kWarp] = output;
  if (++warp.arrived < kWarp) {
    t.waiting = Waiting::kWarpOperation;
    return yield();
  }
  warp.arrived = 0;
  if (compute != nullptr) {
    compute(warp.inputs, warp.outputs);
  } else {
    ++warp.epoch;
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    t.block->threads[static_cast<size_t>(t.warp() * kWarp + lane)].waiting = Waiting::kNothing;
  }
}

void warp_barrier(const Site& site) { warp_operation("a warp's barrier", nullptr, nullptr, nullptr, site); }

void copy_async(int64_t shared_at, const void* global, int count, int valid, const Site& site) {
  if (shared_at % count != 0 || reinterpret_cast<uintptr_t>(global) % static_cast<uintptr_t>(count) != 0) {
    fault(FaultKind::kAlignment,
          "copies " + std::to_string(count) + " bytes from or to an address that is no multiple of that", site);
  }
  if (valid < 0 || valid > count) fault(FaultKind::kBounds, "copies " + std::to_string(valid) + " bytes", site);
  shared_memory().begin_copy(shared_at, count, site);
  self().open.push_back({shared_at, global, count, valid, site});
}

void commit_copies() {
  Thread& t = self();
  t.groups.push_back(std::move(t.open));
  t.open.clear();
}

void wait_copies(int groups_left, const Site& site) {
  Thread& t = self();
  while (static_cast<int>(t.groups.size()) > groups_left) {
    for (const AsyncCopy& copy : t.groups.front()) {
      uint8_t bytes[16] = {};
      if (copy.valid > 0) {
        const auto* from = static_cast<const uint8_t*>(copy.from);
        const auto [memory, at] = global_place(from, copy.valid == copy.count ? copy.count : 1, copy.site);
        memory.read(at, bytes, copy.valid, copy.site);
      }
      shared_memory().end_copy(copy.to, bytes, copy.count, site);
    }
    t.groups.pop_front();
  }
}

}  // namespace int8q::emulation
