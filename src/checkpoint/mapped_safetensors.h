// SPDX-License-Identifier: Apache-2.0
//
// A safetensors file mapped read-only. The header is read and checked before anything is mapped.
#pragma once

#include <string>

#include "checkpoint/safetensors_format.h"

namespace int8q::checkpoint {

class MappedSafetensors {
 public:
  explicit MappedSafetensors(const std::string& path);
  ~MappedSafetensors();
  MappedSafetensors(const MappedSafetensors&) = delete;
  MappedSafetensors& operator=(const MappedSafetensors&) = delete;

  const std::string& path() const { return path_; }
  const SafetensorsHeader& header() const { return header_; }
  const uint8_t* data(const TensorEntry& tensor) const { return map_ + header_.data_begin + tensor.begin; }

 private:
  std::string path_;
  SafetensorsHeader header_;
  uint8_t* map_ = nullptr;
  uint64_t map_bytes_ = 0;
};

}  // namespace int8q::checkpoint
