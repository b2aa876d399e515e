// SPDX-License-Identifier: Apache-2.0
//
// A safetensors file that closes itself.
#pragma once

#include <optional>
#include <string>

#include "command.h"
#include "int8q/int8q.h"

namespace tool {

class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::string& path) { check(int8q_open_safetensors(path.c_str(), &file_)); }
  ~SafetensorsFile() { int8q_close_safetensors(file_); }
  SafetensorsFile(const SafetensorsFile&) = delete;
  SafetensorsFile& operator=(const SafetensorsFile&) = delete;

  int64_t count() const {
    int64_t n = 0;
    check(int8q_count_tensors(file_, &n));
    return n;
  }
  int8q_tensor tensor(int64_t i) const {
    int8q_tensor t{};
    t.size = sizeof t;
    check(int8q_get_tensor(file_, i, &t));
    return t;
  }
  std::optional<int8q_tensor> find(const std::string& name) const {
    int8q_tensor t{};
    t.size = sizeof t;
    const int32_t status = int8q_find_tensor(file_, name.c_str(), &t);
    if (status == INT8Q_NOT_FOUND) return std::nullopt;
    check(status);
    return t;
  }

 private:
  int8q_safetensors* file_ = nullptr;
};

}  // namespace tool
