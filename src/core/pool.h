// SPDX-License-Identifier: Apache-2.0
//
// The threads of one context: a small pool of its own, started at the first parallel phase, or the caller's runner.
//
// A phase is run(count, body): body(index) for each index in [0, count), each inside a FloatEnvironment. A pool that is
// busy (a shared context, a nested call) runs the phase serially on the calling thread: it never waits. After fork the
// child abandons the threads that it does not have and starts its own at the next phase.
#pragma once

#include <atomic>
#include <cstdint>

#include "core/memory.h"
#include "int8q/int8q.h"

namespace int8q {

// Threads that this process may use: affinity mask, cut by the cgroup's CPU quota (rounded up), at least 1. The file names
// this process's groups, the root holds them.
int available_threads(const char* cgroup_file = "/proc/self/cgroup", const char* cgroup_root = "/sys/fs/cgroup");

// How many times this process has been forked off since the first call of this function (0 in the first).
uint64_t fork_generation();

class Pool {
 public:
  // threads >= 1 counts the calling thread. A runner's struct is copied; its max_threads replaces threads.
  Pool(const Allocator& allocator, int threads, const int8q_parallel_runner* runner);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int threads() const { return threads_; }
  bool has_runner() const { return runner_.run != nullptr; }

  // Starts the threads now. What the system refuses is done without.
  void start();

  // Which threads share a phase: all of them, or, where waking one takes longer than the phase, those that are awake. The
  // second of brief phases that follow each other wakes the others all the same: more may come.
  enum class Wake { kAll, kIfBusy };

  template <class Body>
  void run(int64_t count, const Body& body, Wake wake = Wake::kAll) {
    run_tasks(
        count, [](void* arg, int64_t index, int32_t) { (*static_cast<const Body*>(arg))(index); },
        const_cast<void*>(static_cast<const void*>(&body)), wake);
  }

 private:
  struct Workers;

  void run_tasks(int64_t count, int8q_task task, void* arg, Wake wake);
  void run_on_runner(int64_t count, int8q_task task, void* arg);
  bool acquire();
  void release();
  void start_threads();
  static uint64_t free_word(uint64_t generation) { return generation << 1; }
  static uint64_t busy_word(uint64_t generation) { return generation << 1 | 1; }

  Allocator allocator_;
  int threads_;
  int8q_parallel_runner runner_{};
  std::atomic<uint64_t> owner_;  // free_word or busy_word of the process that set it
  Workers* workers_ = nullptr;   // NULL with a runner or one thread; the threads start with the first phase
};

}  // namespace int8q
