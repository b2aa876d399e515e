// SPDX-License-Identifier: Apache-2.0
//
// int8q selftest: every kernel of every ISA that this CPU runs, through the C ABI, against plain loops, bit for bit.
#include "selftest.h"

#include <cstdlib>
#include <memory>
#include <vector>

#include "command.h"
#include "kernel_checks.h"

namespace tool {
namespace {

using Json = nlohmann::ordered_json;

std::vector<std::string> isas_to_run(const std::string& chosen) {
  const char* forced = std::getenv("INT8Q_CPU_ISA");
  if (!chosen.empty()) return {chosen};
  if (forced != nullptr && *forced != '\0') return {""};  // the library reads it, and names it in its errors
  std::vector<std::string> names;
  const Json diagnosis = Json::parse(int8q::diagnose());
  for (const Json& isa : diagnosis["cpu"]["isas"]) {
    if (isa["runnable"].get<bool>()) names.push_back(isa["name"].get<std::string>());
  }
  return names;
}

void show(const Json& result) {
  const auto name = result["isa"].get<std::string>();
  print("{}\n", name);
  for (const Json& k : result["kernels"]) {
    print("  {:<16} {:<32} {:>8} outputs  {}\n", k["operation"].get<std::string>(), k["kernel"].get<std::string>(),
          k["checked"].get<int64_t>(),
          k["checked"] == 0 ? "NOT CHECKED"
          : k["wrong"] == 0 ? "ok"
                            : fmt::format("{} WRONG", k["wrong"].get<int64_t>()));
  }
  print("  {}: {} outputs checked, {} wrong\n", name, result["checked"].get<int64_t>(), result["wrong"].get<int64_t>());
}

}  // namespace

Json run_selftest(const char* isa) {
  int8q::Context context = make_context(isa, 0);
  KernelChecks checks(context);
  checks.run();
  Json kernels = Json::array();
  // A kernel that no check reaches is as bad as a wrong one.
  int64_t unreached = 0;
  const Json description = Json::parse(context.describe());
  for (const auto& [operation, name] : description["kernels"].items()) {
    const KernelChecks::Count count = checks.of(operation);
    kernels.push_back({{"operation", operation}, {"kernel", name}, {"checked", count.checked}, {"wrong", count.wrong}});
    unreached += count.checked == 0;
  }
  return {{"isa", description["isa"]},
          {"checked", checks.total().checked},
          {"wrong", checks.total().wrong + unreached},
          {"kernels", kernels}};
}

void add_selftest(CLI::App& app, int& exit) {
  struct Options {
    std::string isa;
    bool all = false, json = false;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command =
      app.add_subcommand("selftest", "Check every kernel that this CPU runs against plain loops, bit for bit.");
  CLI::Option* isa = command->add_option("--isa", options->isa, "only this ISA, whatever INT8Q_CPU_ISA says");
  command->add_flag("--all", options->all, "all ISAs that this CPU runs, or the one of INT8Q_CPU_ISA (default)")
      ->excludes(isa);
  command->add_flag("--json", options->json, "print JSON");
  command->footer(
      "A wrong output counts for every kernel that took part in it; the total counts each output once.\n"
      "Exit status 1 if any output is wrong.\n\n"
      "Examples:\n"
      "  int8q selftest\n"
      "  int8q selftest --isa avx2\n"
      "  INT8Q_CPU_ISA=generic int8q selftest --json");
  command->callback([options, &exit] {
    Json results = Json::array();
    int64_t wrong = 0;
    for (const std::string& name : isas_to_run(options->isa)) {
      const Json result = run_selftest(name.empty() ? nullptr : name.c_str());
      wrong += result["wrong"].get<int64_t>();
      options->json ? results.push_back(result) : show(result);
    }
    if (options->json) write_text(results.dump(2) + "\n");
    if (wrong != 0) exit = kFault;
  });
}

}  // namespace tool
