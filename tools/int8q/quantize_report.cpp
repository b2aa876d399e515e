// SPDX-License-Identifier: Apache-2.0
#include "quantize_report.h"

#include <algorithm>
#include <filesystem>
#include <regex>

#include <nlohmann/json.hpp>

#include "command.h"
#include "dtype.h"

namespace tool {
namespace {

std::string ratio(uint64_t in, uint64_t out) {
  return in == 0 ? "-" : fmt::format("{:.3f}", static_cast<double>(out) / static_cast<double>(in));
}

const char* reason_of(int32_t action, bool own_exclude) {
  switch (action) {
    case INT8Q_TENSOR_COPY_DTYPE: return "is not fp32, fp16 or bf16";
    case INT8Q_TENSOR_COPY_SHAPE: return "is not 2-D";
    case INT8Q_TENSOR_COPY_NAME: return "is not named .weight";
    case INT8Q_TENSOR_COPY_INCLUDE: return "no --include matches";
    case INT8Q_TENSOR_COPY_EXCLUDE: return own_exclude ? "--exclude matches" : "left alone by default";
    default: return "";
  }
}

std::string human(uint64_t bytes) { return human_bytes(static_cast<double>(bytes)); }

}  // namespace

QuantizeReport::QuantizeReport(const QuantizeOptions& options)
    : options_(options), text_(!options.quiet && !options.json), bar_(text_) {}

void QuantizeReport::on_progress(const int8q_progress& p) {
  if (p.phase == INT8Q_PHASE_PLAN) return plan(p);
  show_plan();
  if (quantized_.tensors == 0) {
    throw Failure(kUsage, "no tensor is to be quantized, so the output would be the input",
                  "see the plan (--dry-run --verbose); --include and --exclude replace the default choice");
  }
  bar_.show(p.bytes_in, p.total_in, p.tensor != nullptr ? shown(p.tensor) : "");
}

void QuantizeReport::finish() {
  show_plan();
  bar_.clear();
  if (options_.json) return print_json();
  if (text_ && !options_.dry_run) print_summary();
}

void QuantizeReport::plan(const int8q_progress& p) {
  const bool copied = p.action != INT8Q_TENSOR_QUANTIZE;
  static const std::regex digits("[0-9]+");
  const std::string name = shown(p.tensor);
  const Group key{copied, reason_of(p.action, !options_.exclude.empty()),
                  options_.verbose ? name : std::regex_replace(name, digits, "*"), dtype_name(p.dtype),
                  copied ? "" : fmt::format("{}x{}", p.rows, p.cols)};
  for (Total* total : {copied ? &copied_ : &quantized_, &groups_[key]}) {
    total->tensors += 1;
    total->in += p.bytes_in;
    total->out += p.bytes_out;
  }
}

void QuantizeReport::show_plan() {
  if (shown_) return;
  shown_ = true;
  if (!text_) return;
  print("Plan for {}\n", shown(options_.in));
  const std::string* reason = nullptr;
  for (const auto& [key, group] : groups_) {
    if (key.copied && (reason == nullptr || *reason != key.reason)) {
      reason = &key.reason;
      print("  copied: {}\n", *reason);
    }
    print("  {} {:4} x {:<58} {:>5} {:>11} {:>9} -> {}\n", key.copied ? "copy" : "int8", group.tensors, key.name, key.dtype,
          key.shape, human(group.in), human(group.out));
  }
  print("  to int8: {} tensors; copied: {} tensors\n", quantized_.tensors, copied_.tensors);
  print("  {} -> {} ({})\n", human(whole().in), human(whole().out), ratio(whole().in, whole().out));
  flush_output();
}

std::string QuantizeReport::row(const char* what, const Total& t) {
  return fmt::format("{:<18} {:>8} {:>12} {:>12} {:>8}\n", what, t.tensors, human(t.in), human(t.out), ratio(t.in, t.out));
}

QuantizeReport::Total QuantizeReport::whole() const {
  return {quantized_.tensors + copied_.tensors, quantized_.in + copied_.in, quantized_.out + copied_.out};
}

double QuantizeReport::seconds() const {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
}

void QuantizeReport::print_summary() const {
  print("\n{:<18} {:>8} {:>12} {:>12} {:>8}\n", "", "tensors", "before", "after", "ratio");
  print("{}{}{}", row("quantized linears", quantized_), row("copied", copied_), row("checkpoint", whole()));
  std::error_code error;
  if (std::filesystem::is_directory(options_.out, error) &&
      !std::filesystem::exists(options_.out + "/config.json", error)) {
    print("IN has no config.json, so no quantization_config was written: loaders will not know that this is int8\n");
  }
  print("{} in {:.1f} s, {}/s\n", shown(options_.out), seconds(),
        human_bytes(static_cast<double>(whole().in) / std::max(seconds(), 1e-9)));
}

void QuantizeReport::print_json() const {
  const auto total = [](const Total& t) {
    return nlohmann::ordered_json{{"tensors", t.tensors}, {"bytes_in", t.in}, {"bytes_out", t.out}};
  };
  nlohmann::ordered_json plan = nlohmann::ordered_json::array();
  for (const auto& [key, group] : groups_) {
    plan.push_back(total(group));
    plan.back()["name"] = key.name;
    plan.back()["dtype"] = key.dtype;
    plan.back()["action"] = key.copied ? "copy" : "int8";
    if (key.copied) plan.back()["reason"] = key.reason;
  }
  const double elapsed = seconds();
  const nlohmann::ordered_json json = {{"in", options_.in},
                                       {"out", options_.out},
                                       {"dry_run", options_.dry_run},
                                       {"threshold", options_.threshold},
                                       {"plan", plan},
                                       {"quantized", total(quantized_)},
                                       {"copied", total(copied_)},
                                       {"checkpoint", total(whole())},
                                       {"seconds", elapsed}};
  write_text(json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
}

}  // namespace tool
