// SPDX-License-Identifier: Apache-2.0
//
// A runner over the OpenMP threads that the process has: the pool's bits on as many threads as OpenMP allows, one in a
// forked child, and a refusal of what is no OpenMP.
#include <dlfcn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <thread>

#include "support/every_operation.h"

namespace int8q::test {
namespace {

size_t threads_of_process() {
  const std::filesystem::directory_iterator tasks("/proc/self/task");
  return static_cast<size_t>(std::distance(begin(tasks), end(tasks)));
}

#if defined(__SANITIZE_THREAD__)
#define INT8Q_LOAD_LIBGOMP() GTEST_SKIP() << "ThreadSanitizer does not see libgomp's synchronization"
#else
#define INT8Q_LOAD_LIBGOMP() \
  if (dlopen("libgomp.so.1", RTLD_NOW) == nullptr) GTEST_SKIP() << "no libgomp on this machine: " << dlerror()
#endif

TEST(OpenMp, ThreadsOfALoadedRuntimeGiveTheBitsOfThePool) {
  INT8Q_LOAD_LIBGOMP();
  Bytes right;
  ASSERT_CALL(run_everything(make_context(1).get(), &right));
  const auto set_num_threads =
      reinterpret_cast<void (*)(int)>(dlsym(dlopen("libgomp.so.1", RTLD_NOW), "omp_set_num_threads"));
  ASSERT_NE(nullptr, set_num_threads);
  int8q_parallel_runner runner{};
  runner.size = sizeof runner;
  ASSERT_CALL(int8q_find_openmp_runner("libgomp.so.1", 5, &runner));
  EXPECT_EQ(5, runner.max_threads);
  const ContextPtr context = make_context(0, nullptr, &runner);
  const size_t before = threads_of_process();
  for (const int threads : {1, 5, 2, 1}) {
    set_num_threads(threads);
    Bytes bytes;
    ASSERT_CALL(run_everything(context.get(), &bytes));
    EXPECT_TRUE(right == bytes) << threads << " threads";
    if (threads == 1) continue;
    EXPECT_GT(threads_of_process(), before) << "OpenMP was not asked";
  }
}

TEST(OpenMp, OneThreadIsNeverMore) {
  INT8Q_LOAD_LIBGOMP();
  int8q_parallel_runner runner{};
  runner.size = sizeof runner;
  ASSERT_CALL(int8q_find_openmp_runner("libgomp.so.1", 4, &runner));
  const auto set_num_threads =
      reinterpret_cast<void (*)(int)>(dlsym(dlopen("libgomp.so.1", RTLD_NOW), "omp_set_num_threads"));
  const auto threads_of = [&](int limit) {
    set_num_threads(limit);
    std::atomic<int32_t> most{0};
    EXPECT_EQ(0, runner.run(
                     runner.opaque, 64,
                     [](void* arg, int64_t, int32_t thread) {
                       std::this_thread::sleep_for(std::chrono::milliseconds(1));
                       auto& seen = *static_cast<std::atomic<int32_t>*>(arg);
                       for (int32_t m = seen; m < thread && !seen.compare_exchange_weak(m, thread);) {
                       }
                     },
                     &most));
    return most + 1;
  };
  EXPECT_EQ(1, threads_of(1));
  EXPECT_EQ(2, threads_of(2));
  EXPECT_EQ(4, threads_of(64)) << "threads of the runner";
}

TEST(OpenMp, AForkedChildRunsOnOneThread) {
  INT8Q_SKIP_FORK();
  INT8Q_LOAD_LIBGOMP();
  Bytes right, bytes;
  ASSERT_CALL(run_everything(make_context(1).get(), &right));
  int8q_parallel_runner runner{};
  runner.size = sizeof runner;
  ASSERT_CALL(int8q_find_openmp_runner("libgomp.so.1", 3, &runner));
  const ContextPtr context = make_context(0, nullptr, &runner);
  ASSERT_CALL(run_everything(context.get(), &bytes));
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);  // libgomp itself would wait for ever
    bytes.clear();
    const int32_t status = run_everything(context.get(), &bytes);
    _exit(status == INT8Q_OK && bytes == right && threads_of_process() == 1 ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(child, waitpid(child, &status, 0));
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
}

TEST(OpenMp, WhatIsNoLoadedRuntimeIsRefused) {
  int8q_parallel_runner runner{};
  runner.size = sizeof runner;
  EXPECT_STATUS(INT8Q_NOT_FOUND, int8q_find_openmp_runner("libthere-is-none.so", 2, &runner));
  EXPECT_STATUS(INT8Q_NOT_FOUND, int8q_find_openmp_runner("libc.so.6", 2, &runner));  // has no GOMP_parallel
  EXPECT_STATUS(INT8Q_INVALID_ARGUMENT, int8q_find_openmp_runner(nullptr, 2, &runner));
  EXPECT_STATUS(INT8Q_INVALID_ARGUMENT, int8q_find_openmp_runner("libc.so.6", 0, &runner));
  EXPECT_STATUS(INT8Q_INVALID_ARGUMENT, int8q_find_openmp_runner("libc.so.6", 1025, &runner));
  EXPECT_EQ(nullptr, runner.run);
}

}  // namespace
}  // namespace int8q::test
