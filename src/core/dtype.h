// SPDX-License-Identifier: Apache-2.0
//
// Element types: sizes, names, and scalar conversions that are exact or round to nearest even, denormals kept.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include "int8q/int8q.h"

namespace int8q {

constexpr int64_t dtype_bytes(int32_t dtype) {
  switch (dtype) {
    case INT8Q_S8:
    case INT8Q_U8:
    case INT8Q_BOOL:
    case INT8Q_F8_E4M3:
    case INT8Q_F8_E5M2: return 1;
    case INT8Q_F16:
    case INT8Q_BF16:
    case INT8Q_S16:
    case INT8Q_U16: return 2;
    case INT8Q_F32:
    case INT8Q_S32:
    case INT8Q_U32: return 4;
    case INT8Q_F64:
    case INT8Q_S64:
    case INT8Q_U64: return 8;
    default: return 0;
  }
}

constexpr const char* dtype_name(int32_t dtype) {
  switch (dtype) {
    case INT8Q_F32: return "F32";
    case INT8Q_F16: return "F16";
    case INT8Q_BF16: return "BF16";
    case INT8Q_S8: return "S8";
    case INT8Q_S32: return "S32";
    case INT8Q_U8: return "U8";
    case INT8Q_F64: return "F64";
    case INT8Q_S16: return "S16";
    case INT8Q_U16: return "U16";
    case INT8Q_U32: return "U32";
    case INT8Q_S64: return "S64";
    case INT8Q_U64: return "U64";
    case INT8Q_BOOL: return "BOOL";
    case INT8Q_F8_E4M3: return "F8_E4M3";
    case INT8Q_F8_E5M2: return "F8_E5M2";
    default: return "INVALID";
  }
}

// 0 fp32, 1 fp16, 2 bf16: the kernels' index; -1 for the others.
constexpr int float_index(int32_t dtype) {
  return dtype == INT8Q_F32 ? 0 : dtype == INT8Q_F16 ? 1 : dtype == INT8Q_BF16 ? 2 : -1;
}

// The kernels' index of what is known to be one of the three.
constexpr int kernel_index(int32_t dtype) { return dtype == INT8Q_F32 ? 0 : dtype == INT8Q_F16 ? 1 : 2; }

inline float f16_to_f32(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t magnitude = h & 0x7fffu;
  if (magnitude >= 0x7c00u) {  // Inf, and NaN made quiet as hardware does
    const uint32_t quiet = magnitude > 0x7c00u ? 0x400000u : 0u;
    return std::bit_cast<float>(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13 | quiet);
  }
  if (magnitude < 0x400u) {  // zero and denormals: magnitude * 2^-24, exact
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(static_cast<float>(magnitude) * 0x1p-24f));
  }
  return std::bit_cast<float>(sign | ((magnitude << 13) + (112u << 23)));
}

inline uint16_t f32_to_f16(float f) {
  const uint32_t bits = std::bit_cast<uint32_t>(f);
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u | (magnitude >> 13 & 0x3ffu));
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and above round to Inf
  if (magnitude < 0x38800000u) {  // below 2^-14: adding 0.5 aligns the last place to 2^-24 and rounds to even
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000u));
  }
  const uint32_t odd = magnitude >> 13 & 1u;
  return static_cast<uint16_t>(sign | ((magnitude - (112u << 23) + 0xfffu + odd) >> 13));
}

inline float bf16_to_f32(uint16_t h) { return std::bit_cast<float>(static_cast<uint32_t>(h) << 16); }

inline uint16_t f32_to_bf16(float f) {
  const uint32_t bits = std::bit_cast<uint32_t>(f);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

// Element i of a row of dtype index D that may start at any byte.
template <int D>
inline float load_element(const void* row, int64_t i) {
  if constexpr (D == 0) {
    float f;
    std::memcpy(&f, static_cast<const char*>(row) + i * 4, 4);
    return f;
  } else {
    uint16_t h;
    std::memcpy(&h, static_cast<const char*>(row) + i * 2, 2);
    return D == 1 ? f16_to_f32(h) : bf16_to_f32(h);
  }
}

template <int D>
inline void store_element(void* row, int64_t i, float value) {
  if constexpr (D == 0) {
    std::memcpy(static_cast<char*>(row) + i * 4, &value, 4);
  } else {
    const uint16_t h = D == 1 ? f32_to_f16(value) : f32_to_bf16(value);
    std::memcpy(static_cast<char*>(row) + i * 2, &h, 2);
  }
}

inline float load_element(int32_t dtype, const void* row, int64_t i) {
  return dtype == INT8Q_F32   ? load_element<0>(row, i)
         : dtype == INT8Q_F16 ? load_element<1>(row, i)
                              : load_element<2>(row, i);
}

}  // namespace int8q
