// SPDX-License-Identifier: Apache-2.0
//
// JSON descriptions of the library on this machine and of a context.
#include <dlfcn.h>

#include <cstdlib>
#include <string>

#include <nlohmann/json.hpp>

#include "api/arguments.h"
#include "cpu/cpuid.h"

namespace int8q::api {
namespace {

using Json = nlohmann::ordered_json;

std::string library_path() {
  Dl_info info;
  return dladdr(reinterpret_cast<const void*>(&int8q_diagnose_json), &info) != 0 && info.dli_fname != nullptr ? info.dli_fname : "";
}

Json environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? Json(nullptr) : Json(value);
}

// Which ISA a context with default options would take, and why.
Json chosen_isa() {
  const char* forced = std::getenv("INT8Q_CPU_ISA");
  if (forced == nullptr || *forced == '\0') return {{"name", cpu::best_isa().name}, {"why", "the best that this CPU runs"}};
  const cpu::Isa* isa = cpu::find_isa(forced);
  if (isa == nullptr) {
    return {{"name", nullptr}, {"why", "INT8Q_CPU_ISA is \"" + std::string(forced) + "\", no ISA of this library; expected one of " + cpu::isa_names()}};
  }
  if (!isa->supported()) {
    return {{"name", nullptr}, {"why", "INT8Q_CPU_ISA is \"" + std::string(forced) + "\", which this CPU or operating system lacks"}};
  }
  return {{"name", isa->name}, {"why", "forced by INT8Q_CPU_ISA"}};
}

Json describe_cpu() {
  const cpu::CpuFeatures& f = cpu::cpu_features();
#if defined(__x86_64__)
  const char* architecture = "x86_64";
#else
  const char* architecture = "aarch64";
#endif
  Json isas = Json::array();
  for (const cpu::Isa& isa : cpu::isas()) isas.push_back({{"name", isa.name}, {"runnable", isa.supported()}});
  return {{"architecture", architecture},
          {"brand", f.brand},
          {"features",
           {{"avx2", f.avx2}, {"avxvnni", f.avxvnni}, {"avx512bw", f.avx512bw}, {"avx512vnni", f.avx512vnni}, {"avx512bf16", f.avx512bf16}}},
          {"isas", isas},
          {"chosen", chosen_isa()}};
}

Json diagnose() {
  return {{"version", INT8Q_VERSION},
          {"abi", {{"major", INT8Q_ABI_MAJOR}, {"minor", INT8Q_ABI_MINOR}, {"hash", int8q_abi_hash(INT8Q_ABI_LEVEL)}}},
          {"library", library_path()},
          {"cpu", describe_cpu()},
          {"threads", available_threads()},
          {"environment",
           {{"INT8Q_CPU_ISA", environment("INT8Q_CPU_ISA")}, {"INT8Q_NUM_THREADS", environment("INT8Q_NUM_THREADS")}}},
          {"gpu", {{"state", "not built"}, {"why", "this build has no CUDA backend"}}}};
}

Json describe(const Context& context) {
  Json kernels = Json::object();
  cpu::for_each_kernel(
      *context.kernels,
      [](void* into, const char* operation, const char* name) { (*static_cast<Json*>(into))[operation] = name; }, &kernels);
  return {{"backend", "cpu"},
          {"isa", context.kernels->isa},
          {"threads", context.pool.threads()},
          {"runner", context.pool.has_runner()},
          {"kernels", kernels}};
}

// Text that is no UTF-8 (a path, an environment variable) becomes U+FFFD, not an exception.
void write(const Json& json, char* buffer, uint64_t capacity, uint64_t* length) {
  const std::string text = json.dump(2, ' ', false, Json::error_handler_t::replace);
  copy_text(text.data(), text.size(), buffer, capacity, length);
}

}  // namespace
}  // namespace int8q::api

using namespace int8q::api;

extern "C" {

int32_t int8q_diagnose_json(char* buffer, uint64_t capacity, uint64_t* length) {
  return guarded([&] { write(diagnose(), buffer, capacity, length); });
}

int32_t int8q_describe_context(int8q_context* context, char* buffer, uint64_t capacity, uint64_t* length) {
  return guarded([&] { write(describe(check_context(context)), buffer, capacity, length); });
}

}  // extern "C"
