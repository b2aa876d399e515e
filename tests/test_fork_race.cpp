// SPDX-License-Identifier: Apache-2.0
//
// The first calls of a forked child, from several threads at once on an inherited context: one of them makes the pool anew,
// the others run serially meanwhile. A child that waits for its parent's threads is ended by its alarm.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <thread>
#include <vector>

#include "support/call.h"
#include "support/settle.h"

namespace int8q::test {
namespace {

constexpr int kForks = 20;
constexpr int kContexts = 32;  // each a race of its own
constexpr int kThreads = 2;
constexpr int64_t kM = 96, kN = 80, kK = 512;  // enough for two threads to share

TEST(ForkRace, ThreadsOfTheChildShareInheritedContexts) {
  INT8Q_SKIP_FORK();
  const Mat w = random_mat(INT8Q_F32, kN, kK, 1), x = random_input(INT8Q_F32, kM, kK, 2), right(INT8Q_F32, kM, kN);
  std::vector<ContextPtr> contexts;
  for (int i = 0; i < kContexts; ++i) contexts.push_back(make_context(2));
  const LinearPtr linear = make_linear(contexts[0].get(), w);
  for (const ContextPtr& context : contexts) ASSERT_CALL(forward(context.get(), linear.get(), x, right));
  for (int i = 0; i < kForks; ++i) {
    settle_threads();
    const pid_t child = fork();
    if (child == 0) {
      alarm(60);
      std::atomic<int> arrived{0}, wrong{0};
      std::thread threads[kThreads];
      for (std::thread& thread : threads) {
        thread = std::thread([&] {
          const Mat y(INT8Q_F32, kM, kN);
          const Workspace workspace = make_workspace(contexts[0].get(), linear.get(), kM);
          for (int c = 0; c < kContexts; ++c) {
            ++arrived;
            while (arrived < kThreads * (c + 1)) {
            }
            const int32_t status = int8q_forward(contexts[static_cast<size_t>(c)].get(), linear.get(), x.get(), 0, y.get(),
                                                 workspace.get(), workspace.bytes());
            wrong += status != INT8Q_OK || y.bytes() != right.bytes();
          }
        });
      }
      for (std::thread& thread : threads) thread.join();
      _exit(wrong);
    }
    int status = -1;
    ASSERT_EQ(child, waitpid(child, &status, 0));
    ASSERT_EQ(0, status) << "fork " << i << (WIFSIGNALED(status) ? ": the child hung" : ": wrong results");
  }
}

}  // namespace
}  // namespace int8q::test
