// SPDX-License-Identifier: Apache-2.0
//
// What quantize tells: the plan before the first byte is written, a progress bar, a summary.
#pragma once

#include <chrono>
#include <compare>
#include <map>
#include <string>
#include <vector>

#include "int8q/int8q.h"
#include "progress.h"

namespace tool {

struct QuantizeOptions {
  std::string in, out;
  std::vector<std::string> include, exclude;
  float threshold = 6.0f;
  int threads = 0;
  bool overwrite = false, dry_run = false, quiet = false, json = false, verbose = false;
};

class QuantizeReport {
 public:
  explicit QuantizeReport(const QuantizeOptions& options);

  void on_progress(const int8q_progress& p);
  void finish();

 private:
  struct Total {
    int64_t tensors = 0;
    uint64_t in = 0, out = 0;
  };
  // Layers of one kind share a line: encoder.layer.*.output.dense.weight.
  struct Group {
    bool copied;
    std::string reason, name, dtype, shape;
    auto operator<=>(const Group&) const = default;  // NOLINT(modernize-use-nullptr): the check misreads <=>
  };

  void plan(const int8q_progress& p);
  void show_plan();
  static std::string row(const char* what, const Total& t);
  Total whole() const;
  double seconds() const;
  void print_summary() const;
  void print_json() const;

  const QuantizeOptions& options_;
  const bool text_;
  ProgressBar bar_;
  bool shown_ = false;
  Total quantized_, copied_;
  std::map<Group, Total> groups_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace tool
