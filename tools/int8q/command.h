// SPDX-License-Identifier: Apache-2.0
//
// What the subcommands share: exit statuses, failures with hints, contexts, output that knows terminals and broken pipes.
#pragma once

#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <string>

#include <fmt/core.h>
#include <CLI/CLI.hpp>

#include "int8q/int8q.hpp"

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
  Failure(Exit status, const std::string& message, const std::string& advice)
      : std::runtime_error(message), exit(status), hint(advice) {}
  Exit exit;
  std::string hint;
};

// What the library refused, with an exit status and a hint.
Failure failure_of(const int8q::StatusError& error);

// A context; an ISA that is unknown or that this CPU lacks is a usage error, from an option or the environment alike.
int8q::Context make_context(const char* isa, int threads);

// Standard output. Unlike fmt::print it never throws, so it may be used inside the library's callbacks; the first error
// is kept for finish_output.
void write_text(const std::string& text);
template <class... Arguments>
void print(fmt::format_string<Arguments...> format, Arguments&&... arguments) {
  write_text(fmt::format(format, std::forward<Arguments>(arguments)...));
}
void flush_output();
// Fails if something was not written. A reader that has closed its pipe (`| head`) has what it wants and is no failure.
void finish_output();

// Colour and carriage returns are for terminals; NO_COLOR is respected.
bool is_terminal(std::FILE* stream);
bool may_color(std::FILE* stream);
int terminal_columns(std::FILE* stream);  // 80 where the terminal does not say

// Text of a file, such as a tensor's name, without control characters: a terminal would obey them.
std::string shown(const std::string& text);
std::string human_bytes(double bytes);      // "12.3 MB", powers of ten
std::string human_seconds(double seconds);  // "1:23"

// Each registers its subcommand; running it sets `exit`.
void add_quantize(CLI::App& app, int& exit);
void add_inspect(CLI::App& app, int& exit);
void add_doctor(CLI::App& app, int& exit);
void add_selftest(CLI::App& app, int& exit);

}  // namespace tool
