// SPDX-License-Identifier: Apache-2.0
//
// JSON descriptions of the library on this machine and of a context.
#include <dlfcn.h>

#include <cstdlib>
#include <string>
#include <tuple>
#include <utility>

#include <nlohmann/json.hpp>

#include "api/arguments.h"
#include "cpu/cpuid.h"
#include "cuda/device.h"

namespace int8q::api {
namespace {

// JSON text is put together in strings; the library escapes them. A DOM of nlohmann::json would end the process if memory
// ran out in its destructor. Text that is no UTF-8 (a path, an environment variable) becomes U+FFFD.
std::string as_json(const std::string& text) {
  return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

const char* boolean(bool value) { return value ? "true" : "false"; }

// {"name": value, ...} or [value, ...] of texts that are JSON already.
class Members {
 public:
  explicit Members(char open) : text_(1, open), close_(open == '{' ? '}' : ']') {}
  Members& add(const char* name, const std::string& json) {
    separate();
    text_ += as_json(name) + ": " + json;
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
  return value == nullptr ? "null" : as_json(value);
}

// Which ISA a context with default options would take, and why.
std::string chosen_isa() {
  const auto choice = [](const char* name, const std::string& why) {
    return Members('{').add("name", name == nullptr ? "null" : as_json(name)).add("why", as_json(why)).text();
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
    isas.add(Members('{').add("name", as_json(isa.name)).add("runnable", boolean(isa.supported())).text());
  }
  const std::string features = Members('{')
                                   .add("avx2", boolean(f.avx2))
                                   .add("avxvnni", boolean(f.avxvnni))
                                   .add("avx512bw", boolean(f.avx512bw))
                                   .add("avx512vnni", boolean(f.avx512vnni))
                                   .add("avx512bf16", boolean(f.avx512bf16))
                                   .text();
  return Members('{')
      .add("architecture", as_json(architecture))
      .add("brand", as_json(f.brand))
      .add("features", features)
      .add("isas", isas.text())
      .add("chosen", chosen_isa())
      .text();
}

std::string capability(int major, int minor) { return std::to_string(major) + "." + std::to_string(minor); }

// One GPU, which is opened, to see that it can be.
cuda::Gpu examine_gpu(int ordinal) {
  cuda::Gpu gpu = cuda::describe_gpu(ordinal);
  if (!gpu.why.empty()) return gpu;
  try {
    cuda::Device::try_open(ordinal);
  } catch (const Error&) {
    gpu.state = "fails";
    gpu.why = last_error();
  }
  return gpu;
}

// state and why of all GPUs that there are: at least one works, or what is wrong with the first.
std::pair<std::string, std::string> examine_gpus(int count, Members& devices) {
  int working = 0;
  std::string state, why;
  for (int i = 0; i < count; ++i) {
    const cuda::Gpu gpu = examine_gpu(i);
    const bool works = gpu.why.empty();
    working += works ? 1 : 0;
    if (!works && why.empty()) state = gpu.state, why = gpu.why;
    devices.add(Members('{')
                    .add("device", std::to_string(i))
                    .add("name", as_json(gpu.name))
                    .add("capability", as_json(capability(gpu.major, gpu.minor)))
                    .add("image", works ? as_json(gpu.image->name) : "null")
                    .add("why", works ? "null" : as_json(gpu.why))
                    .text());
  }
  if (working == 0) return {state, why};
  const std::string gpus = std::to_string(count) + (count == 1 ? " GPU" : " GPUs");
  return {"works", working == count ? gpus : std::to_string(working) + " of " + gpus + "; " + why};
}

std::string describe_gpus() {
  Members embedded('['), devices('[');
  for (const cuda::Image& image : cuda::images()) embedded.add(as_json(image.name));
  std::string state, why;
  std::string driver = "null";
  if (cuda::images().empty()) {
    state = "not built";
    why = "this build has no CUDA kernels, since NVRTC was not there";
  } else {
    const cuda::Presence& presence = cuda::look_for_driver();
    const char* const states[] = {"no driver", "driver too old", "fails", "no GPU", "works"};
    state = states[presence.state];
    why = presence.why;
    if (presence.version > 0) driver = as_json(cuda::version_text(presence.version));
    const std::string before = last_error();  // which success leaves as it is
    try {
      if (presence.state == cuda::Presence::kPresent) std::tie(state, why) = examine_gpus(presence.devices, devices);
    } catch (const Error&) {  // in a forked process, say
      state = "fails";
      why = last_error();
    }
    set_last_error("%s", before.c_str());
  }
  return Members('{')
      .add("state", as_json(state))
      .add("why", as_json(why))
      .add("driver", driver)
      .add("images", embedded.text())
      .add("devices", devices.text())
      .text();
}

std::string diagnose() {
  const std::string abi = Members('{')
                              .add("major", std::to_string(INT8Q_ABI_MAJOR))
                              .add("minor", std::to_string(INT8Q_ABI_MINOR))
                              .add("hash", as_json(int8q_abi_hash(INT8Q_ABI_LEVEL)))
                              .text();
  const std::string variables = Members('{')
                                    .add("INT8Q_CPU_ISA", environment("INT8Q_CPU_ISA"))
                                    .add("INT8Q_NUM_THREADS", environment("INT8Q_NUM_THREADS"))
                                    .add("INT8Q_CUDA_IMAGE", environment("INT8Q_CUDA_IMAGE"))
                                    .add("INT8Q_CUDA_GEMM", environment("INT8Q_CUDA_GEMM"))
                                    .text();
  return Members('{')
      .add("version", as_json(INT8Q_VERSION))
      .add("abi", abi)
      .add("library", as_json(library_path()))
      .add("cpu", describe_cpu())
      .add("threads", std::to_string(available_threads()))
      .add("environment", variables)
      .add("gpu", describe_gpus())
      .text();
}

std::string describe_queue(const cuda::Queue& queue) {
  return Members('{')
      .add("backend", as_json("cuda"))
      .add("device", std::to_string(queue.device.ordinal))
      .add("name", as_json(queue.device.name))
      .add("capability", as_json(capability(queue.device.major, queue.device.minor)))
      .add("image", as_json(queue.device.image->name))
      .add("gemm", as_json(queue.device.cublaslt == nullptr ? "int8q" : "cuBLASLt " + queue.device.cublaslt->what()))
      .add("launches", std::to_string(queue.launches))
      .text();
}

std::string describe(const Context& context) {
  if (context.gpu) return describe_queue(*context.gpu);
  Members kernels('{');
  cpu::for_each_kernel(
      *context.kernels,
      [](void* into, const char* operation, const char* name) {
        static_cast<Members*>(into)->add(operation, as_json(name));
      },
      &kernels);
  return Members('{')
      .add("backend", as_json("cpu"))
      .add("isa", as_json(context.kernels->isa))
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
