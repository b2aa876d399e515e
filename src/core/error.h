// SPDX-License-Identifier: Apache-2.0
//
// Failure inside the library: the message goes to a fixed thread-local buffer at once, an Error carries the status to the
// C boundary (api/boundary.h). Never on a hot path that succeeds.
#pragma once

#include "int8q/int8q.h"

namespace int8q {

struct Error {
  int32_t status;
};

// printf-formats the thread's last error message (cut at 1023 bytes) and throws Error{status}.
[[noreturn]] void fail(int32_t status, const char* format, ...) __attribute__((format(printf, 2, 3)));

// Sets the message without throwing, and reads it.
void set_last_error(const char* format, ...) __attribute__((format(printf, 1, 2)));
const char* last_error();

}  // namespace int8q
