// SPDX-License-Identifier: Apache-2.0
//
// The C boundary: every exported function's body runs in guarded(), which turns what is thrown into a status; structs
// arrive through read_struct / write_struct, which know callers that were built for another level.
#pragma once

#include <cstddef>
#include <cstring>
#include <new>

#include "api/first_sizes.h"
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

// The caller's size of a struct; one below that of the level which brought the struct is refused.
size_t caller_bytes(const void* theirs, FirstSize first, const char* what);

// How many bytes of a struct to read both sides know. A larger struct of the caller whose tail, which this library cannot
// know, is not zero is refused.
size_t readable_bytes(const void* theirs, size_t ours, FirstSize first, const char* what);

// Copies what both know; members that the caller's level lacks are zero.
template <class T>
T read_struct(const T* theirs, const char* what) {
  if (theirs == nullptr) fail(INT8Q_INVALID_ARGUMENT, "%s is NULL; pass a struct", what);
  T mine{};
  std::memcpy(&mine, theirs, readable_bytes(theirs, sizeof(T), kFirstSize<T>, what));
  return mine;
}

// Writes what both know, but for the size member; bytes past that stay untouched.
template <class T>
void write_struct(const T& mine, T* theirs, const char* what) {
  if (theirs == nullptr) fail(INT8Q_INVALID_ARGUMENT, "%s is NULL; pass a struct with its size set", what);
  const size_t size = caller_bytes(theirs, kFirstSize<T>, what);
  const size_t known = size < sizeof(T) ? size : sizeof(T);
  std::memcpy(reinterpret_cast<char*>(theirs) + sizeof mine.size, reinterpret_cast<const char*>(&mine) + sizeof mine.size,
              known - sizeof mine.size);
}

inline void require(bool holds, const char* name, const char* expected) {
  if (!holds) fail(INT8Q_INVALID_ARGUMENT, "%s is NULL; expected %s", name, expected);
}

// Text to the caller's buffer as int8q_diagnose_json documents it.
void copy_text(const char* text, size_t bytes, char* buffer, uint64_t capacity, uint64_t* length);

}  // namespace int8q::api
