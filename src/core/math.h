// SPDX-License-Identifier: Apache-2.0
//
// Sizes that cannot overflow, and rounding of sizes.
#pragma once

#include <cstdint>

#include "core/error.h"

namespace int8q {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// `bytes` in whole cache lines, an odd number of them: rows that far apart do not fall on one L1 set.
constexpr int64_t odd_lines(int64_t bytes) { return (ceil_div(bytes, 64) | 1) * 64; }

// a * b and a + b of non-negative sizes; SIZE_OVERFLOW with the name of the size otherwise.
inline int64_t checked_mul(int64_t a, int64_t b, const char* what) {
  int64_t product;
  if (__builtin_mul_overflow(a, b, &product)) {
    fail(INT8Q_SIZE_OVERFLOW, "%s: %lld * %lld does not fit in 63 bits; pass smaller sizes", what,
         static_cast<long long>(a), static_cast<long long>(b));
  }
  return product;
}

inline int64_t checked_add(int64_t a, int64_t b, const char* what) {
  int64_t sum;
  if (__builtin_add_overflow(a, b, &sum)) {
    fail(INT8Q_SIZE_OVERFLOW, "%s: %lld + %lld does not fit in 63 bits; pass smaller sizes", what,
         static_cast<long long>(a), static_cast<long long>(b));
  }
  return sum;
}

}  // namespace int8q
