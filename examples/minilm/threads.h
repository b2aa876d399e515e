// SPDX-License-Identifier: Apache-2.0
//
// The engine's own threads. int8q runs on them too, through the caller's runner, so both engines use the same ones.
#pragma once

#include <atomic>
#include <functional>
#include <thread>
#include <vector>

#include "int8q/int8q.h"

namespace minilm {

class Threads {
 public:
  explicit Threads(int count) {
    for (int i = 1; i < count; ++i) workers_.emplace_back([this, i] { work(i); });
  }
  ~Threads() {
    stop_ = true;
    phase_.fetch_add(1);
    phase_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

  int count() const { return static_cast<int>(workers_.size()) + 1; }

  // body(i, thread) for i in [0, tasks), any order; returns when all are done.
  void run(int64_t tasks, const std::function<void(int64_t, int)>& body) {
    body_ = &body;
    tasks_ = tasks;
    next_ = 0;
    running_ = static_cast<int>(workers_.size());
    phase_.fetch_add(1);
    phase_.notify_all();
    take(0);
    while (running_.load() != 0) std::this_thread::yield();
  }

  int8q_parallel_runner runner() {
    return {sizeof(int8q_parallel_runner), count(), this,
            [](void* self, int64_t count, int8q_task task, void* arg) -> int32_t {
              static_cast<Threads*>(self)->run(count, [=](int64_t i, int thread) { task(arg, i, thread); });
              return 0;
            }};
  }

 private:
  void take(int thread) {
    for (int64_t i; (i = next_.fetch_add(1)) < tasks_;) (*body_)(i, thread);
  }
  void work(int thread) {
    for (unsigned seen = 0;; ++seen) {
      for (int spin = 0; spin < 20000 && phase_.load() == seen; ++spin) {  // about 20 us, longer than the gaps in a layer
      }
      phase_.wait(seen);
      if (stop_) return;
      take(thread);
      --running_;
    }
  }

  std::vector<std::thread> workers_;
  const std::function<void(int64_t, int)>* body_ = nullptr;
  int64_t tasks_ = 0;
  std::atomic<int64_t> next_{0};
  std::atomic<int> running_{0};
  std::atomic<unsigned> phase_{0};
  std::atomic<bool> stop_{false};
};

}  // namespace minilm
