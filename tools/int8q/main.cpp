// SPDX-License-Identifier: Apache-2.0
//
// int8q: quantize and inspect checkpoints, diagnose the library, test its kernels.
#include <fmt/color.h>
#include <fmt/core.h>

#include "command.h"
#include "int8q/int8q.h"

namespace {

void report(const tool::Failure& failure) {
  const auto style = tool::may_color(stderr) ? fmt::fg(fmt::terminal_color::red) | fmt::emphasis::bold : fmt::text_style();
  std::fflush(stdout);
  fmt::print(stderr, "int8q: {} {}\n", fmt::styled("error:", style), failure.what());
  if (!failure.hint.empty()) fmt::print(stderr, "hint: {}\n", failure.hint);
}

int run(int argc, char** argv) {
  CLI::App app{"LLM.int8() quantization: quantize and inspect checkpoints, diagnose the library, test its kernels.",
               "int8q"};
  app.set_version_flag("--version", int8q_version_string());
  app.require_subcommand(1);
  app.footer(
      "Exit status: 0 ok; 1 doctor or selftest found a fault; 2 usage; 3 a file cannot be read or written; 4 bad input;\n"
      "130 interrupted; 70 a defect of int8q.\n\n"
      "Examples:\n"
      "  int8q quantize model.safetensors model-int8.safetensors\n"
      "  int8q inspect model-int8.safetensors\n"
      "  int8q doctor\n"
      "  int8q quantize --help");
  int exit = tool::kOk;
  tool::add_quantize(app, exit);
  tool::add_inspect(app, exit);
  tool::add_doctor(app, exit);
  tool::add_selftest(app, exit);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? tool::kOk : tool::kUsage;
  }
  return exit;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const int exit = run(argc, argv);
    if (std::fflush(stdout) != 0) throw tool::Failure(tool::kInputOutput, "writing to standard output failed");
    return exit;
  } catch (const tool::Failure& failure) {
    report(failure);
    return failure.exit;
  } catch (const std::exception& error) {
    report({tool::kInternal, error.what(),
            "this is a defect of int8q; please report it with the output of `int8q doctor --json`"});
    return tool::kInternal;
  }
}
