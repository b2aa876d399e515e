// SPDX-License-Identifier: Apache-2.0
//
// The caller's threads and the caller's memory: a runner of any order gives the pool's bits, its failures are statuses;
// every byte of an allocator comes back, each allocation may fail, and the hot calls allocate nothing at all.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <functional>
#include <map>
#include <mutex>
#include <new>
#include <stdexcept>
#include <thread>

#include "support/every_operation.h"

// Every way to the heap in this executable, counted on all threads while `counting`. Sanitizers bring their own malloc:
// under them only operator new is seen, which is what the library's C++ would use.
namespace {
std::atomic<bool> counting{false};
std::atomic<int64_t> heap_calls{0};
void count() {
  if (counting.load(std::memory_order_relaxed)) heap_calls.fetch_add(1, std::memory_order_relaxed);
}
}  // namespace

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define INT8Q_TEST_OWN_MALLOC 0
#elif defined(__GLIBC__)
#define INT8Q_TEST_OWN_MALLOC 1
#else
#define INT8Q_TEST_OWN_MALLOC 0
#endif

#if INT8Q_TEST_OWN_MALLOC
extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);
void* malloc(size_t bytes) { return count(), __libc_malloc(bytes); }
void* calloc(size_t n, size_t bytes) { return count(), __libc_calloc(n, bytes); }
void* realloc(void* memory, size_t bytes) { return count(), __libc_realloc(memory, bytes); }
void* memalign(size_t alignment, size_t bytes) { return count(), __libc_memalign(alignment, bytes); }
void* aligned_alloc(size_t alignment, size_t bytes) { return count(), __libc_memalign(alignment, bytes); }
int posix_memalign(void** memory, size_t alignment, size_t bytes) {
  count();
  *memory = __libc_memalign(alignment, bytes);
  return *memory == nullptr ? 12 : 0;
}
}
#else
void* operator new(size_t bytes) {
  count();
  if (void* memory = std::malloc(bytes == 0 ? 1 : bytes)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
#endif

namespace int8q::test {
namespace {

using RunFunction = int32_t (*)(void*, int64_t, int8q_task, void*);

struct Observed {
  std::atomic<int64_t> calls{0}, wrong{0};
  int32_t max_threads = 0;
};

void check_task(Observed* seen, int64_t index, int64_t count, int32_t thread) {
  if (index < 0 || index >= count || thread < 0 || thread >= seen->max_threads) ++seen->wrong;
}

int32_t run_serially(void* opaque, int64_t count, int8q_task task, void* arg) {
  ++static_cast<Observed*>(opaque)->calls;
  for (int64_t i = 0; i < count; ++i) task(arg, i, 0);
  return 0;
}
int32_t run_reversed(void* opaque, int64_t count, int8q_task task, void* arg) {
  auto* seen = static_cast<Observed*>(opaque);
  ++seen->calls;
  for (int64_t i = count - 1; i >= 0; --i) {
    const auto thread = static_cast<int32_t>(i % seen->max_threads);
    check_task(seen, i, count, thread);
    task(arg, i, thread);
  }
  return 0;
}
int32_t run_on_threads(void* opaque, int64_t count, int8q_task task, void* arg) {
  auto* seen = static_cast<Observed*>(opaque);
  ++seen->calls;
  std::atomic<int64_t> next{0};
  std::vector<std::thread> threads;
  for (int32_t id = 0; id < seen->max_threads; ++id) {
    threads.emplace_back([&, id] {
      for (int64_t i; (i = next++) < count;) task(arg, i, id);
    });
  }
  for (std::thread& thread : threads) thread.join();
  return 0;
}

TEST(Runner, AnyOrderAndAnyThreadsGiveTheBitsOfThePool) {
  Bytes right;
  ASSERT_CALL(run_everything(make_context(1).get(), &right));
  for (const int threads : {2, 3, 7}) {
    Bytes bytes;
    ASSERT_CALL(run_everything(make_context(threads).get(), &bytes));
    EXPECT_TRUE(right == bytes) << "pool of " << threads;
  }
  for (const RunFunction run : {run_serially, run_reversed, run_on_threads}) {
    for (const int32_t threads : {1, 2, 5, 64}) {
      Observed seen;
      seen.max_threads = threads;
      const int8q_parallel_runner runner{sizeof runner, threads, &seen, run};
      Bytes bytes;
      ASSERT_CALL(run_everything(make_context(0, nullptr, &runner).get(), &bytes));
      EXPECT_TRUE(right == bytes) << "runner of " << threads;
      EXPECT_EQ(0, seen.wrong.load());
      if (threads == 1) {
        EXPECT_EQ(0, seen.calls.load()) << "one thread has no parallel phase";
      } else {
        EXPECT_GE(seen.calls.load(), 8) << "the runner was hardly asked";
      }
    }
  }
}

// No phase has more tasks than max_threads, so that a runner may give each task a thread of its own.
TEST(Runner, MaxThreadsBoundsTheTasks) {
  for (const int32_t bad : {0, -1, 1025}) {
    const int8q_parallel_runner runner{sizeof runner, bad, nullptr, run_serially};
    int8q_context_options options{};
    options.size = sizeof options;
    options.runner = &runner;
    int8q_context* context = nullptr;
    EXPECT_STATUS(INT8Q_INVALID_ARGUMENT, int8q_create_context(&options, &context));
  }
  struct Most {
    int64_t tasks = 0;
  } most;
  const int8q_parallel_runner runner{sizeof runner, 3, &most, [](void* opaque, int64_t count, int8q_task task, void* arg) {
                                       auto* m = static_cast<Most*>(opaque);
                                       m->tasks = std::max(m->tasks, count);
                                       for (int64_t i = 0; i < count; ++i) task(arg, i, static_cast<int32_t>(i));
                                       return 0;
                                     }};
  Bytes bytes;
  ASSERT_CALL(run_everything(make_context(0, nullptr, &runner).get(), &bytes));
  EXPECT_EQ(3, most.tasks);
}

TEST(Runner, FailuresAreStatusesAndTheNextCallWorks) {
  struct Fault {
    int kind = 0;  // 0 none, 1 non-zero after all tasks, 2 the last task skipped, 3 all skipped, 4 throws before, 5 after
  } fault;
  const int8q_parallel_runner runner{sizeof runner, 4, &fault, [](void* opaque, int64_t count, int8q_task task, void* arg) {
                                       const int kind = static_cast<Fault*>(opaque)->kind;
                                       if (kind == 3) return 0;
                                       if (kind == 4) throw std::runtime_error("before");
                                       for (int64_t i = 0; i < count - (kind == 2); ++i) task(arg, i, 0);
                                       if (kind == 5) throw 5;
                                       return kind == 1 ? 42 : 0;
                                     }};
  const ContextPtr context = make_context(0, nullptr, &runner);
  const Layer& o = layer();
  const LinearPtr linear = make_linear(context.get(), o.w, &o.bias);
  const Mat right(INT8Q_F32, kM, kN), y(INT8Q_F32, kM, kN), dx(INT8Q_F32, kM, kK), q(INT8Q_S8, kM, kK),
      acc(INT8Q_S32, kM, kN), codes(INT8Q_S8, kN, kK), yk(INT8Q_F32, kM, kK);
  ASSERT_CALL(forward(context.get(), linear.get(), o.x, right));
  std::vector<float> stats(kM, 1.0f);
  std::vector<int64_t> counts(kK);
  const std::function<int32_t()> calls[] = {
      [&] { return forward(context.get(), linear.get(), o.x, y); },
      [&] { return backward(context.get(), linear.get(), o.dy, dx); },
      [&] { return int8q_quantize_rows(context.get(), o.x.get(), 0, 0, q.get(), stats.data(), nullptr, nullptr, nullptr); },
      [&] { return int8q_multiply(context.get(), o.a.get(), o.b.get(), acc.get()); },
      [&] { return int8q_count_outliers(context.get(), o.x.get(), 0, counts.data()); },
      [&] { return int8q_dequantize_rows(context.get(), q.get(), stats.data(), yk.get()); },
      [&] { return int8q_export_linear(context.get(), linear.get(), codes.get(), nullptr, nullptr, nullptr, nullptr); },
      [&] {
        int8q_linear* made = nullptr;
        const int32_t status = int8q_create_linear(context.get(), o.w2.get(), nullptr, nullptr, nullptr, &made);
        EXPECT_EQ(status == INT8Q_OK, made != nullptr);
        if (made != nullptr) int8q_destroy_linear(made);
        return status;
      },
  };
  for (size_t i = 0; i < std::size(calls); ++i) {
    for (int kind = 1; kind <= 5; ++kind) {
      SCOPED_TRACE("call " + std::to_string(i) + ", fault " + std::to_string(kind));
      fault.kind = kind;
      EXPECT_STATUS(kind >= 4 ? INT8Q_INTERNAL : INT8Q_RUNNER_FAILED, calls[i]());
      const std::string message = int8q_last_error();
      EXPECT_NE(std::string::npos, message.find(kind == 1 ? "42" : kind >= 4 ? "exception" : "tasks")) << message;
      fault.kind = 0;
      EXPECT_STATUS(INT8Q_OK, calls[i]());
    }
  }
  ASSERT_CALL(forward(context.get(), linear.get(), o.x, y));
  EXPECT_EQ(right.bytes(), y.bytes());
}

// An allocator that fills what it gives, keeps books, and can fail the nth request: by NULL, or by memory that is not aligned.
class Ledger {
 public:
  int8q_allocator c{sizeof(int8q_allocator), 0, this, allocate, deallocate};
  int64_t requests = 0, fail_at = -1, wrong = 0;
  uint8_t fill = 0xcd;
  bool misaligns = false;

  size_t live() const { return sizes_.size(); }

 private:
  static void* allocate(void* opaque, uint64_t bytes, uint64_t alignment) {
    auto* self = static_cast<Ledger*>(opaque);
    const std::lock_guard<std::mutex> lock(self->mutex_);
    if (alignment != 64 || bytes == 0) ++self->wrong;
    const bool fails = self->requests++ == self->fail_at;
    if (fails && !self->misaligns) return nullptr;
    void* memory = static_cast<uint8_t*>(std::aligned_alloc(64, (bytes + 127) / 64 * 64)) + (fails ? 32 : 0);
    std::memset(memory, self->fill, bytes);
    self->sizes_[memory] = bytes;
    return memory;
  }
  static void deallocate(void* opaque, void* memory, uint64_t bytes) {
    auto* self = static_cast<Ledger*>(opaque);
    const std::lock_guard<std::mutex> lock(self->mutex_);
    const auto found = self->sizes_.find(memory);
    if (found == self->sizes_.end() || found->second != bytes) {
      ++self->wrong;
      return;
    }
    self->sizes_.erase(found);
    std::memset(memory, 0xdd, bytes);
    std::free(reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(memory) / 64 * 64));
  }

  std::mutex mutex_;
  std::map<void*, uint64_t> sizes_;
};

TEST(Allocator, EveryByteIsGivenBack) {
  Ledger ledger;
  Bytes right, bytes;
  ASSERT_CALL(run_everything(make_context(1).get(), &right));
  for (int round = 0; round < 3; ++round) {
    const ContextPtr context = make_context(3, nullptr, nullptr, &ledger.c);
    ASSERT_CALL(int8q_prepare_context(context.get()));
    bytes.clear();
    ASSERT_CALL(run_everything(context.get(), &bytes));
    EXPECT_TRUE(right == bytes);
    EXPECT_GE(ledger.live(), 3u) << "context, threads and scratch are in the caller's memory";
  }
  EXPECT_EQ(0u, ledger.live());
  EXPECT_EQ(0, ledger.wrong) << "an alignment other than 64, no bytes, or a size unlike the one asked for";
  EXPECT_GE(ledger.requests, 3 * 5);
}

TEST(Allocator, ALinearOutlivesItsContext) {
  Ledger ledger;
  const Layer& o = layer();
  LinearPtr linear;
  const Mat y(INT8Q_F32, kM, kN), right(INT8Q_F32, kM, kN);
  {
    const ContextPtr context = make_context(1, nullptr, nullptr, &ledger.c);
    linear = make_linear(context.get(), o.w, &o.bias);
    ASSERT_CALL(forward(context.get(), linear.get(), o.x, right));
  }
  EXPECT_EQ(2u, ledger.live()) << "the handle and its blob";
  ASSERT_CALL(forward(make_context(2).get(), linear.get(), o.x, y));
  EXPECT_EQ(right.bytes(), y.bytes());
  linear.reset();
  EXPECT_EQ(0u, ledger.live());
}

// A blob is written to files: what the memory held before must not get there.
TEST(Allocator, ABlobDoesNotDependOnWhatItsMemoryHeld) {
  const int64_t kept[] = {1, 5};
  int8q_linear_options options{};
  options.size = sizeof options;
  options.kept_cols = kept;
  options.kept_count = 2;
  const Mat w = random_mat(INT8Q_F32, 21, 70, 1), bias = random_mat(INT8Q_F32, 1, 21, 2);
  Bytes blobs[2];
  for (const uint8_t fill : {0x00, 0xff}) {
    Ledger ledger;
    ledger.fill = fill;
    const ContextPtr context = make_context(1, nullptr, nullptr, &ledger.c);
    int8q_linear* handle = nullptr;
    ASSERT_CALL(int8q_create_linear(context.get(), w.get(), nullptr, bias.get(), &options, &handle));
    const LinearPtr linear(handle);
    const void* blob = nullptr;
    uint64_t bytes = 0;
    ASSERT_CALL(int8q_get_blob(handle, &blob, &bytes));
    blobs[fill & 1].assign(static_cast<const uint8_t*>(blob), static_cast<const uint8_t*>(blob) + bytes);
  }
  ASSERT_EQ(blobs[0].size(), blobs[1].size());
  int64_t differ = 0;
  for (size_t i = 0; i < blobs[0].size(); ++i) differ += blobs[0][i] != blobs[1][i] ? 1 : 0;
  EXPECT_EQ(0, differ) << "bytes of " << blobs[0].size();
}

// Fails request 0, 1, 2, ... of a whole life of a context until one passes without a failure.
TEST(Allocator, EachAllocationMayFail) {
  const Layer& o = layer();
  const auto life = [&](Ledger* ledger) -> int32_t {
    int8q_context_options options{};
    options.size = sizeof options;
    options.threads = 3;
    options.allocator = &ledger->c;
    int8q_context* raw = nullptr;
    int32_t first = INT8Q_OK;
    const auto retried = [&](const std::function<int32_t()>& call) {  // a failure, and then the same call works
      const int32_t status = call();
      if (status == INT8Q_OK) return;
      first = first == INT8Q_OK ? status : first;
      EXPECT_STATUS(INT8Q_OUT_OF_MEMORY, status);
      const char* what = ledger->misaligns ? "expected a multiple of 64" : "allocating";
      EXPECT_NE(nullptr, std::strstr(int8q_last_error(), what)) << int8q_last_error();
      EXPECT_STATUS(INT8Q_OK, call());
    };
    retried([&] { return int8q_create_context(&options, &raw); });
    const ContextPtr context(raw);
    const Mat q(INT8Q_S8, kM, kK), acc(INT8Q_S32, kM, kN), y(INT8Q_F32, kM, kN), right(INT8Q_F32, kM, kN);
    std::vector<float> stats(kM);
    std::vector<int64_t> counts(kK);
    int8q_linear *linear = nullptr, *over = nullptr;
    retried([&] { return int8q_create_linear(raw, o.w.get(), nullptr, o.bias.get(), nullptr, &linear); });
    const LinearPtr owner(linear);
    retried([&] { return forward(raw, linear, o.x, y); });
    retried([&] { return int8q_quantize_rows(raw, o.x.get(), 0, 0, q.get(), stats.data(), nullptr, nullptr, nullptr); });
    retried([&] { return int8q_multiply(raw, o.a.get(), o.b.get(), acc.get()); });
    retried([&] { return int8q_count_outliers(raw, o.x.get(), 0, counts.data()); });
    std::vector<float> rows(kM, 1.0f), cols(kN, 1.0f);
    const int64_t outlier = 3;
    const Mat mixed(INT8Q_F32, kM, kN), a(INT8Q_S8, kM, kK), b(INT8Q_S8, kN, kK), dx(INT8Q_F32, kM, kK);
    retried([&] {
      return int8q_mixed_scaled_multiply(raw, o.x.get(), a.get(), rows.data(), b.get(), cols.data(), 0, 0, &outlier, 1,
                                         nullptr, mixed.get());
    });
    retried([&] { return backward(raw, linear, o.dy, dx); });
    retried([&] { return int8q_export_linear(raw, linear, b.get(), nullptr, nullptr, nullptr, nullptr); });
    uint64_t bytes = 0;
    EXPECT_STATUS(INT8Q_OK, int8q_query_blob(kN, kK, 1, 0, &bytes));
    const Workspace blob(bytes);
    retried([&] { return int8q_pack_linear(raw, o.w.get(), nullptr, o.bias.get(), nullptr, blob.get(), bytes); });
    retried([&] { return int8q_open_linear(raw, blob.get(), bytes, 0, &over); });
    const LinearPtr opened(over);
    EXPECT_STATUS(INT8Q_OK, forward(raw, over, o.x, right));
    EXPECT_EQ(right.bytes(), y.bytes());
    return first;
  };
  int64_t failures = 0;
  for (const bool misaligns : {false, true}) {
    for (int64_t at = 0;; ++at) {
      SCOPED_TRACE("request " + std::to_string(at) + (misaligns ? " is misaligned" : " fails"));
      Ledger ledger;
      ledger.fail_at = at;
      ledger.misaligns = misaligns;
      const int32_t status = life(&ledger);
      EXPECT_EQ(0u, ledger.live()) << "leaked";
      EXPECT_EQ(0, ledger.wrong);
      if (ledger.requests <= at) break;
      EXPECT_STATUS(INT8Q_OUT_OF_MEMORY, status);
      ++failures;
      ASSERT_LT(at, 100) << "the sweep does not end";
    }
  }
  EXPECT_GE(failures, 2 * 6);
  std::printf("%d allocations failed one at a time\n", static_cast<int>(failures));
}

// The threads' own memory belongs to the context's making: neither preparing nor the first call can fail for want of it.
TEST(Allocator, HotCallsAllocateNothing) {
  const Layer& o = layer();
  for (const int threads : {1, 3}) {
    Ledger ledger;
    const ContextPtr context = make_context(threads, nullptr, nullptr, &ledger.c);
    int8q_context* c = context.get();
    const LinearPtr linear = make_linear(c, o.w, &o.bias), other = make_linear(c, o.w2);
    const Mat y(INT8Q_F32, kM, kN), y2(INT8Q_F32, kM, 50), dx(INT8Q_F32, kM, kK);
    const Workspace ws = make_workspace(c, linear.get(), kM), back = make_workspace(c, linear.get(), kM, INT8Q_BACKWARD),
                    parted = make_workspace(c, linear.get(), kM, INT8Q_FORWARD, 2);
    const int8q_linear* linears[] = {linear.get(), other.get()};
    const int8q_matrix* ys[] = {y.get(), y2.get()};
    int32_t worst = INT8Q_OK;
    const auto hot = [&] {
      worst |= int8q_forward(c, linear.get(), o.x.get(), 0, y.get(), ws.get(), ws.bytes());
      worst |= int8q_forward_many(c, linears, 2, o.x.get(), 0, ys, ws.get(), ws.bytes());
      worst |= int8q_backward(c, linear.get(), o.dy.get(), 0, dx.get(), back.get(), back.bytes());
      for (int32_t part = 0; part < 2; ++part)
        worst |= int8q_quantize_part(c, linear.get(), o.x.get(), parted.get(), parted.bytes(), part, 2);
      for (int32_t part = 0; part < 2; ++part) {
        worst |= int8q_forward_part(c, linear.get(), o.x.get(), 0, y.get(), parted.get(), parted.bytes(), part, 2);
      }
    };
    const int64_t requests = ledger.requests;
    ledger.fail_at = requests;
    EXPECT_STATUS(INT8Q_OK, int8q_prepare_context(c));
    hot();
    heap_calls = 0;
    counting = true;
    for (int i = 0; i < 20; ++i) hot();
    counting = false;
    EXPECT_EQ(0, heap_calls.load()) << threads << " threads";
    EXPECT_EQ(requests, ledger.requests) << threads << " threads";
    EXPECT_EQ(INT8Q_OK, worst);
  }
  heap_calls = 0;
  counting = true;
  delete new std::vector<int>(1000);
  counting = false;
  EXPECT_GT(heap_calls.load(), 0) << "the counter counts";
}

}  // namespace
}  // namespace int8q::test
