// SPDX-License-Identifier: Apache-2.0
//
// The blocking loop: tiles of Y, each s32 accumulators -> outlier columns -> epilogue, over packed or row-major weights.
//
//   tile = BLOCK_M rows x up to 4 panels (64 columns):
//     acc = -128 * col_sums (u8 codes) or 0, + codes . panels    K in blocks of kBlockK
//     acc -= codes . panels of the outlier columns, gathered into small panels, kChunk columns at a time;  out += x . w
//     y    = epilogue(acc, out)
//
// Where X is not quantized at all, acc is 0 and `out` has all columns, from the panels as they lie.
//
// Parts share items of one panel x one row block, panel by panel: a part's range differs from another's by at most one
// item, and is its own range of W. Within it tiles are as large as they can be. Results do not depend on any of this.
#pragma once

#include <cstdint>

#include "core/blob.h"
#include "cpu/quantize.h"

namespace int8q {

inline constexpr int64_t kBlockM = 192;  // acc, out: 192 x 64 x 4 = 48 KiB each, in L2 beside a block of codes
inline constexpr int64_t kBlockPanels = 4;
inline constexpr int64_t kBlockN = kBlockPanels * cpu::kPanelRows;
inline constexpr int64_t kBlockK = 4096;     // 64 columns of B are 256 KiB: they and 192 rows of codes fill an L2 of 1 MiB
inline constexpr int64_t kChunk = 256;       // outlier columns of B gathered at once: 16 KiB for a tile
inline constexpr int64_t kGathered = 512;    // outlier columns of a whole block of X: more take fewer rows at a time
inline constexpr int64_t kItemsPerPart = 4;  // so many where rows are enough: one item more or less then costs 25% at most
inline constexpr int64_t kLeastRows = 16;    // but rows enough for the tallest register tile
// Row-major weights: up to here streaming them beats packing them first. At 4096 x 4096 the two meet at 9 rows with AVX2,
// at 24 with AVX512-VNNI.
inline constexpr int64_t kDotRows = 8;

// One part's own memory.
struct PartScratch {
  int32_t* acc;      // [BLOCK_M][kBlockN]
  int32_t* cols;     // [K] this call's outlier columns
  float* out;        // as acc
  float* x;          // outlier columns of X: [rows][count] of `gathered` elements
  uint8_t* x_codes;  // their codes negated, likewise, in the ISA's layout
  int64_t gathered;
  int8_t* columns;  // [kBlockPanels] small panels of kChunk columns
  int8_t* panels;   // [kBlockPanels] panels, for weights that come row-major; NULL otherwise
};

// What W is in a product.
enum class Weights { kPacked, kRowMajor, kNone };  // kNone: the accumulators are given

struct Product {
  const cpu::Kernels* kernels;
  int64_t m;
  int64_t n;
  int64_t k;

  // A: codes in the ISA's layout; plain s8 rows beside them for the row-major small-M path.
  const uint8_t* codes;
  const int8_t* a;
  int64_t a_stride;
  const float* row_stats;

  // B.
  Weights weights;
  BlobSections blob;  // kPacked
  const int8_t* b;    // kRowMajor: rows of b_stride bytes; kNone: s32 accumulators, b_stride bytes apart
  int64_t b_stride;
  const float* col_stats;  // [N], kRowMajor and kNone
  const uint8_t* bias;     // [N] of bias_dtype; NULL without. kPacked takes the blob's
  int32_t bias_dtype;

  // Outlier columns; limit is kNoOutliers where there are none.
  FloatRows x;
  uint32_t limit;
  bool all;                   // no codes: every column, of packed weights
  bool element;               // only elements at or above the limit
  bool subtract;              // codes still hold the inliers of outlier columns
  const int64_t* given_cols;  // the columns, if the caller names them; else from column_bits
  int64_t given_count;
  const uint64_t* column_bits;  // [bit_parts][ceil(K / 64)], one bitmap a part of the quantization
  int64_t bit_parts;

  // Y, of floats or (y_dtype S32) the accumulators themselves.
  uint8_t* y;
  int32_t y_dtype;
  int64_t y_stride;  // bytes
  bool accumulate;
};

// Row blocks that M is cut into: of at most kBlockM rows, smaller ones where there are too few panels to share.
int64_t row_block_count(int64_t m, int64_t n, int64_t parts);

// Items that the parts share.
int64_t item_count(int64_t m, int64_t n, int64_t parts);

// Carves one part's scratch. packs: weights come row-major and are packed here.
template <class CarverT>
PartScratch carve_part_scratch(CarverT& carver, int64_t m, int64_t k, bool outliers, bool packs) {
  const int64_t rows = m < kBlockM ? m : kBlockM;
  PartScratch scratch{};
  scratch.acc = carver.template take<int32_t>(rows * kBlockN, "workspace");
  if (outliers) {
    scratch.cols = carver.template take<int32_t>(k, "workspace");
    scratch.out = carver.template take<float>(rows * kBlockN, "workspace");
    const int64_t most = rows * kGathered, all = round_up(k, cpu::kGroup);
    scratch.gathered = most > all ? most : all;
    scratch.x = carver.template take<float>(scratch.gathered, "workspace");
    scratch.x_codes = carver.template take<uint8_t>(2 * scratch.gathered, "workspace");
    scratch.columns = carver.template take<int8_t>(kChunk * kBlockN, "workspace");
  }
  if (packs) scratch.panels = carver.template take<int8_t>(round_up(k, cpu::kPadK) * kBlockN, "workspace");
  return scratch;
}

// Computes part `part` of `parts`.
void multiply_part(const Product& product, const PartScratch& scratch, int64_t part, int64_t parts);

}  // namespace int8q
