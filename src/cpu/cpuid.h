// SPDX-License-Identifier: Apache-2.0
//
// What this CPU and its operating system can run, asked once. Compiled with base flags, apart from every kernel.
#pragma once

namespace int8q::cpu {

struct CpuFeatures {
  bool avx2;        // with FMA and F16C
  bool avxvnni;     // VEX-encoded vpdpbusd
  bool avx512bw;    // F, BW, VL, DQ
  bool avx512vnni;  // EVEX-encoded vpdpbusd
  bool avx512bf16;
  char brand[49];  // "AMD EPYC ...", "" where the machine does not say
};

const CpuFeatures& cpu_features();

}  // namespace int8q::cpu
