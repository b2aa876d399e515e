// SPDX-License-Identifier: Apache-2.0
//
// A kernel runs into a fault of some kind, or into none, whatever the order of its threads.
#pragma once

#include <gtest/gtest.h>

#include "cuda_emulation/emulator.h"

namespace int8q::gpu {

using emulation::Fault;
using emulation::FaultKind;

inline constexpr uint64_t kSeeds[] = {0, 1, 2};

// The fault that a launch ends in.
inline void expect_fault(FaultKind kind, const emulation::LaunchShape& shape, const std::function<void()>& kernel,
                         const emulation::Site& site = emulation::Site::current()) {
  const testing::ScopedTrace trace(site.file_name(), static_cast<int>(site.line()), "expected here");
  for (const uint64_t seed : kSeeds) {
    emulation::LaunchShape seeded = shape;
    seeded.seed = seed;
    try {
      emulation::launch(seeded, kernel);
      FAIL() << "no fault with seed " << seed;
    } catch (const Fault& fault) {
      EXPECT_EQ(static_cast<int>(fault.kind), static_cast<int>(kind)) << fault.what();
    }
  }
}
inline void expect_none(const emulation::LaunchShape& shape, const std::function<void()>& kernel,
                        const emulation::Site& site = emulation::Site::current()) {
  const testing::ScopedTrace trace(site.file_name(), static_cast<int>(site.line()), "expected here");
  for (const uint64_t seed : kSeeds) {
    emulation::LaunchShape seeded = shape;
    seeded.seed = seed;
    EXPECT_NO_THROW(emulation::launch(seeded, kernel)) << "seed " << seed;
  }
}

}  // namespace int8q::gpu
