// SPDX-License-Identifier: Apache-2.0
//
// The stateless operations on a GPU: integers and quantized values bit for bit, floats within their bounds.
#include <cmath>
#include <limits>
#include <random>
#include <utility>

#include "cuda/gpu.h"
#include "cuda/kernels/arguments.h"
#include "cuda/shapes.h"

namespace int8q::test {
namespace {

void fill_codes(Grid& a, uint64_t seed) {
  std::mt19937_64 random(seed);
  for (int64_t i = 0; i < a.rows(); ++i) {
    for (int64_t j = 0; j < a.cols(); ++j) a.set_integer(i, j, static_cast<int8_t>(random()));
  }
}

std::vector<int8_t> row_of(const Grid& a, int64_t i) {
  std::vector<int8_t> row;
  for (int64_t j = 0; j < a.cols(); ++j) row.push_back(static_cast<int8_t>(a.integer(i, j)));
  return row;
}

std::vector<float> random_stats(int64_t count, uint64_t seed) {
  Random random(seed);
  std::vector<float> stats;
  for (int64_t i = 0; i < count; ++i) stats.push_back(random.uniform(0.1f, 3.0f));
  return stats;
}

TEST(CudaStateless, QuantizeRowsEqualsTheOracle) {
  const ContextPtr context = make_gpu_context();
  size_t seed = 0;
  for (const Shape& s : device_shapes()) {
    const int32_t dtype = kFloatDtypes[seed % 3];
    for (const int32_t mode : kModes) {
      ++seed;
      SCOPED_TRACE(::testing::Message() << "M " << s.m << " K " << s.k << " dtype " << dtype << " mode " << mode);
      const auto gap = static_cast<int64_t>(seed % 3);
      Grid x(dtype, s.m, s.k, gap, gap * 4), q(INT8Q_S8, s.m, s.k, gap * 16 + s.k % 2, seed % 2 == 0 ? 0 : gap);
      fill_activations(x, seed);
      if (s.m > 1 && s.k > 1) x.set(1, s.k - 1, std::numeric_limits<float>::quiet_NaN());
      const float threshold = seed % 2 == 0 ? 6.0f : 1.5f;
      const Quantized want = quantize(x, mode, threshold);
      const DeviceGrid x_there(x), q_there(q);
      const auto k = static_cast<size_t>(s.k);
      const DeviceArray<float> stats(std::vector<float>(static_cast<size_t>(s.m) + 1, -7.0f));
      const DeviceArray<uint8_t> mask(std::vector<uint8_t>(k + 1, 9));
      const DeviceArray<int64_t> cols(std::vector<int64_t>(k + 1, -9)), count(std::vector<int64_t>{-1});
      const bool asks = seed % 4 != 0;
      ASSERT_CALL(int8q_quantize_rows(context.get(), x_there.view(), mode, threshold, q_there.view(), stats.get(),
                                      asks ? mask.get() : nullptr, asks ? cols.get() : nullptr,
                                      asks ? count.get() : nullptr));
      const Grid got = q_there.download();
      const std::vector<float> got_stats = stats.values();
      for (int64_t i = 0; i < s.m; ++i) {
        ASSERT_TRUE(same_bits(got_stats[static_cast<size_t>(i)], want.stats[static_cast<size_t>(i)])) << "row " << i;
        for (int64_t j = 0; j < s.k; ++j)
          ASSERT_EQ(got.integer(i, j), want.codes[static_cast<size_t>(i * s.k + j)]) << i << ", " << j;
      }
      ASSERT_EQ(got_stats.back(), -7.0f);
      ASSERT_TRUE(got.gaps_untouched());
      if (!asks) continue;
      ASSERT_EQ(count.values()[0], static_cast<int64_t>(want.outlier_cols.size()));
      std::vector<uint8_t> want_mask(k, 0);
      std::vector<int64_t> want_cols = want.outlier_cols;
      for (const int64_t c : want_cols) want_mask[static_cast<size_t>(c)] = 1;
      want_mask.push_back(9);
      want_cols.resize(k + 1, -9);
      ASSERT_EQ(mask.values(), want_mask);
      ASSERT_EQ(cols.values(), want_cols);
    }
  }
}

TEST(CudaStateless, MultiplyIsExact) {
  const ContextPtr context = make_gpu_context();
  size_t seed = 0;
  for (const Shape& s : device_shapes()) {
    SCOPED_TRACE(::testing::Message() << "M " << s.m << " N " << s.n << " K " << s.k);
    const auto gap = static_cast<int64_t>(seed % 3);
    Grid a(INT8Q_S8, s.m, s.k, gap, gap), b(INT8Q_S8, s.n, s.k, 2 - gap, 2 - gap), c(INT8Q_S32, s.m, s.n, gap, 0);
    fill_codes(a, ++seed);
    fill_codes(b, ++seed);
    const DeviceGrid a_there(a), b_there(b), c_there(c);
    ASSERT_CALL(int8q_multiply(context.get(), a_there.view(), b_there.view(), c_there.view()));
    const Grid got = c_there.download();
    for (int64_t i = 0; i < s.m; ++i) {
      const std::vector<int8_t> row = row_of(a, i);
      for (int64_t j = 0; j < s.n; ++j)
        ASSERT_EQ(got.integer(i, j), dot(row.data(), row_of(b, j).data(), s.k)) << i << ", " << j;
    }
    ASSERT_TRUE(got.gaps_untouched());
  }
}

// Rows longer than shared memory has bits for.
TEST(CudaStateless, LongerRowsAreRefused) {
  const ContextPtr context = make_gpu_context();
  const DeviceArray<float> stats(std::vector<float>(1, 0.0f));
  const DeviceBytes memory(64);
  for (const int64_t k : {int64_t{2} << 20, int64_t{1} << 31, int64_t{1} << 40}) {
    const int8q_matrix x = matrix(INT8Q_F16, 0, k, memory.get()), q = matrix(INT8Q_S8, 0, k, memory.get());
    const DeviceArray<int64_t> count(std::vector<int64_t>{-1});
    EXPECT_STATUS(INT8Q_SIZE_OVERFLOW,
                  int8q_quantize_rows(context.get(), &x, 0, 6.0f, &q, stats.get(), nullptr, nullptr, count.get()));
  }
}

// A row of which a block holds the bitmap, but not the list of its columns, is refused before anything is written.
TEST(CudaStateless, ARowThatCannotBeFinishedIsLeftAlone) {
  const ContextPtr context = make_gpu_context();
  const int64_t k = int64_t{gpu().shared_bytes} * 6;
  ASSERT_LT(gpu::QuantizeRows::shared_bytes(k), gpu().shared_bytes);
  ASSERT_GT(gpu::FinishColumns::shared_bytes(k), gpu().shared_bytes);
  const std::vector<uint8_t> before(static_cast<size_t>(k), 0x5a);
  const DeviceArray<uint16_t> x_there(std::vector<uint16_t>(static_cast<size_t>(k), 0));
  const DeviceArray<uint8_t> q_there(before);
  const DeviceArray<float> stats(std::vector<float>(1, -7.0f));
  const DeviceArray<int64_t> count(std::vector<int64_t>{-1});
  const int8q_matrix x = matrix(INT8Q_F16, 1, k, x_there.get()), q = matrix(INT8Q_S8, 1, k, q_there.get());
  for (const int32_t mode : {INT8Q_OUTLIERS_COLUMN, INT8Q_OUTLIERS_ELEMENT}) {
    EXPECT_STATUS(INT8Q_SIZE_OVERFLOW,
                  int8q_quantize_rows(context.get(), &x, mode, 6.0f, &q, stats.get(), nullptr, nullptr, count.get()));
    EXPECT_EQ(stats.values(), std::vector<float>{-7.0f});
    EXPECT_EQ(count.values(), std::vector<int64_t>{-1});
    EXPECT_TRUE(q_there.values() == before);
  }
}

// The largest K, of values whose fp16 sums would overflow (bitsandbytes' issue 165).
TEST(CudaStateless, LargestSums) {
  const ContextPtr context = make_gpu_context();
  constexpr int64_t kK = kLargestForeignK;
  for (const auto& [m, k] : {std::pair<int64_t, int64_t>{1, kK}, {65, kK / 16 * 16}}) {  // which is aligned
    Grid a(INT8Q_S8, m, k), b(INT8Q_S8, 1, k), y(INT8Q_F32, m, 1), c(INT8Q_S32, m, 1);
    for (int64_t j = 0; j < k; ++j) {
      for (int64_t i = 0; i < m; ++i) a.set_integer(i, j, -128);
      b.set_integer(0, j, -128);
    }
    const DeviceGrid a_there(a), b_there(b), y_there(y), c_there(c);
    const DeviceArray<float> rows(std::vector<float>(static_cast<size_t>(m), 127.0f)), cols(std::vector<float>{127.0f});
    ASSERT_CALL(int8q_multiply(context.get(), a_there.view(), b_there.view(), c_there.view()));
    EXPECT_EQ(c_there.download().integer(m - 1, 0), 128 * 128 * k);
    ASSERT_CALL(int8q_scaled_multiply(context.get(), a_there.view(), rows.get(), b_there.view(), cols.get(), nullptr,
                                      y_there.view()));
    EXPECT_NEAR(y_there.download().at(m - 1, 0), 128.0 * 128 * static_cast<double>(k), 1000);
  }
  Grid longer(INT8Q_S8, 1, kK + 1), c(INT8Q_S32, 1, 1);
  const DeviceGrid longer_there(longer), c_there(c);
  EXPECT_STATUS(INT8Q_SIZE_OVERFLOW,
                int8q_multiply(context.get(), longer_there.view(), longer_there.view(), c_there.view()));
}

// scaled_multiply, mixed_scaled_multiply and dequantize_accumulators beside the expression in double.
TEST(CudaStateless, Products) {
  const ContextPtr context = make_gpu_context();
  uint64_t seed = 0;
  for (const int64_t m : {1, 17, 70}) {
    for (const int32_t mode : kModes) {
      for (const int32_t out : kFloatDtypes) {
        ++seed;
        const int64_t n = seed % 2 == 0 ? 24 : 37, k = 131;
        SCOPED_TRACE(::testing::Message() << "M " << m << " N " << n << " mode " << mode << " out " << out);
        Grid x(kFloatDtypes[seed % 3], m, k), a(INT8Q_S8, m, k), b(INT8Q_S8, n, k), y(out, m, n), bias(INT8Q_F16, 1, n),
            c(INT8Q_S32, m, n), z(out, m, n);
        fill_activations(x, seed);
        fill_codes(b, seed);
        fill_normal(bias, seed, 1.0f);
        const Quantized q = quantize(x, mode, 6.0f);
        for (int64_t i = 0; i < m; ++i) {
          for (int64_t j = 0; j < k; ++j) a.set_integer(i, j, q.codes[static_cast<size_t>(i * k + j)]);
        }
        const std::vector<float> col_stats = random_stats(n, seed);
        const DeviceGrid x_there(x), a_there(a), b_there(b), y_there(y), bias_there(bias), c_there(c), z_there(z);
        const DeviceArray<float> rows(q.stats), cols(col_stats);
        std::vector<int64_t> listed = q.outlier_cols;
        if (mode != INT8Q_OUTLIERS_ALL) {  // which lists as many as there may be; what is no column is passed over
          listed.insert(listed.begin(), -1);
          listed.insert(listed.end(), {k, k + 1, int64_t{1} << 40});
        }
        const DeviceArray<int64_t> outliers(listed);
        if (mode == INT8Q_OUTLIERS_OFF) {
          ASSERT_CALL(int8q_scaled_multiply(context.get(), a_there.view(), rows.get(), b_there.view(), cols.get(),
                                            bias_there.view(), y_there.view()));
        } else {
          ASSERT_CALL(int8q_mixed_scaled_multiply(context.get(), x_there.view(), a_there.view(), rows.get(), b_there.view(),
                                                  cols.get(), mode, 6.0f, outliers.get(),
                                                  static_cast<int64_t>(listed.size()), bias_there.view(), y_there.view()));
        }
        ASSERT_CALL(int8q_multiply(context.get(), a_there.view(), b_there.view(), c_there.view()));
        ASSERT_CALL(int8q_dequantize_accumulators(context.get(), c_there.view(), rows.get(), cols.get(), bias_there.view(),
                                                  z_there.view()));
        const Grid got = y_there.download(), plain = z_there.download(), acc = c_there.download();
        for (int64_t i = 0; i < m; ++i) {
          for (int64_t j = 0; j < n; ++j) {
            const float row = q.stats[static_cast<size_t>(i)], col = col_stats[static_cast<size_t>(j)];
            const float exact_plain =
                static_cast<float>(acc.integer(i, j)) * (row * col * (1.0f / 16129.0f)) + bias.at(0, j);
            ASSERT_TRUE(same_bits(plain.at(i, j), rounded_to(out, exact_plain))) << i << ", " << j;
            const double product =
                static_cast<double>(acc.integer(i, j)) * static_cast<double>(row) * static_cast<double>(col) / 16129;
            double want = product + static_cast<double>(bias.at(0, j)),
                   size = std::fabs(product) + std::fabs(static_cast<double>(bias.at(0, j)));
            for (const int64_t t : mode == INT8Q_OUTLIERS_OFF ? std::vector<int64_t>{} : q.outlier_cols) {
              if (mode == INT8Q_OUTLIERS_ELEMENT && !is_outlier(x.at(i, t), mode, 6.0f)) continue;
              const double term = static_cast<double>(x.at(i, t)) * b.integer(j, t) * static_cast<double>(col) / 127;
              want += term;
              size += std::fabs(term);
            }
            const double unit = unit_roundoff(out);
            const double sums = 6.0 * static_cast<double>(q.outlier_cols.size()) + 8;
            ASSERT_NEAR(got.at(i, j), want, sums * 0x1p-24 * size + 1.01 * unit * std::fabs(want)) << i << ", " << j;
          }
        }
      }
    }
  }
}

TEST(CudaStateless, DequantizeRowsAndCountOutliers) {
  const ContextPtr context = make_gpu_context();
  uint64_t seed = 0;
  for (const int64_t m : {0, 1, 5, 40, 200}) {
    for (const int64_t k : {0, 1, 8, 33, 300, 513}) {
      const int32_t dtype = kFloatDtypes[++seed % 3];
      SCOPED_TRACE(::testing::Message() << "M " << m << " K " << k << " dtype " << dtype);
      Grid q(INT8Q_S8, m, k, 1, 1), y(dtype, m, k, 2, 4), x(dtype, m, k, 1);
      fill_codes(q, seed);
      fill_activations(x, seed);
      const std::vector<float> stats = random_stats(m, seed);
      const DeviceGrid q_there(q), y_there(y), x_there(x);
      const DeviceArray<float> stats_there(stats);
      ASSERT_CALL(int8q_dequantize_rows(context.get(), q_there.view(), stats_there.get(), y_there.view()));
      const Grid got = y_there.download();
      for (int64_t i = 0; i < m; ++i) {
        for (int64_t j = 0; j < k; ++j) {
          const float want = static_cast<float>(q.integer(i, j)) * stats[static_cast<size_t>(i)] * (1.0f / 127.0f);
          ASSERT_TRUE(same_bits(got.at(i, j), rounded_to(dtype, want))) << i << ", " << j;
        }
      }
      ASSERT_TRUE(got.gaps_untouched());
      std::vector<int64_t> counts(static_cast<size_t>(k), 3), want_counts = counts;
      for (int64_t j = 0; j < k; ++j) {
        for (int64_t i = 0; i < m; ++i) want_counts[static_cast<size_t>(j)] += std::fabs(x.at(i, j)) >= 2.0f ? 1 : 0;
      }
      const DeviceArray<int64_t> counts_there(counts);
      ASSERT_CALL(int8q_count_outliers(context.get(), x_there.view(), 2.0f, counts_there.get()));
      ASSERT_EQ(counts_there.values(), want_counts);
    }
  }
}

}  // namespace
}  // namespace int8q::test
