// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/mapped_safetensors.h"

#include <sys/mman.h>

namespace int8q::checkpoint {

MappedSafetensors::MappedSafetensors(const std::string& path) : path_(path) {
  const InputFile file(path);
  header_ = read_header(file);
  map_bytes_ = file.bytes();
  void* map = ::mmap(nullptr, map_bytes_, PROT_READ, MAP_SHARED, file.fd(), 0);
  if (map == MAP_FAILED) fail_errno(path, "mapping failed");
  map_ = static_cast<uint8_t*>(map);
}

MappedSafetensors::~MappedSafetensors() { ::munmap(map_, map_bytes_); }

}  // namespace int8q::checkpoint
