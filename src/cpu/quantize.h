// SPDX-License-Identifier: Apache-2.0
//
// Vector-wise quantization of rows (LLM.int8() section 3.1), by a kernel table.
#pragma once

#include <cstdint>

#include "core/context.h"
#include "cpu/kernels.h"

namespace int8q {

// The outlier threshold as bits for the kernels: kNoOutliers in mode OFF, 1 in mode ALL; 6.0 for 0. INVALID_ARGUMENT for an
// unknown mode, NaN or a negative threshold.
uint32_t outlier_limit(int32_t mode, float threshold);

// The threshold that a linear of these options has: 6.0 where the mode ignores it.
float threshold_of(const int8q_linear_options& options);

// Rows of fp32, fp16 or bf16 in the caller's memory.
struct FloatRows {
  const uint8_t* data;
  int dtype;  // 0 fp32, 1 fp16, 2 bf16
  int64_t rows;
  int64_t cols;
  int64_t row_bytes;  // from one row to the next

  const uint8_t* row(int64_t i) const { return data + i * row_bytes; }
  // Address of column j of row i.
  const uint8_t* at(int64_t i, int64_t j) const { return row(i) + j * (dtype == 0 ? 4 : 2); }
};

// [begin, end) of part `part` of `count` items in `parts` parts whose sizes differ by at most one.
struct Range {
  int64_t begin;
  int64_t end;
};
constexpr Range part_range(int64_t count, int64_t part, int64_t parts) {
  const int64_t share = count / parts, rest = count % parts;
  const int64_t begin = part * share + (part < rest ? part : rest);
  return {begin, begin + share + (part < rest ? 1 : 0)};
}

// absmax of a row from the kernels' bits: NaN for a row with NaN, or with an Inf that is no outlier.
float stat_of_bits(uint32_t absmax_bits);

// Bytes of one row of codes, and from one row to the next: an odd number of cache lines, so that the rows of a tile do not
// fall on one L1 set.
int64_t code_row_bytes(const cpu::Kernels& kernels, int64_t k);

// Codes in the ISA's layout and row_stats of rows [range); ORs the columns with outliers into column_bits
// [ceil(cols / 64)].
void quantize_to_codes(const cpu::Kernels& kernels, const FloatRows& x, Range range, uint32_t limit, uint8_t* codes,
                       float* row_stats, uint64_t* column_bits);

// The same to plain int8 rows that are q_stride bytes apart.
void quantize_to_s8(const cpu::Kernels& kernels, const FloatRows& x, Range range, uint32_t limit, int8_t* q,
                    int64_t q_stride, float* row_stats, uint64_t* column_bits);

// Ascending indices below k of the bits that are set in any of the parts' bitmaps [parts][ceil(k / 64)]; returns their
// number. Bits beyond k may be set where no barrier stood between the phases of a part-wise call: its result is undefined, its
// memory is not.
template <class Index>
int64_t list_columns(const uint64_t* column_bits, int64_t parts, int64_t k, Index* cols) {
  const int64_t words = (k + 63) / 64;
  int64_t count = 0;
  for (int64_t w = 0; w < words; ++w) {
    uint64_t bits = 0;
    for (int64_t part = 0; part < parts; ++part) bits |= column_bits[part * words + w];
    if (w == words - 1 && k % 64 != 0) bits &= (uint64_t{1} << (k % 64)) - 1;
    for (; bits != 0; bits &= bits - 1) cols[count++] = static_cast<Index>(w * 64 + __builtin_ctzll(bits));
  }
  return count;
}

}  // namespace int8q
