// SPDX-License-Identifier: Apache-2.0
//
// main LIBRARY STUB: int8q.hpp without exceptions and with nothing linked. A library that is missing, and one that lacks
// functions, give a status and a message; each in a process of its own since a program loads one library.
#define INT8Q_HPP_DLOPEN
#define INT8Q_NO_EXCEPTIONS
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <int8q/int8q.hpp>
#include <thread>

namespace {

bool says(const char* text) {
  if (std::strstr(int8q::last_error(), text) != nullptr) return true;
  std::fprintf(stderr, "\"%s\" does not say \"%s\"\n", int8q::last_error(), text);
  return false;
}

bool without_a_library(const char* path) {
  const auto refused = [path] {
    const int8q::Context context;
    return !context && context.status() == INT8Q_ABI_MISMATCH && says(path) && says("No such file") &&
           says("INT8Q_LIBRARY");
  };
  bool elsewhere = false;
  std::thread([&] { elsewhere = refused(); }).join();
  return std::strlen(int8q::last_error()) == 0 && refused() && elsewhere && int8q::abi_version() == 0 &&
         int8q::abi_hash(INT8Q_ABI_LEVEL) == nullptr && std::strlen(int8q::version_string()) == 0 &&
         std::strcmp(int8q::status_name(INT8Q_ABI_MISMATCH), "INT8Q_ABI_MISMATCH") == 0;
}

bool with_functions_missing(const char*) {
  return int8q::Context().status() == INT8Q_ABI_MISMATCH && says("int8q_create_context needs ABI 1.") && says("loaded 1.0");
}

bool multiplies(const char*) {
  const float w[] = {127.0f, 1.0f, -127.0f, 64.0f};
  const float x[] = {1.27f, 0.01f};
  float y[2] = {};
  int8q::Context context;
  const int8q::Linear linear(context, int8q::view(w, 2, 2));
  int8q::Workspace workspace;
  if (linear.forward(context, int8q::view(x, 1, 1), int8q::view(y, 1, 2), workspace) != INT8Q_INVALID_ARGUMENT ||
      !says("x->cols") || linear.forward(context, int8q::view(x, 1, 2), int8q::view(y, 1, 2), workspace) != INT8Q_OK) {
    return false;
  }
  if (int8q::forward_many(context, nullptr, 65, int8q::view(x, 1, 2), nullptr, workspace) != INT8Q_INVALID_ARGUMENT ||
      !says("count is 65")) {
    return false;
  }
  std::printf("%s: %g %g\n", int8q::version_string(), static_cast<double>(y[0]), static_cast<double>(y[1]));
  return int8q::abi_version() == INT8Q_ABI_LEVEL && std::strlen(int8q::abi_hash(INT8Q_ABI_LEVEL)) == 64 &&
         std::strcmp(int8q::status_name(INT8Q_BUSY), "INT8Q_BUSY") == 0 && std::fabs(y[0] - 161.3f) < 1e-3f &&
         std::fabs(y[1] + 160.65f) < 1e-3f;
}

bool in_a_process(bool (*works)(const char*), const char* library) {
  const pid_t child = fork();
  if (child == 0) {
    setenv("INT8Q_LIBRARY", library, 1);
    const bool good = works(library);
    std::fflush(nullptr);
    _exit(good ? 0 : 1);
  }
  int status = -1;
  if (waitpid(child, &status, 0) == child && status == 0) return true;
  std::fprintf(stderr, "not as it should be with %s\n", library);
  return false;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const bool missing = in_a_process(without_a_library, "/no/such/libint8q.so.1");
  const bool stub = in_a_process(with_functions_missing, argv[2]);
  const bool good = in_a_process(multiplies, argv[1]);
  return missing && stub && good ? 0 : 1;
}
