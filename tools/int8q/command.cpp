// SPDX-License-Identifier: Apache-2.0
#include "command.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <cstring>

namespace tool {
namespace {

int output_error = 0;  // errno of the first failed write to stdout

void note(bool written) {
  if (!written && output_error == 0) output_error = errno;
}

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
    case INT8Q_INVALID_ARGUMENT: return "--help shows the options; -f replaces an existing OUT";
    case INT8Q_NOT_FOUND: return "check the path; a folder needs model.safetensors or model.safetensors.index.json";
    case INT8Q_IO: return "check permissions and free space; the output is left as it was";
    case INT8Q_CORRUPT: return "the file is damaged or no safetensors file; fetch it again";
    case INT8Q_NOT_FINITE: return "these weights cannot be quantized; leave the tensor alone with --exclude";
    case INT8Q_UNSUPPORTED: return "pass a float checkpoint in safetensors; `int8q inspect PATH` shows what a file holds";
    case INT8Q_SIZE_OVERFLOW: return "leave the tensor alone with --exclude";
    case INT8Q_OUT_OF_MEMORY: return "free memory, or use fewer threads";
    case INT8Q_ABI_MISMATCH: return "install the command and libint8q.so.1 of the same release";
    case INT8Q_CANCELLED: return "nothing was left behind; run it again to start over";
    default: return "this is a defect of int8q; please report it with the output of `int8q doctor --json`";
  }
}

}  // namespace

Failure failure_of(const int8q::StatusError& error) {
  return {exit_of(error.status()), error.what(), hint_of(error.status())};
}

int8q::Context make_context(const char* isa, int threads) {
  try {
    return int8q::Context(threads, isa);
  } catch (const int8q::StatusError& error) {
    if (error.status() != INT8Q_UNSUPPORTED && error.status() != INT8Q_INVALID_ARGUMENT) throw failure_of(error);
    throw Failure(kUsage, error.what(), "`int8q doctor` lists what this CPU runs and what the environment asks for");
  }
}

void write_text(const std::string& text) { note(std::fwrite(text.data(), 1, text.size(), stdout) == text.size()); }

void flush_output() { note(std::fflush(stdout) == 0); }

void finish_output() {
  flush_output();
  if (output_error == 0 || output_error == EPIPE) return;
  throw Failure(kInputOutput, fmt::format("writing to standard output failed: {}", std::strerror(output_error)),
                "send the output elsewhere, or free space; files that were asked for are complete");
}

bool is_terminal(std::FILE* stream) { return isatty(fileno(stream)) == 1; }

bool may_color(std::FILE* stream) {
  const char* no_color = std::getenv("NO_COLOR");
  return is_terminal(stream) && (no_color == nullptr || *no_color == '\0');
}

int terminal_columns(std::FILE* stream) {
  winsize size{};
  return ioctl(fileno(stream), TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

std::string shown(const std::string& text) {
  std::string clean = text;
  for (size_t i = 0; i < clean.size(); ++i) {
    const auto byte = static_cast<unsigned char>(clean[i]);
    // C1 controls are two bytes in UTF-8: 0xc2, then 0x80 to 0x9f.
    const bool c1 = byte >= 0x80 && byte < 0xa0 && i > 0 && static_cast<unsigned char>(text[i - 1]) == 0xc2;
    if (byte < 0x20 || byte == 0x7f || c1) clean[i] = '?';
  }
  return clean;
}

std::string human_bytes(double bytes) {
  const char* units[] = {"B", "kB", "MB", "GB", "TB"};
  int unit = 0;
  for (; bytes >= 1000.0 && unit < 4; ++unit) bytes /= 1000.0;
  return unit == 0 ? fmt::format("{:.0f} B", bytes) : fmt::format("{:.1f} {}", bytes, units[unit]);
}

std::string human_seconds(double seconds) {
  const long whole = std::lround(seconds);
  return whole >= 3600 ? fmt::format("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60)
                       : fmt::format("{}:{:02}", whole / 60, whole % 60);
}

}  // namespace tool
