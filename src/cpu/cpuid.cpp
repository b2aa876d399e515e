// SPDX-License-Identifier: Apache-2.0
#include "cpu/cpuid.h"

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace int8q::cpu {
namespace {

#if defined(__x86_64__)

// Register state that the operating system saves: bits 1, 2 xmm and ymm; 5, 6, 7 opmask and zmm.
uint64_t saved_state() {
  uint32_t low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
}

constexpr bool bit(uint32_t word, int n) { return (word >> n & 1u) != 0; }

CpuFeatures detect() {
  CpuFeatures f{};
  uint32_t a, b, c, d;
  if (__get_cpuid(0x80000000u, &a, &b, &c, &d) != 0 && a >= 0x80000004u) {
    for (uint32_t i = 0; i < 3; ++i) {
      uint32_t words[4];
      __get_cpuid(0x80000002u + i, &words[0], &words[1], &words[2], &words[3]);
      std::memcpy(f.brand + 16 * i, words, 16);
    }
  }
  if (__get_cpuid(1, &a, &b, &c, &d) == 0) return f;
  const bool fma = bit(c, 12), osxsave = bit(c, 27), avx = bit(c, 28), f16c = bit(c, 29);
  if (!osxsave || !avx) return f;
  const uint64_t state = saved_state();
  const bool ymm = (state & 0x06) == 0x06, zmm = (state & 0xe6) == 0xe6;
  uint32_t b7, c7, d7;
  if (__get_cpuid_count(7, 0, &a, &b7, &c7, &d7) == 0) return f;
  const uint32_t subleaves = a;
  f.avx2 = ymm && fma && f16c && bit(b7, 5);
  f.avx512bw = f.avx2 && zmm && bit(b7, 16) && bit(b7, 17) && bit(b7, 30) && bit(b7, 31);
  f.avx512vnni = f.avx512bw && bit(c7, 11);
  if (subleaves >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0) {
    f.avxvnni = f.avx2 && bit(a, 4);
    f.avx512bf16 = f.avx512bw && bit(a, 5);
  }
  return f;
}

#else

CpuFeatures detect() { return {}; }

#endif

}  // namespace

const CpuFeatures& cpu_features() {
  static const CpuFeatures features = detect();
  return features;
}

}  // namespace int8q::cpu
