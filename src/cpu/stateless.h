// SPDX-License-Identifier: Apache-2.0
//
// Operations on row-major operands of each call (bitsandbytes' shape). Arguments are validated by the caller (api/), the
// lease gives the context's scratch memory.
#pragma once

#include "cpu/layer.h"

namespace int8q {

// q, row_stats and the outlier columns as int8q_quantize_rows documents them. mask and cols may be NULL, count is set.
void quantize_rows(Context& context, ScratchLease& scratch, const FloatRows& x, uint32_t limit, bool element, int8_t* q,
                   int64_t q_stride, float* row_stats, uint8_t* mask, int64_t* cols, int64_t* count);

// counts[k] += rows of x with an outlier in column k.
void count_outliers(Context& context, ScratchLease& scratch, const FloatRows& x, uint32_t limit, int64_t* counts);

// Y from s8 rows a [M,K], s8 rows b [N,K] (or s32 accumulators as b with Weights::kNone), with everything else of
// `product` but codes and kernels filled in.
void multiply(Context& context, ScratchLease& scratch, Product& product);

// y = (q * stats) * (1/127).
void dequantize_rows(Context& context, const int8_t* q, int64_t q_stride, int64_t rows, int64_t cols, const float* stats,
                     const Output& y);

}  // namespace int8q
