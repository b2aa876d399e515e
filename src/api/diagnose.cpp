// SPDX-License-Identifier: Apache-2.0
//
// JSON descriptions of the library on this machine and of a context.
#include <dlfcn.h>

#include <cstdlib>
#include <string>

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

std::string image_name(const cuda::Image* image) { return image == nullptr ? "null" : as_json(image->name); }

// One GPU; whether there are kernels for it.
std::string describe_gpu(int ordinal, bool& works) {
  const cuda::Gpu gpu = cuda::describe_gpu(ordinal);
  works = works || gpu.image != nullptr;
  return Members('{')
      .add("device", std::to_string(ordinal))
      .add("name", as_json(gpu.name))
      .add("capability", as_json(capability(gpu.major, gpu.minor)))
      .add("image", image_name(gpu.image))
      .text();
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
    const char* const states[] = {"no driver", "driver too old", "no GPU", "works"};
    state = states[presence.state];
    why = presence.why;
    if (presence.version > 0) driver = as_json(cuda::version_text(presence.version));
    bool works = false;
    try {
      for (int i = 0; i < presence.devices; ++i) devices.add(describe_gpu(i, works));
      if (presence.state == cuda::Presence::kPresent) {
        why = works ? std::to_string(presence.devices) + (presence.devices == 1 ? " GPU" : " GPUs")
                    : "no kernels in this build for the GPU's compute capability";
        if (!works) state = "no kernels";
      }
    } catch (const Error&) {  // in a forked process, say
      state = "no GPU";
      why = last_error();
    }
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
      .add("image", image_name(queue.device.image))
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
