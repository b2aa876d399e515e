// SPDX-License-Identifier: Apache-2.0
#include "cuda/driver.h"

#include <dlfcn.h>
#include <link.h>
#include <unistd.h>

#include <vector>

#include "core/error.h"
#include "core/pool.h"

namespace int8q::cuda {
namespace {

constexpr int kErrorStubLibrary = 34;  // CUDA_ERROR_STUB_LIBRARY
constexpr int kErrorNoDevice = 100;    // CUDA_ERROR_NO_DEVICE
constexpr char kLibrary[] = "libcuda.so.1";

// cuGetProcAddress of CUDA 12.0: takes names without _v2, gives what belongs to that version.
using GetProcAddress = int (*)(const char* name, void** function, int version, uint64_t flags, int* symbol_status);

Presence without_driver(const std::string& why) {
  return {.state = Presence::kNoDriver,
          .why = "no NVIDIA driver: " + why + "; for a GPU install driver 525 or later; a container gets the host's by " +
                 "`docker run --gpus all`"};
}

Presence too_old(int version) {
  return {.state = Presence::kDriverTooOld,
          .why = "the NVIDIA driver is of CUDA " + version_text(version) + "; int8q's kernels need CUDA " +
                 version_text(kOldestDriver) + ", driver 525, or later; update it",
          .version = version};
}

// A container's image that was made of a running container keeps empty files, or folders, in place of the driver's.
Presence does_not_load(const std::string& why, int version = 0) {
  return {
      .state = Presence::kFails,
      .why = "the NVIDIA driver does not load: " + why +
             "; expected the driver's own library for this architecture, with what it needs; if the driver did not put " +
             "that file there, remove it or take its folder out of LD_LIBRARY_PATH, else reinstall the driver; a " +
             "container gets the host's by `docker run --gpus all`",
      .version = version};
}

Presence stub_library(const std::string& path, const char* call, int version) {
  const size_t slash = path.rfind('/');
  return {.state = Presence::kFails,
          .why = path + " is the CUDA toolkit's stub, to link with, and was found before a driver (" + call +
                 ": CUDA_ERROR_STUB_LIBRARY); take " + (slash == std::string::npos ? "its folder" : path.substr(0, slash)) +
                 " out of LD_LIBRARY_PATH, or remove the file where it was copied; the driver brings its own " + kLibrary,
          .version = version};
}

// The driver may lack the functions that tell.
std::string error_text(const Driver& driver, int error) {
  const char *name = nullptr, *text = nullptr;
  if (driver.cuGetErrorName != nullptr) driver.cuGetErrorName(error, &name);
  if (driver.cuGetErrorString != nullptr) driver.cuGetErrorString(error, &text);
  return (name == nullptr ? "CUDA error " + std::to_string(error) : std::string(name)) +
         (text == nullptr ? "" : std::string(" (") + text + ")");
}

constexpr char kForked[] =
    "this process was forked from one that had used CUDA, which does not outlive a fork; start it by exec (\"spawn\" in "
    "Python)";

std::string remedy_of_start(int error) {
  switch (error) {
    case 3: return kForked;  // CUDA_ERROR_NOT_INITIALIZED, where others than int8q had used it
    case 304:                // CUDA_ERROR_OPERATING_SYSTEM
    case 999:                // CUDA_ERROR_UNKNOWN
      return "see whether this user, in a container too, may open /dev/nvidiactl and /dev/nvidia0; else restart the "
             "machine";
    case 802:  // CUDA_ERROR_SYSTEM_NOT_READY
      return "start the service nvidia-fabricmanager, which GPUs behind NVSwitches need";
    case 804:  // CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE
      return "the libcuda.so.1 that was found is of the package cuda-compat, which this GPU does not take: take its folder "
             "out of LD_LIBRARY_PATH, so that the driver's own is found";
    case 805:  // CUDA_ERROR_MPS_CONNECTION_FAILED
      return "start the service that shares GPUs by nvidia-cuda-mps-control -d, or unset CUDA_MPS_PIPE_DIRECTORY";
    default: return "restart the machine if the driver has been updated since, else reinstall it";
  }
}

Presence does_not_start(const std::string& path, const Driver& driver, const char* call, int error, int version) {
  if (error == kErrorStubLibrary) return stub_library(path, call, version);
  return {.state = Presence::kFails,
          .why = std::string("the NVIDIA driver does not start: ") + call + ": " + error_text(driver, error) + "; " +
                 remedy_of_start(error),
          .version = version};
}

// The first libcuda.so.1 in the folders that the loader searches; its cache, which has none of another architecture, aside.
std::string file_in_search_path() {
  Dl_info self;
  void* const here = dladdr(reinterpret_cast<const void*>(&look_for_driver), &self) == 0
                         ? nullptr
                         : dlopen(self.dli_fname, RTLD_NOW | RTLD_NOLOAD);
  void* const searcher = here != nullptr ? here : dlopen(nullptr, RTLD_NOW);  // linked into a program
  std::string found;
  Dl_serinfo size;
  if (dlinfo(searcher, RTLD_DI_SERINFOSIZE, &size) == 0) {
    std::vector<char> bytes(size.dls_size);
    auto* const folders = reinterpret_cast<Dl_serinfo*>(bytes.data());
    const bool told =
        dlinfo(searcher, RTLD_DI_SERINFOSIZE, folders) == 0 && dlinfo(searcher, RTLD_DI_SERINFO, folders) == 0;
    const Dl_serpath* folder = folders->dls_serpath;
    for (unsigned i = 0; told && i < size.dls_cnt && found.empty(); ++i, ++folder) {
      const std::string path = std::string(folder->dls_name) + "/" + kLibrary;
      if (access(path.c_str(), F_OK) == 0) found = path;
    }
  }
  dlclose(searcher);
  return found;
}

// glibc names a file by its path once it has opened it; by the name that it was asked for if there is none that it takes.
Presence not_loaded(const std::string& error) {
  const std::string path = file_in_search_path();
  if (error.starts_with(kLibrary)) {
    if (path.empty()) return without_driver(error);
    return does_not_load(path +
                         " is passed over by the loader, as is one of another architecture or one that it may not read (" +
                         error + ")");
  }
  const bool is_named = error.find(kLibrary) != std::string::npos;  // else the error is of a library that it needs
  return does_not_load(is_named || path.empty() ? error : path + ": " + error);
}

template <class F>
void find_exported(void* library, const char* name, F& function) {
  function = reinterpret_cast<F>(dlsym(library, name));
}

// All functions of `driver`; returns the name of the first that is missing, NULL if none is.
const char* resolve(void* library, Driver& driver) {
  GetProcAddress find;
  find_exported(library, "cuGetProcAddress_v2", find);
  if (find == nullptr) return "cuGetProcAddress_v2";
  const char* missing = nullptr;
  const auto resolve_one = [&](const char* name, auto& function) {
    void* address = nullptr;
    const int error = find(name, &address, kOldestDriver, 0, nullptr);
    if (missing == nullptr && (error != 0 || address == nullptr)) missing = name;
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(address);
  };
#define INT8Q_RESOLVE(name, ...) resolve_one(#name, driver.name);
  INT8Q_DRIVER_FUNCTIONS(INT8Q_RESOLVE)
#undef INT8Q_RESOLVE
  return missing;
}

// `found` with its GPUs counted, or what is wrong.
Presence start(const std::string& path, Presence found) {
  int error = found.driver.cuInit(0);
  if (error != 0 && error != kErrorNoDevice) return does_not_start(path, found.driver, "cuInit", error, found.version);
  if (error == 0) error = found.driver.cuDeviceGetCount(&found.devices);
  if (error != 0 && error != kErrorNoDevice) {
    return does_not_start(path, found.driver, "cuDeviceGetCount", error, found.version);
  }
  if (found.devices == 0) {
    return {.state = Presence::kNoGpu,
            .why = "the NVIDIA driver, of CUDA " + version_text(found.version) +
                   ", finds no GPU; is one plugged in, and does CUDA_VISIBLE_DEVICES name it?",
            .version = found.version};
  }
  return found;
}

Presence look() {
  void* library = dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* error = dlerror();
    return not_loaded(error == nullptr ? kLibrary : error);
  }
  const link_map* map = nullptr;
  const std::string path = dlinfo(library, RTLD_DI_LINKMAP, &map) == 0 ? map->l_name : kLibrary;
  Presence found{.state = Presence::kPresent, .why = ""};
  Driver& driver = found.driver;
  find_exported(library, "cuGetErrorName", driver.cuGetErrorName);
  find_exported(library, "cuGetErrorString", driver.cuGetErrorString);
  find_exported(library, "cuDriverGetVersion", driver.cuDriverGetVersion);
  if (driver.cuDriverGetVersion == nullptr) return does_not_load(path + " lacks cuDriverGetVersion");
  const int error = driver.cuDriverGetVersion(&found.version);
  if (error != 0) return does_not_start(path, driver, "cuDriverGetVersion", error, 0);
  if (found.version < kOldestDriver) return too_old(found.version);
  if (const char* missing = resolve(library, driver); missing != nullptr) {
    return does_not_load(path + ", of CUDA " + version_text(found.version) + ", lacks " + missing +
                             ", which drivers have since CUDA " + version_text(kOldestDriver),
                         found.version);
  }
  return start(path, found);
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
  if (generation_of_driver != fork_generation()) fail(INT8Q_NO_DEVICE, "no usable GPU: %s", kForked);
  return found.driver;
}

std::string error_text(int error) { return error_text(look_for_driver().driver, error); }

void check(int error, const char* what) {
  if (error != 0) fail(INT8Q_DEVICE_FAILED, "%s: %s", what, error_text(error).c_str());
}

}  // namespace int8q::cuda
