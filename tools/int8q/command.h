// SPDX-License-Identifier: Apache-2.0
//
// What the subcommands share: exit statuses, failures with hints, output that knows terminals.
#pragma once

#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <string>

#include <CLI/CLI.hpp>

namespace tool {

enum Exit {
  kOk = 0,
  kFault = 1,  // doctor or selftest found a fault
  kUsage = 2,
  kInputOutput = 3,  // not found, unreadable, full disk
  kBadInput = 4,     // corrupt, NaN, unsupported
  kInternal = 70,
  kInterrupted = 130  // Ctrl-C
};

// Ends the command: `int8q: error: MESSAGE`, `hint: HINT` on stderr, and an exit status.
struct Failure : std::runtime_error {
  Failure(Exit status, const std::string& message, const std::string& advice = "")
      : std::runtime_error(message), exit(status), hint(advice) {}
  Exit exit;
  std::string hint;
};

// The library's last error as a Failure.
[[noreturn]] void fail_with_status(int32_t status);
void check(int32_t status);

// Colour and carriage returns are for terminals; NO_COLOR is respected.
bool is_terminal(std::FILE* stream);
bool may_color(std::FILE* stream);

std::string human_bytes(double bytes);      // "12.3 MB", powers of ten
std::string human_seconds(double seconds);  // "1:23"

// Each registers its subcommand; running it sets `exit`.
void add_quantize(CLI::App& app, int& exit);
void add_inspect(CLI::App& app, int& exit);
void add_doctor(CLI::App& app, int& exit);
void add_selftest(CLI::App& app, int& exit);

}  // namespace tool
