// SPDX-License-Identifier: Apache-2.0
//
// What the machine can do at most, measured in the run that it is compared with: multiply-adds of loops that touch registers
// only, bytes of sweeps through memory, and the core's clock.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace int8q::bench {

// A register-only loop of one dot-product instruction (or the pair that stands for it).
struct Peak {
  const char* name;  // an ISA's, or fma256, fma512, bf16
  bool (*supported)();
  void (*loop)(int64_t rounds);
  int64_t macs;  // multiply-adds a round
};
const Peak& find_peak(const std::string& name);

// Wall seconds from the first thread's begin to the last one's end of body(thread), all starting together.
double run_together(int threads, const std::function<void(int)>& body);

// One measurement of some milliseconds: multiply-adds a second of all threads together.
double measure_peak(const Peak& peak, int threads);

// Cycles a second, from a chain of dependent additions.
double measure_clock();

// Bytes a second, of sweeps of 512 MiB in all: reading it; reading half of it and writing the other.
double measure_read(int threads);
double measure_copy(int threads);

// Medians, each measured once a process, at its first use.
double peak_of(const std::string& name, int threads);
double read_of(int threads);
double copy_of(int threads);

}  // namespace int8q::bench
