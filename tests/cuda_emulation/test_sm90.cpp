// SPDX-License-Identifier: Apache-2.0
//
// The emulator finds what is wrong between mbarriers, tiles of the copy engine and wgmma, and nothing in code that is right.
#include <gtest/gtest.h>

#include "cuda/kernels/ptx_sm90.h"
#include "cuda_emulation/faults.h"
#include "support/call.h"

namespace int8q::gpu {
namespace {

using emulation::Buffer;

constexpr int kM = 64, kN = 256, kDepth = 128, kStages = 2, kSteps = 5, kWarpgroup = 128;
constexpr int kStageBytes = (kM + kN) * kDepth, kBarriersAt = kStages * kStageBytes;
constexpr int kRows = 50, kCols = 200, kK = kSteps * kDepth - 60;  // what is beyond them is zero

// What a ring of stages can lack or have wrong.
enum Mistake {
  kNone,
  kNoProxyFence,
  kNoBarrierBehindInit,
  kNoWaitForTile,
  kParityOfTile,
  kNoWaitForStage,
  kParityOfStage,
  kNoExpectedBytes,
  kTooManyBytes,
  kNoArrival,
  kReleasedBeforeRead,
  kNoFence,
  kNoCommit,
  kNoWaitForProducts,
  kUsedBeforeDone,
  kOperandWritten,
  kStageUsedTooEarly,
  kOtherMatrices,
  kUnalignedTile,
  kUnalignedRows,
  kOneWarpAlone,
};

class Ring {
 public:
  Ring() : a_(values(kRows, 1), "a"), b_(values(kCols, 2), "b") {
    EXPECT_EQ(emulation::encode_tensor_map(&map_a_, a_.device(), {kK, kRows}, kStride, {kDepth, kM}), 0);
    EXPECT_EQ(emulation::encode_tensor_map(&map_b_, b_.device(), {kK, kCols}, kStride, {kDepth, kN}), 0);
  }

  // One warpgroup multiplies, a thread of the other brings.
  void run(Mistake mistake) {
    wrong_ = mistake;
    if (thread_index() == 0) init();
    if (wrong_ != kNoBarrierBehindInit) block_barrier();
    if (thread_index() >= kWarpgroup) {
      if (thread_index() == kWarpgroup) bring();
      return leave_block();
    }
    int32_t c[32][4] = {};
    if (wrong_ != kOneWarpAlone || warp_index() == 0) multiply(c);
    if (wrong_ == kStageUsedTooEarly && warp_index() == 0)
      store_shared(kStageBytes + static_cast<uint32_t>(thread_index()) * 4, 0u);
    block_barrier();
    store_shared(static_cast<uint32_t>(thread_index()) * 4, 0u);
    const int row = warp_index() * 16 + lane_index() / 4, col = lane_index() % 4 * 2;
    for (int j = 0; j < 32; ++j) {
      for (int i = 0; i < 4; ++i) {
        if (c[j][i] != product(row + i / 2 * 8, j * 8 + col + i % 2)) throw std::runtime_error("other sums");
      }
    }
  }

 private:
  static constexpr int kStride = (kK + 15) / 16 * 16;

  static std::vector<int8_t> values(int rows, uint64_t seed) {
    test::Random random(seed);
    std::vector<int8_t> all(static_cast<size_t>(rows * kStride));
    for (int8_t& value : all) value = static_cast<int8_t>(random.below(256));
    return all;
  }
  int32_t product(int row, int col) const {
    int32_t sum = 0;
    for (int k = 0; k < kK && row < kRows && col < kCols; ++k) sum += a_[row * kStride + k] * b_[col * kStride + k];
    return sum;
  }

  static uint32_t stage(int step) { return static_cast<uint32_t>(step % kStages * kStageBytes); }
  static uint32_t full(int step) { return static_cast<uint32_t>(kBarriersAt + step % kStages * 8); }
  static uint32_t empty(int step) { return full(step) + kStages * 8; }
  static uint32_t parity(int step) { return static_cast<uint32_t>(step / kStages % 2); }

  void init() const {
    for (int s = 0; s < kStages; ++s) {
      ptx::init_barrier(full(s), 1);
      ptx::init_barrier(empty(s), 4);
    }
    if (wrong_ != kNoProxyFence) ptx::proxy_fence();
  }

  void bring() const {
    for (int step = 0; step < kSteps; ++step) {
      if (step >= kStages && wrong_ != kNoWaitForStage)
        ptx::wait_barrier(empty(step), parity(step - kStages) ^ (wrong_ == kParityOfStage));
      ptx::arrive_and_expect(full(step), wrong_ == kNoExpectedBytes ? 0
                                         : wrong_ == kTooManyBytes  ? kStageBytes + 16
                                                                    : kStageBytes);
      ptx::copy_tile(stage(step) + (wrong_ == kUnalignedTile ? 512 : 0), map_a_, step * kDepth, 0, full(step));
      ptx::copy_tile(stage(step) + kM * kDepth, map_b_, step * kDepth, 0, full(step));
    }
  }

  void multiply(int32_t (&c)[32][4]) const {
    const auto release = [&](int step) {
      if (lane_index() == 0 && wrong_ != kNoArrival) ptx::arrive(empty(step));
    };
    for (int step = 0; step < kSteps; ++step) {
      if (wrong_ != kNoWaitForTile) ptx::wait_barrier(full(step), parity(step) ^ (wrong_ == kParityOfTile));
      if (wrong_ != kNoFence) ptx::fence_products();
      for (uint32_t k = 0; k < kDepth; k += 32) {
        const uint32_t row = wrong_ == kUnalignedRows ? 256 : 0,
                       other = wrong_ == kOtherMatrices && warp_index() == 1 ? 32 : 0;
        ptx::multiply_tile(c, stage(step) + k + row, stage(step) + kM * kDepth + (k ^ other));
      }
      if (wrong_ != kNoCommit) ptx::commit_products();
      if (wrong_ == kReleasedBeforeRead) release(step);
      if (wrong_ == kUsedBeforeDone) ++c[0][0];
      if (wrong_ == kOperandWritten && thread_index() == 0) store_shared(stage(step), 0u);
      if (wrong_ == kStageUsedTooEarly) {
        ptx::wait_products<0>();
      } else {
        ptx::wait_products<1>();
      }
      if (step > 0 && wrong_ != kReleasedBeforeRead) release(step - 1);
    }
    if (wrong_ != kNoWaitForProducts) ptx::wait_products<0>();
  }

  Mistake wrong_ = kNone;
  Buffer<int8_t> a_, b_;
  TensorMap map_a_, map_b_;
};

constexpr emulation::LaunchShape kShape{.threads = 2 * kWarpgroup, .shared_bytes = kBarriersAt + 2 * kStages * 8};

void expect_mistake(FaultKind kind, Mistake mistake, const emulation::Site& site = emulation::Site::current()) {
  SCOPED_TRACE(mistake);
  Ring ring;
  expect_fault(
      kind, kShape, [&] { ring.run(mistake); }, site);
}

TEST(EmulatorOfSm90, ARingOfStages) {
  Ring ring;
  expect_none(kShape, [&] { ring.run(kNone); });
}

TEST(EmulatorOfSm90, MissingWaits) {
  expect_mistake(FaultKind::kMissingWait, kNoProxyFence);
  expect_mistake(FaultKind::kMissingWait, kNoWaitForStage);
  expect_mistake(FaultKind::kMissingWait, kParityOfStage);
  expect_mistake(FaultKind::kMissingWait, kNoExpectedBytes);
  expect_mistake(FaultKind::kMissingWait, kReleasedBeforeRead);
  expect_mistake(FaultKind::kMissingWait, kNoFence);
  expect_mistake(FaultKind::kMissingWait, kOperandWritten);
  expect_mistake(FaultKind::kMissingWait, kUsedBeforeDone);
}

// Of several faults that follow from one mistake the order of threads chooses.
TEST(EmulatorOfSm90, MistakesOfSeveralFaults) {
  for (const Mistake mistake :
       {kNoBarrierBehindInit, kNoWaitForTile, kParityOfTile, kNoCommit, kNoWaitForProducts, kStageUsedTooEarly}) {
    for (const uint64_t seed : kSeeds) {
      Ring ring;
      emulation::LaunchShape shape = kShape;
      shape.seed = seed;
      EXPECT_ANY_THROW(emulation::launch(shape, [&] { ring.run(mistake); })) << mistake << ", seed " << seed;
    }
  }
}

TEST(EmulatorOfSm90, Deadlocks) {
  expect_mistake(FaultKind::kDeadlock, kNoArrival);
  expect_mistake(FaultKind::kDeadlock, kTooManyBytes);
  expect_mistake(FaultKind::kDeadlock, kOneWarpAlone);
  expect_fault(FaultKind::kDeadlock, {.shared_bytes = 8}, [] {
    if (lane_index() == 0) ptx::init_barrier(0, 1);
    warp_barrier();
    ptx::wait_barrier(0, 0);
  });
}

TEST(EmulatorOfSm90, WhatIsRefused) {
  expect_mistake(FaultKind::kDivergence, kOtherMatrices);
  expect_mistake(FaultKind::kAlignment, kUnalignedTile);
  expect_mistake(FaultKind::kAlignment, kUnalignedRows);
  alignas(64) TensorMap map{};
  const emulation::LaunchShape shape{.shared_bytes = 1024 * 16 + 8};
  const auto with_barrier = [](const auto& rest) {
    return [rest] {
      if (lane_index() != 0) return;
      ptx::init_barrier(1024 * 16, 1);
      ptx::proxy_fence();
      rest();
    };
  };
  expect_fault(FaultKind::kUninitialized, shape, with_barrier([&] { ptx::copy_tile(0, map, 0, 0, 1024 * 16); }));
  expect_fault(FaultKind::kUninitialized, shape, with_barrier([] { ptx::arrive(1024); }));
  expect_fault(FaultKind::kRace, shape, with_barrier([] { store_shared(1024 * 16, 0u); }));
  Buffer<int8_t> x(std::vector<int8_t>(160 * 4), "x");
  const auto encode = [&](uint64_t cols, uint64_t stride, uint32_t box_cols, uint32_t box_rows, int offset = 0) {
    return emulation::encode_tensor_map(&map, x.device() + offset, {cols, 4}, stride, {box_cols, box_rows});
  };
  EXPECT_EQ(encode(150, 160, 128, 256), 0);
  EXPECT_NE(encode(150, 150, 128, 256), 0);
  EXPECT_NE(encode(0, 160, 128, 256), 0);
  EXPECT_NE(encode(150, 144, 128, 256), 0);
  EXPECT_NE(encode(150, 160, 144, 256), 0);
  EXPECT_NE(encode(150, 160, 128, 257), 0);
  EXPECT_NE(encode(150, 160, 128, 256, 8), 0);
  // Copies that nobody waits for.
  ASSERT_EQ(encode(150, 160, 128, 16), 0);
  expect_fault(FaultKind::kUnfinished, shape, with_barrier([&] {
                 ptx::arrive_and_expect(1024 * 16, 2048);
                 ptx::copy_tile(0, map, 0, 0, 1024 * 16);
               }));
}

// Registers that a product of halves reads are not written before it is done.
TEST(EmulatorOfSm90, RegistersOfProducts) {
  constexpr int kRow = 128;
  const auto run = [](bool early) {
    for (int i = thread_index() * 4; i < 64 * kRow; i += kWarpgroup * 4) store_shared(static_cast<uint32_t>(i), 0u);
    ptx::proxy_fence();
    block_barrier();
    float c[8][4] = {};
    uint32_t a[4] = {1, 2, 3, 4};
    ptx::fence_products();
    ptx::multiply_tile<true>(c, a, 0);
    ptx::commit_products();
    if (early) a[2] = 0;
    ptx::wait_products<0>();
    a[2] = 0;
  };
  const emulation::LaunchShape shape{.threads = kWarpgroup, .shared_bytes = 64 * kRow};
  expect_none(shape, [&] { run(false); });
  expect_fault(FaultKind::kMissingWait, shape, [&] { run(true); });
}

// What a warp did before its barrier and an arrival is over for who waited; of several warps, where all arrived.
TEST(EmulatorOfSm90, MbarriersOrderAccesses) {
  enum class Lacks { kNothing, kWarpBarrier, kWait, kArrivalOfOne };
  constexpr int kReaders = 2;
  const auto run = [](Lacks lacks, bool bytes) {
    constexpr uint32_t kFull = 256, kEmpty = 264;
    if (thread_index() == 0) {
      ptx::init_barrier(kFull, 1);
      ptx::init_barrier(kEmpty, lacks == Lacks::kArrivalOfOne ? kReaders - 1 : kReaders);
    }
    block_barrier();
    const auto at = static_cast<uint32_t>(lane_index() * 4);
    const auto tell = [&](uint32_t barrier) {
      if (lacks != Lacks::kWarpBarrier) warp_barrier();
      if (lane_index() == 0) ptx::arrive(barrier);
    };
    if (warp_index() == 0) {
      store_shared(at, 1u);
      tell(kFull);
      if (lacks != Lacks::kWait) ptx::wait_barrier(kEmpty, 0);
      if (bytes) store_shared(at + 1, uint8_t{2});
      if (!bytes) store_shared(at, 2u);
    } else {
      ptx::wait_barrier(kFull, 0);
      load_shared<uint32_t>(at ^ 4);
      if (lacks != Lacks::kArrivalOfOne || warp_index() == 1) tell(kEmpty);
    }
  };
  const emulation::LaunchShape shape{.threads = (1 + kReaders) * kWarp, .shared_bytes = 272};
  for (const bool bytes : {false, true}) {
    SCOPED_TRACE(bytes ? "bytes" : "words");
    expect_none(shape, [&] { run(Lacks::kNothing, bytes); });
    expect_fault(FaultKind::kRace, shape, [&] { run(Lacks::kWarpBarrier, bytes); });
    for (const Lacks lacks : {Lacks::kWait, Lacks::kArrivalOfOne}) {
      int faults = 0;
      for (const uint64_t seed : kSeeds) {
        emulation::LaunchShape seeded = shape;
        seeded.seed = seed;
        try {
          emulation::launch(seeded, [&] { run(lacks, bytes); });
        } catch (const Fault& fault) {
          EXPECT_EQ(static_cast<int>(fault.kind), static_cast<int>(FaultKind::kRace)) << fault.what();
          ++faults;
        }
      }
      EXPECT_GT(faults, 0) << "in none of these orders";
    }
  }
}

TEST(EmulatorOfSm90, RegistersAreMovedByWarpgroups) {
  expect_fault(FaultKind::kDivergence, {.threads = kWarpgroup}, [] {
    if (warp_index() != 1) ptx::lower_registers<24>();
  });
  expect_fault(FaultKind::kLimit, {.threads = kWarpgroup}, [] { ptx::raise_registers<250>(); });
  expect_none({.threads = kWarpgroup}, [] { ptx::raise_registers<240>(); });
}

TEST(EmulatorOfSm90, WhoLeavesIsNotWaitedFor) {
  expect_none({.threads = 64}, [] {
    if (warp_index() == 1) return leave_block();
    block_barrier();
  });
  expect_fault(FaultKind::kDivergence, {.threads = 64}, [] {
    if (warp_index() == 1) leave_block();
    block_barrier();
  });
  expect_fault(FaultKind::kDivergence, {.threads = 32}, [] {
    if (lane_index() > 3) leave_block();
  });
}

}  // namespace
}  // namespace int8q::gpu
