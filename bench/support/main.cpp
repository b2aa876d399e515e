// SPDX-License-Identifier: Apache-2.0
//
// The command line of every bench_NAME: what is run (--isa, --threads, --all-shapes, --backend); the rest is Google
// Benchmark's.
#include <unistd.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <string>
#include <vector>

#include "cpu/cpuid.h"
#include "cpu/registry.h"
#include "support/onednn.h"
#include "support/suite.h"

namespace {

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (const int8q::cpu::Isa& isa : int8q::cpu::isas()) {
    if (isa.supported() && std::string(isa.name) != "generic") names.emplace_back(isa.name);
  }
  return names;
}

// The first processor's "vendor_id", "cpu family", "model" and "flags", as in /proc/cpuinfo.
std::map<std::string, std::string> describe_cpu() {
  std::map<std::string, std::string> found;
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line) && !line.empty();) {
    const std::string name = line.substr(0, line.find('\t'));
    const size_t value = line.find(": ");
    const bool wanted = name == "vendor_id" || name == "cpu family" || name == "model" || name == "flags";
    if (wanted && value != std::string::npos) found[name] = line.substr(value + 2);
  }
  return found;
}

// Becomes cuda_bench_NAME, which lies beside bench_NAME; returns if that fails.
int run_on_gpu(std::vector<std::string> rest) {
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe");
  const std::string program = self.parent_path() / ("cuda_" + self.filename().string());
  rest.insert(rest.begin(), program);
  std::vector<char*> arguments;
  for (std::string& argument : rest) arguments.push_back(argument.data());
  arguments.push_back(nullptr);
  execv(program.c_str(), arguments.data());
  std::cerr << "--backend=cuda: " << program << " does not start: " << std::strerror(errno)
            << (errno == ENOENT ? "; this build has no CUDA kernels, or this benchmark no rows for a GPU" : "") << "\n";
  return 1;
}

}  // namespace

int main(int argc, char** argv) try {
  CLI::App app("int8q beside its opponents; %peak and %bandwidth are of what this machine did in this run.");
  app.allow_extras();
  app.footer("Google Benchmark's own options follow, as --benchmark_filter=REGEX and --benchmark_out=FILE.");
  int8q::bench::Options options{supported_isas(), {1, 2}, false};
  const CLI::Option* named = app.add_option("--isa", options.isas, "ISAs to run; opponents are held to the widest of them")
                                 ->check(CLI::IsMember(supported_isas()))
                                 ->delimiter(',');
  app.add_option("--threads", options.threads, "numbers of threads")->delimiter(',')->check(CLI::PositiveNumber);
  app.add_flag("--all-shapes", options.all_shapes,
               "every layer of the list of shapes, on the widest ISA where --isa names none");
  std::string backend = "cpu";
  app.add_option("--backend", backend,
                 "cuda: on a GPU; bench_linear alone, whose options are then those of cuda_bench_linear")
      ->check(CLI::IsMember({"cpu", "cuda"}));
  CLI11_PARSE(app, argc, argv);

  std::vector<std::string> rest = app.remaining();
  if (backend == "cuda") return run_on_gpu(rest);
  std::vector<char*> arguments{argv[0]};
  for (std::string& argument : rest) arguments.push_back(argument.data());
  int count = static_cast<int>(arguments.size());
  benchmark::Initialize(&count, arguments.data());
  if (benchmark::ReportUnrecognizedArguments(count, arguments.data())) return 1;

  const std::vector<std::string> all = supported_isas();  // ascending
  if (options.isas.empty()) {
    std::cerr << argv[0] << ": this CPU runs none of the ISAs that are measured (AVX2 or wider)\n";
    return 1;
  }
  std::sort(options.isas.begin(), options.isas.end(), [&](const std::string& a, const std::string& b) {
    return std::find(all.begin(), all.end(), a) < std::find(all.begin(), all.end(), b);
  });
  if (options.all_shapes && named->empty()) options.isas = {options.isas.back()};
  int8q::bench::onednn::hold_to(options.isas.back());
  benchmark::AddCustomContext("cpu", int8q::cpu::cpu_features().brand);
  for (const auto& [name, value] : describe_cpu()) benchmark::AddCustomContext(name, value);
  benchmark::AddCustomContext("avxvnni", "EVEX");  // the test library's kernels, on every CPU
  benchmark::AddCustomContext("int8q", int8q_version_string());
  benchmark::AddCustomContext("onednn", int8q::bench::onednn::version());
  benchmark::AddCustomContext("compiler", __VERSION__);
  std::string command;
  for (int i = 0; i < argc; ++i) command += std::string(i > 0 ? " " : "") + argv[i];
  benchmark::AddCustomContext("command", command);
  int8q::bench::register_benchmarks(options);
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
} catch (const std::exception& error) {
  std::cerr << argv[0] << ": " << error.what() << "\n";
  return 1;
}
