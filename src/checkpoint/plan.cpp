// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/plan.h"

#include <algorithm>
#include <set>
#include <unordered_map>

#include "core/blob.h"
#include "core/dtype.h"
#include "core/error.h"

namespace int8q::checkpoint {
namespace {

constexpr const char* kStats = "SCB";
constexpr const char* kFormat = "weight_format";

// All input tensors by name; names and entries are the plan's.
using Tensors = std::unordered_map<std::string_view, const TensorEntry*>;

std::string joined(std::string_view prefix, const char* name) { return std::string(prefix) + name; }

bool is_float_matrix(const TensorEntry& t) { return t.shape.size() == 2 && float_index(t.dtype) >= 0; }

void read_shard(const ShardSource& source, PlannedShard& shard) {
  const InputFile file(source.in_path);
  SafetensorsHeader header = read_header(file);
  for (const std::string& name : source.promised) {
    if (find_tensor(header, name) == nullptr) {
      fail(INT8Q_CORRUPT, "%s: tensor \"%s\" is not in it, although the index says so", shown(source.in_path).c_str(),
           shown(name).c_str());
    }
  }
  shard.name = source.name;
  shard.in_path = source.in_path;
  shard.in_bytes = file.bytes();
  shard.in_data_begin = header.data_begin;
  shard.metadata = std::move(header.metadata);
  shard.metadata.emplace("format", "pt");  // transformers refuses a file that does not say which framework's
  std::sort(header.tensors.begin(), header.tensors.end(), [](const TensorEntry& a, const TensorEntry& b) {
    return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
  });
  for (TensorEntry& tensor : header.tensors) shard.tensors.emplace_back().in = std::move(tensor);
}

Tensors collect(const std::vector<PlannedShard>& shards) {
  Tensors tensors;
  for (const PlannedShard& shard : shards) {
    for (const PlannedTensor& t : shard.tensors) {
      if (!tensors.emplace(t.in.name, &t.in).second) {
        fail(INT8Q_CORRUPT, "%s: tensor \"%s\" is also in another shard", shown(shard.in_path).c_str(),
             shown(t.in.name).c_str());
      }
    }
  }
  return tensors;
}

void refuse_quantized(const Tensors& tensors) {
  std::string_view prefix;
  for (const auto& [name, entry] : tensors) {
    if (entry->dtype != INT8Q_S8 || !module_prefix(name, &prefix)) continue;
    if (tensors.count(joined(prefix, kStats)) != 0) {
      fail(INT8Q_UNSUPPORTED, "tensor \"%s\" is int8 with an SCB: the checkpoint is quantized already; pass the original",
           shown(name).c_str());
    }
  }
}

// transformers' Conv1D (GPT-2, OpenAI GPT, ImageGPT, Decision Transformer) stores [in, out], and bitsandbytes quantizes the
// transpose. Such a model shows itself by c_attn: its weight [a, b], never square, has a bias of b and not of a elements.
// Models that use the same names for a Linear (GPT-BigCode, Qwen) have a bias of a.
const char* const kConv1dNames[] = {R"((^|\.)h\.\d+\.(attn|crossattention|mlp)\.(c_attn|c_proj|c_fc|q_attn)\.weight$)"};
const char* const kConv1dWitness[] = {R"((^|\.)h\.\d+\.(attn|crossattention)\.c_attn\.weight$)"};

bool stores_conv1d(const Tensors& tensors) {
  const Patterns witness(kConv1dWitness, "Conv1D");
  std::string_view prefix;
  for (const auto& [name, entry] : tensors) {
    if (!is_float_matrix(*entry) || !name.ends_with("c_attn.weight") || !witness.found_in(entry->name)) continue;
    module_prefix(name, &prefix);
    const auto bias = tensors.find(joined(prefix, "bias"));
    if (bias == tensors.end() || bias->second->shape.size() != 1) continue;
    const int64_t outputs = bias->second->shape[0];
    if (outputs == entry->shape[1] && outputs != entry->shape[0]) return true;
  }
  return false;
}

class Chooser {
 public:
  Chooser(const Patterns& include, const Patterns& exclude, const Tensors& tensors)
      : include_(include), exclude_(exclude), tensors_(tensors), conv1d_(stores_conv1d(tensors)) {}

  void choose(PlannedTensor& t) const {
    std::string_view prefix;
    t.action = float_index(t.in.dtype) < 0                                  ? INT8Q_TENSOR_COPY_DTYPE
               : t.in.shape.size() != 2                                     ? INT8Q_TENSOR_COPY_SHAPE
               : !module_prefix(t.in.name, &prefix)                         ? INT8Q_TENSOR_COPY_NAME
               : !include_.found_in(t.in.name)                              ? INT8Q_TENSOR_COPY_INCLUDE
               : exclude_.found_in(t.in.name) || in_fused_attention(prefix) ? INT8Q_TENSOR_COPY_EXCLUDE
                                                                            : INT8Q_TENSOR_QUANTIZE;
    if (!t.quantize()) return;
    for (const char* added : {kStats, kFormat}) {
      if (tensors_.count(joined(prefix, added)) != 0) {
        fail(INT8Q_UNSUPPORTED, "tensor \"%s\" is there already: the checkpoint is quantized, or \"%s\" must be excluded",
             shown(joined(prefix, added)).c_str(), shown(t.in.name).c_str());
      }
    }
    t.transposed = conv1d_ && conv1d_names_.found_in(t.in.name);
    t.n = t.in.shape[t.transposed ? 1 : 0];
    t.k = t.in.shape[t.transposed ? 0 : 1];
    if (t.k > kMaxK) {
      fail(INT8Q_SIZE_OVERFLOW, "tensor \"%s\" has K = %lld; expected at most %lld: exclude it", shown(t.in.name).c_str(),
           static_cast<long long>(t.k), static_cast<long long>(kMaxK));
    }
  }

 private:
  // torch's nn.MultiheadAttention reads the weight of its out_proj itself, so no loader replaces that.
  bool in_fused_attention(std::string_view prefix) const {
    constexpr std::string_view kOut = "out_proj.";
    return prefix.ends_with(kOut) &&
           tensors_.count(joined(prefix.substr(0, prefix.size() - kOut.size()), "in_proj_weight")) != 0;
  }

  const Patterns& include_;
  const Patterns& exclude_;
  const Tensors& tensors_;
  Patterns conv1d_names_{kConv1dNames, "Conv1D"};
  bool conv1d_;
};

void add_outputs(PlannedShard& shard, PlannedTensor& t) {
  t.out = shard.out.size();
  std::string_view prefix;
  if (!t.quantize()) {
    shard.out.push_back({t.in.name, t.in.dtype, t.in.shape});
    return;
  }
  module_prefix(t.in.name, &prefix);
  shard.out.push_back({t.in.name, INT8Q_S8, {t.n, t.k}});
  shard.out.push_back({joined(prefix, kStats), INT8Q_F32, {t.n}});
  shard.out.push_back({joined(prefix, kFormat), INT8Q_U8, {}});
}

}  // namespace

uint64_t PlannedTensor::bytes_out() const {
  if (!quantize()) return in.bytes();
  return static_cast<uint64_t>(n) * static_cast<uint64_t>(k) + static_cast<uint64_t>(n) * sizeof(float) + 1;
}

Plan make_plan(const std::vector<ShardSource>& sources, const Patterns& include, const Patterns& exclude) {
  Plan plan;
  plan.shards.resize(sources.size());
  for (size_t i = 0; i < sources.size(); ++i) read_shard(sources[i], plan.shards[i]);
  const Tensors tensors = collect(plan.shards);
  refuse_quantized(tensors);
  const Chooser chooser(include, exclude, tensors);
  for (PlannedShard& shard : plan.shards) {
    for (PlannedTensor& t : shard.tensors) {
      chooser.choose(t);
      add_outputs(shard, t);
      plan.bytes_in += t.in.bytes();
    }
    shard.out_data_bytes = lay_out(shard.out);
    plan.bytes_out += shard.out_data_bytes;
  }
  return plan;
}

std::vector<std::string> skipped_modules(const Plan& plan) {
  std::set<std::string> skipped;
  std::vector<std::string> quantized;
  std::string_view prefix;
  for (const PlannedShard& shard : plan.shards) {
    for (const PlannedTensor& t : shard.tensors) {
      if (!is_float_matrix(t.in) || !module_prefix(t.in.name, &prefix) || prefix.empty()) continue;
      const std::string module(prefix.substr(0, prefix.size() - 1));
      t.quantize() ? quantized.push_back(module) : void(skipped.insert(module));
    }
  }
  for (std::string_view heads = INT8Q_OUTPUT_HEADS "|" INT8Q_OUTPUT_HEADS_ELSEWHERE; !heads.empty();) {
    const std::string head(heads.substr(0, heads.find('|')));
    heads.remove_prefix(std::min(heads.size(), head.size() + 1));
    const bool in_use = std::any_of(quantized.begin(), quantized.end(), [&](const std::string& module) {
      return module.find(head) != std::string::npos;  // loaders match by substring, start or end
    });
    if (!in_use) skipped.insert(head);
  }
  return {skipped.begin(), skipped.end()};
}

}  // namespace int8q::checkpoint
