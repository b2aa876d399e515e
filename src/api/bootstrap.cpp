// SPDX-License-Identifier: Apache-2.0
//
// What exists for ever: version, negotiation, hash of a level, last error, status names.
#include "api/boundary.h"

namespace {

struct LevelHash {
  uint32_t level;
  const char* hash;
};
constexpr LevelHash kLevels[] = {
#include "api/abi_generated.inc"
};

#define INT8Q_STRINGIFY_(x) #x
#define INT8Q_STRINGIFY(x) INT8Q_STRINGIFY_(x)

}  // namespace

extern "C" {

uint32_t int8q_abi_version(void) { return INT8Q_ABI_LEVEL; }

int32_t int8q_negotiate(uint32_t want, uint32_t* got) {
  if (got != nullptr) *got = INT8Q_ABI_LEVEL;
  return int8q::api::guarded([&] {
    if (want >> 16 != INT8Q_ABI_MAJOR || want > INT8Q_ABI_LEVEL) {
      int8q::fail(INT8Q_ABI_MISMATCH,
                  "want is ABI level %u.%u; this library, %s, serves %d.0 to %d.%d; load a matching libint8q.so",
                  want >> 16, want & 0xffffu, int8q_version_string(), INT8Q_ABI_MAJOR, INT8Q_ABI_MAJOR, INT8Q_ABI_MINOR);
    }
  });
}

const char* int8q_abi_hash(uint32_t level) {
  for (const LevelHash& known : kLevels) {
    if (known.level == level) return known.hash;
  }
  return nullptr;
}

const char* int8q_last_error(void) { return int8q::last_error(); }

const char* int8q_status_name(int32_t status) {
  switch (status) {
    case INT8Q_OK: return "INT8Q_OK";
    case INT8Q_INVALID_ARGUMENT: return "INT8Q_INVALID_ARGUMENT";
    case INT8Q_INVALID_HANDLE: return "INT8Q_INVALID_HANDLE";
    case INT8Q_INVALID_DTYPE: return "INT8Q_INVALID_DTYPE";
    case INT8Q_ABI_MISMATCH: return "INT8Q_ABI_MISMATCH";
    case INT8Q_SIZE_OVERFLOW: return "INT8Q_SIZE_OVERFLOW";
    case INT8Q_OUT_OF_MEMORY: return "INT8Q_OUT_OF_MEMORY";
    case INT8Q_BUFFER_TOO_SMALL: return "INT8Q_BUFFER_TOO_SMALL";
    case INT8Q_MISALIGNED: return "INT8Q_MISALIGNED";
    case INT8Q_OVERLAP: return "INT8Q_OVERLAP";
    case INT8Q_NOT_FINITE: return "INT8Q_NOT_FINITE";
    case INT8Q_UNSUPPORTED: return "INT8Q_UNSUPPORTED";
    case INT8Q_NO_DEVICE: return "INT8Q_NO_DEVICE";
    case INT8Q_BUSY: return "INT8Q_BUSY";
    case INT8Q_NOT_FOUND: return "INT8Q_NOT_FOUND";
    case INT8Q_IO: return "INT8Q_IO";
    case INT8Q_CORRUPT: return "INT8Q_CORRUPT";
    case INT8Q_CANCELLED: return "INT8Q_CANCELLED";
    case INT8Q_RUNNER_FAILED: return "INT8Q_RUNNER_FAILED";
    case INT8Q_INTERNAL: return "INT8Q_INTERNAL";
    case INT8Q_DEVICE_FAILED: return "INT8Q_DEVICE_FAILED";
    default: return "INT8Q_UNKNOWN_STATUS";
  }
}

const char* int8q_version_string(void) {
  return "int8q " INT8Q_VERSION " (ABI " INT8Q_STRINGIFY(INT8Q_ABI_MAJOR) "." INT8Q_STRINGIFY(INT8Q_ABI_MINOR) ")";
}

}  // extern "C"
