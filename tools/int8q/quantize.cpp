// SPDX-License-Identifier: Apache-2.0
//
// int8q quantize IN OUT: plan, progress, summary around int8q_quantize_checkpoint.
#include <csignal>

#include <atomic>
#include <chrono>
#include <map>
#include <memory>
#include <regex>
#include <vector>

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include "command.h"
#include "dtype.h"
#include "int8q/int8q.h"
#include "progress.h"

namespace tool {
namespace {

struct Options {
  std::string in, out;
  std::vector<std::string> include, exclude;
  float threshold = 6.0f;
  int threads = 0;
  bool overwrite = false, dry_run = false, quiet = false, json = false, verbose = false;
};

std::atomic<bool> interrupted{false};

// While a checkpoint is written Ctrl-C asks the library to stop, which leaves nothing behind.
class InterruptHandler {
 public:
  InterruptHandler() {
    struct sigaction action {};
    action.sa_handler = [](int) { interrupted = true; };
    for (size_t i = 0; i < 2; ++i) sigaction(kSignals[i], &action, &before_[i]);
  }
  ~InterruptHandler() {
    for (size_t i = 0; i < 2; ++i) sigaction(kSignals[i], &before_[i], nullptr);
  }
  InterruptHandler(const InterruptHandler&) = delete;
  InterruptHandler& operator=(const InterruptHandler&) = delete;

 private:
  static constexpr int kSignals[2] = {SIGINT, SIGTERM};
  struct sigaction before_[2];
};

struct Total {
  int64_t tensors = 0;
  uint64_t in = 0, out = 0;
};

// Collects the plan, shows it before the first byte is written, then drives the bar.
class Report {
 public:
  explicit Report(const Options& options) : options_(options), text_(!options.quiet && !options.json), bar_(text_) {}

  int32_t on_progress(const int8q_progress& p) {
    if (p.phase == INT8Q_PHASE_PLAN) {
      plan(p);
    } else {
      show_plan();
      bar_.show(p.bytes_in, p.total_in, p.tensor != nullptr ? p.tensor : "");
    }
    return interrupted ? 1 : 0;
  }

  void finish() {
    show_plan();
    bar_.clear();
    if (options_.json) return print_json();
    if (text_ && !options_.dry_run) print_summary();
  }

 private:
  void plan(const int8q_progress& p) {
    Total& total = p.action == INT8Q_TENSOR_QUANTIZE ? quantized_ : copied_;
    total.tensors += 1;
    total.in += p.bytes_in;
    total.out += p.bytes_out;
    // Layers of one kind share a line: encoder.layer.*.output.dense.weight.
    static const std::regex digits("[0-9]+");
    const std::string shape = p.action == INT8Q_TENSOR_QUANTIZE ? fmt::format("{}x{}", p.rows, p.cols) : "";
    const std::string name = options_.verbose ? p.tensor : std::regex_replace(p.tensor, digits, "*");
    Total& group = groups_[fmt::format("{}\n{}\n{}\n{}", p.action == INT8Q_TENSOR_QUANTIZE ? "int8" : "copy", name,
                                       dtype_name(p.dtype), shape)];
    group.tensors += 1;
    group.in += p.bytes_in;
    group.out += p.bytes_out;
  }

  void show_plan() {
    if (shown_) return;
    shown_ = true;
    if (!text_) return;
    fmt::print("Plan for {}\n", options_.in);
    for (const char* action : {"int8", "copy"}) {
      for (const auto& [key, group] : groups_) {
        if (key.compare(0, 4, action) != 0) continue;
        const size_t a = key.find('\n'), b = key.find('\n', a + 1), c = key.find('\n', b + 1);
        fmt::print("  {} {:4} x {:<58} {:>5} {:>11} {:>9} -> {}\n", action, group.tensors, key.substr(a + 1, b - a - 1),
                   key.substr(b + 1, c - b - 1), key.substr(c + 1), human_bytes(static_cast<double>(group.in)),
                   human_bytes(static_cast<double>(group.out)));
      }
    }
    fmt::print("  to int8: {} tensors; copied: {} tensors\n", quantized_.tensors, copied_.tensors);
    std::fflush(stdout);
  }

  static std::string row(const char* what, const Total& t) {
    const double in = static_cast<double>(t.in), out = static_cast<double>(t.out);
    return fmt::format("{:<18} {:>8} {:>12} {:>12} {:>8}\n", what, t.tensors, human_bytes(in), human_bytes(out),
                       t.in == 0 ? "-" : fmt::format("{:.3f}", out / in));
  }

  Total whole() const {
    return {quantized_.tensors + copied_.tensors, quantized_.in + copied_.in, quantized_.out + copied_.out};
  }
  double seconds() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }

  void print_summary() const {
    fmt::print("\n{:<18} {:>8} {:>12} {:>12} {:>8}\n", "", "tensors", "before", "after", "ratio");
    fmt::print("{}{}{}", row("quantized linears", quantized_), row("copied", copied_), row("checkpoint", whole()));
    fmt::print("{} in {:.1f} s, {}/s\n", options_.out, seconds(),
               human_bytes(static_cast<double>(whole().in) / std::max(seconds(), 1e-9)));
  }

  void print_json() const {
    const auto total = [](const Total& t) {
      return nlohmann::ordered_json{{"tensors", t.tensors}, {"bytes_in", t.in}, {"bytes_out", t.out}};
    };
    const nlohmann::ordered_json json = {{"in", options_.in},
                                         {"out", options_.out},
                                         {"dry_run", options_.dry_run},
                                         {"threshold", options_.threshold},
                                         {"quantized", total(quantized_)},
                                         {"copied", total(copied_)},
                                         {"seconds", seconds()}};
    fmt::print("{}\n", json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace));
  }

  const Options& options_;
  const bool text_;
  ProgressBar bar_;
  bool shown_ = false;
  Total quantized_, copied_;
  std::map<std::string, Total> groups_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

void quantize(const Options& options) {
  if (options.out.empty() && !options.dry_run) {
    throw Failure(kUsage, "OUT is missing", "name the output, or pass --dry-run to see the plan only");
  }
  int8q_context_options wanted{};
  wanted.size = sizeof wanted;
  wanted.threads = options.threads;
  int8q_context* raw = nullptr;
  check(int8q_create_context(&wanted, &raw));
  const std::unique_ptr<int8q_context, int32_t (*)(int8q_context*)> context(raw, int8q_destroy_context);

  const auto pointers = [](const std::vector<std::string>& texts) {
    std::vector<const char*> list;
    for (const std::string& text : texts) list.push_back(text.c_str());
    return list;
  };
  const std::vector<const char*> include = pointers(options.include), exclude = pointers(options.exclude);
  int8q_checkpoint_options c{};
  c.size = sizeof c;
  c.dry_run = options.dry_run ? 1 : 0;
  c.overwrite = options.overwrite ? 1 : 0;
  c.threshold = options.threshold;
  c.include = include.empty() ? nullptr : include.data();
  c.include_count = static_cast<int64_t>(include.size());
  c.exclude = exclude.empty() ? nullptr : exclude.data();
  c.exclude_count = static_cast<int64_t>(exclude.size());

  Report report(options);
  int32_t status;
  {
    const InterruptHandler handler;
    status = int8q_quantize_checkpoint(
        context.get(), options.in.c_str(), options.out.empty() ? nullptr : options.out.c_str(), &c,
        [](void* to, const int8q_progress* p) { return static_cast<Report*>(to)->on_progress(*p); }, &report);
  }
  check(status);
  report.finish();
}

}  // namespace

void add_quantize(CLI::App& app, int&) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("quantize", "Quantize a checkpoint's linears to bitsandbytes' int8 layout.");
  command->add_option("IN", options->in, "a .safetensors file, or a Hugging Face folder (sharded or not)")->required();
  command->add_option("OUT", options->out, "the file or folder to write; nothing is left behind if it fails");
  command
      ->add_option("--include", options->include,
                   "quantize 2-D tensors whose name matches (ECMAScript regex; repeatable; default \\.weight$)")
      ->take_all();
  command
      ->add_option("--exclude", options->exclude,
                   "but leave these alone (repeatable; default: embeddings, norms, output heads)")
      ->take_all();
  command->add_option("--threshold", options->threshold, "outlier threshold that config.json will state")
      ->capture_default_str();
  command->add_option("--threads", options->threads, "threads (default: all that this process may use)");
  command->add_flag("-f,--overwrite", options->overwrite, "replace an existing OUT at the end");
  command->add_flag("-n,--dry-run", options->dry_run, "show the plan, write nothing");
  command->add_flag("-q,--quiet", options->quiet, "print errors only");
  command->add_flag("-v,--verbose", options->verbose, "list every tensor in the plan");
  command->add_flag("--json", options->json, "print a JSON summary instead");
  command->footer(
      "Examples:\n"
      "  int8q quantize model.safetensors model-int8.safetensors\n"
      "  int8q quantize ./Llama-3.2-1B ./Llama-3.2-1B-int8          # a folder: shards, config.json, tokenizer\n"
      "  int8q quantize --dry-run --verbose ./my-model              # what would happen\n"
      "  int8q quantize --exclude 'lm_head|vision' in out           # replaces the default exclusion");
  command->callback([options] { quantize(*options); });
}

}  // namespace tool
