// SPDX-License-Identifier: Apache-2.0
#include "support/oracle.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>

namespace int8q::test {
namespace {

constexpr uint8_t kPattern = 0x5a;

int64_t element_bytes(int32_t dtype) { return dtype == INT8Q_S8 ? 1 : dtype == INT8Q_F16 || dtype == INT8Q_BF16 ? 2 : 4; }

}  // namespace

Grid::Grid(int32_t dtype, int64_t rows, int64_t cols, int64_t gap, int64_t offset)
    : bytes_(static_cast<size_t>(rows * (cols + gap) * element_bytes(dtype) + offset + 16), kPattern),
      offset_(offset),
      view_{sizeof view_, dtype, rows, cols, cols + gap, bytes_.data() + offset} {}

Grid::Grid(const Grid& other) : bytes_(other.bytes_), offset_(other.offset_), view_(other.view_) {
  view_.data = bytes_.data() + offset_;
}

Grid& Grid::operator=(const Grid& other) {
  bytes_ = other.bytes_;
  offset_ = other.offset_;
  view_ = other.view_;
  view_.data = bytes_.data() + offset_;
  return *this;
}

uint8_t* Grid::place(int64_t i, int64_t j) const {
  return static_cast<uint8_t*>(view_.data) + (i * view_.row_stride + j) * element_bytes(view_.dtype);
}

float Grid::at(int64_t i, int64_t j) const {
  if (view_.dtype == INT8Q_F32) {
    float f;
    std::memcpy(&f, place(i, j), 4);
    return f;
  }
  uint16_t h;
  std::memcpy(&h, place(i, j), 2);
  return view_.dtype == INT8Q_F16 ? from_f16(h) : from_bf16(h);
}

void Grid::set(int64_t i, int64_t j, float value) {
  if (view_.dtype == INT8Q_F32) {
    std::memcpy(place(i, j), &value, 4);
    return;
  }
  const uint16_t h = view_.dtype == INT8Q_F16 ? to_f16(value) : to_bf16(value);
  std::memcpy(place(i, j), &h, 2);
}

int32_t Grid::integer(int64_t i, int64_t j) const {
  if (view_.dtype == INT8Q_S8) return static_cast<int8_t>(*place(i, j));
  int32_t value;
  std::memcpy(&value, place(i, j), 4);
  return value;
}

void Grid::set_integer(int64_t i, int64_t j, int32_t value) {
  if (view_.dtype == INT8Q_S8) {
    *place(i, j) = static_cast<uint8_t>(value);
  } else {
    std::memcpy(place(i, j), &value, 4);
  }
}

bool Grid::gaps_untouched() const {
  std::vector<bool> element(bytes_.size());
  for (int64_t i = 0; i < view_.rows; ++i) {
    const auto begin = offset_ + i * view_.row_stride * element_bytes(view_.dtype);
    std::fill_n(element.begin() + begin, view_.cols * element_bytes(view_.dtype), true);
  }
  for (size_t b = 0; b < bytes_.size(); ++b) {
    if (!element[b] && bytes_[b] != kPattern) return false;
  }
  return true;
}

// By value, through ldexp and double: nothing like the library's bit arithmetic.
float from_f16(uint16_t h) {
  const int exponent = h >> 10 & 31, fraction = h & 1023;
  const float sign = (h & 0x8000) != 0 ? -1.0f : 1.0f;
  if (exponent == 31)
    return fraction != 0 ? std::numeric_limits<float>::quiet_NaN() : sign * std::numeric_limits<float>::infinity();
  return sign * (exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                               : std::ldexp(static_cast<float>(1024 + fraction), exponent - 25));
}

uint16_t to_f16(float f) {
  const auto sign = static_cast<uint16_t>(std::signbit(f) ? 0x8000 : 0);
  if (std::isnan(f)) return 0x7e00;
  const double a = std::fabs(static_cast<double>(f));
  if (a == 0.0) return sign;
  if (a >= 65520.0) return static_cast<uint16_t>(sign | 0x7c00);
  int exponent;
  std::frexp(a, &exponent);
  const int place = std::max(exponent - 11, -24);  // of the last bit that is kept
  const auto units = static_cast<uint16_t>(std::nearbyint(std::ldexp(a, -place)));
  return static_cast<uint16_t>(sign + (place == -24 ? 0 : (place + 24) << 10) + units);
}

float from_bf16(uint16_t h) {
  const uint32_t bits = static_cast<uint32_t>(h) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

uint16_t to_bf16(float f) {
  if (std::isnan(f)) return 0x7fc0;
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  const uint32_t low = bits & 0xffff, high = bits >> 16;
  const bool up = low > 0x8000 || (low == 0x8000 && (high & 1) != 0);
  return static_cast<uint16_t>(high + (up ? 1 : 0));
}

float rounded_to(int32_t dtype, float value) {
  return dtype == INT8Q_F32 ? value : dtype == INT8Q_F16 ? from_f16(to_f16(value)) : from_bf16(to_bf16(value));
}

bool same_bits(float a, float b) {
  return (std::isnan(a) && std::isnan(b)) || std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b);
}

bool is_outlier(float x, int32_t mode, float threshold) {
  if (mode == INT8Q_OUTLIERS_ALL) return std::fabs(x) > 0.0f;
  return mode != INT8Q_OUTLIERS_OFF && std::fabs(x) >= (threshold == 0.0f ? 6.0f : threshold);
}

Quantized quantize(const Grid& x, int32_t mode, float threshold) {
  Quantized q{x.rows(), x.cols(), {}, std::vector<int8_t>(static_cast<size_t>(x.rows() * x.cols())), {}, {}};
  std::vector<bool> outlier(static_cast<size_t>(x.cols()));
  for (int64_t i = 0; i < x.rows(); ++i) {
    float stat = 0.0f;
    for (int64_t j = 0; j < x.cols(); ++j) {
      const float v = x.at(i, j);
      q.x.push_back(v);
      if (is_outlier(v, mode, threshold)) {
        outlier[static_cast<size_t>(j)] = true;
      } else if (std::isnan(v) || std::isinf(v)) {
        stat = std::numeric_limits<float>::quiet_NaN();
      } else if (!(std::fabs(v) <= stat) && !std::isnan(stat)) {
        stat = std::fabs(v);
      }
    }
    q.stats.push_back(stat);
    if (!(stat > 0.0f)) continue;
    for (int64_t j = 0; j < x.cols(); ++j) {
      const float v = x.at(i, j), code = stat < 0x1p-120f ? (v / stat) * 127.0f : v * (127.0f * (1.0f / stat));
      if (!is_outlier(v, mode, threshold)) {
        q.codes[static_cast<size_t>(i * x.cols() + j)] = static_cast<int8_t>(std::nearbyint(code));
      }
    }
  }
  for (int64_t j = 0; j < x.cols(); ++j) {
    if (!outlier[static_cast<size_t>(j)]) continue;
    q.outlier_cols.push_back(j);
    for (int64_t i = 0; mode == INT8Q_OUTLIERS_COLUMN && i < x.rows(); ++i)
      q.codes[static_cast<size_t>(i * x.cols() + j)] = 0;
  }
  return q;
}

int32_t dot(const int8_t* a, const int8_t* b, int64_t k) {
  int32_t sum = 0;
  for (int64_t j = 0; j < k; ++j) sum += a[j] * b[j];
  return sum;
}

float dequantize(int32_t acc, float row_stat, float col_stat, float outlier_part) {
  return std::fmaf(static_cast<float>(acc), (row_stat * col_stat) * (1.0f / 16129.0f), outlier_part);
}

float LayerOracle::forward(const Quantized& x, int64_t i, int64_t j) const {
  const int64_t k = x.cols;
  const int8_t* row = x.codes.data() + i * k;
  const int8_t* weight = w.codes.data() + j * k;
  const float col_stat = w.stats[static_cast<size_t>(j)];
  float o = 0.0f;
  for (const int64_t c : x.outlier_cols) {
    const float v = x.x[static_cast<size_t>(i * k + c)];
    if (mode == INT8Q_OUTLIERS_ELEMENT && !is_outlier(v, mode, threshold)) continue;
    float wc = (static_cast<float>(weight[c]) * col_stat) * (1.0f / 127.0f);
    const auto keep = std::lower_bound(kept_cols.begin(), kept_cols.end(), c);
    if (keep != kept_cols.end() && *keep == c) {
      wc = from_f16(kept[static_cast<size_t>(j) * kept_cols.size() + static_cast<size_t>(keep - kept_cols.begin())]);
    }
    o = std::fmaf(v, wc, o);
  }
  const float y = dequantize(dot(row, weight, k), x.stats[static_cast<size_t>(i)], col_stat, o);
  return bias.empty() ? y : y + bias[static_cast<size_t>(j)];
}

float backward(const Grid& dy, const Quantized& w, int64_t i, int64_t k) {
  float sum = 0.0f;
  for (int64_t n = 0; n < w.rows; ++n) {
    const float g = dy.at(i, n) * (w.stats[static_cast<size_t>(n)] * (1.0f / 127.0f));
    sum = std::fmaf(g, w.codes[static_cast<size_t>(n * w.cols + k)], sum);
  }
  return sum;
}

float without_denormals(float f) { return std::fpclassify(f) == FP_SUBNORMAL ? std::copysign(0.0f, f) : f; }

float backward_bf16(const Grid& dy, const Quantized& w, int64_t i, int64_t k) {
  float sum = 0.0f;
  for (int64_t pair = 0; pair < w.rows; pair += 2) {
    for (const int64_t n : {pair + 1, pair}) {
      float g = 0.0f, q = 0.0f;
      if (n < w.rows) {
        g = without_denormals(dy.at(i, n) * (w.stats[static_cast<size_t>(n)] * (1.0f / 127.0f)));
        q = w.codes[static_cast<size_t>(n * w.cols + k)];
      }
      sum = without_denormals(std::fmaf(from_bf16(to_bf16(g)), q, sum));
    }
  }
  return sum;
}

std::vector<const cpu::Isa*> runnable_isas() {
  std::vector<const cpu::Isa*> list;
  static bool told = false;
  for (const cpu::Isa& isa : cpu::isas()) {
    if (isa.supported()) {
      list.push_back(&isa);
    } else if (!told) {
      std::printf("skipped: %s, which this CPU or operating system lacks\n", isa.name);
    }
  }
  told = true;
  return list;
}

void fill_normal(Grid& w, uint64_t seed, float scale) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < w.rows(); ++i) {
    for (int64_t j = 0; j < w.cols(); ++j) w.set(i, j, normal(random) * scale);
  }
}

void fill_activations(Grid& x, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < x.rows(); ++i) {
    for (int64_t j = 0; j < x.cols(); ++j) {
      const bool outlier = i % 2 == 0 && (j == 1 || j == x.cols() / 2 || j == x.cols() - 1);
      x.set(i, j, outlier ? 20.0f + normal(random) : std::clamp(normal(random), -3.5f, 3.5f));
      if (j == 2 && i > 0 && i == x.rows() - 1) x.set(i, j, -9.0f);
      if (i % 32 == 5 && j % 16 == 3) x.set(i, j, j % 32 == 3 ? -6.0f : 5.96875f);
    }
  }
}

}  // namespace int8q::test
