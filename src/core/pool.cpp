// SPDX-License-Identifier: Apache-2.0
#include "core/pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>

#include <chrono>
#include <new>

#include "core/float_environment.h"

namespace int8q {
namespace {

std::atomic<uint64_t> forks{0};

void count_fork() { forks.fetch_add(1, std::memory_order_relaxed); }

// Now, in ticks.
inline uint64_t time_stamp() {
#if defined(__x86_64__)
  return __builtin_ia32_rdtsc();
#else
  return static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1));
#endif
}

// How long a thread polls before it sleeps: some 100 us, by the clock, since a pause takes 40 cycles on one CPU and 140 on the
// next. That is longer than what one of two equal parts of a call of half a millisecond comes late, and than what an engine does
// between two calls, far shorter than a scheduling quantum; waking a thread takes 5 us, and 50 us on a virtual machine.
#if defined(__x86_64__)
constexpr uint64_t kPolledTicks = 300000;
#else
constexpr uint64_t kPolledTicks = 100000;
#endif

// Who polls lets others run now and then: the thread that it waits for may be on this very CPU.
inline void pause(int polls) {
  constexpr int kPollsBetweenYields = 256;
  if (polls % kPollsBetweenYields == kPollsBetweenYields - 1) sched_yield();
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Returns once value != old.
void await_change(const std::atomic<uint32_t>& value, uint32_t old) {
  const uint64_t start = time_stamp();
  for (int polls = 0;; ++polls) {
    if (value.load(std::memory_order_acquire) != old) return;
    if (time_stamp() - start > kPolledTicks) break;
    pause(polls);
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

uint64_t fork_generation() {
  static const int registered = pthread_atfork(nullptr, nullptr, count_fork);
  static_cast<void>(registered);
  return forks.load(std::memory_order_relaxed);
}

// A phase's indices are dealt into one share a thread: share s holds s, s + T, s + 2T, ..., T the number of threads. A thread
// takes its own share first, so that the same thread gets the same part of the same operation each time, and then what is left
// of the others': no phase waits for a thread that has not begun. Worker w is thread w, the caller is thread 0.
struct alignas(64) Pool::Workers {
  struct alignas(64) Worker {
    std::atomic<int64_t> left{0};  // of share `id`: indices that nobody took
    Workers* workers = nullptr;
    int id = 0;
    pthread_t thread{};
  };

  std::atomic<uint32_t> phase{0};
  std::atomic<uint32_t> pending{0};  // indices that are not done
  std::atomic<bool> stop{false};
  // Written between phases; read by who has taken an index, which ends no phase before it is done.
  int64_t count = 0;
  int8q_task task = nullptr;
  void* arg = nullptr;
  uint64_t ended = 0;  // the last phase, as a time stamp
  int started = -1;    // threads; -1: none was tried yet

  // The workers lie behind this object, which fills whole cache lines; 0 is the caller's.
  Worker& worker(int i) { return reinterpret_cast<Worker*>(this + 1)[i]; }
  static uint64_t bytes(int threads) { return sizeof(Workers) + sizeof(Worker) * static_cast<uint64_t>(threads); }
  int64_t shares() const { return started + 1; }

  // How many indices share s has at first.
  int64_t dealt(int64_t s) const { return (count - s + shares() - 1) / shares(); }

  // The next index of share s, or -1.
  int64_t take(int s) {
    std::atomic<int64_t>& left = worker(s).left;
    int64_t found = left.load(std::memory_order_relaxed);
    while (found > 0) {
      if (left.compare_exchange_weak(found, found - 1, std::memory_order_acquire, std::memory_order_relaxed)) {
        return s + (dealt(s) - found) * shares();
      }
    }
    return -1;
  }

  void take_shares(int id) {
    uint32_t done = 0;
    for (int i = 0; i <= started; ++i) {
      const int s = (id + i) % (started + 1);
      for (int64_t index; (index = take(s)) >= 0; ++done) task(arg, index, id);
    }
    if (done > 0 && pending.fetch_sub(done, std::memory_order_acq_rel) == done) pending.notify_one();
  }

  void work(int id) {
    FloatEnvironment environment;
    for (uint32_t seen = 0;;) {
      await_change(phase, seen);
      seen = phase.load(std::memory_order_acquire);
      if (stop.load(std::memory_order_relaxed)) return;
      take_shares(id);
    }
  }

  void start_phase(bool wake) {
    pending.store(static_cast<uint32_t>(count), std::memory_order_relaxed);
    for (int s = 0; s <= started; ++s) worker(s).left.store(dealt(s), std::memory_order_release);
    phase.fetch_add(1, std::memory_order_release);
    if (wake) phase.notify_all();
  }

  void finish_phase() {
    for (uint32_t left; (left = pending.load(std::memory_order_acquire)) != 0;) await_change(pending, left);
    ended = time_stamp();
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
    workers_ = new (allocator_.allocate(Workers::bytes(threads), "thread pool")) Workers;
  }
  owner_.store(free_word(fork_generation()), std::memory_order_relaxed);
}

Pool::~Pool() {
  if (workers_ == nullptr) return;
  if (owner_.load(std::memory_order_relaxed) == free_word(fork_generation()) && workers_->started > 0) {
    workers_->stop.store(true, std::memory_order_relaxed);
    workers_->count = 0;
    workers_->start_phase(true);
    for (int i = 1; i <= workers_->started; ++i) pthread_join(workers_->worker(i).thread, nullptr);
  }
  allocator_.deallocate(workers_, Workers::bytes(threads_));
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
  for (int i = 0; i < threads_; ++i) {
    auto* worker = new (&workers_->worker(i)) Workers::Worker;
    worker->workers = workers_;
    worker->id = i;
  }
  sigset_t before;
  block_signals(&before);
  int started = 0;
  for (; started < threads_ - 1; ++started) {
    Workers::Worker& worker = workers_->worker(started + 1);
    if (pthread_create(&worker.thread, nullptr, Workers::main, &worker) != 0) break;
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  workers_->started = started;
}

void Pool::run_tasks(int64_t count, int8q_task task, void* arg, Wake wake) {
  if (has_runner() && count > 1) return run_on_runner(count, task, arg);
  FloatEnvironment environment;
  if (count <= 1 || workers_ == nullptr || !acquire()) {
    for (int64_t i = 0; i < count; ++i) task(arg, i, 0);
    return;
  }
  workers_->count = count;
  workers_->task = task;
  workers_->arg = arg;
  workers_->start_phase(wake == Wake::kAll || time_stamp() - workers_->ended < kPolledTicks);
  workers_->take_shares(0);
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
