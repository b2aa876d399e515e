// SPDX-License-Identifier: Apache-2.0
#include "cuda/driver.h"

#include <dlfcn.h>

#include "core/error.h"
#include "core/pool.h"

namespace int8q::cuda {
namespace {

constexpr int kErrorNoDevice = 100;  // CUDA_ERROR_NO_DEVICE

// cuGetProcAddress of CUDA 12.0: takes names without _v2, gives what belongs to that version.
using GetProcAddress = int (*)(const char* name, void** function, int version, uint64_t flags, int* symbol_status);

Presence without_driver(const std::string& why) { return {.state = Presence::kNoDriver, .why = why}; }

Presence too_old(int version) {
  return {.state = Presence::kDriverTooOld,
          .why = "the NVIDIA driver is of CUDA " + (version > 0 ? version_text(version) : std::string("11 or before")) +
                 "; int8q's kernels need CUDA " + version_text(kOldestDriver) + ", driver 525, or later",
          .version = version};
}

std::string error_text(const Driver& driver, int error) {
  const char *name = nullptr, *text = nullptr;
  driver.cuGetErrorName(error, &name);
  driver.cuGetErrorString(error, &text);
  return (name == nullptr ? "CUDA error " + std::to_string(error) : std::string(name)) +
         (text == nullptr ? "" : std::string(" (") + text + ")");
}

Presence look() {
  void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* error = dlerror();
    return without_driver("no NVIDIA driver: " + std::string(error == nullptr ? "libcuda.so.1 does not load" : error));
  }
  int version = 0;
  if (auto* get_version = reinterpret_cast<int (*)(int*)>(dlsym(library, "cuDriverGetVersion")); get_version != nullptr)
    get_version(&version);
  auto* find = reinterpret_cast<GetProcAddress>(dlsym(library, "cuGetProcAddress_v2"));
  if (find == nullptr || version < kOldestDriver) return too_old(version);

  Presence found{.state = Presence::kPresent, .why = "", .version = version};
  const char* missing = nullptr;
  const auto resolve = [&](const char* name, auto& function) {
    void* address = nullptr;
    if (find(name, &address, kOldestDriver, 0, nullptr) != 0 || address == nullptr) missing = name;
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(address);
  };
#define INT8Q_RESOLVE(name, ...) resolve(#name, found.driver.name);
  INT8Q_DRIVER_FUNCTIONS(INT8Q_RESOLVE)
#undef INT8Q_RESOLVE
  if (missing != nullptr) return without_driver(std::string("libcuda.so.1 lacks ") + missing);

  int error = found.driver.cuInit(0);
  if (error == 0) error = found.driver.cuDeviceGetCount(&found.devices);
  if (error != 0 && error != kErrorNoDevice) {
    return {.state = Presence::kFails,
            .why = "the NVIDIA driver does not start: " + error_text(found.driver, error) +
                   "; restart the machine if the driver has been updated since, else reinstall it",
            .version = version};
  }
  if (found.devices == 0) {
    return {.state = Presence::kNoGpu,
            .why = "the NVIDIA driver, of CUDA " + version_text(version) +
                   ", finds no GPU; is one plugged in, and does CUDA_VISIBLE_DEVICES name it?",
            .version = version};
  }
  return found;
}

uint64_t generation_of_driver;

}  // namespace

std::string version_text(int version) { return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10); }

const Presence& look_for_driver() {
  // Never destroyed: threads may outlive main.
  static const Presence& presence = *[] {
    generation_of_driver = fork_generation();
    return new Presence(look());
  }();
  return presence;
}

const Driver& require_driver() {
  const Presence& found = look_for_driver();
  if (found.state != Presence::kPresent) fail(INT8Q_NO_DEVICE, "no usable GPU: %s", found.why.c_str());
  if (generation_of_driver != fork_generation()) {
    fail(INT8Q_NO_DEVICE,
         "no usable GPU: this process was forked from one that had used CUDA, which does not outlive a fork; start it by "
         "exec (\"spawn\" in Python)");
  }
  return found.driver;
}

std::string error_text(int error) { return error_text(look_for_driver().driver, error); }

void check(int error, const char* what) {
  if (error != 0) fail(INT8Q_DEVICE_FAILED, "%s: %s", what, error_text(error).c_str());
}

}  // namespace int8q::cuda
