// SPDX-License-Identifier: Apache-2.0
#include "core/pool.h"

#include <pthread.h>
#include <signal.h>

#include <new>

#include "core/float_environment.h"

namespace int8q {
namespace {

std::atomic<uint64_t> forks{0};

void count_fork() { forks.fetch_add(1, std::memory_order_relaxed); }

// Polls before a thread sleeps: at about 40 cycles a pause some 10 us, longer than the gap between two phases of a call,
// far shorter than a scheduling quantum.
constexpr int kSpins = 1000;

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Returns once value != old.
void await_change(const std::atomic<uint32_t>& value, uint32_t old) {
  for (int i = 0; i < kSpins; ++i) {
    if (value.load(std::memory_order_acquire) != old) return;
    pause();
  }
  value.wait(old, std::memory_order_acquire);
}

}  // namespace

uint64_t fork_generation() { return forks.load(std::memory_order_relaxed); }

// Worker w (1-based; the caller is 0) takes the indices w, w + T, w + 2T, ... of each phase, T the number of threads: the
// same thread gets the same part of the same operation each time.
struct Pool::Workers {
  struct Worker {
    Workers* workers;
    int id;
    pthread_t thread;
  };

  std::atomic<uint32_t> phase{0};
  std::atomic<uint32_t> running{0};
  int64_t count = 0;
  int8q_task task = nullptr;
  void* arg = nullptr;
  bool stop = false;
  int started = 0;
  Worker* worker = nullptr;  // [capacity]
  int capacity = 0;

  void take_share(int id) const {
    for (int64_t i = id; i < count; i += started + 1) task(arg, i, id);
  }

  void work(int id) {
    FloatEnvironment environment;
    for (uint32_t seen = 0;;) {
      await_change(phase, seen);
      ++seen;
      if (stop) return;
      take_share(id);
      if (running.fetch_sub(1, std::memory_order_acq_rel) == 1) running.notify_one();
    }
  }

  void start_phase() {
    running.store(static_cast<uint32_t>(started), std::memory_order_relaxed);
    phase.fetch_add(1, std::memory_order_release);
    phase.notify_all();
  }

  void finish_phase() {
    for (uint32_t left; (left = running.load(std::memory_order_acquire)) != 0;) await_change(running, left);
  }

  static void* main(void* self) {
    auto* worker = static_cast<Worker*>(self);
    worker->workers->work(worker->id);
    return nullptr;
  }
};

Pool::Pool(const Allocator& allocator, int threads, const int8q_parallel_runner* runner)
    : allocator_(allocator), threads_(threads) {
  if (runner != nullptr) {
    runner_ = *runner;
    threads_ = runner->max_threads;
  }
  static const int registered = pthread_atfork(nullptr, nullptr, count_fork);
  static_cast<void>(registered);
  generation_.store(fork_generation(), std::memory_order_relaxed);
}

Pool::~Pool() {
  if (workers_ == nullptr || generation_.load(std::memory_order_relaxed) != fork_generation()) return;
  workers_->stop = true;
  workers_->start_phase();
  for (int i = 0; i < workers_->started; ++i) pthread_join(workers_->worker[i].thread, nullptr);
  const uint64_t bytes = sizeof(Workers) + sizeof(Workers::Worker) * static_cast<uint64_t>(workers_->capacity);
  workers_->~Workers();
  allocator_.deallocate(workers_, bytes);
}

void Pool::start() {
  if (has_runner() || threads_ <= 1 || !acquire()) return;
  release();
}

// Makes the workers this call's own; false if another call has them. In a forked child what the parent had is abandoned
// first: its threads do not exist here, and its locks may be held for ever.
bool Pool::acquire() {
  uint64_t mine = generation_.load(std::memory_order_relaxed);
  const uint64_t now = fork_generation();
  if (mine != now && generation_.compare_exchange_strong(mine, now)) {
    workers_ = nullptr;
    busy_.store(false, std::memory_order_relaxed);
  }
  if (busy_.exchange(true, std::memory_order_acquire)) return false;
  if (workers_ != nullptr) return true;

  const int wanted = threads_ - 1;
  const uint64_t bytes = sizeof(Workers) + sizeof(Workers::Worker) * static_cast<uint64_t>(wanted);
  void* memory;
  try {
    memory = allocator_.allocate(bytes, "thread pool");
  } catch (...) {
    release();
    throw;
  }
  workers_ = new (memory) Workers;
  workers_->worker = reinterpret_cast<Workers::Worker*>(workers_ + 1);
  workers_->capacity = wanted;
  sigset_t all, before;  // signals are the application's threads' business
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  int started = 0;
  for (; started < wanted; ++started) {
    Workers::Worker& worker = workers_->worker[started];
    worker.workers = workers_;
    worker.id = started + 1;
    if (pthread_create(&worker.thread, nullptr, Workers::main, &worker) != 0) break;
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  workers_->started = started;
  return true;
}

void Pool::run_tasks(int64_t count, int8q_task task, void* arg) {
  if (has_runner() && count > 1) return run_on_runner(count, task, arg);
  FloatEnvironment environment;
  if (count <= 1 || threads_ <= 1 || !acquire()) {
    for (int64_t i = 0; i < count; ++i) task(arg, i, 0);
    return;
  }
  workers_->count = count;
  workers_->task = task;
  workers_->arg = arg;
  workers_->start_phase();
  workers_->take_share(0);
  workers_->finish_phase();
  release();
}

void Pool::run_on_runner(int64_t count, int8q_task task, void* arg) {
  struct Phase {
    int8q_task task;
    void* arg;
    std::atomic<int64_t> done{0};
  } phase{task, arg};
  const int32_t status = runner_.run(
      runner_.opaque, count,
      [](void* self, int64_t index, int32_t thread) {
        auto* shared = static_cast<Phase*>(self);
        FloatEnvironment environment;
        shared->task(shared->arg, index, thread);
        shared->done.fetch_add(1, std::memory_order_release);
      },
      &phase);
  const int64_t done = phase.done.load(std::memory_order_acquire);
  if (status != 0 || done != count) {
    fail(INT8Q_RUNNER_FAILED, "runner->run returned %d after %lld of %lld tasks; expected 0 after all of them", status,
         static_cast<long long>(done), static_cast<long long>(count));
  }
}

}  // namespace int8q
