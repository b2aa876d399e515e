// SPDX-License-Identifier: Apache-2.0
//
// Writes one planned shard in blocks of rows: memory is bounded by the blocks, whatever the tensor.
#pragma once

#include <string>

#include "checkpoint/plan.h"
#include "checkpoint/quantize_checkpoint.h"
#include "core/context.h"
#include "core/memory.h"

namespace int8q::checkpoint {

// The callback's side of int8q_quantize_checkpoint. Each call throws CANCELLED where the callback asks to stop.
class Progress {
 public:
  Progress(const ProgressSink& sink, const Plan& plan)
      : sink_(sink), total_in_(plan.bytes_in), total_out_(plan.bytes_out) {}

  void planned(const PlannedShard& shard, const PlannedTensor& tensor) const;
  void wrote(const PlannedShard& shard, const PlannedTensor& tensor, uint64_t bytes_in, uint64_t bytes_out);
  void finished(const std::string& file) const;

 private:
  void report(int8q_progress progress) const;

  ProgressSink sink_;
  uint64_t total_in_;
  uint64_t total_out_;
  uint64_t done_in_ = 0;
  uint64_t done_out_ = 0;
};

class ShardWriter {
 public:
  ShardWriter(Context& context, Progress& progress);

  void write(const PlannedShard& shard, const std::string& path);

 private:
  struct Shard;  // one shard's two open files

  void copy(const Shard& shard, const PlannedTensor& tensor);
  void quantize(const Shard& shard, const PlannedTensor& tensor);
  void quantize_block(const Shard& shard, const PlannedTensor& tensor, int64_t done, int64_t rows);
  void read_transposed(const Shard& shard, const PlannedTensor& tensor, int64_t begin, int64_t count);

  Context& context_;
  Progress& progress_;
  Buffer memory_;
  uint8_t* weights_;  // [kBlockBytes]
  uint8_t* strip_;    // [kStripBytes] of a transposed tensor's rows as they are stored
  int8_t* codes_;     // [kBlockBytes / 2]
  float* stats_;      // [kLargestBlockRows]
};

}  // namespace int8q::checkpoint
