// SPDX-License-Identifier: Apache-2.0
//
// The linear layer on the CPU: packing, forward in two phases (quantize rows | barrier | multiply tiles), backward.
// Arguments are validated by the caller (api/); workspaces are 64-byte aligned and large enough.
#pragma once

#include "core/linear.h"
#include "cpu/product.h"

namespace int8q {

// Weights to pack: fp32, fp16, bf16 rows to be quantized, or s8 rows with their stats.
struct WeightSource {
  int32_t dtype;
  const uint8_t* data;
  int64_t row_bytes;
  const float* col_stats;  // s8 only
  const uint8_t* bias;     // [N] of bias_dtype, or NULL
  int32_t bias_dtype;
  const int64_t* kept_cols;
  const uint8_t* kept_weights;  // f16 rows, or NULL: rounded from the float weights
  int64_t kept_row_bytes;
};

// Fills and seals the blob whose header (but magic and checksums) is written. Bytes of context scratch that it needs.
// NOT_FINITE, SIZE_OVERFLOW (-128 in an s8 weight with K > 131,071).
int64_t pack_scratch_bytes(const Context& context, int64_t k);
void pack_blob(Context& context, void* scratch, const WeightSource& weight, void* blob);

// Below this many elements of X or dY one thread has quantized or scaled them sooner than another one wakes (2 us at 16 a ns).
inline constexpr int64_t kSerialElements = 32 << 10;

// Whether a product has fewer multiplications.
constexpr bool is_below(int64_t multiplications, int64_t rows, int64_t cols, int64_t outputs) {
  return rows * cols < multiplications && rows * cols * outputs < multiplications;
}

// Whether one thread finishes a product sooner than two agree to share it (some 2 us).
constexpr bool is_serial_product(int64_t rows, int64_t cols, int64_t outputs) {
  return is_below(1 << 17, rows, cols, outputs);
}

// One thread finishes the smaller ones sooner than a second one wakes.
constexpr Pool::Wake wake_for(int64_t rows, int64_t cols, int64_t outputs) {
  return is_below(1 << 20, rows, cols, outputs) ? Pool::Wake::kIfBusy : Pool::Wake::kAll;
}

// The panels that a part packs: those that it reads in a product of one row, and give or take one in any other. Who writes a
// page first decides on which NUMA node it lies.
Range panel_range(int64_t n, int64_t part, int64_t parts);

// Unpacks the codes of a panel's rows, which are stride bytes apart.
void unpack_panel(const BlobSections& blob, int64_t panel, int8_t* codes, int64_t stride);

int64_t forward_workspace_bytes(const cpu::Kernels& kernels, const Linear& linear, int64_t rows, int64_t parts);
int64_t backward_workspace_bytes(const Linear& linear, int64_t rows, int64_t parts);

// Y of one linear in the caller's memory.
struct Output {
  uint8_t* data;
  int32_t dtype;
  int64_t row_bytes;
};

// Phase 1 and phase 2 of forward for one part of `parts`.
void quantize_input_part(const cpu::Kernels& kernels, const Linear& linear, const FloatRows& x, void* workspace,
                         int64_t part, int64_t parts);
void forward_part(const cpu::Kernels& kernels, const Linear& linear, const FloatRows& x, const Output& y, bool accumulate,
                  void* workspace, int64_t part, int64_t parts);

// Both phases on the context's threads, for linears of the same K, mode and threshold.
void forward(Context& context, const Linear* const* linears, int64_t count, const FloatRows& x, const Output* ys,
             bool accumulate, void* workspace);

// dX = (dY o col_stats/127) . Wq.
void backward(Context& context, const Linear& linear, const FloatRows& dy, const Output& dx, bool accumulate,
              void* workspace);

}  // namespace int8q
