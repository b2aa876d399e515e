// SPDX-License-Identifier: Apache-2.0
//
// The C boundary: every exported function's body runs in guarded(), which turns what is thrown into a status; structs
// arrive through read_struct / write_struct, which know callers that were built for another level.
#pragma once

#include <cstddef>
#include <cstring>
#include <new>

#include "core/error.h"
#include "core/float_environment.h"

namespace int8q::api {

// Runs body() and returns its status; nothing leaves by exception. Already the reading of scalar arguments is independent of
// the caller's rounding mode and denormal flags.
template <class Body>
int32_t guarded(Body&& body) noexcept {
  FloatEnvironment environment;
  try {
    body();
    return INT8Q_OK;
  } catch (const Error& error) {
    return error.status;
  } catch (const std::bad_alloc&) {
    set_last_error("an allocation failed; free memory or pass smaller sizes");
    return INT8Q_OUT_OF_MEMORY;
  } catch (...) {
    set_last_error("an unexpected C++ exception reached the C boundary, from a callback or a defect of the library");
    return INT8Q_INTERNAL;
  }
}

// The caller's size against this library's: smaller than level 1.0's is refused, and so is a larger one whose tail, which
// this library cannot know, is not zero. Returns how many bytes both know.
size_t known_bytes(const void* theirs, size_t ours, size_t level_1_0, const char* what);

// Copies what both know; members that the caller's level lacks are zero. kLevel10 is sizeof(T) in level 1.0.
template <class T, size_t kLevel10 = sizeof(T)>
T read_struct(const T* theirs, const char* what) {
  if (theirs == nullptr) fail(INT8Q_INVALID_ARGUMENT, "%s is NULL; pass a struct", what);
  T mine{};
  std::memcpy(&mine, theirs, known_bytes(theirs, sizeof(T), kLevel10, what));
  return mine;
}

// Writes what both know, but for the size member; bytes past that stay untouched.
template <class T, size_t kLevel10 = sizeof(T)>
void write_struct(const T& mine, T* theirs, const char* what) {
  if (theirs == nullptr) fail(INT8Q_INVALID_ARGUMENT, "%s is NULL; pass a struct with its size set", what);
  uint32_t size;
  std::memcpy(&size, theirs, sizeof size);
  if (size < kLevel10) {
    fail(INT8Q_ABI_MISMATCH, "%s->size is %u, below level 1.0's %zu; set it to sizeof(*%s)", what, size, kLevel10, what);
  }
  const size_t known = size < sizeof(T) ? size : sizeof(T);
  std::memcpy(reinterpret_cast<char*>(theirs) + sizeof size, reinterpret_cast<const char*>(&mine) + sizeof size,
              known - sizeof size);
}

inline void require(bool holds, const char* name, const char* expected) {
  if (!holds) fail(INT8Q_INVALID_ARGUMENT, "%s is NULL; expected %s", name, expected);
}

// Text to the caller's buffer as int8q_diagnose_json documents it.
void copy_text(const char* text, size_t bytes, char* buffer, uint64_t capacity, uint64_t* length);

}  // namespace int8q::api
