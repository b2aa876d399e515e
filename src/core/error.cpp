// SPDX-License-Identifier: Apache-2.0
#include "core/error.h"

#include <cstdarg>
#include <cstdio>

namespace int8q {
namespace {

// A plain array: no constructor, no destructor, readable at any time of a thread's life.
thread_local char message[1024];

}  // namespace

void fail(int32_t status, const char* format, ...) {
  va_list args;
  va_start(args, format);
  std::vsnprintf(message, sizeof message, format, args);
  va_end(args);
  throw Error{status};
}

void set_last_error(const char* format, ...) {
  va_list args;
  va_start(args, format);
  std::vsnprintf(message, sizeof message, format, args);
  va_end(args);
}

const char* last_error() { return message; }

}  // namespace int8q
