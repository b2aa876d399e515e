// SPDX-License-Identifier: Apache-2.0
#include "core/pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>

#include <new>

#include "core/float_environment.h"

namespace int8q {
namespace {

std::atomic<uint64_t> forks{0};

void count_fork() { forks.fetch_add(1, std::memory_order_relaxed); }

// How long a thread polls before it sleeps: some 100 us. That is longer than what one of two equal parts of a call of half a
// millisecond comes late, and than what an engine does between two calls, far shorter than a scheduling quantum; waking a
// thread takes 5 us, and 50 us on a virtual machine. A pause takes 40 cycles on one CPU and 140 on the next, so the time stamp
// counter ends it. Who polls lets others run now and then: the thread that it waits for may be on this very CPU.
inline bool is_worth_polling(uint64_t start, int polls) {
  constexpr int kPollsBetweenYields = 32;
  if (polls % kPollsBetweenYields == kPollsBetweenYields - 1) sched_yield();
#if defined(__x86_64__)
  __builtin_ia32_pause();
  return __builtin_ia32_rdtsc() - start < 300000;
#else
#if defined(__aarch64__)
  asm volatile("yield");
#endif
  static_cast<void>(start);
  return polls < 2000;
#endif
}

inline uint64_t time_stamp() {
#if defined(__x86_64__)
  return __builtin_ia32_rdtsc();
#else
  return 0;
#endif
}

// Returns once value != old.
void await_change(const std::atomic<uint32_t>& value, uint32_t old) {
  const uint64_t start = time_stamp();
  for (int polls = 0;; ++polls) {
    if (value.load(std::memory_order_acquire) != old) return;
    if (!is_worth_polling(start, polls)) break;
  }
  value.wait(old, std::memory_order_acquire);
}

// Signals are the application's threads' business, but for those that a thread raises by what it does, and the profiler's.
void block_signals(sigset_t* before) {
  sigset_t blocked;
  sigfillset(&blocked);
  for (const int kept : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS, SIGPROF}) sigdelset(&blocked, kept);
  pthread_sigmask(SIG_SETMASK, &blocked, before);
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
  int started = -1;  // threads; -1: none was tried yet

  // The workers lie behind this object.
  Worker& worker(int i) { return reinterpret_cast<Worker*>(this + 1)[i]; }
  static uint64_t bytes(int workers) { return sizeof(Workers) + sizeof(Worker) * static_cast<uint64_t>(workers); }

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
  } else if (threads > 1) {
    workers_ = new (allocator_.allocate(Workers::bytes(threads - 1), "thread pool")) Workers;
  }
  static const int registered = pthread_atfork(nullptr, nullptr, count_fork);
  static_cast<void>(registered);
  owner_.store(free_word(fork_generation()), std::memory_order_relaxed);
}

Pool::~Pool() {
  if (workers_ == nullptr) return;
  if (owner_.load(std::memory_order_relaxed) == free_word(fork_generation()) && workers_->started > 0) {
    workers_->stop = true;
    workers_->start_phase();
    for (int i = 0; i < workers_->started; ++i) pthread_join(workers_->worker(i).thread, nullptr);
  }
  allocator_.deallocate(workers_, Workers::bytes(threads_ - 1));
}

void Pool::start() {
  if (workers_ != nullptr && acquire()) release();
}

// Makes the workers this call's own; false if another call has them. What a forked child finds is stale, held or not: its
// parent's threads do not exist here. Whoever takes the stale word makes the workers anew, in their old place.
bool Pool::acquire() {
  const uint64_t now = fork_generation();
  uint64_t found = owner_.load(std::memory_order_relaxed);
  if (found == busy_word(now) || !owner_.compare_exchange_strong(found, busy_word(now), std::memory_order_acquire)) {
    return false;
  }
  if (found != free_word(now)) new (workers_) Workers;
  if (workers_->started < 0) start_threads();
  return true;
}

void Pool::release() { owner_.store(free_word(fork_generation()), std::memory_order_release); }

void Pool::start_threads() {
  const int wanted = threads_ - 1;
  sigset_t before;
  block_signals(&before);
  int started = 0;
  for (; started < wanted; ++started) {
    Workers::Worker& worker = workers_->worker(started);
    worker.workers = workers_;
    worker.id = started + 1;
    if (pthread_create(&worker.thread, nullptr, Workers::main, &worker) != 0) break;
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  workers_->started = started;
}

void Pool::run_tasks(int64_t count, int8q_task task, void* arg) {
  if (has_runner() && count > 1) return run_on_runner(count, task, arg);
  FloatEnvironment environment;
  if (count <= 1 || workers_ == nullptr || !acquire()) {
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
