// SPDX-License-Identifier: Apache-2.0
#include "oracle.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "dtype.h"

namespace tool {
namespace {

constexpr float kInv127 = 1.0f / 127.0f, kInv16129 = 1.0f / 16129.0f;

int64_t bytes_of(int32_t dtype) { return dtype == INT8Q_S8 ? 1 : dtype == INT8Q_F32 || dtype == INT8Q_S32 ? 4 : 2; }

// Rounds to `drop` fewer bits of the magnitude, half to even.
uint32_t round_bits(uint32_t bits, int drop) { return (bits + (1u << (drop - 1)) - 1 + (bits >> drop & 1u)) >> drop; }

uint16_t to_bf16(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  if (std::isnan(f)) return 0x7fc0;
  return static_cast<uint16_t>(round_bits(bits, 16));
}

uint16_t to_f16(float f) {
  const uint16_t sign = std::signbit(f) ? 0x8000 : 0;
  if (std::isnan(f)) return 0x7e00;
  const double a = std::fabs(static_cast<double>(f));
  if (a == 0.0) return sign;
  if (a >= 65520.0) return static_cast<uint16_t>(sign | 0x7c00);
  int exponent;
  std::frexp(a, &exponent);
  const int place = std::max(exponent - 11, -24);  // of the last bit kept
  const double units = std::nearbyint(std::ldexp(a, -place));
  if (place == -24) return static_cast<uint16_t>(sign | static_cast<uint16_t>(units));
  return static_cast<uint16_t>(sign + (static_cast<uint16_t>(place + 24) << 10) + static_cast<uint16_t>(units));
}

}  // namespace

Tensor::Tensor(int32_t d, int64_t r, int64_t c)
    : dtype(d), rows(r), cols(c), bytes(static_cast<size_t>(r * c * bytes_of(d))) {}

int8q_matrix Tensor::view() { return {sizeof(int8q_matrix), dtype, rows, cols, cols, bytes.data()}; }

float Tensor::at(int64_t i, int64_t j) const { return float_at(dtype, bytes.data(), i * cols + j); }

int32_t Tensor::integer(int64_t i, int64_t j) const {
  if (dtype == INT8Q_S8) return static_cast<int8_t>(bytes[static_cast<size_t>(i * cols + j)]);
  int32_t value;
  std::memcpy(&value, bytes.data() + 4 * (i * cols + j), 4);
  return value;
}

void Tensor::set(int64_t i, int64_t j, float value) {
  uint8_t* to = bytes.data() + bytes_of(dtype) * (i * cols + j);
  if (dtype == INT8Q_F32) {
    std::memcpy(to, &value, 4);
  } else {
    const uint16_t h = dtype == INT8Q_F16 ? to_f16(value) : to_bf16(value);
    std::memcpy(to, &h, 2);
  }
}

void Tensor::set_integer(int64_t i, int64_t j, int32_t value) {
  if (dtype == INT8Q_S8) {
    bytes[static_cast<size_t>(i * cols + j)] = static_cast<uint8_t>(value);
  } else {
    std::memcpy(bytes.data() + 4 * (i * cols + j), &value, 4);
  }
}

bool is_outlier(float x, int32_t mode, float threshold) {
  if (mode == INT8Q_OUTLIERS_ALL) return std::fabs(x) > 0.0f;
  return mode != INT8Q_OUTLIERS_OFF && std::fabs(x) >= threshold;
}

Quantized quantize(const Tensor& x, int32_t mode, float threshold) {
  Quantized q{std::vector<int8_t>(static_cast<size_t>(x.rows * x.cols)), {}, {}};
  std::vector<bool> outlier_col(static_cast<size_t>(x.cols));
  for (int64_t i = 0; i < x.rows; ++i) {
    float stat = 0.0f;
    bool invalid = false;
    for (int64_t j = 0; j < x.cols; ++j) {
      const float v = x.at(i, j);
      if (is_outlier(v, mode, threshold)) {
        outlier_col[static_cast<size_t>(j)] = true;
      } else if (std::isfinite(v)) {
        stat = std::max(stat, std::fabs(v));
      } else {
        invalid = true;  // NaN; or Inf in mode OFF
      }
    }
    if (invalid) stat = std::numeric_limits<float>::quiet_NaN();
    q.stats.push_back(stat);
    for (int64_t j = 0; j < x.cols && stat > 0.0f; ++j) {
      const float v = x.at(i, j), scaled = stat < 0x1p-120f ? (v / stat) * 127.0f : v * (127.0f * (1.0f / stat));
      if (!is_outlier(v, mode, threshold))
        q.codes[static_cast<size_t>(i * x.cols + j)] = static_cast<int8_t>(std::nearbyint(scaled));
    }
  }
  for (int64_t j = 0; j < x.cols; ++j) {
    if (!outlier_col[static_cast<size_t>(j)]) continue;
    q.cols.push_back(j);
    for (int64_t i = 0; i < x.rows && mode == INT8Q_OUTLIERS_COLUMN; ++i) q.codes[static_cast<size_t>(i * x.cols + j)] = 0;
  }
  return q;
}

float dequantize(int32_t acc, float row_stat, float col_stat, float o) {
  return std::fmaf(static_cast<float>(acc), (row_stat * col_stat) * kInv16129, o);
}

int32_t product(const int8_t* a, const int8_t* b, int64_t k) {
  int64_t sum = 0;
  for (int64_t j = 0; j < k; ++j) sum += a[j] * b[j];
  return static_cast<int32_t>(sum);
}

namespace {

float rounded_to(int32_t dtype, float value) {
  Tensor one(dtype, 1, 1);
  one.set(0, 0, value);
  return one.at(0, 0);
}

}  // namespace

float round_to_f16(float value) { return rounded_to(INT8Q_F16, value); }
float round_to_bf16(float value) { return rounded_to(INT8Q_BF16, value); }

float LinearOracle::weight(int64_t j, int64_t k) const {
  if (std::find(kept.begin(), kept.end(), k) != kept.end()) return round_to_f16(w.at(j, k));
  return (static_cast<float>(qw.codes[static_cast<size_t>(j * x.cols + k)]) * qw.stats[static_cast<size_t>(j)]) * kInv127;
}

float LinearOracle::value(int64_t i, int64_t j) const {
  const int64_t k = x.cols;
  const int32_t acc = product(qx.codes.data() + i * k, qw.codes.data() + j * k, k);
  float o = 0.0f;
  for (const int64_t c : qx.cols) {
    if (mode == INT8Q_OUTLIERS_ELEMENT && !is_outlier(x.at(i, c), mode, threshold)) continue;
    o = std::fmaf(x.at(i, c), weight(j, c), o);
  }
  const float y = dequantize(acc, qx.stats[static_cast<size_t>(i)], qw.stats[static_cast<size_t>(j)], o);
  return bias != nullptr ? y + bias->at(0, j) : y;
}

std::vector<float> LinearOracle::values() const {
  std::vector<float> y;
  for (int64_t i = 0; i < x.rows; ++i) {
    for (int64_t j = 0; j < w.rows; ++j) y.push_back(value(i, j));
  }
  return y;
}

bool same(float a, float b) {
  return (std::isnan(a) && std::isnan(b)) || std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b);
}

bool same(const Tensor& got, int64_t i, int64_t j, float expected) {
  Tensor one(got.dtype, 1, 1);
  one.set(0, 0, expected);
  return same(got.at(i, j), one.at(0, 0));
}

}  // namespace tool
