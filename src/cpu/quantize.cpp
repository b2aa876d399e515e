// SPDX-License-Identifier: Apache-2.0
#include "cpu/quantize.h"

#include <bit>
#include <limits>

#include "core/dtype.h"

namespace int8q {

using cpu::CodeLayout;
using cpu::Kernels;

uint32_t outlier_limit(int32_t mode, float threshold) {
  if (mode == INT8Q_OUTLIERS_OFF) return cpu::kNoOutliers;
  if (mode == INT8Q_OUTLIERS_ALL) return 1;  // zeros, whose code is 0 in any case, stay
  if (mode != INT8Q_OUTLIERS_COLUMN && mode != INT8Q_OUTLIERS_ELEMENT) {
    fail(INT8Q_INVALID_ARGUMENT,
         "outlier_mode is %d; expected INT8Q_OUTLIERS_COLUMN (0), _OFF (1), _ELEMENT (2) or _ALL (3)", mode);
  }
  if (!(threshold >= 0.0f)) {
    fail(INT8Q_INVALID_ARGUMENT, "threshold is %g; expected a number > 0, or 0 for the default of 6",
         static_cast<double>(threshold));
  }
  return threshold == 0.0f ? std::bit_cast<uint32_t>(6.0f) : std::bit_cast<uint32_t>(threshold);
}

float threshold_of(const int8q_linear_options& options) {
  const bool ignored = options.outlier_mode == INT8Q_OUTLIERS_OFF || options.outlier_mode == INT8Q_OUTLIERS_ALL;
  return ignored || options.threshold == 0.0f ? 6.0f : options.threshold;
}

float stat_of_bits(uint32_t absmax_bits) {
  return absmax_bits >= cpu::kInfBits ? std::numeric_limits<float>::quiet_NaN() : std::bit_cast<float>(absmax_bits);
}

int64_t code_row_bytes(const Kernels& kernels, int64_t k) {
  return odd_lines(round_up(k, cpu::kPadK) * (kernels.layout == CodeLayout::kU8 ? 1 : 2));
}

void quantize_to_codes(const Kernels& kernels, const FloatRows& x, Range range, uint32_t limit, uint8_t* codes,
                       float* row_stats, uint64_t* column_bits) {
  const int64_t stride = code_row_bytes(kernels, x.cols);
  const int64_t k_padded = round_up(x.cols, cpu::kPadK);
  for (int64_t i = range.begin; i < range.end; ++i) {
    row_stats[i] = stat_of_bits(kernels.scan[x.dtype].run(x.row(i), x.cols, limit, column_bits));
    kernels.encode[x.dtype].run(x.row(i), x.cols, k_padded, row_stats[i], limit, codes + i * stride);
  }
}

void quantize_to_s8(const Kernels& kernels, const FloatRows& x, Range range, uint32_t limit, int8_t* q, int64_t q_stride,
                    float* row_stats, uint64_t* column_bits) {
  for (int64_t i = range.begin; i < range.end; ++i) {
    row_stats[i] = stat_of_bits(kernels.scan[x.dtype].run(x.row(i), x.cols, limit, column_bits));
    kernels.encode_s8[x.dtype].run(x.row(i), x.cols, x.cols, row_stats[i], limit, q + i * q_stride);
  }
}

}  // namespace int8q
