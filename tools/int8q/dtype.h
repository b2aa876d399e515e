// SPDX-License-Identifier: Apache-2.0
//
// Names of element types, and 16-bit floats as float.
#pragma once

#include <cstdint>
#include <cstring>

#include "int8q/int8q.h"

namespace tool {

inline const char* dtype_name(int32_t dtype) {
  constexpr const char* kNames[] = {"?",   "F32", "F16", "BF16", "I8",  "I32",  "U8",      "F64",
                                    "I16", "U16", "U32", "I64",  "U64", "BOOL", "F8_E4M3", "F8_E5M2"};
  return dtype > 0 && dtype <= INT8Q_F8_E5M2 ? kNames[dtype] : kNames[0];
}

inline float float_of_bits(uint32_t bits) {
  float f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}

inline float float_of_f16(uint16_t h) {
  const uint32_t sign = (h & 0x8000u) << 16, exponent = h >> 10 & 31u, fraction = h & 0x3ffu;
  if (exponent == 0) return (sign != 0 ? -1.0f : 1.0f) * static_cast<float>(fraction) * 0x1p-24f;
  if (exponent == 31) return float_of_bits(sign | 0x7f800000u | fraction << 13);
  return float_of_bits(sign | (exponent + 112) << 23 | fraction << 13);
}

// Element i of F32, F16 or BF16 data at any byte address.
inline float float_at(int32_t dtype, const void* data, int64_t i) {
  const auto* bytes = static_cast<const char*>(data);
  if (dtype == INT8Q_F32) {
    float f;
    std::memcpy(&f, bytes + 4 * i, 4);
    return f;
  }
  uint16_t h;
  std::memcpy(&h, bytes + 2 * i, 2);
  return dtype == INT8Q_F16 ? float_of_f16(h) : float_of_bits(static_cast<uint32_t>(h) << 16);
}

}  // namespace tool
