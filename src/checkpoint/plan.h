// SPDX-License-Identifier: Apache-2.0
//
// What quantizing a checkpoint will do, complete before anything is written: bitsandbytes' int8 layout, in which a chosen
// P.weight [N,K] becomes P.weight S8 [N,K], P.SCB F32 [N] and P.weight_format U8 scalar 0.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "checkpoint/folder.h"
#include "checkpoint/safetensors_format.h"
#include "checkpoint/selection.h"

namespace int8q::checkpoint {

struct PlannedTensor {
  TensorEntry in;
  int32_t action = INT8Q_TENSOR_QUANTIZE;  // or why it is copied
  bool transposed = false;                 // stored [K,N], as GPT-2's Conv1D does; bitsandbytes holds the transpose
  int64_t n = 0;                           // of a tensor to quantize
  int64_t k = 0;
  size_t out = 0;  // index in PlannedShard.out of the weight; SCB and weight_format follow it

  bool quantize() const { return action == INT8Q_TENSOR_QUANTIZE; }
  uint64_t bytes_out() const;
};

struct PlannedShard {
  std::string name;  // relative to the checkpoint's folder
  std::string in_path;
  uint64_t in_bytes = 0;  // of the file, to notice that it changed
  uint64_t in_data_begin = 0;
  Metadata metadata;
  std::vector<PlannedTensor> tensors;  // in the order of the input file
  std::vector<TensorEntry> out;
  uint64_t out_data_bytes = 0;
};

struct Plan {
  std::vector<PlannedShard> shards;
  uint64_t bytes_in = 0;  // of all tensors
  uint64_t bytes_out = 0;
};

// Reads the headers of all shards and decides. CORRUPT, UNSUPPORTED (already quantized), SIZE_OVERFLOW (K > kMaxK).
Plan make_plan(const std::vector<ShardSource>& sources, const Patterns& include, const Patterns& exclude);

// The modules that a loader must not take for int8 layers: every 2-D float weight left out, and the output heads that the
// checkpoint does not quantize. Sorted.
std::vector<std::string> skipped_modules(const Plan& plan);

}  // namespace int8q::checkpoint
