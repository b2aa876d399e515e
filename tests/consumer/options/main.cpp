// SPDX-License-Identifier: Apache-2.0
//
// part.cpp with each set of options, in one program.
#include <cstdio>
#include <cstdlib>
#include <exception>

bool thrown();
bool kept();
bool loaded_thrown();
bool loaded_kept();

namespace {

bool holds(const char* name, bool (*part)()) {
  try {
    if (part()) return true;
    std::fprintf(stderr, "%s: another status or message\n", name);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: thrown: %s\n", name, error.what());
  }
  return false;
}

}  // namespace

int main() {
  setenv("INT8Q_LIBRARY", "/no/such/libint8q.so.1", 1);
  const bool first = holds("thrown", thrown), second = holds("kept", kept);
  const bool third = holds("loaded_thrown", loaded_thrown), fourth = holds("loaded_kept", loaded_kept);
  return first && second && third && fourth ? 0 : 1;
}
