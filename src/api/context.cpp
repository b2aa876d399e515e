// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#include "api/arguments.h"

namespace int8q::api {
namespace {

constexpr int kMaxThreads = 1024;

const cpu::Kernels& choose_kernels(const char* isa) {
  const char* from = "options->isa";
  if (isa == nullptr) {
    from = "INT8Q_CPU_ISA";
    isa = std::getenv(from);
    if (isa == nullptr || *isa == '\0') return cpu::best_isa().kernels();
  }
  const cpu::Isa* found = cpu::find_isa(isa);
  if (found == nullptr) {
    fail(INT8Q_UNSUPPORTED, "%s is \"%s\", which is no ISA of this library; expected one of %s", from, isa,
         cpu::isa_names());
  }
  if (!found->supported()) {
    fail(INT8Q_UNSUPPORTED, "%s is \"%s\", which this CPU or operating system lacks; its best is \"%s\" (of %s)", from, isa,
         cpu::best_isa().name, cpu::isa_names());
  }
  return found->kernels();
}

int choose_threads(int32_t threads) {
  if (threads < 0 || threads > kMaxThreads) {
    fail(INT8Q_INVALID_ARGUMENT, "options->threads is %d; expected 1 to %d, or 0 for the CPUs that this process may use",
         threads, kMaxThreads);
  }
  if (threads > 0) return threads;
  const char* text = std::getenv("INT8Q_NUM_THREADS");
  if (text == nullptr || *text == '\0') return std::min(available_threads(), kMaxThreads);
  char* end;
  const long long wanted = std::strtoll(text, &end, 10);
  if (*end != '\0' || wanted < 1 || wanted > kMaxThreads) {
    fail(INT8Q_INVALID_ARGUMENT, "INT8Q_NUM_THREADS is \"%s\"; expected 1 to %d, or unset", text, kMaxThreads);
  }
  return static_cast<int>(wanted);
}

// What the other backend's options must be.
void check_backend(const int8q_context_options& options) {
  const int32_t backend = options.backend;
  if (backend != INT8Q_BACKEND_AUTO && backend != INT8Q_BACKEND_CPU && backend != INT8Q_BACKEND_CUDA) {
    fail(INT8Q_UNSUPPORTED, "options->backend is %d; expected INT8Q_BACKEND_AUTO (0), _CPU (1) or _CUDA (2)", backend);
  }
  if (options.device < 0 || (options.device > 0 && backend != INT8Q_BACKEND_CUDA)) {
    fail(INT8Q_INVALID_ARGUMENT, "options->device is %d; expected %s", options.device,
         backend == INT8Q_BACKEND_CUDA ? "a GPU's ordinal, >= 0" : "0, since the backend is the CPU");
  }
  const auto refuse = [](const char* name, const char* backend_name) {
    fail(INT8Q_INVALID_ARGUMENT, "options->%s is given; expected none, since the backend is %s", name, backend_name);
  };
  if (backend != INT8Q_BACKEND_CUDA && options.stream != nullptr) refuse("stream", "the CPU");
  if (backend != INT8Q_BACKEND_CUDA) return;
  if (options.isa != nullptr) refuse("isa", "CUDA");
  if (options.threads != 0) refuse("threads", "CUDA");
  if (options.runner != nullptr) refuse("runner", "CUDA");
}

void check_reserved(uint32_t reserved, const char* name) {
  if (reserved != 0) fail(INT8Q_INVALID_ARGUMENT, "%s is %u; expected 0", name, reserved);
}

int8q_allocator check_allocator(const int8q_allocator* theirs) {
  const int8q_allocator mine = read_struct(theirs, "options->allocator");
  check_reserved(mine.reserved, "options->allocator->reserved");
  require(mine.allocate != nullptr, "options->allocator->allocate", "a function");
  require(mine.deallocate != nullptr, "options->allocator->deallocate", "a function");
  return mine;
}

int8q_parallel_runner check_runner(const int8q_parallel_runner* theirs) {
  const int8q_parallel_runner mine = read_struct(theirs, "options->runner");
  require(mine.run != nullptr, "options->runner->run", "a function");
  if (mine.max_threads < 1 || mine.max_threads > kMaxThreads) {
    fail(INT8Q_INVALID_ARGUMENT, "options->runner->max_threads is %d; expected 1 to %d", mine.max_threads, kMaxThreads);
  }
  return mine;
}

// The handle in memory of `handles`, made by arguments.
template <class... Arguments>
Context* make_handle(const Allocator& handles, Arguments&&... arguments) {
  void* memory = handles.allocate(sizeof(Context), "context");
  try {
    return new (memory) Context(std::forward<Arguments>(arguments)...);
  } catch (...) {
    handles.deallocate(memory, sizeof(Context));
    throw;
  }
}

Context* create_on_gpu(const int8q_context_options& options) {
  int8q_allocator theirs{};
  if (options.allocator != nullptr) theirs = check_allocator(options.allocator);
  cuda::Device& device = cuda::Device::open(options.device);
  const cuda::Queue queue{.device = device, .stream = options.stream};
  return make_handle(Allocator(), cpu::best_isa().kernels(),
                     device.allocator(options.allocator != nullptr ? &theirs : nullptr), queue);
}

Context* create(const int8q_context_options* theirs) {
  int8q_context_options options{};
  if (theirs != nullptr) options = read_struct(theirs, "options");
  check_backend(options);
  if (options.backend == INT8Q_BACKEND_CUDA) return create_on_gpu(options);
  const cpu::Kernels& kernels = choose_kernels(options.isa);
  const Allocator allocator = options.allocator == nullptr ? Allocator() : Allocator(check_allocator(options.allocator));
  int8q_parallel_runner runner{};
  if (options.runner != nullptr) runner = check_runner(options.runner);
  const int threads = options.runner != nullptr ? 1 : choose_threads(options.threads);
  return make_handle(allocator, kernels, allocator, threads, options.runner != nullptr ? &runner : nullptr);
}

}  // namespace
}  // namespace int8q::api

using namespace int8q::api;

extern "C" {

int32_t int8q_create_context(const int8q_context_options* options, int8q_context** context) {
  return guarded([&] {
    require(context != nullptr, "context", "where to put the handle");
    *context = create(options);
  });
}

int32_t int8q_destroy_context(int8q_context* context) {
  return guarded([&] {
    int8q::Context& c = check_context(context);
    const int8q::Allocator handles = c.handles;
    c.~int8q_context();
    poison(context);
    handles.deallocate(context, sizeof(int8q::Context));
  });
}

int32_t int8q_prepare_context(int8q_context* context) {
  return guarded([&] {
    int8q::Context& c = check_context(context);
    if (!c.gpu) c.pool.start();
  });
}

int32_t int8q_set_stream(int8q_context* context, void* stream) {
  return guarded([&] {
    int8q::Context& c = check_context(context);
    if (!c.gpu) int8q::fail(INT8Q_INVALID_ARGUMENT, "context is the CPU's; expected one of INT8Q_BACKEND_CUDA");
    c.gpu->stream = stream;
  });
}

}  // extern "C"
