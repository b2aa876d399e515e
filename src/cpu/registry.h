// SPDX-License-Identifier: Apache-2.0
//
// The ISAs of this build, ascending by preference: named, listable, forceable. An unknown or unsupported name is an error,
// never a silent second choice.
#pragma once

#include <span>

#include "cpu/kernels.h"

namespace int8q::cpu {

struct Isa {
  const char* name;
  bool (*supported)();  // this CPU and operating system can run it
  const Kernels& (*kernels)();
};

std::span<const Isa> isas();
const Isa& best_isa();

// nullptr if there is none of that name.
const Isa* find_isa(const char* name);

// "generic, avx2, ..." of this build, for messages.
const char* isa_names();

// Calls visit(operation, name) for each kernel of the table: ("gemm", "gemm_s8_6x64_avx512vnni"), ("scan_f16", ...), ...
void for_each_kernel(const Kernels& kernels, void (*visit)(void* arg, const char* operation, const char* name), void* arg);

}  // namespace int8q::cpu
