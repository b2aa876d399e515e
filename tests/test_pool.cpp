// SPDX-License-Identifier: Apache-2.0
//
// The pool itself: each index runs once, nobody waits for a thread that has not begun, brief phases wake no thread for nothing.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "core/pool.h"

namespace int8q::test {
namespace {

using std::chrono::steady_clock;

// Returns whether it came true within seconds.
template <class Condition>
bool await(const Condition& condition) {
  const auto end = steady_clock::now() + std::chrono::seconds(20);
  while (!condition()) {
    if (steady_clock::now() > end) return false;
    std::this_thread::yield();
  }
  return true;
}

TEST(Pool, EachIndexRunsOnce) {
  for (const int threads : {1, 2, 3, 8}) {
    Pool pool(Allocator(), threads, nullptr);
    for (int64_t phase = 0; phase < 600; ++phase) {
      const int64_t count = phase % 30;
      std::vector<std::atomic<int>> runs(static_cast<size_t>(count));
      const auto body = [&](int64_t index) { runs.at(static_cast<size_t>(index)).fetch_add(1); };
      pool.run(count, body, phase % 2 == 0 ? Pool::Wake::kAll : Pool::Wake::kIfBusy);
      for (int64_t i = 0; i < count; ++i) {
        ASSERT_EQ(1, runs[static_cast<size_t>(i)]) << "index " << i << " of " << count << ", " << threads << " threads";
      }
    }
  }
}

// One of two threads is held up in its first index until the other one has done all that is left, of both shares.
void expect_that_the_other_does_all(bool holds_caller) {
  constexpr int64_t kCount = 8;
  Pool pool(Allocator(), 2, nullptr);
  const std::thread::id caller = std::this_thread::get_id();
  std::atomic<int64_t> done{0}, begun{0};
  std::atomic<bool> all{true};
  pool.run(kCount, [&](int64_t) {
    const bool is_held = (std::this_thread::get_id() == caller) == holds_caller;
    begun |= is_held ? 1 : 2;
    if (!await([&] { return begun == 3; })) all = false;  // both have one
    if (is_held && !await([&] { return done == kCount - 1; })) all = false;
    ++done;
  });
  EXPECT_TRUE(all) << done << " of " << kCount << " were done";
  EXPECT_EQ(kCount, done);
}

TEST(Pool, WhatAThreadDoesNotReachIsTakenByTheOthers) {
  expect_that_the_other_does_all(true);
  expect_that_the_other_does_all(false);
}

// Every thread is held in its first index until all have one: nobody comes to another's share.
TEST(Pool, AThreadTakesItsOwnShareFirst) {
  constexpr int64_t kThreads = 5;
  Pool pool(Allocator(), kThreads, nullptr);
  std::vector<std::thread::id> first(kThreads);
  for (int phase = 0; phase < 20; ++phase) {
    std::atomic<int64_t> begun{0};
    std::atomic<bool> all{true};
    std::vector<std::thread::id> takers(kThreads);
    pool.run(kThreads, [&](int64_t index) {
      takers[static_cast<size_t>(index)] = std::this_thread::get_id();
      ++begun;
      if (!await([&] { return begun == kThreads; })) all = false;
    });
    ASSERT_TRUE(all);
    ASSERT_EQ(std::this_thread::get_id(), takers[0]);
    if (phase == 0) first = takers;
    ASSERT_EQ(first, takers) << "phase " << phase;
  }
}

TEST(Pool, ABriefPhaseWakesOthersOnlyWhenMoreMayCome) {
  Pool pool(Allocator(), 2, nullptr);
  const std::thread::id caller = std::this_thread::get_id();
  std::atomic<int> elsewhere{0};
  const auto body = [&](int64_t) {
    if (std::this_thread::get_id() != caller) ++elsewhere;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));  // time to wake
  };
  pool.run(2, body);  // starts the thread
  EXPECT_TRUE(await([&] {
    elsewhere = 0;
    std::this_thread::sleep_for(std::chrono::milliseconds(100));  // on a busy machine it may still poll then
    for (int i = 0; i < 3 && elsewhere == 0; ++i) {
      pool.run(2, body, Pool::Wake::kIfBusy);
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    return elsewhere == 0;
  })) << "it sleeps, and is woken";
  EXPECT_TRUE(await([&] {
    pool.run(2, body, Pool::Wake::kIfBusy);
    return elsewhere > 0;
  }));
}

}  // namespace
}  // namespace int8q::test
