// SPDX-License-Identifier: Apache-2.0
//
// The emulator finds each kind of fault, and none in code that is right.
#include <gtest/gtest.h>

#include "cuda/kernels/ptx.h"
#include "cuda_emulation/faults.h"

namespace int8q::gpu {
namespace {

using emulation::Buffer;
using emulation::launch;

uint32_t word(int i) { return static_cast<uint32_t>(i) * 4; }

TEST(Emulator, EveryThreadOfEveryBlockRuns) {
  for (const uint64_t seed : kSeeds) {
    Buffer<uint32_t> y(7 * 64);
    launch({.blocks = 7, .threads = 64, .seed = seed}, [&] {
      store(y.device() + block_index() * 64 + thread_index(), static_cast<uint32_t>(block_index() * 100 + thread_index()));
    });
    for (int i = 0; i < 7 * 64; ++i) EXPECT_EQ(y[i], static_cast<uint32_t>(i / 64 * 100 + i % 64));
  }
}

TEST(Emulator, Bounds) {
  Buffer<uint32_t> x(std::vector<uint32_t>(32), "x");
  expect_fault(FaultKind::kBounds, {}, [&] { load(x.device() + thread_index() + 1); });
  expect_fault(FaultKind::kBounds, {}, [&] { load(x.device() + thread_index() - 1); });
  expect_fault(FaultKind::kBounds, {}, [&] { store(x.device() + 32 + thread_index(), 1u); });
  expect_fault(FaultKind::kBounds, {.shared_bytes = 124}, [&] { store_shared(word(thread_index()), 1u); });
  expect_none({}, [&] { load(x.device() + thread_index()); });
  expect_none({.shared_bytes = 128}, [&] { store_shared(word(thread_index()), 1u); });
}

TEST(Emulator, Alignment) {
  Buffer<uint32_t> x(std::vector<uint32_t>(64), "x");
  expect_fault(FaultKind::kAlignment, {}, [&] { load(reinterpret_cast<const U32x2*>(x.device() + thread_index())); });
  expect_fault(FaultKind::kAlignment, {.shared_bytes = 256}, [&] { store_shared(word(1), U32x4{}); });
  expect_fault(FaultKind::kAlignment, {.shared_bytes = 256}, [&] {
    ptx::copy_async(0, x.device() + 1, 16);
    ptx::commit_copies();
  });
  expect_none({}, [&] { load(reinterpret_cast<const U32x2*>(x.device() + thread_index() * 2)); });
}

TEST(Emulator, Uninitialized) {
  Buffer<uint32_t> x(32);
  expect_fault(FaultKind::kUninitialized, {}, [&] { load(x.device() + thread_index()); });
  expect_fault(FaultKind::kUninitialized, {.shared_bytes = 128}, [] { load_shared<uint32_t>(word(thread_index())); });
  launch({}, [&] {
    if (thread_index() != 3) store(x.device() + thread_index(), 1u);
  });
  EXPECT_EQ(x[2], 1u);
  EXPECT_THROW(x[3], Fault);
}

TEST(Emulator, RacesInSharedMemory) {
  const auto exchange = [](int threads, void (*wait)()) {
    return [=] {
      store_shared(word(thread_index()), 0u);
      block_barrier();
      store_shared(word(thread_index()), static_cast<uint32_t>(thread_index()));
      wait();
      load_shared<uint32_t>(word((thread_index() + 1) % threads));
    };
  };
  const auto nothing = [] {};
  const auto block = [] { block_barrier(); };
  const auto warp = [] { warp_barrier(); };
  const auto vote = [] { shuffle_xor(0, 1); };
  expect_fault(FaultKind::kRace, {.threads = 32, .shared_bytes = 128}, exchange(32, vote));
  expect_none({.threads = 32, .shared_bytes = 128}, exchange(32, warp));
  expect_none({.threads = 32, .shared_bytes = 128}, exchange(32, block));
  expect_fault(FaultKind::kRace, {.threads = 64, .shared_bytes = 256}, exchange(64, warp));
  expect_fault(FaultKind::kRace, {.threads = 64, .shared_bytes = 256}, exchange(64, nothing));
  expect_none({.threads = 64, .shared_bytes = 256}, exchange(64, block));

  // Written again while others may still read.
  const auto again = [](bool waits) {
    return [=] {
      store_shared(word(thread_index()), 1u);
      block_barrier();
      load_shared<uint32_t>(word((thread_index() + 33) % 64));
      load_shared<uint32_t>(word((thread_index() + 1) % 64));
      if (waits) block_barrier();
      store_shared(word(thread_index()), 2u);
    };
  };
  expect_fault(FaultKind::kRace, {.threads = 64, .shared_bytes = 256}, again(false));
  expect_none({.threads = 64, .shared_bytes = 256}, again(true));
  // Read by one warp, then by the writer's own.
  expect_fault(FaultKind::kRace, {.threads = 64, .shared_bytes = 256}, [] {
    if (thread_index() == 0) store_shared(0, 1u);
    block_barrier();
    if (thread_index() == 40) load_shared<uint32_t>(0);
    if (warp_index() == 0) {
      load_shared<uint32_t>(0);
      warp_barrier();
    }
    if (thread_index() == 0) store_shared(0, 2u);
  });
  expect_fault(FaultKind::kRace, {.threads = 32, .shared_bytes = 256}, [] { store_shared(0, 1u); });
  expect_none({.threads = 64, .shared_bytes = 4}, [] {
    if (thread_index() == 0) store_shared(0, 0u);
    block_barrier();
    atomic_or_shared(0, 1u << thread_index() % 32);
    block_barrier();
    load_shared<uint32_t>(0);
  });
  expect_fault(FaultKind::kRace, {.threads = 64, .shared_bytes = 4}, [] {
    if (thread_index() == 0) store_shared(0, 0u);
    block_barrier();
    atomic_or_shared(0, 1u);
    load_shared<uint32_t>(0);
  });
}

// They are told apart once they differ, and are one again when they were written together.
TEST(Emulator, BytesOfAWord) {
  const emulation::LaunchShape shape{.threads = 64, .shared_bytes = 4};
  // By one thread of each warp, of a word that both may touch.
  const auto by_both = [](auto body) {
    return [=] {
      if (thread_index() == 0) store_shared(0, 0u);
      block_barrier();
      if (lane_index() == 0) body(static_cast<uint32_t>(warp_index()) * 2);
    };
  };
  expect_none(shape, by_both([](uint32_t own) {
                store_shared(own, uint8_t{1});
                load_shared<uint16_t>(own);
              }));
  expect_fault(FaultKind::kRace, shape, by_both([](uint32_t own) {
                 store_shared(own, uint8_t{1});
                 load_shared<uint16_t>(own ^ 2);
               }));
  expect_fault(FaultKind::kRace, shape, by_both([](uint32_t own) {
                 if (own == 0) load_shared<uint32_t>(0);
                 if (own != 0) store_shared(3, uint8_t{1});
               }));
  expect_fault(FaultKind::kRace, shape, by_both([](uint32_t own) {
                 if (own == 0) load_shared<uint8_t>(3);
                 if (own != 0) store_shared(0, 1u);
               }));
  expect_fault(FaultKind::kUninitialized, shape, [] {
    if (thread_index() != 0) return;
    store_shared(0, uint16_t{1});
    load_shared<uint32_t>(0);
  });
  const auto together = [](bool waits) {
    return [=] {
      if (lane_index() == 0) store_shared(static_cast<uint32_t>(warp_index()) * 2, uint16_t{1});
      block_barrier();
      if (thread_index() == 0) store_shared(0, 1u);
      if (waits) block_barrier();
      if (thread_index() == 32) load_shared<uint8_t>(3);
    };
  };
  expect_none(shape, together(true));
  expect_fault(FaultKind::kRace, shape, together(false));
}

TEST(Emulator, RacesInGlobalMemory) {
  Buffer<uint32_t> x(std::vector<uint32_t>(64), "x");
  expect_fault(FaultKind::kRace, {.blocks = 2}, [&] { store(x.device() + thread_index(), 1u); });
  expect_fault(FaultKind::kRace, {.blocks = 2}, [&] {
    if (block_index() == 0) store(x.device(), 1u);
    if (block_index() == 1) load(x.device());
  });
  expect_none({.blocks = 2}, [&] { load(x.device() + thread_index()); });
  expect_none({.blocks = 2}, [&] { store(x.device() + block_index() * 32 + thread_index(), 1u); });
}

// The last block to come reads what all wrote: each step of that is needed.
TEST(Emulator, BlocksTellEachOther) {
  enum Step { kNone, kBarrierBefore, kFenceBefore, kFenceBehind, kOneWord };
  for (const Step without : {kNone, kBarrierBefore, kFenceBefore, kFenceBehind, kOneWord}) {
    for (uint64_t seed = 0; seed < 4; ++seed) {
      Buffer<uint32_t> x(3 * 64, "x"), counters(std::vector<uint32_t>(3), "counters");
      const auto kernel = [&] {
        store(x.device() + block_index() * 64 + thread_index(), 1u);
        if (without != kBarrierBefore) block_barrier();
        if (thread_index() == 0) {
          if (without != kFenceBefore) device_fence();
          const uint32_t before = atomic_add(counters.device() + (without == kOneWord ? block_index() : 0), 1u);
          if (without != kFenceBehind) device_fence();
          store_shared(0, before);
        }
        block_barrier();
        if (load_shared<uint32_t>(0) != 2 && without != kOneWord) return;
        for (int i = 0; i < 3 * 64; i += 64) load(x.device() + i + (thread_index() + 33) % 64);
      };
      const emulation::LaunchShape shape{.blocks = 3, .threads = 64, .shared_bytes = 4, .seed = seed};
      if (without == kNone) {
        EXPECT_NO_THROW(emulation::launch(shape, kernel)) << "seed " << seed;
      } else {
        EXPECT_THROW(emulation::launch(shape, kernel), Fault) << "without " << without << ", seed " << seed;
      }
    }
  }
}

TEST(Emulator, MissingWaits) {
  Buffer<uint32_t> x(std::vector<uint32_t>(128, 7), "x");
  const auto bring = [&] {
    ptx::copy_async(static_cast<uint32_t>(thread_index()) * 16, x.device() + thread_index() * 4, 16);
    ptx::commit_copies();
  };
  const auto own = [] { return static_cast<uint32_t>(thread_index()) * 16; };
  const emulation::LaunchShape shape{.shared_bytes = 512};
  expect_fault(FaultKind::kMissingWait, shape, [&] {
    bring();
    load_shared<uint32_t>(own());
  });
  expect_fault(FaultKind::kMissingWait, shape, [&] {
    bring();
    ptx::wait_copies<1>();
    load_shared<uint32_t>(own());
  });
  expect_fault(FaultKind::kMissingWait, shape, [&] {
    bring();
    store_shared(own(), 1u);
  });
  // Who copied may read; others only behind a barrier.
  expect_none(shape, [&] {
    bring();
    ptx::wait_copies<0>();
    if (load_shared<uint32_t>(own()) != 7) throw std::runtime_error("other bytes came");
  });
  expect_fault(FaultKind::kRace, {.threads = 32, .shared_bytes = 512}, [&] {
    bring();
    ptx::wait_copies<0>();
    shuffle_xor(0, 1);
    load_shared<uint32_t>(own() ^ 16);
  });
  expect_fault(FaultKind::kUnfinished, shape, bring);
  expect_none(shape, [&] {
    ptx::copy_async(own(), x.device() + thread_index() * 4, 4);  // the others are zero
    ptx::commit_copies();
    ptx::wait_copies<0>();
    if (load_shared<uint32_t>(own() + 12) != 0) throw std::runtime_error("no zeros");
  });
}

TEST(Emulator, Divergence) {
  expect_fault(FaultKind::kDivergence, {.threads = 64}, [] {
    if (thread_index() < 40) block_barrier();
  });
  expect_fault(FaultKind::kDivergence, {.threads = 64}, [] {
    if (warp_index() == 0) {  // NOLINT(bugprone-branch-clone): each a barrier of its own
      block_barrier();
    } else {
      block_barrier();
    }
  });
  expect_fault(FaultKind::kDivergence, {.threads = 32}, [] {
    if (thread_index() != 5) shuffle_xor(0, 1);
  });
  expect_fault(FaultKind::kDivergence, {.threads = 32}, [] {
    if (thread_index() < 16) {
      shuffle_xor(0, 1);
    } else {
      warp_barrier();
    }
  });
  expect_none({.threads = 64}, [] {
    if (warp_index() == 0) shuffle_xor(0, 1);
    block_barrier();
  });
}

TEST(Emulator, Limits) {
  const auto nothing = [] {};
  expect_fault(FaultKind::kLimit, {.threads = 33}, nothing);
  expect_fault(FaultKind::kLimit, {.threads = 1056}, nothing);
  expect_fault(FaultKind::kLimit, {.blocks = 0}, nothing);
  expect_fault(FaultKind::kLimit, {.shared_bytes = Sm75::kSharedBytes + 1, .most_shared_bytes = Sm75::kSharedBytes},
               nothing);
  expect_none({.threads = 1024, .shared_bytes = Sm75::kSharedBytes, .most_shared_bytes = Sm75::kSharedBytes}, nothing);
}

TEST(Emulator, ShufflesMoveWhatTheySay) {
  launch({}, [] {
    const auto lane = static_cast<uint32_t>(lane_index());
    const uint32_t from = shuffle_xor(lane, 5), below = shuffle_up(lane, 3), third = shuffle(lane, 3);
    if (from != (lane ^ 5) || below != (lane < 3 ? lane : lane - 3) || third != 3) throw std::runtime_error("wrong lane");
  });
}

}  // namespace
}  // namespace int8q::gpu
