// SPDX-License-Identifier: Apache-2.0
//
// Blocks that share K: sums are exact at each of many runs over one workspace, by a graph as by calls, for two linears of one
// input, and on two streams at once. That K is shared is read from the graph's kernels.
#include <algorithm>

#include "cuda/layer_on_device.h"
#include "cuda/shapes.h"
#include "cuda/stream.h"

namespace int8q::test {
namespace {

bool is_emulated() { return more_of_driver().stub_count != nullptr; }
int runs() { return is_emulated() ? 3 : small_grid() ? 10 : 120; }

int64_t small_tiles(const Shape& s) {
  const cuda::Tile& tile = gpu().shapes.small;
  return (s.m + tile.m - 1) / tile.m * ((s.n + tile.n - 1) / tile.n);
}

// Those that leave two blocks of an SM's two to a tile, and the first on any GPU.
std::vector<Shape> split_shapes() {
  if (is_emulated()) return {{65, 20, 1100}, {130, 60, 600}};
  std::vector<Shape> few = {{65, 300, 4096}};
  for (const Shape& s : std::vector<Shape>{{130, 300, 4096}, {512, 300, 4096}}) {
    if (!small_grid() && small_tiles(s) <= gpu().multiprocessors) few.push_back(s);
  }
  return few;
}

// Integers whose greatest is 127 in each row: codes, and fp16 values whose codes they are, scaled by 1.
struct Integers {
  std::vector<int8_t> codes;
  Grid floats;

  Integers(int64_t rows, int64_t k, uint64_t seed) : floats(INT8Q_F16, rows, k) {
    Random random(seed);
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < k; ++j) {
        codes.push_back(j == i % k ? int8_t{127} : random.code());
        floats.set(i, j, codes.back());
      }
    }
  }
};

// Y = X . W^T of integers, exactly, and the layer on the device that has to give it.
struct Exact {
  Integers x, w;
  DeviceGrid x_there, w_there;
  LinearPtr linear;
  std::vector<float> want;

  Exact(int8q_context* context, const Shape& s, uint64_t seed_of_w = 2)
      : x(s.m, s.k, 1), w(s.n, s.k, seed_of_w), x_there(x.floats), w_there(w.floats) {
    int8q_linear_options options{};
    options.size = sizeof options;
    options.outlier_mode = INT8Q_OUTLIERS_ELEMENT;  // which wgmma does not take, and whose elements are none
    options.threshold = 1000;
    int8q_linear* raw = nullptr;
    EXPECT_STATUS(INT8Q_OK, int8q_create_linear(context, w_there.view(), nullptr, nullptr, &options, &raw));
    linear.reset(raw);
    for (int64_t i = 0; i < s.m; ++i) {
      for (int64_t j = 0; j < s.n; ++j)
        want.push_back(static_cast<float>(dot(x.codes.data() + i * s.k, w.codes.data() + j * s.k, s.k)));
    }
  }

  void expect(const Grid& y) const {
    for (int64_t i = 0; i < y.rows(); ++i) {
      for (int64_t j = 0; j < y.cols(); ++j)
        ASSERT_EQ(y.at(i, j), want[static_cast<size_t>(i * y.cols() + j)]) << i << ", " << j;
    }
  }
};

// A graph's product has more blocks than tiles; it gives what calls give.
TEST(CudaSplitK, GraphsAndCallsAreExactAtEachRun) {
  for (const Shape& s : split_shapes()) {
    SCOPED_TRACE(::testing::Message() << "M " << s.m << " N " << s.n << " K " << s.k);
    Stream stream;
    const ContextPtr there = make_gpu_context(stream.get());
    const Exact exact(there.get(), s);
    Grid before(INT8Q_F32, s.m, s.n);
    DeviceGrid y(before);
    const DeviceWorkspace workspace(there.get(), exact.linear.get(), s.m);
    const auto forward = [&] {
      ASSERT_CALL(int8q_forward(there.get(), exact.linear.get(), exact.x_there.view(), 0, y.view(), workspace.get(),
                                workspace.bytes()));
    };
    stream.capture(forward);
    const std::vector<Launch> kernels = stream.captured();
    const auto product = std::ranges::find(kernels, gpu().shapes.small.threads, &Launch::threads);
    ASSERT_NE(product, kernels.end());
    EXPECT_GT(product->blocks, small_tiles(s)) << "no blocks share K";
    EXPECT_EQ(product->blocks % small_tiles(s), 0);
    for (int run = 0; run < runs(); ++run) {
      for (const bool by_graph : {false, true}) {
        SCOPED_TRACE(::testing::Message() << "run " << run << (by_graph ? ", by graph" : ", by a call"));
        y.upload(before);
        by_graph ? stream.replay() : forward();
        stream.wait();
        exact.expect(y.download());
        if (HasFatalFailure()) return;
      }
    }
  }
}

// One quantization, whose counters the second product finds as the first did.
TEST(CudaSplitK, SeveralLinearsAreExact) {
  for (const Shape& s : split_shapes()) {
    SCOPED_TRACE(::testing::Message() << "M " << s.m << " N " << s.n << " K " << s.k);
    const ContextPtr there = make_gpu_context();
    const Exact first(there.get(), s), second(there.get(), s, 3);
    Grid before(INT8Q_F32, s.m, s.n);
    DeviceGrid y(before), other_y(before);
    const DeviceWorkspace workspace(there.get(), first.linear.get(), s.m);
    const int8q_linear* const both[] = {first.linear.get(), second.linear.get()};
    const int8q_matrix* const ys[] = {y.view(), other_y.view()};
    for (int run = 0; run < std::min(runs(), 10); ++run) {
      y.upload(before);
      other_y.upload(before);
      ASSERT_CALL(
          int8q_forward_many(there.get(), both, 2, first.x_there.view(), 0, ys, workspace.get(), workspace.bytes()));
      first.expect(y.download());
      second.expect(other_y.download());
      if (HasFatalFailure()) return;
    }
  }
}

// Each with a workspace of its own; no run waits for the one before.
TEST(CudaSplitK, TwoStreamsAtOnceAreExact) {
  for (const Shape& s : split_shapes()) {
    SCOPED_TRACE(::testing::Message() << "M " << s.m << " N " << s.n << " K " << s.k);
    const Stream streams[2];
    const ContextPtr there[] = {make_gpu_context(streams[0].get()), make_gpu_context(streams[1].get())};
    const Exact exact[] = {Exact(there[0].get(), s), Exact(there[1].get(), s, 3)};
    Grid before(INT8Q_F32, s.m, s.n);
    const DeviceWorkspace workspaces[] = {{there[0].get(), exact[0].linear.get(), s.m},
                                          {there[1].get(), exact[1].linear.get(), s.m}};
    std::vector<std::unique_ptr<DeviceGrid>> ys[2];
    for (int run = 0; run < std::min(runs(), 20); ++run) {
      for (auto& of_stream : ys) of_stream.push_back(std::make_unique<DeviceGrid>(before));
    }
    for (size_t run = 0; run < ys[0].size(); ++run) {
      for (size_t t = 0; t < 2; ++t) {
        ASSERT_CALL(int8q_forward(there[t].get(), exact[t].linear.get(), exact[t].x_there.view(), 0, ys[t][run]->view(),
                                  workspaces[t].get(), workspaces[t].bytes()));
      }
    }
    for (const Stream& stream : streams) stream.wait();
    for (size_t run = 0; run < ys[0].size(); ++run) {
      for (size_t t = 0; t < 2; ++t) {
        SCOPED_TRACE(::testing::Message() << "run " << run << ", stream " << t);
        exact[t].expect(ys[t][run]->download());
        if (HasFatalFailure()) return;
      }
    }
  }
}

}  // namespace
}  // namespace int8q::test
