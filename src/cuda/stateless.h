// SPDX-License-Identifier: Apache-2.0
//
// The stateless operations on a GPU, as cpu/stateless.h has them. Scratch memory is the context's, which grows by allocation.
#pragma once

#include "core/context.h"
#include "cuda/layer.h"

namespace int8q::cuda {

// rows and to_cols > 0.
void copy_codes(Queue& queue, const gpu::CopyCodes& p);

void quantize_rows(Queue& queue, ScratchLease& scratch, const FloatRows& x, uint32_t limit, bool element, int8_t* q,
                   int64_t q_stride, float* row_stats, uint8_t* mask, int64_t* cols, int64_t* count);

// product.x.data NULL: no outliers; else product.given_cols, of device memory.
void multiply(Queue& queue, ScratchLease& scratch, const Product& product);

void dequantize_rows(Queue& queue, const int8_t* q, int64_t q_stride, int64_t rows, int64_t cols, const float* stats,
                     const Output& y);
void count_outliers(Queue& queue, const FloatRows& x, uint32_t limit, int64_t* counts);

}  // namespace int8q::cuda
