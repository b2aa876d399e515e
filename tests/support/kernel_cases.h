// SPDX-License-Identifier: Apache-2.0
//
// What the tests of single kernels share: values that provoke, elements by the oracle's conversions, comparison bit for
// bit (NaN equals NaN), and the count of what was compared.
#pragma once

#include <bit>
#include <cmath>
#include <cstdio>
#include <iterator>
#include <limits>

#include "cpu/registry.h"
#include "support/call.h"
#include "support/guarded_memory.h"
#include "support/oracle.h"

namespace int8q::test {

inline constexpr int64_t kElementBytes[cpu::kDtypes] = {4, 2, 2};

inline int64_t isa_count() { return static_cast<int64_t>(runnable_isas().size()); }

inline Place some_place(Random& random) { return kPlaces[random.below(std::size(kPlaces))]; }

// Row lengths: every tail of every vector width, and beyond two of the widest.
inline std::vector<int64_t> row_lengths() {
  std::vector<int64_t> lengths;
  for (int64_t k = 0; k <= 70; k += small_grid() ? 3 : 1) lengths.push_back(k);
  for (const int64_t k : {127, 128, 129, 191, 255, 257, 512, 1000}) lengths.push_back(k);
  return lengths;
}

inline float load(int dtype, const void* row, int64_t i) {
  float f;
  uint16_t h;
  if (dtype == 0) return std::memcpy(&f, static_cast<const char*>(row) + i * 4, 4), f;
  std::memcpy(&h, static_cast<const char*>(row) + i * 2, 2);
  return dtype == 1 ? from_f16(h) : from_bf16(h);
}
inline void store(int dtype, void* row, int64_t i, float value) {
  const uint16_t h = dtype == 1 ? to_f16(value) : to_bf16(value);
  if (dtype == 0) {
    std::memcpy(static_cast<char*>(row) + i * 4, &value, 4);
  } else {
    std::memcpy(static_cast<char*>(row) + i * 2, &h, 2);
  }
}

inline bool same_float(float a, float b) {
  return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b) || (std::isnan(a) && std::isnan(b));
}

// Element i of both rows is the same value of the dtype.
inline bool same_element(int dtype, const void* a, const void* b, int64_t i) {
  return same_float(load(dtype, a, i), load(dtype, b, i));
}

inline constexpr float kThreshold = 6.0f;

// Ordinary values with, at `special` percent, zeros, denormals, ties of the threshold, the largest, Inf and (with_nan) NaNs,
// also those that rounding their bits to bf16 would turn into Inf or -0.
inline float provoking(Random& random, int dtype, int special, bool with_nan) {
  if (random.below(100) >= special) return random.uniform(-8.0f, 8.0f);
  const float smallest = dtype == 1 ? 0x1p-24f : dtype == 2 ? 0x1p-133f : 0x1p-149f;
  const float largest = dtype == 1 ? 65504.0f : dtype == 2 ? 0x1.fep127f : std::numeric_limits<float>::max();
  const float below = dtype == 0 ? std::nextafter(kThreshold, 0.0f) : dtype == 1 ? 0x1.7fcp2f : 0x1.7ep2f;
  const float values[] = {0.0f,
                          smallest,
                          100 * smallest,
                          kThreshold,
                          below,
                          largest,
                          127.0f,
                          0.5f,
                          std::numeric_limits<float>::infinity(),
                          std::numeric_limits<float>::quiet_NaN(),
                          std::bit_cast<float>(0x7f800001u),
                          std::bit_cast<float>(0x7fffffffu)};
  const float v = values[random.below(with_nan ? 12 : 9)];
  return random.below(2) == 0 ? v : -v;
}

// Codes: mostly anything, often the extremes.
inline int8_t provoking_code(Random& random, bool minus_128) {
  switch (random.below(4)) {
    case 0: return 127;
    case 1: return static_cast<int8_t>(minus_128 ? -128 : -127);
    default: return random.code();
  }
}

// Code k of row n of packed weights.
inline int8_t panel_code(const int8_t* panels, int64_t panel_stride, int64_t n, int64_t k) {
  return panels[n / 16 * panel_stride + k / 4 * 64 + n % 16 * 4 + k % 4];
}

// 64-byte aligned workspace as the product carves it, filled with a pattern that shows where something was written.
template <class T>
class Aligned {
 public:
  explicit Aligned(int64_t count) : count_(count), memory_(static_cast<uint64_t>(count + 1) * sizeof(T)) {}
  T* get() const { return static_cast<T*>(memory_.get()); }
  T& operator[](int64_t i) const { return get()[i]; }
  int64_t count() const { return count_; }

 private:
  int64_t count_;
  Workspace memory_;
};

// Counts kernels x ISAs x cases of one test and says so at its end.
class Cells {
 public:
  explicit Cells(const char* operation) : operation_(operation) {}
  ~Cells() { std::printf("%s: %d cells on %zu ISAs\n", operation_, static_cast<int>(count_), runnable_isas().size()); }
  Cells(const Cells&) = delete;
  Cells& operator=(const Cells&) = delete;
  void add() { ++count_; }
  int64_t count() const { return count_; }

 private:
  const char* operation_;
  int64_t count_ = 0;
};

}  // namespace int8q::test
