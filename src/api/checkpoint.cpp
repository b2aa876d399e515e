// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "api/arguments.h"
#include "checkpoint/quantize_checkpoint.h"
#include "checkpoint/selection.h"

namespace int8q::api {
namespace {

using PatternList = std::span<const char* const>;

PatternList check_patterns(const char* const* patterns, int64_t count, const char* name, PatternList otherwise) {
  if (count < 0 || (patterns == nullptr && count != 0)) {
    fail(INT8Q_INVALID_ARGUMENT,
         "options->%s_count is %lld and options->%s is %s; expected [%s_count] patterns, or NULL "
         "and 0 for the default",
         name, static_cast<long long>(count), name, patterns == nullptr ? "NULL" : "a list", name);
  }
  return patterns == nullptr ? otherwise : PatternList(patterns, static_cast<size_t>(count));
}

bool check_flag(int32_t flag, const char* name) {
  if (flag != 0 && flag != 1) fail(INT8Q_INVALID_ARGUMENT, "options->%s is %d; expected 0 or 1", name, flag);
  return flag == 1;
}

checkpoint::QuantizeOptions check_options(const int8q_checkpoint_options* options) {
  const int8q_checkpoint_options given = options == nullptr ? int8q_checkpoint_options{} : read_struct(options, "options");
  if (!(given.threshold >= 0) || std::isinf(given.threshold)) {
    fail(INT8Q_INVALID_ARGUMENT, "options->threshold is %g; expected a finite number > 0, or 0 for 6.0",
         static_cast<double>(given.threshold));
  }
  checkpoint::QuantizeOptions checked;
  checked.dry_run = check_flag(given.dry_run, "dry_run");
  checked.overwrite = check_flag(given.overwrite, "overwrite");
  if (given.threshold != 0) checked.threshold = given.threshold;
  checked.include = check_patterns(given.include, given.include_count, "include", checkpoint::kDefaultInclude);
  checked.exclude = check_patterns(given.exclude, given.exclude_count, "exclude", checkpoint::kDefaultExclude);
  return checked;
}

}  // namespace
}  // namespace int8q::api

extern "C" int32_t int8q_quantize_checkpoint(int8q_context* context, const char* in, const char* out,
                                             const int8q_checkpoint_options* options, int8q_progress_fn progress,
                                             void* opaque) {
  using namespace int8q;
  return api::guarded([&] {
    Context& checked_context = api::check_cpu_context(context);
    api::require(in != nullptr, "in", "the path of a safetensors file or a folder");
    const checkpoint::QuantizeOptions checked = api::check_options(options);
    api::require(out != nullptr || checked.dry_run, "out", "a path, or dry_run = 1");
    const ScratchLease lease(checked_context);
    checkpoint::quantize_checkpoint(checked_context, in, out, checked, {progress, opaque});
  });
}
