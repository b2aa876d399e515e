// SPDX-License-Identifier: Apache-2.0
#include "api/boundary.h"

namespace int8q::api {

size_t caller_bytes(const void* theirs, FirstSize first, const char* what) {
  uint32_t size;
  std::memcpy(&size, theirs, sizeof size);
  if (size < first.bytes) {
    fail(INT8Q_ABI_MISMATCH, "%s->size is %u, below level %s's %zu; set it to sizeof(*%s)", what, size, first.level,
         first.bytes, what);
  }
  return size;
}

size_t readable_bytes(const void* theirs, size_t ours, FirstSize first, const char* what) {
  const size_t size = caller_bytes(theirs, first, what);
  if (size <= ours) return size;
  constexpr size_t kLargest = 4096;  // no later level's struct can be so large: an unset or overwritten size
  if (size > kLargest) {
    fail(INT8Q_ABI_MISMATCH, "%s->size is %zu, which no level's struct can have; set it to sizeof(*%s)", what, size, what);
  }
  const auto* bytes = static_cast<const unsigned char*>(theirs);
  for (size_t i = ours; i < size; ++i) {
    if (bytes[i] != 0) {
      fail(INT8Q_ABI_MISMATCH,
           "%s->size is %zu and byte %zu is set: a member newer than this library (it knows %zu bytes); load a newer "
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
