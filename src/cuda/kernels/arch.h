// SPDX-License-Identifier: Apache-2.0
//
// Architectures as types: what a kernel may use is asked of its template argument, never of __CUDA_ARCH__, so that the host can
// emulate every path.
#pragma once

#include "cuda/kernels/portable.h"

namespace int8q::gpu {

struct Sm70 {
  static constexpr int kVersion = 70;
  static constexpr int kSharedBytes = 96 * 1024;
};
struct Sm75 {
  static constexpr int kVersion = 75;
  static constexpr int kSharedBytes = 64 * 1024;
};
struct Sm80 {
  static constexpr int kVersion = 80;
  static constexpr int kSharedBytes = 163 * 1024;
};
struct Sm86 {  // and 89
  static constexpr int kVersion = 86;
  static constexpr int kSharedBytes = 99 * 1024;
};
struct Sm90 {  // and 100
  static constexpr int kVersion = 90;
  static constexpr int kSharedBytes = 227 * 1024;
};
struct Sm90a : Sm90 {};  // whose wgmma no later architecture has
using Sm901 = Sm90a;     // by its number in tools/cuda
struct Sm120 {
  static constexpr int kVersion = 120;
  static constexpr int kSharedBytes = 99 * 1024;
};

template <class Arch>
inline constexpr bool kHasAsyncCopy = Arch::kVersion >= 80;
template <class Arch>
inline constexpr bool kHasInt8Mma = Arch::kVersion >= 75;
template <class Arch>
inline constexpr bool kHasWgmma = false;
template <>
inline constexpr bool kHasWgmma<Sm90a> = true;

}  // namespace int8q::gpu
