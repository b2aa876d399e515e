// SPDX-License-Identifier: Apache-2.0
//
// One translation unit with PART's options: a failure is thrown or kept, and is the linked library's or the loader's, as
// they say, whatever other translation units of the program were compiled with.
#include <cstring>
#include <int8q/int8q.hpp>

bool PART();

bool PART() {
#if defined(INT8Q_HPP_DLOPEN)
  const int32_t expected = INT8Q_ABI_MISMATCH;
  const char* const reason = "/no/such/libint8q.so.1 does not load";
#else
  const int32_t expected = INT8Q_UNSUPPORTED;
  const char* const reason = "bogus";
#endif
#if defined(INT8Q_NO_EXCEPTIONS)
  const int32_t status = int8q::Context(1, "bogus").status();
#else
  int32_t status = INT8Q_OK;
  try {
    int8q::Context context(1, "bogus");
  } catch (const int8q::StatusError& error) {
    if (std::strcmp(error.what(), int8q::last_error()) != 0) return false;
    status = error.status();
  }
#endif
  return status == expected && std::strstr(int8q::last_error(), reason) != nullptr;
}
