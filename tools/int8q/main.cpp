// SPDX-License-Identifier: Apache-2.0
//
// int8q: quantize and inspect checkpoints, diagnose the library, test its kernels.
#include <fmt/color.h>
#include <fmt/core.h>

#include "command.h"

namespace {

constexpr const char* kDefect = "this is a defect of int8q; please report it with the output of `int8q doctor --json`";

void report(const tool::Failure& failure) {
  const auto style = tool::may_color(stderr) ? fmt::fg(fmt::terminal_color::red) | fmt::emphasis::bold : fmt::text_style();
  std::fflush(stdout);
  // Not fmt::print: with a closed stderr it would throw, from where nothing catches.
  const std::string text =
      fmt::format("int8q: {} {}\nhint: {}\n", fmt::styled("error:", style), failure.what(), failure.hint);
  std::fputs(text.c_str(), stderr);
}

void add_commands(CLI::App& app, int& exit) {
  app.set_version_flag("--version", int8q_version_string());
  app.require_subcommand(1);
  app.footer(
      "Exit status: 0 ok; 1 doctor or selftest found a fault; 2 usage; 3 a file cannot be read or written; 4 bad input;\n"
      "130 interrupted (Ctrl-C; nothing is left behind); 70 a defect of int8q.\n\n"
      "Examples:\n"
      "  int8q quantize model.safetensors model-int8.safetensors\n"
      "  int8q inspect model-int8.safetensors\n"
      "  int8q doctor\n"
      "  int8q selftest\n"
      "  int8q quantize --help");
  tool::add_quantize(app, exit);
  tool::add_inspect(app, exit);
  tool::add_doctor(app, exit);
  tool::add_selftest(app, exit);
}

int run(int argc, char** argv) {
  CLI::App app{"LLM.int8() quantization: quantize and inspect checkpoints, diagnose the library, test its kernels.",
               "int8q"};
  int exit = tool::kOk;
  add_commands(app, exit);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // prints the help or the version
    const auto chosen = app.get_subcommands();
    const std::string command = chosen.empty() ? "int8q" : "int8q " + chosen.front()->get_name();
    const std::string what =
        chosen.empty() && argc > 1 && argv[1][0] != '-'
            ? fmt::format("\"{}\" is no subcommand; expected quantize, inspect, doctor or selftest", argv[1])
            : error.what();
    throw tool::Failure(tool::kUsage, what, fmt::format("`{} --help` shows the options and examples", command));
  }
  return exit;
}

}  // namespace

// Only a failure to report a failure is not caught.
int main(int argc, char** argv) {  // NOLINT(bugprone-exception-escape)
  try {
    const int exit = run(argc, argv);
    tool::finish_output();
    return exit;
  } catch (const tool::Failure& failure) {
    report(failure);
    return failure.exit;
  } catch (const int8q::StatusError& error) {
    const tool::Failure failure = tool::failure_of(error);
    report(failure);
    return failure.exit;
  } catch (const std::bad_alloc&) {
    report({tool::kInternal, "out of memory", "free memory, or inspect with --no-stats"});
    return tool::kInternal;
  } catch (const std::exception& error) {
    report({tool::kInternal, error.what(), kDefect});
    return tool::kInternal;
  }
}
