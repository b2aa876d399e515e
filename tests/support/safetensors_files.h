// SPDX-License-Identifier: Apache-2.0
//
// Folders that vanish, and safetensors files made by hand, independently of the library's writer.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include "int8q/int8q.h"

namespace int8q::test {

class TempFolder {
 public:
  TempFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "int8q-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("mkdtemp failed");
    path_ = pattern;
  }
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

inline void write_bytes(const std::string& path, const std::string& bytes) {
  std::filesystem::create_directories(std::filesystem::path(path).parent_path());
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  ASSERT_TRUE(file.good()) << path;
}

inline std::string read_bytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file.good()) << path;
  return {std::istreambuf_iterator<char>(file), {}};
}

// Relative paths of everything below a folder, sorted.
inline std::vector<std::string> tree(const std::string& folder) {
  std::vector<std::string> paths;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
    paths.push_back(entry.path().lexically_relative(folder).string());
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

inline std::string with_length(const std::string& json) {
  const uint64_t length = json.size();
  return std::string(reinterpret_cast<const char*>(&length), sizeof length) + json;
}

struct Tensor {
  std::string name;
  std::string dtype;
  std::vector<int64_t> shape;
  std::string bytes;
};

inline std::string make_safetensors(const std::vector<Tensor>& tensors, const std::string& metadata = "") {
  std::string json = "{", bytes;
  if (!metadata.empty()) json += "\"__metadata__\":" + metadata;
  for (const Tensor& t : tensors) {
    if (json.size() > 1) json += ',';
    json += "\"" + t.name + "\":{\"dtype\":\"" + t.dtype + "\",\"shape\":[";
    for (size_t i = 0; i < t.shape.size(); ++i) json += (i == 0 ? "" : ",") + std::to_string(t.shape[i]);
    json += "],\"data_offsets\":[" + std::to_string(bytes.size()) + ",";
    bytes += t.bytes;
    json += std::to_string(bytes.size()) + "]}";
  }
  return with_length(json + "}") + bytes;
}

template <class T>
std::string bytes_of(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

inline Tensor f32_tensor(const std::string& name, std::vector<int64_t> shape, const std::vector<float>& values) {
  return {name, "F32", std::move(shape), bytes_of(values)};
}

// An open file that is closed again; opening is expected to succeed.
class OpenFile {
 public:
  explicit OpenFile(const std::string& path) {
    EXPECT_EQ(int8q_open_safetensors(path.c_str(), &handle_), INT8Q_OK) << int8q_last_error();
  }
  ~OpenFile() {
    if (handle_ != nullptr) {
      EXPECT_EQ(int8q_close_safetensors(handle_), INT8Q_OK);
    }
  }
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;

  const int8q_safetensors* get() const { return handle_; }

  int64_t count() const {
    int64_t tensors = -1;
    EXPECT_EQ(int8q_count_tensors(handle_, &tensors), INT8Q_OK) << int8q_last_error();
    return tensors;
  }
  int8q_tensor at(int64_t index) const {
    int8q_tensor tensor{};
    tensor.size = sizeof tensor;
    EXPECT_EQ(int8q_get_tensor(handle_, index, &tensor), INT8Q_OK) << int8q_last_error();
    return tensor;
  }
  int8q_tensor find(const std::string& name) const {
    int8q_tensor tensor{};
    tensor.size = sizeof tensor;
    EXPECT_EQ(int8q_find_tensor(handle_, name.c_str(), &tensor), INT8Q_OK) << int8q_last_error();
    return tensor;
  }
  std::vector<std::string> names() const {
    std::vector<std::string> all;
    for (int64_t i = 0; i < count(); ++i) all.emplace_back(at(i).name);
    return all;
  }

 private:
  int8q_safetensors* handle_ = nullptr;
};

inline std::string tensor_bytes(const int8q_tensor& t) { return {static_cast<const char*>(t.data), t.bytes}; }

}  // namespace int8q::test
