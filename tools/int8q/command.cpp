// SPDX-License-Identifier: Apache-2.0
#include "command.h"

#include <unistd.h>

#include <cstdlib>

#include <fmt/core.h>

#include "int8q/int8q.h"

namespace tool {
namespace {

Exit exit_of(int32_t status) {
  switch (status) {
    case INT8Q_INVALID_ARGUMENT: return kUsage;
    case INT8Q_NOT_FOUND:
    case INT8Q_IO: return kInputOutput;
    case INT8Q_CORRUPT:
    case INT8Q_NOT_FINITE:
    case INT8Q_UNSUPPORTED:
    case INT8Q_SIZE_OVERFLOW: return kBadInput;
    case INT8Q_CANCELLED: return kInterrupted;
    default: return kInternal;
  }
}

const char* hint_of(int32_t status) {
  switch (status) {
    case INT8Q_NOT_FOUND: return "check the path; a folder needs model.safetensors or model.safetensors.index.json";
    case INT8Q_IO: return "check permissions and free space; the output is left as it was";
    case INT8Q_CORRUPT: return "the file is damaged or no safetensors file; fetch it again";
    case INT8Q_NOT_FINITE: return "these weights cannot be quantized; leave the tensor alone with --exclude";
    case INT8Q_CANCELLED: return "nothing was left behind; run it again to start over";
    case INT8Q_INTERNAL: return "this is a defect of int8q; please report it with the output of `int8q doctor --json`";
    default: return "";
  }
}

}  // namespace

void fail_with_status(int32_t status) { throw Failure(exit_of(status), int8q_last_error(), hint_of(status)); }

void check(int32_t status) {
  if (status != INT8Q_OK) fail_with_status(status);
}

bool is_terminal(std::FILE* stream) { return isatty(fileno(stream)) == 1; }

bool may_color(std::FILE* stream) {
  const char* no_color = std::getenv("NO_COLOR");
  return is_terminal(stream) && (no_color == nullptr || *no_color == '\0');
}

std::string human_bytes(double bytes) {
  const char* units[] = {"B", "kB", "MB", "GB", "TB"};
  int unit = 0;
  for (; bytes >= 1000.0 && unit < 4; ++unit) bytes /= 1000.0;
  return unit == 0 ? fmt::format("{:.0f} B", bytes) : fmt::format("{:.1f} {}", bytes, units[unit]);
}

std::string human_seconds(double seconds) {
  const auto whole = static_cast<long>(seconds + 0.5);
  return whole >= 3600 ? fmt::format("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60)
                       : fmt::format("{}:{:02}", whole / 60, whole % 60);
}

}  // namespace tool
