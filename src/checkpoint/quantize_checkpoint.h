// SPDX-License-Identifier: Apache-2.0
//
// Quantizing a checkpoint file or folder: plan, write under a temporary name, rename.
#pragma once

#include <span>
#include <string>

#include "core/context.h"

namespace int8q::checkpoint {

struct QuantizeOptions {
  bool dry_run = false;
  bool overwrite = false;
  float threshold = 6.0f;
  std::span<const char* const> include;
  std::span<const char* const> exclude;
};

struct ProgressSink {
  int8q_progress_fn report = nullptr;
  void* opaque = nullptr;
};

// out is NULL only in a dry run. Statuses as int8q_quantize_checkpoint.
void quantize_checkpoint(Context& context, const std::string& in, const char* out, const QuantizeOptions& options,
                         const ProgressSink& sink);

}  // namespace int8q::checkpoint
