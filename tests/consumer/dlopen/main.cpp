// SPDX-License-Identifier: Apache-2.0
//
// main LIBRARY: the layer of ../multiply.h through int8q.hpp's loader: nothing of int8q is linked. First with a path that
// does not exist, in a process of its own since a program loads one library.
#define INT8Q_HPP_DLOPEN
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <int8q/int8q.hpp>

namespace {

bool says_what_is_missing() {
  setenv("INT8Q_LIBRARY", "/no/such/libint8q.so.1", 1);
  try {
    int8q::Context context;
  } catch (const int8q::AbiError& error) {
    return error.status() == INT8Q_ABI_MISMATCH && error.want() == INT8Q_ABI_LEVEL && error.have() == 0 &&
           error.path() == "/no/such/libint8q.so.1" && std::strstr(error.what(), "No such file") != nullptr &&
           std::strstr(error.what(), "INT8Q_LIBRARY") != nullptr;
  }
  return false;
}

bool multiplies() {
  const float w[] = {127.0f, 1.0f, -127.0f, 64.0f};
  const float x[] = {1.27f, 0.01f};
  float y[2] = {};
  int8q::Context context;
  const int8q::Linear linear(context, int8q::view(w, 2, 2));
  int8q::Workspace workspace;
  linear.forward(context, int8q::view(x, 1, 2), int8q::view(y, 1, 2), workspace);
  std::printf("%s: %g %g\n", int8q::version_string(), static_cast<double>(y[0]), static_cast<double>(y[1]));
  return std::fabs(y[0] - 161.3f) < 1e-3f && std::fabs(y[1] + 160.65f) < 1e-3f;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const pid_t child = fork();
  if (child == 0) _exit(says_what_is_missing() ? 0 : 1);
  int status = -1;
  if (waitpid(child, &status, 0) != child || status != 0) {
    std::fputs("a library that is not there was not reported as it should be\n", stderr);
    return 1;
  }
  setenv("INT8Q_LIBRARY", argv[1], 1);
  return multiplies() ? 0 : 1;
}
