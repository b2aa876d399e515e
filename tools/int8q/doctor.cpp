// SPDX-License-Identifier: Apache-2.0
//
// int8q doctor: what the library is, what it found, what it chose, whether it computes right, and what to do about faults.
#include <sched.h>

#include <memory>

#include "command.h"
#include "selftest.h"

namespace tool {
namespace {

using Json = nlohmann::ordered_json;

struct Diagnosis {
  Json json;
  Json faults = Json::array();

  void fault(const std::string& what, const std::string& remedy) {
    faults.push_back({{"fault", what}, {"remedy", remedy}});
  }
};

void check_abi(Diagnosis& d) {
  uint32_t got = 0;
  const int32_t status = int8q_negotiate(INT8Q_ABI_LEVEL, &got);
  d.json["abi"]["wanted"] = fmt::format("{}.{}", INT8Q_ABI_MAJOR, INT8Q_ABI_MINOR);
  d.json["abi"]["offered"] = fmt::format("{}.{}", got >> 16, got & 0xffff);
  if (status != INT8Q_OK) d.fault(int8q_last_error(), "install the command and libint8q.so.1 of the same release");
}

// The library says how many threads it would take; what it took them from is shown beside.
void check_threads(Diagnosis& d) {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) d.json["affinity"] = CPU_COUNT(&set);
}

void check_context(Diagnosis& d) {
  try {
    d.json["context"] = Json::parse(make_context(nullptr, 0).describe());
  } catch (const Failure& failure) {
    const bool isa = !d.json["environment"]["INT8Q_CPU_ISA"].is_null() && d.json["cpu"]["chosen"]["name"].is_null();
    const bool threads = d.json["environment"]["INT8Q_NUM_THREADS"].is_string() && failure.exit == kUsage;
    d.fault(failure.what(), isa       ? "unset INT8Q_CPU_ISA"
                            : threads ? "unset INT8Q_NUM_THREADS, or set it to 1 or more"
                                      : failure.hint);
    return;
  }
  const Json result = run_selftest(nullptr);
  d.json["selftest"] = {{"checked", result["checked"]}, {"wrong", result["wrong"]}};
  if (result["wrong"] != 0) {
    d.fault(fmt::format("{} of {} outputs of the self-test are wrong on {}", result["wrong"].get<int64_t>(),
                        result["checked"].get<int64_t>(), result["isa"].get<std::string>()),
            "run `int8q selftest`, and report its output; INT8Q_CPU_ISA=generic avoids the kernels at fault");
  }
}

std::string text_or(const Json& value, const char* otherwise) {
  return value.is_string() ? value.get<std::string>() : otherwise;
}

std::string threads_text(const Json& j) {
  const int available = j["threads"].get<int>(), affinity = j.value("affinity", available);
  std::string text = j.contains("context")
                         ? fmt::format("{} used, {} available", j["context"]["threads"].get<int>(), available)
                         : fmt::format("{} available", available);
  text += fmt::format(": {} in the affinity mask", affinity);
  return text + (available < affinity ? fmt::format(", {} by the cgroup's quota", available) : ", no lower cgroup quota");
}

void show(const Diagnosis& d) {
  const Json& j = d.json;
  print("int8q {}, ABI {} (wanted {})\n", j["version"].get<std::string>(), j["abi"]["offered"].get<std::string>(),
        j["abi"]["wanted"].get<std::string>());
  print("library   {}\n", j["library"].get<std::string>());
  print("cpu       {} ({})\n", j["cpu"]["brand"].get<std::string>(), j["cpu"]["architecture"].get<std::string>());
  std::string isas;
  for (const Json& isa : j["cpu"]["isas"]) {
    isas +=
        fmt::format(" {}{}", isa["name"].get<std::string>(), isa["runnable"].get<bool>() ? "" : " (not on this CPU)") + ",";
  }
  isas.pop_back();
  print("isas     {}\n", isas);
  print("chosen    {}: {}\n", text_or(j["cpu"]["chosen"]["name"], "none"), j["cpu"]["chosen"]["why"].get<std::string>());
  print("threads   {}\n", threads_text(j));
  print("gpu       {}: {}\n", j["gpu"]["state"].get<std::string>(), j["gpu"]["why"].get<std::string>());
  for (const Json& gpu : j["gpu"]["devices"]) {
    print("          {}: {}, capability {}, runs {}\n", gpu["device"].get<int>(), gpu["name"].get<std::string>(),
          gpu["capability"].get<std::string>(), text_or(gpu["image"], "nothing that is here"));
  }
  std::string images;
  for (const Json& image : j["gpu"]["images"]) images += (images.empty() ? "" : ", ") + image.get<std::string>();
  print("          kernels for {}\n", images.empty() ? "none" : images);
  for (const auto& [name, value] : j["environment"].items()) {
    if (value.is_string()) print("{}={}\n", name, value.get<std::string>());
  }
  if (j.contains("context")) {
    print("kernels\n");
    for (const auto& [operation, name] : j["context"]["kernels"].items()) {
      print("  {:<16} {}\n", operation, name.get<std::string>());
    }
    print("selftest  {} outputs, {} wrong\n", j["selftest"]["checked"].get<int64_t>(),
          j["selftest"]["wrong"].get<int64_t>());
  }
  for (const Json& fault : d.faults) {
    print("FAULT     {}\n          do: {}\n", fault["fault"].get<std::string>(), fault["remedy"].get<std::string>());
  }
  if (d.faults.empty()) print("no fault found\n");
}

}  // namespace

void add_doctor(CLI::App& app, int& exit) {
  auto json = std::make_shared<bool>(false);
  CLI::App* command = app.add_subcommand("doctor", "Say what was found and chosen on this machine, and what is wrong.");
  command->add_flag("--json", *json, "print JSON");
  command->footer(
      "Exit status 1 if there is a fault; each is shown with what mends it.\n\n"
      "Examples:\n"
      "  int8q doctor\n"
      "  INT8Q_CPU_ISA=avx2 int8q doctor --json");
  command->callback([json, &exit] {
    Diagnosis d{Json::parse(int8q::diagnose())};
    check_abi(d);
    check_threads(d);
    check_context(d);
    if (*json) {
      d.json["faults"] = d.faults;
      write_text(d.json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
    } else {
      show(d);
    }
    if (!d.faults.empty()) exit = kFault;
  });
}

}  // namespace tool
