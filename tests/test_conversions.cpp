// SPDX-License-Identifier: Apache-2.0
//
// The 16-bit conversions, of the oracle and of the library, one by one: every 16-bit value by its definition, every tie
// between two neighbours and the floats next to it, a sweep over all floats against each other and, for fp16, against the
// CPU's own instructions.
#include <algorithm>
#include <cmath>
#include <cstdio>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "support/call.h"
#include "support/oracle.h"

namespace int8q::test {
namespace {

struct Format {
  const char* name;
  int mantissa, bias, top_exponent;
  float (*widen)(uint16_t);
  uint16_t (*narrow)(float);
};
const Format kFormats[] = {{"oracle fp16", 10, 15, 31, from_f16, to_f16},
                           {"oracle bf16", 7, 127, 255, from_bf16, to_bf16},
                           {"library fp16", 10, 15, 31, f16_to_f32, f32_to_f16},
                           {"library bf16", 7, 127, 255, bf16_to_f32, f32_to_bf16}};

TEST(Conversions, EveryValueAndEveryTie) {
  for (const Format& format : kFormats) {
    SCOPED_TRACE(format.name);
    int64_t ties = 0;
    for (uint32_t h = 0; h < 0x10000; ++h) {
      const auto half = static_cast<uint16_t>(h), next = static_cast<uint16_t>(h + 1);
      const int exponent = static_cast<int>(h >> format.mantissa) & format.top_exponent;
      const int fraction = static_cast<int>(h & ((1u << format.mantissa) - 1));
      const double sign = (h & 0x8000) != 0 ? -1.0 : 1.0;
      const float f = format.widen(half);
      if (exponent == format.top_exponent) {
        ASSERT_EQ(fraction != 0, std::isnan(f)) << h;
        ASSERT_EQ(fraction == 0, std::isinf(f)) << h;
        ASSERT_TRUE(fraction != 0 ? std::isnan(format.widen(format.narrow(f))) : format.narrow(f) == half) << h;
        continue;
      }
      const int lowest = 1 - format.bias - format.mantissa;  // exponent of the smallest denormal
      const double value = exponent == 0 ? std::ldexp(fraction, lowest)
                                         : std::ldexp((1 << format.mantissa) + fraction, exponent - 1 + lowest);
      ASSERT_EQ(sign * value, static_cast<double>(f)) << h;
      ASSERT_EQ(half, format.narrow(f));
      const float g = format.widen(next);
      if (!std::isfinite(g) || (next & 0x7fff) == 0) continue;
      const double middle = (static_cast<double>(f) + static_cast<double>(g)) / 2;
      const auto tie = static_cast<float>(middle);
      ASSERT_EQ(static_cast<double>(tie), middle) << "every tie is a float";
      ASSERT_EQ((h & 1) == 0 ? half : next, format.narrow(tie)) << "tie above " << h;
      ASSERT_EQ(half, format.narrow(std::nextafter(tie, f))) << "below the tie above " << h;
      ASSERT_EQ(next, format.narrow(std::nextafter(tie, g))) << "above the tie above " << h;
      ++ties;
    }
    EXPECT_EQ(2 * (format.top_exponent * (1 << format.mantissa) - 1), ties);
  }
}

TEST(Conversions, WhereFp16Ends) {
  for (const Format& format : {kFormats[0], kFormats[2]}) {
    EXPECT_EQ(0x7bff, format.narrow(std::nextafter(65520.0f, 0.0f))) << format.name;
    EXPECT_EQ(0x7c00, format.narrow(65520.0f)) << format.name;
    EXPECT_EQ(0xfc00, format.narrow(-1e30f)) << format.name;
    EXPECT_EQ(0x0000, format.narrow(0x1p-25f)) << format.name;
    EXPECT_EQ(0x8001, format.narrow(std::nextafter(-0x1p-25f, -1.0f))) << format.name;
    EXPECT_EQ(0x8000, format.narrow(-0x1p-149f)) << format.name;
  }
}

// A prime step visits every exponent, sign and low bit.
TEST(Conversions, OracleAndLibraryAgreeOverAllFloats) {
  const uint64_t step = small_grid() ? 100003 : 1009;
  int64_t compared = 0;
  for (uint64_t bits = 0; bits < uint64_t{1} << 32; bits += step) {
    const auto f = std::bit_cast<float>(static_cast<uint32_t>(bits));
    ASSERT_TRUE(same_bits(from_f16(to_f16(f)), f16_to_f32(f32_to_f16(f)))) << std::hex << bits;
    ASSERT_TRUE(same_bits(from_bf16(to_bf16(f)), bf16_to_f32(f32_to_bf16(f)))) << std::hex << bits;
    ++compared;
  }
  EXPECT_EQ(static_cast<int64_t>((uint64_t{1} << 32) / step) + 1, compared);
}

#if defined(__x86_64__)
__attribute__((target("f16c"))) float hardware_widen(uint16_t h) {
  return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(h)));
}
__attribute__((target("f16c"))) uint16_t hardware_narrow(float f) {
  return static_cast<uint16_t>(_mm_extract_epi16(_mm_cvtps_ph(_mm_set_ss(f), _MM_FROUND_TO_NEAREST_INT), 0));
}

TEST(Conversions, Fp16IsTheCpusOwn) {
  __builtin_cpu_init();
  // Every CPU with AVX2 has F16C, a name that clang does not know here.
  if (!__builtin_cpu_supports("avx2")) GTEST_SKIP() << "this CPU has no AVX2";
  for (uint32_t h = 0; h < 0x10000; ++h) {
    const auto half = static_cast<uint16_t>(h);
    ASSERT_TRUE(same_bits(hardware_widen(half), from_f16(half))) << h;
    ASSERT_TRUE(same_bits(hardware_widen(half), f16_to_f32(half))) << h;
  }
  const uint64_t step = small_grid() ? 100003 : 1009;
  for (uint64_t bits = 0; bits < uint64_t{1} << 32; bits += step) {
    const auto f = std::bit_cast<float>(static_cast<uint32_t>(bits));
    if (std::isnan(f)) continue;
    ASSERT_EQ(hardware_narrow(f), to_f16(f)) << std::hex << bits;
    ASSERT_EQ(hardware_narrow(f), f32_to_f16(f)) << std::hex << bits;
  }
}
#endif

}  // namespace
}  // namespace int8q::test
