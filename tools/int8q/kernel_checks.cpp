// SPDX-License-Identifier: Apache-2.0
#include "kernel_checks.h"

#include <cmath>
#include <limits>

namespace tool {

void KernelChecks::run() {
  for (int d = 0; d < 3; ++d) {
    quantize_rows(d);
    dequantize_rows(d);
    dequantize_accumulators(d);
    for (const int32_t mode : {INT8Q_OUTLIERS_COLUMN, INT8Q_OUTLIERS_ELEMENT}) {
      scaled_multiply(d, 5, mode);   // few rows: dot
      scaled_multiply(d, 21, mode);  // many: widen, pack, gemm
      linear({.d = d, .m = 1, .mode = mode});
      linear({.d = d, .m = 16, .mode = mode, .kept = {0, 5, 66}, .blob = true});
      linear({.d = d, .m = 23, .mode = mode, .kept = {0, 5, 66}});
    }
    linear({.d = d, .m = 7, .mode = INT8Q_OUTLIERS_OFF, .blob = true});
    linear({.d = d, .m = 23, .mode = INT8Q_OUTLIERS_OFF, .quantized = true});
    linear({.d = d, .m = 23, .mode = INT8Q_OUTLIERS_ALL, .kept = {0, 5, 66}});
    backward(d);
  }
  // Outliers in more columns than one chunk holds.
  linear({.d = 0, .m = 17, .mode = INT8Q_OUTLIERS_COLUMN, .k = kLongK, .threshold = 1.0f, .kept = {511, 512}});
  for (const int64_t m : {1, 8, 9, 21}) multiply(m, kK);
  multiply(19, kLongK);
}

KernelChecks::Count KernelChecks::of(const std::string& operation) const {
  const auto found = counts_.find(operation);
  return found == counts_.end() ? Count{} : found->second;
}

void KernelChecks::count(std::initializer_list<std::string> operations, int64_t checked, int64_t wrong) {
  total_.checked += checked;
  total_.wrong += wrong;
  for (const std::string& operation : operations) {
    counts_[operation].checked += checked;
    counts_[operation].wrong += wrong;
  }
}

Tensor KernelChecks::random(int32_t dtype, int64_t rows, int64_t cols, float scale) {
  Tensor t(dtype, rows, cols);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) t.set(i, j, normal_(random_) * scale);
  }
  return t;
}

// Normal values; outliers in three columns; row 1 of zeros; row 2 so small that 127 / absmax would overflow; a NaN in row
// 4; an Inf in row 5.
Tensor KernelChecks::activations(int d, int64_t m, int64_t k) {
  Tensor x(kFloats[static_cast<size_t>(d)], m, k);
  for (int64_t i = 0; i < m; ++i) {
    const float size = i == 1 ? 0.0f : i == 2 && x.dtype != INT8Q_F16 ? 0x1p-125f : 1.0f;
    for (int64_t j = 0; j < k; ++j) {
      const bool outlier = size == 1.0f && i % 3 == 0 && (j == 0 || j == 66 || j == k - 1);
      x.set(i, j, outlier ? -20.5f : std::fmin(5.0f, std::fmax(-5.0f, normal_(random_))) * size);
    }
  }
  if (m > 5) {
    x.set(4, 64, std::numeric_limits<float>::quiet_NaN());
    x.set(5, k - 2, -std::numeric_limits<float>::infinity());
  }
  return x;
}

void KernelChecks::quantize_rows(int d) {
  constexpr int64_t kRows = 9;
  for (const int32_t mode : {INT8Q_OUTLIERS_COLUMN, INT8Q_OUTLIERS_ELEMENT, INT8Q_OUTLIERS_OFF}) {
    Tensor x = activations(d, kRows, kK), q(INT8Q_S8, kRows, kK);
    std::vector<float> stats(kRows);
    std::vector<int64_t> cols(static_cast<size_t>(kK));
    int64_t found = 0;
    int8q::quantize_rows(context_, x.view(), {mode, kThreshold}, q.view(), stats.data(), nullptr, cols.data(), &found);
    const Quantized expected = quantize(x, mode, kThreshold);
    cols.resize(static_cast<size_t>(found));
    int64_t wrong = cols != expected.cols ? 1 : 0;
    for (size_t i = 0; i < stats.size(); ++i) wrong += !same(stats[i], expected.stats[i]);
    for (size_t i = 0; i < q.bytes.size(); ++i) wrong += static_cast<int8_t>(q.bytes[i]) != expected.codes[i];
    count({op("scan", d), op("encode_s8", d)}, static_cast<int64_t>(q.bytes.size() + stats.size()) + 1, wrong);
  }
}

void KernelChecks::dequantize_rows(int d) {
  const std::vector<float> stats = {0.0f, 1.0f, 3.7f, 0x1p-130f, 65504.0f};
  const auto rows = static_cast<int64_t>(stats.size());
  Tensor q(INT8Q_S8, rows, kK), y(kFloats[static_cast<size_t>(d)], rows, kK);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < kK; ++j) q.set_integer(i, j, static_cast<int32_t>((i * kK + j) % 256) - 128);
  }
  int8q::dequantize_rows(context_, q.view(), stats.data(), y.view());
  int64_t wrong = 0;
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < kK; ++j) {
      wrong += !same(y, i, j, (static_cast<float>(q.integer(i, j)) * stats[static_cast<size_t>(i)]) * (1.0f / 127.0f));
    }
  }
  count({op("dequantize", d)}, rows * kK, wrong);
}

// Full +-127 and -128, where saturating arithmetic would give itself away.
void KernelChecks::multiply(int64_t m, int64_t k) {
  constexpr int64_t kPackFrom = 9;  // rows from which row-major weights are packed first
  for (const bool extreme : {false, true}) {
    Tensor a(INT8Q_S8, m, k), b(INT8Q_S8, kN, k), c(INT8Q_S32, m, kN);
    std::uniform_int_distribution<int> codes(-128, 127);
    const auto fill = [&](Tensor& t) {
      for (uint8_t& code : t.bytes) {
        const int q = codes(random_);
        code = static_cast<uint8_t>(!extreme ? q : q < -64 ? -128 : q < 0 ? -127 : 127);
      }
    };
    fill(a);
    fill(b);
    int8q::multiply(context_, a.view(), b.view(), c.view());
    int64_t wrong = 0;
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 0; j < kN; ++j) {
        const auto* x = reinterpret_cast<const int8_t*>(a.bytes.data()) + i * k;
        const auto* w = reinterpret_cast<const int8_t*>(b.bytes.data()) + j * k;
        wrong += c.integer(i, j) != product(x, w, k);
      }
    }
    if (m < kPackFrom) {
      count({"dot"}, m * kN, wrong);
    } else {
      count({"widen", "pack", m > 16 ? "gemm" : "gemv"}, m * kN, wrong);
    }
  }
}

void KernelChecks::dequantize_accumulators(int d) {
  constexpr int64_t kRows = 5;
  Tensor acc(INT8Q_S32, kRows, kN), y(kFloats[static_cast<size_t>(d)], kRows, kN);
  Tensor bias = random(kFloats[static_cast<size_t>((d + 1) % 3)], 1, kN, 1.0f);
  const std::vector<float> row_stats = {0.0f, 1.0f, 3.7f, 0x1p-130f, 65504.0f};
  std::vector<float> col_stats;
  for (int64_t j = 0; j < kN; ++j) col_stats.push_back(std::fabs(normal_(random_)));
  std::uniform_int_distribution<int32_t> any(std::numeric_limits<int32_t>::min(), std::numeric_limits<int32_t>::max());
  for (int64_t i = 0; i < kRows; ++i) {
    for (int64_t j = 0; j < kN; ++j) acc.set_integer(i, j, any(random_) >> (j % 4 * 8));
  }
  for (const bool with_bias : {false, true}) {
    int8q::dequantize_accumulators(context_, acc.view(), row_stats.data(), col_stats.data(),
                                   with_bias ? int8q::Matrix(bias.view()) : int8q::Matrix(), y.view());
    int64_t wrong = 0;
    for (int64_t i = 0; i < kRows; ++i) {
      for (int64_t j = 0; j < kN; ++j) {
        const float value =
            dequantize(acc.integer(i, j), row_stats[static_cast<size_t>(i)], col_stats[static_cast<size_t>(j)], 0.0f);
        wrong += !same(y, i, j, with_bias ? value + bias.at(0, j) : value);
      }
    }
    count({op("epilogue", d)}, kRows * kN, wrong);
  }
}

// The scaled product with outlier columns, on row-major weights.
void KernelChecks::scaled_multiply(int d, int64_t m, int32_t mode) {
  Tensor x = activations(d, m, kK), a(INT8Q_S8, m, kK), b(INT8Q_S8, kN, kK);
  Tensor w = random(INT8Q_F32, kN, kK, 0.1f), bias = random(INT8Q_F32, 1, kN, 1.0f);
  const Quantized qx = quantize(x, mode, kThreshold), qw = quantize(w, INT8Q_OUTLIERS_OFF, 0);
  a.bytes.assign(qx.codes.begin(), qx.codes.end());
  b.bytes.assign(qw.codes.begin(), qw.codes.end());
  const std::vector<int64_t> none;
  const std::vector<float> expected = LinearOracle{x, qx, w, qw, &bias, none, mode, kThreshold}.values();
  for (int e = 0; e < 3; ++e) {
    Tensor y(kFloats[static_cast<size_t>(e)], m, kN);
    int8q::mixed_scaled_multiply(context_, x.view(), a.view(), qx.stats.data(), b.view(), qw.stats.data(),
                                 {mode, kThreshold}, qx.cols.data(), static_cast<int64_t>(qx.cols.size()), bias.view(),
                                 y.view());
    int64_t wrong = 0;
    for (int64_t i = 0; i < m * kN; ++i) wrong += !same(y, i / kN, i % kN, expected[static_cast<size_t>(i)]);
    if (m <= 8) {
      count({"dot", "outliers", op("epilogue", e)}, m * kN, wrong);
    } else {
      count({"widen", "pack", "gemm", "columns", "outliers", op("epilogue", e)}, m * kN, wrong);
    }
  }
}

}  // namespace tool
