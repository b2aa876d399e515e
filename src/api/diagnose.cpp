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

// JSON text is put together in strings; the library escapes them. A DOM of nlohmann::json would end the process if memory
// ran out in its destructor. Text that is no UTF-8 (a path, an environment variable) becomes U+FFFD.
std::string quoted(const std::string& text) {
  return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

const char* boolean(bool value) { return value ? "true" : "false"; }

// {"name": value, ...} or [value, ...] of texts that are JSON already.
class Members {
 public:
  explicit Members(char open) : text_(1, open), close_(open == '{' ? '}' : ']') {}
  Members& add(const char* name, const std::string& json) {
    separate();
    text_ += quoted(name) + ": " + json;
    return *this;
  }
  Members& add(const std::string& json) {
    separate();
    text_ += json;
    return *this;
  }
  std::string text() const { return text_ + close_; }

 private:
  void separate() {
    if (text_.size() > 1) text_ += ", ";
  }
  std::string text_;
  char close_;
};

std::string library_path() {
  Dl_info info;
  return dladdr(reinterpret_cast<const void*>(&int8q_diagnose_json), &info) != 0 && info.dli_fname != nullptr
             ? info.dli_fname
             : "";
}

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "null" : quoted(value);
}

// Which ISA a context with default options would take, and why.
std::string chosen_isa() {
  const auto choice = [](const char* name, const std::string& why) {
    return Members('{').add("name", name == nullptr ? "null" : quoted(name)).add("why", quoted(why)).text();
  };
  const char* forced = std::getenv("INT8Q_CPU_ISA");
  if (forced == nullptr || *forced == '\0') return choice(cpu::best_isa().name, "the best that this CPU runs");
  const cpu::Isa* isa = cpu::find_isa(forced);
  const std::string value = "INT8Q_CPU_ISA is \"" + std::string(forced) + "\", ";
  if (isa == nullptr) return choice(nullptr, value + "no ISA of this library; expected one of " + cpu::isa_names());
  if (!isa->supported()) return choice(nullptr, value + "which this CPU or operating system lacks");
  return choice(isa->name, "forced by INT8Q_CPU_ISA");
}

std::string describe_cpu() {
  const cpu::CpuFeatures& f = cpu::cpu_features();
#if defined(__x86_64__)
  const char* architecture = "x86_64";
#else
  const char* architecture = "aarch64";
#endif
  Members isas('[');
  for (const cpu::Isa& isa : cpu::isas()) {
    isas.add(Members('{').add("name", quoted(isa.name)).add("runnable", boolean(isa.supported())).text());
  }
  const std::string features = Members('{')
                                   .add("avx2", boolean(f.avx2))
                                   .add("avxvnni", boolean(f.avxvnni))
                                   .add("avx512bw", boolean(f.avx512bw))
                                   .add("avx512vnni", boolean(f.avx512vnni))
                                   .add("avx512bf16", boolean(f.avx512bf16))
                                   .text();
  return Members('{')
      .add("architecture", quoted(architecture))
      .add("brand", quoted(f.brand))
      .add("features", features)
      .add("isas", isas.text())
      .add("chosen", chosen_isa())
      .text();
}

std::string diagnose() {
  const std::string abi = Members('{')
                              .add("major", std::to_string(INT8Q_ABI_MAJOR))
                              .add("minor", std::to_string(INT8Q_ABI_MINOR))
                              .add("hash", quoted(int8q_abi_hash(INT8Q_ABI_LEVEL)))
                              .text();
  const std::string variables = Members('{')
                                    .add("INT8Q_CPU_ISA", environment("INT8Q_CPU_ISA"))
                                    .add("INT8Q_NUM_THREADS", environment("INT8Q_NUM_THREADS"))
                                    .text();
  return Members('{')
      .add("version", quoted(INT8Q_VERSION))
      .add("abi", abi)
      .add("library", quoted(library_path()))
      .add("cpu", describe_cpu())
      .add("threads", std::to_string(available_threads()))
      .add("environment", variables)
      .add("gpu", R"({"state": "not built", "why": "this build has no CUDA backend"})")
      .text();
}

std::string describe(const Context& context) {
  Members kernels('{');
  cpu::for_each_kernel(
      *context.kernels,
      [](void* into, const char* operation, const char* name) {
        static_cast<Members*>(into)->add(operation, quoted(name));
      },
      &kernels);
  return Members('{')
      .add("backend", quoted("cpu"))
      .add("isa", quoted(context.kernels->isa))
      .add("threads", std::to_string(context.pool.threads()))
      .add("runner", boolean(context.pool.has_runner()))
      .add("kernels", kernels.text())
      .text();
}

}  // namespace
}  // namespace int8q::api

using namespace int8q::api;

extern "C" {

int32_t int8q_diagnose_json(char* buffer, uint64_t capacity, uint64_t* length) {
  return guarded([&] {
    const std::string text = diagnose();
    copy_text(text.data(), text.size(), buffer, capacity, length);
  });
}

int32_t int8q_describe_context(int8q_context* context, char* buffer, uint64_t capacity, uint64_t* length) {
  return guarded([&] {
    const std::string text = describe(check_context(context));
    copy_text(text.data(), text.size(), buffer, capacity, length);
  });
}

}  // extern "C"
