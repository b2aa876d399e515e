// SPDX-License-Identifier: Apache-2.0
//
// Round to nearest even, denormals kept, exceptions masked, for as long as the object lives: results do not depend on what
// a host application (FTZ, DAZ, another rounding mode) has set in its threads.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace int8q {

class FloatEnvironment {
 public:
#if defined(__x86_64__)
  FloatEnvironment() : saved_(_mm_getcsr()) {
    if (saved_ != kDefault) _mm_setcsr(kDefault);
  }
  ~FloatEnvironment() { _mm_setcsr(saved_); }
#elif defined(__aarch64__)
  FloatEnvironment() {
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    asm volatile("msr fpcr, %0" : : "r"(kDefault));
  }
  ~FloatEnvironment() { asm volatile("msr fpcr, %0" : : "r"(saved_)); }
#else
#error "int8q: this architecture's floating-point control register is not known; add it here"
#endif
  FloatEnvironment(const FloatEnvironment&) = delete;
  FloatEnvironment& operator=(const FloatEnvironment&) = delete;

 private:
#if defined(__x86_64__)
  static constexpr uint32_t kDefault = 0x1f80;  // all exceptions masked, nearest even, no FTZ, no DAZ
  uint32_t saved_;
#else
  static constexpr uint64_t kDefault = 0;
  uint64_t saved_;
#endif
};

}  // namespace int8q
