// SPDX-License-Identifier: Apache-2.0
#include "quantize_report.h"

#include <algorithm>
#include <filesystem>

#include <nlohmann/json.hpp>

#include "command.h"
#include "dtype.h"

namespace tool {
namespace {

bool ends_with(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

std::string ratio(uint64_t in, uint64_t out) {
  return in == 0 ? "-" : fmt::format("{:.3f}", static_cast<double>(out) / static_cast<double>(in));
}

std::string human(uint64_t bytes) { return human_bytes(static_cast<double>(bytes)); }

}  // namespace

CopyReasons::CopyReasons(const QuantizeOptions& options) : in_(options.in), own_exclude_(!options.exclude.empty()) {
  std::error_code error;
  is_folder_ = std::filesystem::is_directory(in_, error);
  const std::vector<std::string> standard = {R"(\.weight$)"};
  for (const std::string& pattern : options.include.empty() ? standard : options.include) {
    try {
      include_.emplace_back(pattern);
    } catch (const std::regex_error&) {
      include_.clear();  // the library refuses it by name before it asks for any reason
      return;
    }
  }
}

bool CopyReasons::is_matrix(const std::string& file, const char* tensor) {
  const std::string path = is_folder_ ? in_ + "/" + file : in_;
  if (open_path_ != path) {
    open_ = std::make_unique<SafetensorsFile>(path);
    open_path_ = path;
  }
  const auto found = open_->find(tensor);
  return found && found->rank == 2;
}

std::string CopyReasons::of(const int8q_progress& p) {
  const std::string name = p.tensor;
  if (p.dtype != INT8Q_F32 && p.dtype != INT8Q_F16 && p.dtype != INT8Q_BF16) return "is not fp32, fp16 or bf16";
  if (!is_matrix(p.file, p.tensor)) return "is not 2-D";
  if (name != "weight" && !ends_with(name, ".weight")) return "is not named .weight";
  const auto finds = [&name](const std::regex& r) { return std::regex_search(name, r); };
  if (std::none_of(include_.begin(), include_.end(), finds)) return "no --include matches";
  return own_exclude_ ? "--exclude matches" : "embedding, norm or head";
}

QuantizeReport::QuantizeReport(const QuantizeOptions& options)
    : options_(options), text_(!options.quiet && !options.json), bar_(text_), reasons_(options) {}

void QuantizeReport::on_progress(const int8q_progress& p) {
  if (p.phase == INT8Q_PHASE_PLAN) return plan(p);
  show_plan();
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
  const Group key{copied, copied ? reasons_.of(p) : "", options_.verbose ? name : std::regex_replace(name, digits, "*"),
                  dtype_name(p.dtype), copied ? "" : fmt::format("{}x{}", p.rows, p.cols)};
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
