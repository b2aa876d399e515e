// SPDX-License-Identifier: Apache-2.0
//
// A progress bar on stderr: share, rate, remaining time. Debian 12 has no C++ library for one.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace tool {

class ProgressBar {
 public:
  // Shows nothing unless `enabled` and stderr is a terminal.
  explicit ProgressBar(bool enabled);
  ~ProgressBar() { clear(); }
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  void show(uint64_t done, uint64_t total, const std::string& what);
  void clear();

 private:
  using Clock = std::chrono::steady_clock;
  bool enabled_;
  bool shown_ = false;
  Clock::time_point start_ = Clock::now();
  Clock::time_point last_{};
};

}  // namespace tool
