// SPDX-License-Identifier: Apache-2.0
//
// What tests that fork need.
#pragma once

#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>

namespace int8q::test {

// To be called before a fork: AddressSanitizer's allocator, unlike glibc's, keeps in the child the locks of a thread that was
// just starting. Waits until every other thread of this process sleeps.
inline void settle_threads() {
#if defined(__SANITIZE_ADDRESS__)
  const std::string self = std::to_string(gettid());
  for (int tries = 0; tries < 10000; ++tries) {
    bool all_sleep = true;
    for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
      if (task.path().filename() == self) continue;
      std::ifstream file(task.path() / "stat");
      std::string stat;
      std::getline(file, stat);
      const size_t name_end = stat.rfind(") ");
      all_sleep &= name_end == std::string::npos || stat[name_end + 2] == 'S';
    }
    if (all_sleep) return;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
#endif
}

}  // namespace int8q::test
