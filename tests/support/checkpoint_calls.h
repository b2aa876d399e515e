// SPDX-License-Identifier: Apache-2.0
//
// int8q_quantize_checkpoint called and watched.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "support/call.h"
#include "support/safetensors_files.h"

namespace int8q::test {

struct Event {
  int32_t phase;
  std::string file, tensor;
  int32_t action, dtype;
  int64_t rows, cols;
  uint64_t bytes_in, bytes_out, total_in, total_out;
};

// One call with its options; the events of its callback.
struct Quantize {
  std::string in = {}, out = {};
  bool dry_run = false, overwrite = false, null_out = false;
  float threshold = 0;
  std::vector<const char*> include = {}, exclude = {};
  bool use_include = false, use_exclude = false;  // an empty list is not the default
  std::function<int32_t(const Event&)> on_event = [](const Event&) { return 0; };
  std::vector<Event> events = {};

  int32_t run() { return run(make_context(2)); }

  int32_t run(const ContextPtr& context) {
    static const char* const kNone[] = {nullptr};
    int8q_checkpoint_options options{};
    options.size = sizeof options;
    options.dry_run = dry_run;
    options.overwrite = overwrite;
    options.threshold = threshold;
    if (use_include) options.include = include.empty() ? kNone : include.data();
    if (use_exclude) options.exclude = exclude.empty() ? kNone : exclude.data();
    options.include_count = static_cast<int64_t>(include.size());
    options.exclude_count = static_cast<int64_t>(exclude.size());
    events.clear();
    const auto report = [](void* opaque, const int8q_progress* p) -> int32_t {
      auto* self = static_cast<Quantize*>(opaque);
      EXPECT_EQ(p->size, sizeof *p);
      self->events.push_back({p->phase, p->file, p->tensor == nullptr ? "" : p->tensor, p->action, p->dtype, p->rows,
                              p->cols, p->bytes_in, p->bytes_out, p->total_in, p->total_out});
      return self->on_event(self->events.back());
    };
    return int8q_quantize_checkpoint(context.get(), in.c_str(), null_out ? nullptr : out.c_str(), &options, report, this);
  }

  std::vector<std::string> chosen() const {
    std::vector<std::string> names;
    for (const Event& e : events) {
      if (e.phase == INT8Q_PHASE_PLAN && e.action == INT8Q_TENSOR_QUANTIZE) names.push_back(e.tensor);
    }
    std::sort(names.begin(), names.end());
    return names;
  }
};

inline bool message_has(const std::string& word) { return std::string(int8q_last_error()).find(word) != std::string::npos; }

// A small model of two shards with everything that a folder may hold besides.
inline void write_sharded_model(const std::string& folder) {
  std::vector<float> w(24), big(40 * 30);
  for (size_t i = 0; i < w.size(); ++i) w[i] = static_cast<float>(i) - 11.5f;
  for (size_t i = 0; i < big.size(); ++i) big[i] = static_cast<float>(i % 101) * 0.25f - 10;
  write_bytes(folder + "/model-00001-of-00002.safetensors",
              make_safetensors({f32_tensor("model.embed_tokens.weight", {6, 4}, w),
                                f32_tensor("model.layers.0.q_proj.weight", {4, 6}, w)},
                               R"({"format":"pt"})"));
  write_bytes(folder + "/model-00002-of-00002.safetensors",
              make_safetensors({f32_tensor("model.layers.0.up_proj.weight", {40, 30}, big),
                                f32_tensor("model.layers.0.up_proj.bias", {4}, {1, 2, 3, 4}),
                                f32_tensor("model.norm.weight", {4}, {1, 1, 1, 1})},
                               R"({"format":"pt"})"));
  write_bytes(folder + "/model.safetensors.index.json", R"({
  "metadata": {"total_size": 5024, "total_parameters": 1256},
  "weight_map": {
    "model.embed_tokens.weight": "model-00001-of-00002.safetensors",
    "model.layers.0.q_proj.weight": "model-00001-of-00002.safetensors",
    "model.layers.0.up_proj.weight": "model-00002-of-00002.safetensors",
    "model.layers.0.up_proj.bias": "model-00002-of-00002.safetensors",
    "model.norm.weight": "model-00002-of-00002.safetensors"
  }
})");
  write_bytes(folder + "/config.json", R"({"model_type": "llama", "rms_norm_eps": 1e-05, "torch_dtype": "float32"})");
  write_bytes(folder + "/tokenizer.json", "{\"any\": \"text\"}");
  write_bytes(folder + "/1_Pooling/config.json", "{\"pooling\": true}");
  write_bytes(folder + "/2_Dense/pytorch_model.bin", "kept: not at the top");
  write_bytes(folder + "/pytorch_model.bin", "pickle");
  write_bytes(folder + "/.git/HEAD", "ref");
}

}  // namespace int8q::test
