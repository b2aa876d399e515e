// SPDX-License-Identifier: Apache-2.0
//
// A runner over OpenMP threads that somebody else has loaded: by GCC's entry points, which LLVM's runtime has, too.
#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <memory>

#include "api/arguments.h"

namespace int8q::api {
namespace {

constexpr int kMaxThreads = 1024;

struct OpenMp {
  void (*parallel)(void (*body)(void*), void* data, unsigned threads, unsigned flags);  // GOMP_parallel
  int (*thread_num)();
  int (*max_threads)();
  int32_t threads;
  OpenMp* next;   // of all that were made: runners are valid for ever
  pid_t process;  // its threads do not live on in a forked child

  static int32_t run(void* self, int64_t count, int8q_task task, void* arg) {
    const auto& openmp = *static_cast<const OpenMp*>(self);
    const int64_t threads = std::min<int64_t>({count, openmp.threads, openmp.max_threads()});
    if (threads <= 1 || getpid() != openmp.process) {
      for (int64_t i = 0; i < count; ++i) task(arg, i, 0);
      return 0;
    }
    struct Phase {
      const OpenMp& openmp;
      int8q_task task;
      void* arg;
      int64_t count;
      std::atomic<int64_t> next{0};
    } phase{openmp, task, arg, count};
    openmp.parallel(
        [](void* data) {
          auto& shared = *static_cast<Phase*>(data);
          const int32_t thread = shared.openmp.thread_num();
          for (int64_t i; (i = shared.next.fetch_add(1, std::memory_order_relaxed)) < shared.count;) {
            shared.task(shared.arg, i, thread);
          }
        },
        &phase, static_cast<unsigned>(threads), 0);
    return 0;
  }
};

std::atomic<OpenMp*> made{nullptr};

template <class Function>
void find(void* library, const char* path, const char* name, Function*& function) {
  function = reinterpret_cast<Function*>(dlsym(library, name));
  if (function == nullptr) fail(INT8Q_NOT_FOUND, "library %s lacks %s; pass an OpenMP runtime", path, name);
}

}  // namespace
}  // namespace int8q::api

using namespace int8q;
using namespace int8q::api;

extern "C" int32_t int8q_find_openmp_runner(const char* library, int32_t threads, int8q_parallel_runner* runner) {
  return guarded([&] {
    require(library != nullptr, "library", "the name or path of a loaded OpenMP runtime");
    if (threads < 1 || threads > kMaxThreads) {
      fail(INT8Q_INVALID_ARGUMENT, "threads is %d; expected 1 to %d", threads, kMaxThreads);
    }
    void* const handle = dlopen(library, RTLD_NOW | RTLD_NOLOAD);
    if (handle == nullptr) {
      fail(INT8Q_NOT_FOUND, "library is \"%s\", which this process has not loaded; load what brings it first", library);
    }
    auto openmp = std::make_unique<OpenMp>();
    find(handle, library, "GOMP_parallel", openmp->parallel);
    find(handle, library, "omp_get_thread_num", openmp->thread_num);
    find(handle, library, "omp_get_max_threads", openmp->max_threads);
    openmp->threads = threads;
    openmp->process = getpid();
    int8q_parallel_runner mine{};
    mine.max_threads = threads;
    mine.opaque = openmp.get();
    mine.run = OpenMp::run;
    write_struct(mine, runner, "runner");
    openmp->next = made.load(std::memory_order_relaxed);
    while (!made.compare_exchange_weak(openmp->next, openmp.get(), std::memory_order_release)) {
    }
    static_cast<void>(openmp.release());  // the list has it now
  });
}
