// SPDX-License-Identifier: Apache-2.0
#include "api/boundary.h"
#include "checkpoint/mapped_safetensors.h"

struct int8q_safetensors {
  static constexpr uint64_t kMagic = 0x69387143'73667473u;  // "i8qCsfts"

  uint64_t magic = kMagic;
  int8q::checkpoint::MappedSafetensors mapped;

  explicit int8q_safetensors(const char* path) : mapped(path) {}
};

namespace int8q::api {
namespace {

using checkpoint::TensorEntry;

const checkpoint::MappedSafetensors& check_file(const int8q_safetensors* file) {
  if (file == nullptr || file->magic != int8q_safetensors::kMagic) {
    fail(INT8Q_INVALID_HANDLE, "file is %s; expected a live handle of int8q_open_safetensors",
         file == nullptr ? "NULL" : "closed or foreign");
  }
  return file->mapped;
}

void write_tensor(const checkpoint::MappedSafetensors& file, const TensorEntry& entry, int8q_tensor* tensor) {
  int8q_tensor mine{};
  mine.dtype = entry.dtype;
  mine.name = entry.name.c_str();
  mine.rank = static_cast<int64_t>(entry.shape.size());
  mine.shape = entry.shape.data();
  mine.data = file.data(entry);
  mine.bytes = entry.bytes();
  write_struct(mine, tensor, "tensor");
}

}  // namespace
}  // namespace int8q::api

using namespace int8q;
using namespace int8q::api;

extern "C" {

int32_t int8q_open_safetensors(const char* path, int8q_safetensors** file) {
  return guarded([&] {
    require(path != nullptr, "path", "a file's path");
    require(file != nullptr, "file", "a pointer that receives the handle");
    *file = new int8q_safetensors(path);
  });
}

int32_t int8q_count_tensors(const int8q_safetensors* file, int64_t* count) {
  return guarded([&] {
    const auto& mapped = check_file(file);
    require(count != nullptr, "count", "a pointer that receives the number");
    *count = static_cast<int64_t>(mapped.header().tensors.size());
  });
}

int32_t int8q_get_tensor(const int8q_safetensors* file, int64_t index, int8q_tensor* tensor) {
  return guarded([&] {
    const auto& mapped = check_file(file);
    const auto& tensors = mapped.header().tensors;
    if (index < 0 || static_cast<uint64_t>(index) >= tensors.size()) {
      fail(INT8Q_INVALID_ARGUMENT, "index is %lld; expected 0 to %zu, exclusive", static_cast<long long>(index),
           tensors.size());
    }
    write_tensor(mapped, tensors[static_cast<size_t>(index)], tensor);
  });
}

int32_t int8q_find_tensor(const int8q_safetensors* file, const char* name, int8q_tensor* tensor) {
  return guarded([&] {
    const auto& mapped = check_file(file);
    require(name != nullptr, "name", "a tensor's name");
    const TensorEntry* entry = checkpoint::find_tensor(mapped.header(), name);
    if (entry == nullptr) {
      fail(INT8Q_NOT_FOUND, "%s: has no tensor \"%s\"; int8q_get_tensor lists its %zu tensors",
           checkpoint::shown(mapped.path()).c_str(), checkpoint::shown(name).c_str(), mapped.header().tensors.size());
    }
    write_tensor(mapped, *entry, tensor);
  });
}

int32_t int8q_close_safetensors(int8q_safetensors* file) {
  return guarded([&] {
    check_file(file);
    *const_cast<volatile uint64_t*>(&file->magic) = 0;  // a later use of the stale handle is refused, on best effort
    delete file;
  });
}

}  // extern "C"
