// SPDX-License-Identifier: Apache-2.0
//
// The safetensors header: read with every claim checked, and written.
//
//   u64 length, little-endian | JSON of `length` bytes, padded with spaces | data
//   JSON: {"__metadata__": {string: string}, name: {"dtype": D, "shape": [...], "data_offsets": [begin, end]}, ...}
//
// Offsets count from the start of the data; the spans cover the data without overlap and without gap.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/files.h"
#include "int8q/int8q.h"

namespace int8q::checkpoint {

struct TensorEntry {
  std::string name;
  int32_t dtype = INT8Q_DTYPE_INVALID;
  std::vector<int64_t> shape;
  uint64_t begin = 0;
  uint64_t end = 0;

  uint64_t bytes() const { return end - begin; }
};

using Metadata = std::map<std::string, std::string>;

struct SafetensorsHeader {
  std::vector<TensorEntry> tensors;  // by name
  Metadata metadata;
  uint64_t data_begin = 0;  // offset of the data in the file
};

inline constexpr uint64_t kLongestHeader = 100'000'000;  // the format's own limit
inline constexpr size_t kLargestRank = 64;               // NumPy's and PyTorch's

// Reads and checks the header of a whole file. CORRUPT; UNSUPPORTED for an unknown dtype or a rank above kLargestRank.
SafetensorsHeader read_header(const InputFile& file);

// Checks the JSON of a file with data_bytes bytes of data; path is for messages.
SafetensorsHeader parse_header(std::string_view json, uint64_t data_bytes, const std::string& path);

// The tensor `name`, or NULL.
const TensorEntry* find_tensor(const SafetensorsHeader& header, std::string_view name);

// Assigns begin and end as safetensors' own writer orders tensors: by dtype, the largest elements first, then by name, so
// that each tensor is aligned. The order in the vector stays. Returns the bytes of the data.
uint64_t lay_out(std::vector<TensorEntry>& tensors);

// Length and JSON of tensors that are laid out; a multiple of 8 bytes.
std::string make_header(const std::vector<TensorEntry>& tensors, const Metadata& metadata);

// INT8Q_DTYPE_INVALID and NULL for what the other side does not know.
int32_t dtype_of_name(std::string_view name);
const char* name_of_dtype(int32_t dtype);

}  // namespace int8q::checkpoint
