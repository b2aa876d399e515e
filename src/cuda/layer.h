// SPDX-License-Identifier: Apache-2.0
//
// The linear layer on a GPU: weights as rows of codes on the device, forward in one launch or two, backward in one. Arguments are
// validated by the caller (api/). Nothing but the making of weights waits, allocates or clears memory.
#pragma once

#include <cstdint>

#include "core/blob.h"
#include "core/math.h"
#include "cpu/layer.h"
#include "cuda/device.h"
#include "cuda/kernels/arguments.h"

namespace int8q::cuda {

// What an int8q_linear of a CUDA context has in place of a blob.
struct DeviceWeights {
  Device* device;
  BlobHeader header{};  // sizes and options, as a blob's; blob_bytes: of `memory`
  void* memory = nullptr;

  const int8_t* codes = nullptr;  // [N] rows, the caller's if they are borrowed
  int64_t stride = 0;
  const float* col_stats = nullptr;
  const void* bias = nullptr;  // NULL without one; the caller's if it is borrowed
  int32_t bias_dtype = INT8Q_F32;
  float greatest = 0.0f;  // of col_stats, at least 2^-100 unless all are 0
  const int64_t* kept_cols = nullptr;
  const uint32_t* kept_bitmap = nullptr;   // [bitmap_words(K)]
  const uint16_t* kept_weights = nullptr;  // f16 [kept_count][n_padded()], one column after another

  int64_t n_padded() const { return round_up(header.n, 16); }
};

// Where a linear's weights come from: matrices in device memory, kept_cols on the host.
struct DeviceWeightSource {
  int8q_matrix weight;  // of floats or S8
  const float* col_stats;
  int8q_matrix bias;          // data NULL: none
  int8q_matrix kept_weights;  // data NULL: rounded from weight
  int8q_linear_options options;
};

// Waits for the queue. NOT_FINITE, OUT_OF_MEMORY.
DeviceWeights* make_weights(Context& context, const DeviceWeightSource& source);
DeviceWeights* copy_blob(Context& context, const BlobSections& blob);
void free_weights(const Allocator& allocator, DeviceWeights* weights);
// The outputs of int8q_export_linear; data NULL: not wanted. kept_cols is on the device.
void export_weights(Context& context, const DeviceWeights& weights, const int8q_matrix& codes, float* col_stats,
                    const int8q_matrix& bias, int64_t* kept_cols, const int8q_matrix& kept_weights);

int64_t forward_workspace_bytes(const Device& device, const BlobHeader& linear, int64_t rows);
void forward(Queue& queue, const Linear* const* linears, int64_t count, const FloatRows& x, const Output* ys,
             bool accumulate, void* workspace);
void backward(Queue& queue, const Linear& linear, const FloatRows& dy, const Output& dx, bool accumulate);

// ---- What the stateless operations share with it

// Codes of rows of floats, with the places that they lie in.
struct QuantizedRows {
  int8_t* codes;
  int64_t stride;
  float* row_stats;
  gpu::FoundColumns* found;  // [blocks]; NULL: nobody asks
  uint32_t* bitmaps;
  uint32_t* counters;  // [counter_count], which become 0
  int counter_count;
  int blocks;
};
int quantizing_blocks(const Device& device, int64_t rows);
void quantize(Queue& queue, const FloatRows& x, uint32_t limit, const QuantizedRows& to);

// The product of quantized rows, by the kernel for its size; K is split where there are counters for it.
void multiply(Queue& queue, gpu::Gemm p);

// Rows begin at multiples of 16 bytes.
inline bool is_aligned(const void* data, int64_t stride_bytes) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride_bytes % 16 == 0;
}
inline bool is_aligned(const FloatRows& x) { return is_aligned(x.data, x.rows == 1 ? 0 : x.row_bytes); }

}  // namespace int8q::cuda
