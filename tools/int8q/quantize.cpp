// SPDX-License-Identifier: Apache-2.0
//
// int8q quantize IN OUT: int8q_quantize_checkpoint, with a report, and with signals that leave nothing behind.
#include <csignal>

#include <atomic>
#include <filesystem>
#include <memory>

#include "command.h"
#include "quantize_report.h"

namespace tool {
namespace {

std::atomic<bool> interrupted{false};

// While a checkpoint is written, Ctrl-C, a hang-up or `kill` ask the library to stop, which leaves nothing behind. A
// reader of the report that goes away (`| head`) must not end the process either: its temporary file would stay.
class SignalHandlers {
 public:
  SignalHandlers() {
    for (size_t i = 0; i < kCount; ++i) {
      struct sigaction action {};
      if (kSignals[i] == SIGPIPE) {
        action.sa_handler = SIG_IGN;
      } else {
        action.sa_handler = [](int) { interrupted = true; };
      }
      sigaction(kSignals[i], nullptr, &before_[i]);
      // nohup's choice to ignore SIGHUP stands.
      if (before_[i].sa_handler != SIG_IGN) sigaction(kSignals[i], &action, nullptr);
    }
  }
  ~SignalHandlers() {
    for (size_t i = 0; i < kCount; ++i) sigaction(kSignals[i], &before_[i], nullptr);
  }
  SignalHandlers(const SignalHandlers&) = delete;
  SignalHandlers& operator=(const SignalHandlers&) = delete;

 private:
  static constexpr size_t kCount = 4;
  static constexpr int kSignals[kCount] = {SIGINT, SIGTERM, SIGHUP, SIGPIPE};
  struct sigaction before_[kCount];
};

void run(const QuantizeOptions& options, QuantizeReport& report) {
  int8q::Context context = make_context(nullptr, options.threads);
  const auto pointers = [](const std::vector<std::string>& texts) {
    std::vector<const char*> list;
    for (const std::string& text : texts) list.push_back(text.c_str());
    return list;
  };
  const std::vector<const char*> include = pointers(options.include), exclude = pointers(options.exclude);
  int8q_checkpoint_options c{};
  c.dry_run = options.dry_run ? 1 : 0;
  c.overwrite = options.overwrite ? 1 : 0;
  c.threshold = options.threshold;
  c.include = include.empty() ? nullptr : include.data();
  c.include_count = static_cast<int64_t>(include.size());
  c.exclude = exclude.empty() ? nullptr : exclude.data();
  c.exclude_count = static_cast<int64_t>(exclude.size());
  int8q::quantize_checkpoint(context, options.in.c_str(), options.out.empty() ? nullptr : options.out.c_str(), c,
                             [&report](const int8q_progress& p) {
                               report.on_progress(p);
                               return !interrupted;
                             });
}

void quantize(const QuantizeOptions& options) {
  if (options.out.empty() && !options.dry_run) {
    throw Failure(kUsage, "OUT is missing", "name the output, or pass --dry-run to see the plan only");
  }
  std::error_code error;
  if (!options.dry_run && std::filesystem::equivalent(options.in, options.out, error)) {
    throw Failure(kUsage, options.out + " is IN itself, which would be lost", "name another OUT; move it afterwards");
  }
  const SignalHandlers handlers;
  QuantizeReport report(options);
  run(options, report);
  report.finish();
  finish_output();
}

}  // namespace

void add_quantize(CLI::App& app, int&) {
  auto options = std::make_shared<QuantizeOptions>();
  CLI::App* command = app.add_subcommand("quantize", "Quantize a checkpoint's linears to bitsandbytes' int8 layout.");
  command->add_option("IN", options->in, "a .safetensors file, or a Hugging Face folder (sharded or not)")->required();
  command->add_option("OUT", options->out, "the file or folder to write; nothing is left behind if it fails");
  command
      ->add_option("--include", options->include,
                   "quantize 2-D tensors whose name matches (ECMAScript regex; repeatable; default \\.weight$)")
      ->allow_extra_args(false);
  command
      ->add_option("--exclude", options->exclude,
                   "but leave these alone (repeatable; default: embeddings, norms, heads, experts' routers)")
      ->allow_extra_args(false);
  command->add_option("--threshold", options->threshold, "outlier threshold that config.json will state")
      ->capture_default_str();
  command->add_option("--threads", options->threads, "threads (default: all that this process may use)");
  command->add_flag("-f,--overwrite", options->overwrite, "replace an existing OUT at the end");
  command->add_flag("-n,--dry-run", options->dry_run, "show the plan, write nothing");
  command->add_flag("-q,--quiet", options->quiet, "print errors only");
  command->add_flag("-v,--verbose", options->verbose, "list every tensor in the plan");
  command->add_flag("--json", options->json, "print a JSON summary instead");
  command->footer(
      "The conversion goes on when nobody reads its report any more (`| head`). Until it ends, the output is a "
      ".int8q-*.tmp\n"
      "beside OUT; only a kill that cannot be caught leaves that behind.\n\n"
      "Examples:\n"
      "  int8q quantize model.safetensors model-int8.safetensors\n"
      "  int8q quantize ./Llama-3.2-1B ./Llama-3.2-1B-int8          # a folder: shards, config.json, tokenizer\n"
      "  int8q quantize --dry-run --verbose ./my-model              # what would happen\n"
      "  int8q quantize --exclude 'lm_head|vision' in out           # replaces the default exclusion");
  command->callback([options] { quantize(*options); });
}

}  // namespace tool
