// SPDX-License-Identifier: Apache-2.0
//
// Types and constants that host and device code share. NVRTC has no standard headers.
#pragma once

#if defined(__CUDACC_RTC__)
using int8_t = signed char;
using uint8_t = unsigned char;
using int16_t = short;
using uint16_t = unsigned short;
using int32_t = int;
using uint32_t = unsigned int;
using int64_t = long long;
using uint64_t = unsigned long long;
#else
#include <cstdint>
#endif

#if defined(__CUDACC__)
#define INT8Q_CONSTEXPR __host__ __device__ constexpr
#else
#define INT8Q_CONSTEXPR constexpr
#endif

namespace int8q::gpu {

inline constexpr int kWarp = 32;

enum class Dtype { kF32, kF16, kBf16 };

}  // namespace int8q::gpu
