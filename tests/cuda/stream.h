// SPDX-License-Identifier: Apache-2.0
//
// A stream of a GPU, which captures calls and replays them, and which kernels these launched.
#pragma once

#include <algorithm>
#include <ostream>
#include <vector>

#include "cuda/gpu.h"

namespace int8q::test {

// A kernel of a graph.
struct Launch {
  int threads;
  int64_t blocks;
  int shared_bytes;
  bool operator==(const Launch&) const = default;
};
inline void PrintTo(const Launch& l, std::ostream* to) {
  *to << l.blocks << " blocks of " << l.threads << " threads, " << l.shared_bytes << " bytes of shared memory";
}

// shared_bytes of 0: any.
inline void expect_kernel(const std::vector<Launch>& launched, Launch wanted) {
  const auto is_it = [&](Launch l) {
    if (wanted.shared_bytes == 0) l.shared_bytes = 0;
    return l == wanted;
  };
  EXPECT_EQ(std::ranges::count_if(launched, is_it), 1)
      << ::testing::PrintToString(launched) << " were launched; expected " << ::testing::PrintToString(wanted);
}

class Stream {
 public:
  Stream() : current_(gpu()) { EXPECT_EQ(more_of_driver().cuStreamCreate(&stream_, 1), 0); }
  void* get() const { return stream_; }
  void wait() const { ASSERT_EQ(gpu().driver.cuStreamSynchronize(stream_), 0); }

  // Calls of this stream, which do not run.
  template <class Body>
  void capture(const Body& body) {
    const MoreOfDriver& more = more_of_driver();
    ASSERT_EQ(more.cuStreamBeginCapture(stream_, 0), 0);
    body();
    ASSERT_EQ(more.cuStreamEndCapture(stream_, &graph_), 0);
    ASSERT_EQ(more.cuGraphInstantiateWithFlags(&executable_, graph_, 0), 0);
  }
  void replay() const { ASSERT_EQ(more_of_driver().cuGraphLaunch(executable_, stream_), 0); }
  // What was captured, kernels alone.
  std::vector<Launch> captured() const {
    const MoreOfDriver& more = more_of_driver();
    size_t count = 0;
    EXPECT_EQ(more.cuGraphGetNodes(graph_, nullptr, &count), 0);
    std::vector<void*> nodes(count);
    EXPECT_EQ(more.cuGraphGetNodes(graph_, nodes.data(), &count), 0);
    std::vector<Launch> found;
    for (void* node : nodes) {
      KernelNode kernel{};
      EXPECT_EQ(more.cuGraphKernelNodeGetParams(node, &kernel), 0);
      found.push_back({static_cast<int>(kernel.block[0]), kernel.grid[0], static_cast<int>(kernel.shared_bytes)});
    }
    return found;
  }

 private:
  const cuda::Current current_;
  void *stream_ = nullptr, *graph_ = nullptr, *executable_ = nullptr;
};

}  // namespace int8q::test
