// SPDX-License-Identifier: Apache-2.0
//
// The kernels of entries.cu on the emulator, by name and architecture.
#pragma once

#include <cstddef>
#include <map>
#include <string>
#include <utility>

namespace int8q::emulation {

struct Entry {
  int threads;
  size_t argument_bytes;
  void (*run)(const void* arguments);
};

// By name without suffix, and the architecture's number in arch.h.
inline std::map<std::pair<std::string, int>, Entry>& entries() {
  static std::map<std::pair<std::string, int>, Entry> all;
  return all;
}

struct Registration {
  Registration(const char* name, int arch, const Entry& entry) { entries()[{name, arch}] = entry; }
};

}  // namespace int8q::emulation
