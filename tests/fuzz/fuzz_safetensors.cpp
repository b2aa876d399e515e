// SPDX-License-Identifier: Apache-2.0
//
// libFuzzer target: any bytes as a safetensors file, opened from memory and read whole through the C interface.
//
//   clang++ -std=c++20 -g -O1 -fsanitize=fuzzer,address,undefined -DINT8Q_BUILDING -Isrc -Iinclude
//     tests/fuzz/fuzz_safetensors.cpp src/api/{safetensors,boundary}.cpp src/core/error.cpp
//     src/checkpoint/{files,json_members,mapped_safetensors,safetensors_format}.cpp -o fuzz_safetensors
//   ./fuzz_safetensors -max_total_time=60 -max_len=4096 CORPUS tests/golden
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "int8q/int8q.h"

namespace {

void require(bool holds) {
  if (!holds) std::abort();
}

// Every pointer and size that the handle gives must be readable, and the tensors must be ordered and found by name.
void read_everything(const int8q_safetensors* file) {
  int64_t count = 0;
  require(int8q_count_tensors(file, &count) == INT8Q_OK);
  const char* previous = nullptr;
  static volatile uint64_t sink;
  for (int64_t i = 0; i < count; ++i) {
    int8q_tensor t{}, found{};
    t.size = found.size = sizeof t;
    require(int8q_get_tensor(file, i, &t) == INT8Q_OK);
    require(previous == nullptr || std::strcmp(previous, t.name) < 0);
    require(int8q_find_tensor(file, t.name, &found) == INT8Q_OK && found.data == t.data && found.bytes == t.bytes);
    previous = t.name;
    for (int64_t d = 0; d < t.rank; ++d) require(t.shape[d] >= 0);
    for (uint64_t b = 0; b < t.bytes; ++b) sink = sink + static_cast<const unsigned char*>(t.data)[b];
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t count) {
  static const int memory = ::memfd_create("fuzz", MFD_CLOEXEC);
  static char path[64];
  if (path[0] == '\0') std::snprintf(path, sizeof path, "/proc/self/fd/%d", memory);
  require(::ftruncate(memory, 0) == 0 && ::pwrite(memory, bytes, count, 0) == static_cast<ssize_t>(count));
  int8q_safetensors* file = nullptr;
  if (int8q_open_safetensors(path, &file) != INT8Q_OK) {
    require(file == nullptr);
    return 0;
  }
  read_everything(file);
  require(int8q_close_safetensors(file) == INT8Q_OK);
  return 0;
}
