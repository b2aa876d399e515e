// SPDX-License-Identifier: Apache-2.0
//
// quantize_rows beside the oracle, bit for bit: codes, stats, and the columns that blocks found.
#include "cuda/kernels/quantize_rows.h"

#include <gtest/gtest.h>

#include <set>

#include "cuda_emulation/cases.h"

namespace int8q::gpu {
namespace {

template <Dtype D>
void run(const QuantizeRows& p, int blocks, uint64_t seed, bool aligned) {
  emulation::launch(
      {.blocks = blocks, .threads = QuantizeRows::kThreads, .shared_bytes = p.shared_bytes(p.k), .seed = seed},
      [&] { aligned ? quantize_rows<D, true>(p) : quantize_rows<D, false>(p); });
}

void check(Dtype dtype, int64_t rows, int64_t k, int32_t mode, bool aligned, int blocks, uint64_t seed) {
  SCOPED_TRACE("dtype " + std::to_string(static_cast<int>(dtype)) + ", " + std::to_string(rows) + " x " +
               std::to_string(k) + ", mode " + std::to_string(mode) + (aligned ? ", aligned, " : ", ") +
               std::to_string(blocks) + " blocks");
  Grid x(abi(dtype), rows, k);
  test::fill_provoking(x, seed);
  if (rows == 5) {  // an outlier in a row that is tiny without it
    for (int64_t j = 0; j < k; ++j) x.set(4, j, static_cast<float>(j % 5) * 0x1p-126f);
    x.set(4, k / 2, 100.0f);
  }
  const emulation::Matrix on_device(x, aligned ? 16 : 1, seed);
  const int64_t stride = (k + 15) / 16 * 16 + 16;
  Buffer<int8_t> codes(rows * stride, "codes");
  Buffer<float> stats(rows, "row_stats");
  Buffer<FoundColumns> found(blocks, "found");
  Buffer<uint32_t> bitmaps(static_cast<int64_t>(blocks) * bitmap_words(k), "bitmaps");
  Buffer<uint32_t> counters(static_cast<int64_t>(seed % 400), "counters");
  const QuantizeRows p{.x = on_device.data(),
                       .rows = rows,
                       .k = k,
                       .x_stride = on_device.stride(),
                       .limit = mode == INT8Q_OUTLIERS_OFF ? kNoOutliers : bits_of(test::kThreshold),
                       .codes = codes.device(),
                       .codes_stride = stride,
                       .padded = stride,
                       .row_stats = stats.device(),
                       .found = found.device(),
                       .bitmaps = bitmaps.device(),
                       .counters = counters.device(),
                       .counter_count = static_cast<int>(counters.count())};
  switch (dtype) {
    case Dtype::kF32: run<Dtype::kF32>(p, blocks, seed, aligned); break;
    case Dtype::kF16: run<Dtype::kF16>(p, blocks, seed, aligned); break;
    case Dtype::kBf16: run<Dtype::kBf16>(p, blocks, seed, aligned); break;
  }

  for (int64_t i = 0; i < counters.count(); ++i) ASSERT_EQ(counters[i], 0u);

  // Inliers of outlier columns have codes, so of the oracle's modes this is `element`.
  const auto want = test::quantize(x, mode == INT8Q_OUTLIERS_OFF ? mode : INT8Q_OUTLIERS_ELEMENT, test::kThreshold);
  for (int64_t i = 0; i < rows; ++i) {
    ASSERT_TRUE(test::same_bits(stats[i], want.stats[static_cast<size_t>(i)])) << "row " << i << ": " << stats[i];
    for (int64_t j = 0; j < stride; ++j) {
      ASSERT_EQ(codes[i * stride + j], j < k ? want.codes[static_cast<size_t>(i * k + j)] : 0) << "row " << i << ", " << j;
    }
  }
  std::set<int64_t> columns;
  for (int b = 0; b < blocks; ++b) {
    const auto field = [&](int64_t at) {
      uint32_t value;
      std::memcpy(&value, reinterpret_cast<const uint8_t*>(found.device() + b) + at, 4);
      return value;
    };
    std::set<int64_t> of_rows;
    for (int64_t i = b; i < rows; i += blocks) {
      for (int64_t j = 0; j < k; ++j) {
        if (test::is_outlier(x.at(i, j), mode, test::kThreshold)) of_rows.insert(j);
      }
    }
    ASSERT_EQ(field(0), of_rows.size()) << "block " << b;
    std::set<int64_t> listed;
    for (uint32_t t = 0; t < std::min<uint32_t>(field(0), kListed); ++t) listed.insert(field(4 + t * 4));
    if (field(0) <= kListed) {
      ASSERT_EQ(listed, of_rows);
    } else {
      ASSERT_TRUE(std::equal(listed.begin(), listed.end(), of_rows.begin()));
      for (int64_t j = 0; j < k; ++j) {
        const uint32_t bits = bitmaps[b * bitmap_words(k) + j / 32];
        ASSERT_EQ(bits >> j % 32 & 1, of_rows.count(j)) << "block " << b << ", column " << j;
      }
    }
  }
}

class QuantizeRowsOnGpu : public testing::TestWithParam<Dtype> {};

TEST_P(QuantizeRowsOnGpu, EqualsTheOracle) {
  uint64_t seed = 1;
  for (const int64_t k : {1, 7, 8, 31, 32, 33, 100, 2047, 2048, 2049, 4100}) {
    for (const int64_t rows : {1, 2, 5}) {
      for (const int32_t mode : {INT8Q_OUTLIERS_COLUMN, INT8Q_OUTLIERS_OFF}) {
        for (const bool aligned : {true, false}) {
          for (const int blocks : {1, 3}) check(GetParam(), rows, k, mode, aligned, blocks, seed++);
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Dtypes, QuantizeRowsOnGpu, testing::Values(Dtype::kF32, Dtype::kF16, Dtype::kBf16),
                         [](const auto& dtype) { return dtype_name(abi(dtype.param)); });

}  // namespace
}  // namespace int8q::gpu
