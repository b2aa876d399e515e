// SPDX-License-Identifier: Apache-2.0
//
// Who computes what: for 1 to 64 parts every row and every item of Y belongs to exactly one part, and parts differ by at
// most one.
#include <algorithm>
#include <functional>
#include <vector>

#include "cpu/product.h"
#include "cpu/quantize.h"
#include "support/call.h"

namespace int8q::test {
namespace {

const std::vector<int64_t>& sizes() {
  static const std::vector<int64_t> all = {0, 1, 2, 15, 16, 17, 63, 64, 65, 191, 192, 193, 385, 1000, 4096, 11008};
  return all;
}

TEST(Partition, RangesCoverEachItemOnceAndAreEven) {
  for (int64_t parts = 1; parts <= 64; ++parts) {
    for (int64_t count = 0; count <= 200; ++count) {
      int64_t next = 0, least = INT64_MAX, most = 0;
      for (int64_t part = 0; part < parts; ++part) {
        const Range range = part_range(count, part, parts);
        ASSERT_EQ(next, range.begin) << count << " items, part " << part << " of " << parts;
        ASSERT_LE(range.begin, range.end);
        next = range.end;
        least = std::min(least, range.end - range.begin);
        most = std::max(most, range.end - range.begin);
      }
      ASSERT_EQ(count, next) << parts << " parts";
      ASSERT_LE(most - least, 1) << count << " items, " << parts << " parts";
    }
  }
  const Range last = part_range(INT64_MAX, 63, 64);
  EXPECT_EQ(INT64_MAX, last.end) << "no overflow on the way";
}

TEST(Partition, ItemsAreEnoughForAllPartsWhereTheyCan) {
  for (const int64_t m : sizes()) {
    for (const int64_t n : sizes()) {
      const int64_t panels = ceil_div(n, cpu::kPanelRows);
      for (int64_t parts = 1; parts <= 64; ++parts) {
        const int64_t blocks = row_block_count(m, n, parts), items = item_count(m, n, parts);
        ASSERT_EQ(panels * blocks, items);
        if (m == 0) continue;
        ASSERT_LE(ceil_div(m, blocks), kBlockM) << "more rows than a part has memory for";
        if (blocks > ceil_div(m, kBlockM)) {
          ASSERT_LT(panels * (blocks - 1), kItemsPerPart * parts) << "smaller than needed";
          ASSERT_GE(ceil_div(m, blocks), kLeastRows / 2) << "too small for a register tile";
        }
        if (parts > 1 && n > 0 && items < kItemsPerPart * parts) {
          ASSERT_GE(blocks, ceil_div(m, kLeastRows))
              << m << "x" << n << ": parts stay idle although blocks could be smaller";
        }
      }
    }
  }
}

// multiply_part itself, over given accumulators: each part alone, into memory of its own, and each element of Y is written
// by exactly one of them.
TEST(Partition, EachElementIsWrittenByOnePart) {
  const cpu::Kernels& kernels = cpu::generic_kernels();
  const std::vector<int64_t> ms = small_grid() ? std::vector<int64_t>{1, 193} : std::vector<int64_t>{1, 17, 192, 193, 400};
  for (const int64_t m : ms) {
    for (const int64_t n : {int64_t{1}, int64_t{16}, int64_t{17}, int64_t{65}, int64_t{150}}) {
      for (int64_t parts = 1; parts <= 64; parts = small_grid() ? parts * 2 : parts + 1) {
        std::vector<int32_t> acc(static_cast<size_t>(m * n));
        std::vector<int32_t> y(acc.size());
        std::vector<int> writers(acc.size());
        Random random(static_cast<uint64_t>(m * 1000 + n));
        for (int32_t& v : acc) v = static_cast<int32_t>(random.below(1 << 20)) + 1;
        Product p{};
        p.kernels = &kernels;
        p.m = m;
        p.n = n;
        p.weights = Weights::kNone;
        p.b = reinterpret_cast<const int8_t*>(acc.data());
        p.b_stride = n * 4;
        p.limit = cpu::kNoOutliers;
        p.y = reinterpret_cast<uint8_t*>(y.data());
        p.y_dtype = INT8Q_S32;
        p.y_stride = n * 4;
        Carver size(nullptr);
        carve_part_scratch(size, m, 0, false, false);
        const Workspace scratch(static_cast<uint64_t>(size.used()));
        int64_t least = INT64_MAX, most = 0;
        for (int64_t part = 0; part < parts; ++part) {
          std::fill(y.begin(), y.end(), 0);
          Carver carver(scratch.get());
          multiply_part(p, carve_part_scratch(carver, m, 0, false, false), part, parts);
          for (size_t i = 0; i < y.size(); ++i) {
            if (y[i] == 0) continue;
            ASSERT_EQ(acc[i], y[i]);
            ++writers[i];
          }
          const Range range = part_range(item_count(m, n, parts), part, parts);
          least = std::min(least, range.end - range.begin);
          most = std::max(most, range.end - range.begin);
        }
        ASSERT_LE(most - least, 1);
        for (size_t i = 0; i < writers.size(); ++i)
          ASSERT_EQ(1, writers[i]) << m << "x" << n << ", " << parts << " parts, element " << i;
      }
    }
  }
}

// Runs a phase's tasks one after another and tells `after` of each.
struct Watcher {
  std::function<void(int64_t task)> after;

  static int32_t run(void* self, int64_t count, int8q_task task, void* arg) {
    for (int64_t i = 0; i < count; ++i) {
      task(arg, i, 0);
      static_cast<Watcher*>(self)->after(i);
    }
    return 0;
  }
};

// Who packs a panel touches its memory first, and so decides on which NUMA node it lies: it must be who reads it.
TEST(Partition, APanelIsPackedByThePartThatReadsIt) {
  const int64_t n = 1203, k = 1024, panels = ceil_div(n, cpu::kPanelRows);  // enough of both to be shared
  for (const int32_t parts : {2, 3, 5, 64}) {
    SCOPED_TRACE(::testing::Message() << parts << " parts");
    Watcher watcher;
    const int8q_parallel_runner runner{sizeof runner, parts, &watcher, Watcher::run};
    const ContextPtr context = make_context(0, nullptr, &runner);
    const Mat weight = random_mat(INT8Q_F32, n, k, 1), x = random_mat(INT8Q_F32, 1, k, 2), y(INT8Q_F32, 1, n);
    uint64_t bytes = 0;
    ASSERT_CALL(int8q_query_blob(n, k, 0, 0, &bytes));
    const Workspace blob(bytes);
    std::memset(blob.get(), 0x80, bytes);  // no weight's code

    std::vector<int64_t> packer(static_cast<size_t>(panels), -1), reader(packer);
    watcher.after = [&](int64_t task) {
      const int8_t* codes = blob_sections(blob.get()).panels;
      for (int64_t p = 0; p < panels; ++p) {
        int64_t& who = packer[static_cast<size_t>(p)];
        if (who < 0 && codes[p * k * cpu::kPanelRows] != -128) who = task;
      }
    };
    ASSERT_CALL(int8q_pack_linear(context.get(), weight.get(), nullptr, nullptr, nullptr, blob.get(), bytes));

    const std::vector<uint8_t> fresh = Mat(y).bytes();
    watcher.after = [&](int64_t task) {
      for (int64_t p = 0; p < panels; ++p) {
        const auto at = static_cast<size_t>(p * cpu::kPanelRows * 4);
        int64_t& who = reader[static_cast<size_t>(p)];
        if (who < 0 && !std::equal(fresh.begin(), fresh.begin() + 4, y.bytes().begin() + static_cast<std::ptrdiff_t>(at))) {
          who = task;
        }
      }
    };
    int8q_linear* raw = nullptr;
    ASSERT_CALL(int8q_open_linear(context.get(), blob.get(), bytes, 0, &raw));
    const LinearPtr linear(raw);
    ASSERT_CALL(forward(context.get(), raw, x, y));

    EXPECT_EQ(reader, packer);
    EXPECT_EQ(std::count(packer.begin(), packer.end(), -1), 0) << "a panel that nobody packed";
    EXPECT_EQ(packer.front(), 0);
    EXPECT_EQ(packer.back(), parts - 1);
  }
}

// Runs call(context), which writes y, for 1 to 64 parts: each element is written by one of them, and no part writes more than
// another by more than one item of so many elements.
template <class Call>
void expect_even_work(Mat& y, int64_t item_elements, const Call& call) {
  const auto count = static_cast<size_t>(y.c().rows * y.c().cols);
  for (int32_t parts = 2; parts <= 64; parts = small_grid() ? parts * 2 : parts + 1) {
    Watcher watcher;
    const int8q_parallel_runner runner{sizeof runner, parts, &watcher, Watcher::run};
    const ContextPtr context = make_context(0, nullptr, &runner);
    std::vector<int> writers(count);
    std::vector<int64_t> work;
    std::fill_n(y.as<uint32_t>(), count, 0xffffffffu);  // no result
    watcher.after = [&](int64_t) {
      int64_t written = 0;
      for (size_t i = 0; i < count; ++i) {
        uint32_t& element = y.as<uint32_t>()[i];
        if (element == 0xffffffffu) continue;
        element = 0xffffffffu;
        ++writers[i];
        ++written;
      }
      work.push_back(written);
    };
    ASSERT_NO_FATAL_FAILURE(call(context.get()));
    ASSERT_EQ(static_cast<std::ptrdiff_t>(count), std::count(writers.begin(), writers.end(), 1)) << parts << " parts";
    ASSERT_LE(work.size(), static_cast<size_t>(parts));
    const auto [least, most] = std::minmax_element(work.begin(), work.end());
    ASSERT_LE(*most - *least, item_elements) << parts << " parts";
  }
}

// K is so small that X and dY are prepared by the calling thread: the runner sees the tiles only.
TEST(Partition, ForwardIsSharedEvenly) {
  const int64_t m = 37, n = 1200, k = 128;  // whole panels
  const Mat weight = random_mat(INT8Q_F32, n, k, 1), x = random_mat(INT8Q_F32, m, k, 2);
  const LinearPtr linear = make_linear(make_context(1).get(), weight);
  Mat y(INT8Q_F32, m, n);
  expect_even_work(y, m * cpu::kPanelRows,
                   [&](int8q_context* context) { ASSERT_CALL(forward(context, linear.get(), x, y)); });
}

TEST(Partition, BackwardIsSharedEvenly) {
  const int64_t m = 70, n = 64, k = 1216, tile_columns = 64;  // whole tiles
  const Mat weight = random_mat(INT8Q_F32, n, k, 1), dy = random_mat(INT8Q_F32, m, n, 2);
  const LinearPtr linear = make_linear(make_context(1).get(), weight);
  Mat dx(INT8Q_F32, m, k);
  expect_even_work(dx, m * tile_columns,
                   [&](int8q_context* context) { ASSERT_CALL(backward(context, linear.get(), dy, dx)); });
}

}  // namespace
}  // namespace int8q::test
