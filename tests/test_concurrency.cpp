// SPDX-License-Identifier: Apache-2.0
//
// Many threads, shared contexts, nested calls, forks: what int8q_create_context says about them.
#include <dirent.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <functional>
#include <thread>

#include "support/call.h"
#include "support/settle.h"

namespace int8q::test {
namespace {

constexpr int kThreads = 8;
constexpr int64_t kM = 33, kN = 80, kK = 1024;  // forward is parallel in both of its phases

int rounds(int full) { return small_grid() ? std::max(full / 10, 2) : full; }

struct Layer {
  Mat w = random_mat(INT8Q_F32, kN, kK, 1), bias = random_mat(INT8Q_F32, 1, kN, 2), x = random_input(INT8Q_F32, kM, kK, 3);
  Mat dy = random_mat(INT8Q_F32, kM, kN, 4), y = Mat(INT8Q_F32, kM, kN), dx = Mat(INT8Q_F32, kM, kK),
      q = Mat(INT8Q_S8, kM, kK);
  ContextPtr context = make_context(1);
  LinearPtr linear = make_linear(context.get(), w, &bias);
  std::vector<float> stats = std::vector<float>(kM);
  Layer() {  // the right bits, found by one thread
    EXPECT_STATUS(INT8Q_OK, forward(context.get(), linear.get(), x, y));
    EXPECT_STATUS(INT8Q_OK, backward(context.get(), linear.get(), dy, dx));
    EXPECT_STATUS(INT8Q_OK,
                  int8q_quantize_rows(context.get(), x.get(), 0, 0, q.get(), stats.data(), nullptr, nullptr, nullptr));
  }

  bool forward_is_right(int8q_context* c) const {
    const Mat out(INT8Q_F32, kM, kN);
    return forward(c, linear.get(), x, out) == INT8Q_OK && out.bytes() == y.bytes();
  }
  bool backward_is_right(int8q_context* c) const {
    const Mat out(INT8Q_F32, kM, kK);
    return backward(c, linear.get(), dy, out) == INT8Q_OK && out.bytes() == dx.bytes();
  }
  // OK and right, or BUSY and untouched.
  bool quantize_is_right(int8q_context* c, std::atomic<int64_t>* busy) const {
    const Mat out(INT8Q_S8, kM, kK), before(INT8Q_S8, kM, kK);
    std::vector<float> s(kM, -1.0f);
    const int32_t status = int8q_quantize_rows(c, x.get(), 0, 0, out.get(), s.data(), nullptr, nullptr, nullptr);
    if (status == INT8Q_OK) return out.bytes() == q.bytes() && s == stats;
    if (busy != nullptr) ++*busy;
    return busy != nullptr && status == INT8Q_BUSY && out.bytes() == before.bytes() && s == std::vector<float>(kM, -1.0f);
  }
};

// A product of a thread's own, whose operands go through the scratch memory: two calls in it at once would mix.
struct Product {
  static constexpr int64_t kDepth = 2000;
  Mat a, b, c = Mat(INT8Q_S32, kM, kN);
  Product(int8q_context* alone, uint64_t seed)
      : a(random_mat(INT8Q_S8, kM, kDepth, seed)), b(random_mat(INT8Q_S8, kN, kDepth, seed + 1)) {
    EXPECT_STATUS(INT8Q_OK, int8q_multiply(alone, a.get(), b.get(), c.get()));
  }
  bool is_right(int8q_context* context, std::atomic<int64_t>* busy) const {
    const Mat out(INT8Q_S32, kM, kN), before(INT8Q_S32, kM, kN);
    const int32_t status = int8q_multiply(context, a.get(), b.get(), out.get());
    if (status == INT8Q_OK) return out.bytes() == c.bytes();
    ++*busy;
    return status == INT8Q_BUSY && out.bytes() == before.bytes();
  }
};

void on_threads(int count, const std::function<void(int)>& body) {
  std::vector<std::thread> threads;
  for (int i = 0; i < count; ++i) threads.emplace_back(body, i);
  for (std::thread& thread : threads) thread.join();
}

TEST(Concurrency, OwnContextsShareOneLinear) {
  const Layer layer;
  std::atomic<int64_t> wrong{0};
  on_threads(kThreads, [&](int id) {
    const ContextPtr context = make_context(1 + id % 3);
    for (int i = 0; i < rounds(100); ++i) {
      wrong += !layer.forward_is_right(context.get());
      wrong += !layer.backward_is_right(context.get());
      wrong += !layer.quantize_is_right(context.get(), nullptr);
    }
  });
  EXPECT_EQ(0, wrong.load());
}

TEST(Concurrency, ASharedContextIsRightOrBusy) {
  const Layer layer;
  const ContextPtr context = make_context(3);
  std::atomic<int64_t> wrong{0}, busy{0};
  on_threads(kThreads, [&](int id) {
    const Product product(make_context(1).get(), static_cast<uint64_t>(id) + 10);
    for (int i = 0; i < rounds(100); ++i) {
      wrong += !layer.forward_is_right(context.get());
      wrong += !product.is_right(context.get(), &busy);
      if (id % 2 == 0) wrong += !layer.backward_is_right(context.get());
      wrong += !layer.quantize_is_right(context.get(), &busy);
    }
  });
  EXPECT_EQ(0, wrong.load());
  std::printf("%d stateless calls were busy\n", static_cast<int>(busy.load()));
  EXPECT_TRUE(layer.quantize_is_right(context.get(), nullptr)) << "nothing stays busy";
}

TEST(Concurrency, PartsOfOneCallShareAContext) {
  const Layer layer;
  const ContextPtr context = make_context(1);
  constexpr int32_t kParts = 5;
  for (int round = 0; round < rounds(50); ++round) {
    const Workspace ws = make_workspace(context.get(), layer.linear.get(), kM, INT8Q_FORWARD, kParts);
    const Mat y(INT8Q_F32, kM, kN);
    std::atomic<int32_t> status{0};
    on_threads(kParts, [&](int part) {
      status |= int8q_quantize_part(context.get(), layer.linear.get(), layer.x.get(), ws.get(), ws.bytes(), part, kParts);
    });
    on_threads(kParts, [&](int part) {
      status |= int8q_forward_part(context.get(), layer.linear.get(), layer.x.get(), 0, y.get(), ws.get(), ws.bytes(), part,
                                   kParts);
    });
    ASSERT_EQ(INT8Q_OK, status.load());
    ASSERT_EQ(layer.y.bytes(), y.bytes());
  }
}

// From inside a runner's task: forward on the same context, and on one with a pool, is right.
TEST(Concurrency, NestedCallsAreRight) {
  struct Nested {
    const Layer* layer;
    int8q_context* self = nullptr;
    int8q_context* pooled = nullptr;
    std::atomic<int> depth{0}, wrong{0}, asked{0};
  };
  const Layer layer;
  Nested nested{&layer};
  const int8q_parallel_runner runner{sizeof runner, 2, &nested,
                                     [](void* opaque, int64_t count, int8q_task task, void* arg) {
                                       auto* n = static_cast<Nested*>(opaque);
                                       ++n->asked;
                                       for (int64_t i = 0; i < count; ++i) {
                                         if (n->depth++ == 0) {
                                           n->wrong += !n->layer->forward_is_right(n->self);
                                           n->wrong += !n->layer->backward_is_right(n->self);
                                           n->wrong += !n->layer->forward_is_right(n->pooled);
                                         }
                                         --n->depth;
                                         task(arg, i, 0);
                                       }
                                       return 0;
                                     }};
  const ContextPtr context = make_context(0, nullptr, &runner), pooled = make_context(2);
  nested.self = context.get();
  nested.pooled = pooled.get();
  EXPECT_TRUE(layer.forward_is_right(context.get()));
  EXPECT_EQ(0, nested.wrong.load());
  EXPECT_GE(nested.asked.load(), 2);
}

int count_threads() {
  int count = 0;
  DIR* tasks = opendir("/proc/self/task");
  if (tasks == nullptr) return -1;
  while (const dirent* entry = readdir(tasks)) count += entry->d_name[0] != '.';
  closedir(tasks);
  return count;
}

// Runs body in a forked child; a child that hangs is killed by its alarm.
int exit_of_child(const std::function<bool()>& body) {
  settle_threads();
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);
    _exit(body() ? 0 : 1);
  }
  int status = -1;
  EXPECT_EQ(child, waitpid(child, &status, 0));
  return status;
}

TEST(Concurrency, AForkedChildComputesAndDestroys) {
  INT8Q_SKIP_FORK();
  const Layer layer;
  int8q_context* context = make_context(3).release();
  ASSERT_TRUE(layer.forward_is_right(context));  // the parent's threads run
  const auto works = [&] {
    for (int i = 0; i < 3; ++i) {
      if (!layer.forward_is_right(context) || !layer.backward_is_right(context) ||
          !layer.quantize_is_right(context, nullptr))
        return false;
    }
    return true;
  };
  // After a parallel call the child has started its own two threads: one that ran serially for ever would compute as well.
  const auto has_threads = [&] {
    const int before = count_threads();
    return works() && (before < 0 || count_threads() == before + 2) && works() &&
           (before < 0 || count_threads() == before + 2);
  };
  EXPECT_EQ(0, exit_of_child(works));
  EXPECT_EQ(0, exit_of_child(has_threads));
  EXPECT_EQ(0, exit_of_child([&] { return works() && exit_of_child(has_threads) == 0; })) << "a grandchild's threads";
  EXPECT_EQ(0, exit_of_child([&] { return works() && exit_of_child(works) == 0 && works(); })) << "a grandchild";
  EXPECT_EQ(0, exit_of_child([&] { return exit_of_child(works) == 0; })) << "a grandchild of a child that did not compute";
  EXPECT_EQ(0, exit_of_child([&] { return int8q_destroy_context(context) == INT8Q_OK; })) << "destroyed without a call";
  EXPECT_EQ(0, exit_of_child([&] { return works() && int8q_destroy_context(context) == INT8Q_OK; }));
  EXPECT_TRUE(works()) << "the parent";
  EXPECT_EQ(INT8Q_OK, int8q_destroy_context(context));
}

// The thread that forks is the child's only one; it need not be the one that made the context or started the pool.
TEST(Concurrency, AForkFromAnotherThread) {
  INT8Q_SKIP_FORK();
  const Layer layer;
  const ContextPtr first = make_context(3);
  ASSERT_TRUE(layer.forward_is_right(first.get()));
  std::thread([&] {
    const ContextPtr own = make_context(2);
    EXPECT_TRUE(layer.forward_is_right(own.get()));
    EXPECT_EQ(0, exit_of_child([&] {
                for (int8q_context* context : {first.get(), own.get()}) {
                  if (!layer.forward_is_right(context) || !layer.backward_is_right(context) ||
                      !layer.quantize_is_right(context, nullptr))
                    return false;
                }
                bool right = false;  // and a thread that the child starts itself
                std::thread([&] { right = layer.forward_is_right(first.get()); }).join();
                return right;
              }));
  }).join();
  EXPECT_TRUE(layer.forward_is_right(first.get()));
}

// The fork falls into the middle of other threads' calls on the very context: pool and scratch memory look taken.
TEST(Concurrency, AForkDuringCallsOfOtherThreads) {
  INT8Q_SKIP_FORK();
#if defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "AddressSanitizer's allocator, unlike glibc's, keeps in the child the locks of threads that are gone";
#endif
  const Layer layer;
  const ContextPtr context = make_context(3);
  std::atomic<bool> stop{false};
  std::atomic<int64_t> wrong{0}, calls{0};
  std::thread forwards([&] {
    while (!stop) wrong += !layer.forward_is_right(context.get()), ++calls;
  });
  std::thread quantizes([&] {
    std::atomic<int64_t> busy{0};
    while (!stop) wrong += !layer.quantize_is_right(context.get(), &busy);
  });
  while (calls == 0) std::this_thread::yield();
  // The child allocates nothing that the parent's threads might hold the heap's lock for: glibc reinitializes malloc at
  // fork. Its own calls use the shared context.
  for (int i = 0; i < rounds(40); ++i) {
    EXPECT_EQ(0, exit_of_child([&] {
                return layer.forward_is_right(context.get()) && layer.quantize_is_right(context.get(), nullptr) &&
                       layer.forward_is_right(context.get());
              }))
        << "fork " << i;
  }
  stop = true;
  forwards.join();
  quantizes.join();
  EXPECT_EQ(0, wrong.load());
}

// A joined thread's entry may linger for a moment.
int settled_threads(int expected) {
  int count = count_threads();
  for (int i = 0; i < 500 && count != expected; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    count = count_threads();
  }
  return count;
}

// How many threads the process has apart from the library's. ThreadSanitizer's own one starts with the first other.
int threads_before() {
  std::thread([] {}).join();
  const int before = count_threads();
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  return std::min(before, count_threads());
}

TEST(Concurrency, DestroyedContextsLeaveNoThreads) {
  const int before = threads_before();
  if (before < 0) GTEST_SKIP() << "no /proc/self/task here";
  for (int i = 0; i < rounds(200); ++i) {
    const ContextPtr context = make_context(1 + i % 5);
    ASSERT_CALL(int8q_prepare_context(context.get()));
    ASSERT_EQ(before + i % 5, settled_threads(before + i % 5)) << "round " << i;
  }
  EXPECT_EQ(before, settled_threads(before));
}

TEST(Concurrency, ThreadsStartAtTheFirstParallelCall) {
  const int before = threads_before();
  if (before < 0) GTEST_SKIP() << "no /proc/self/task here";
  const Layer layer;
  const ContextPtr context = make_context(4);
  EXPECT_EQ(before, count_threads());
  EXPECT_TRUE(layer.forward_is_right(context.get()));
  EXPECT_EQ(before + 3, count_threads());
}

// A pool's threads block signals that are sent: the application's handlers run on the application's threads.
TEST(Concurrency, PoolThreadsTakeNoSignals) {
  static std::atomic<int> elsewhere;
  static pthread_t application;
  elsewhere = 0;
  application = pthread_self();
  struct sigaction action {
  }, old{};
  action.sa_handler = [](int) { elsewhere += pthread_equal(pthread_self(), application) ? 0 : 1; };
  ASSERT_EQ(0, sigaction(SIGUSR1, &action, &old));
  const ContextPtr context = make_context(4);
  ASSERT_CALL(int8q_prepare_context(context.get()));
  sigset_t usr1, before;
  sigemptyset(&usr1);
  sigaddset(&usr1, SIGUSR1);
  pthread_sigmask(SIG_BLOCK, &usr1, &before);  // a pool's thread that does not block it would have to take it
  kill(getpid(), SIGUSR1);
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  EXPECT_EQ(0, elsewhere.load());
  sigaction(SIGUSR1, &old, nullptr);
}

}  // namespace
}  // namespace int8q::test
