// SPDX-License-Identifier: Apache-2.0
#include "api/boundary.h"

namespace int8q::api {

size_t known_bytes(const void* theirs, size_t ours, size_t level_1_0, const char* what) {
  uint32_t size;
  std::memcpy(&size, theirs, sizeof size);
  if (size < level_1_0) {
    fail(INT8Q_ABI_MISMATCH, "%s->size is %u, below level 1.0's %zu; set it to sizeof(*%s)", what, size, level_1_0, what);
  }
  if (size <= ours) return size;
  constexpr uint32_t kLargest = 4096;  // no later level's struct can be so large: an unset or overwritten size
  if (size > kLargest) {
    fail(INT8Q_ABI_MISMATCH, "%s->size is %u, which no level's struct can have; set it to sizeof(*%s)", what, size, what);
  }
  const auto* bytes = static_cast<const unsigned char*>(theirs);
  for (size_t i = ours; i < size; ++i) {
    if (bytes[i] != 0) {
      fail(INT8Q_ABI_MISMATCH,
           "%s->size is %u and byte %zu is set: a member newer than this library (it knows %zu bytes); load a newer "
           "libint8q.so.1 or leave the member zero",
           what, size, i, ours);
    }
  }
  return ours;
}

void copy_text(const char* text, size_t bytes, char* buffer, uint64_t capacity, uint64_t* length) {
  if (length != nullptr) *length = bytes;
  if (capacity <= bytes) {
    fail(INT8Q_BUFFER_TOO_SMALL, "capacity is %llu; expected at least %zu bytes for the text and its NUL",
         static_cast<unsigned long long>(capacity), bytes + 1);
  }
  require(buffer != nullptr, "buffer", "a buffer of `capacity` bytes");
  std::memcpy(buffer, text, bytes);
  buffer[bytes] = '\0';
}

}  // namespace int8q::api
