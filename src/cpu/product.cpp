// SPDX-License-Identifier: Apache-2.0
#include "cpu/product.h"

#include <algorithm>
#include <cstring>

#include "core/dtype.h"

namespace int8q {
namespace {

using cpu::CodeLayout;
using cpu::kGroup;
using cpu::kPanelRows;

// One tile: rows [row, row + rows), columns [col, col + cols), whole panels [col / 16, ... + panel_count).
struct Tile {
  int64_t row, rows;
  int64_t col, cols;
  int64_t panel_count;
  bool has_next;  // the part goes on with the panels that follow in memory
};

// What the tiles of a part share.
class PartLoop {
 public:
  PartLoop(const Product& product, const PartScratch& scratch)
      : p_(product),
        s_(scratch),
        k_padded_(round_up(product.k, cpu::kPadK)),
        code_stride_(code_row_bytes(*product.kernels, product.k)) {
    find_outlier_columns();
  }

  void run(const Tile& tile) {
    switch (p_.weights) {
      case Weights::kPacked:
        return run_panels(tile, p_.blob.panels + tile.col / kPanelRows * p_.blob.panel_stride(),
                          p_.blob.col_sums + tile.col);
      case Weights::kRowMajor: return p_.codes == nullptr ? run_dot(tile) : run_panels(tile, pack(tile), sums_);
      case Weights::kNone: return run_given(tile);
    }
  }

 private:
  void find_outlier_columns() {
    if (p_.given_count > 0) {
      for (int64_t t = 0; t < p_.given_count; ++t) s_.cols[t] = static_cast<int32_t>(p_.given_cols[t]);
      count_ = p_.given_count;
      return;
    }
    if (p_.limit == cpu::kNoOutliers || p_.column_bits == nullptr) return;
    count_ = list_columns(p_.column_bits, p_.bit_parts, ceil_div(p_.k, 64), s_.cols);
  }

  // Packs the tile's rows of B; tiles of the same columns follow each other and share them.
  const int8_t* pack(const Tile& tile) {
    if (packed_col_ == tile.col) return s_.panels;
    for (int64_t i = 0; i < tile.panel_count; ++i) {
      const int64_t row = tile.col + i * kPanelRows;
      p_.kernels->pack.run(p_.b + row * p_.b_stride, p_.b_stride, std::min<int64_t>(kPanelRows, p_.n - row), p_.k,
                           k_padded_, s_.panels + i * k_padded_ * kPanelRows, sums_ + i * kPanelRows);
    }
    packed_col_ = tile.col;
    return s_.panels;
  }

  void run_panels(const Tile& tile, const int8_t* panels, const int32_t* sums) {
    const bool gemv = p_.m <= cpu::kGemvRows, u8 = p_.kernels->layout == CodeLayout::kU8;
    const int64_t depth = gemv ? std::max<int64_t>(k_padded_, 1) : kBlockK, stride = k_padded_ * kPanelRows;
    find_start(tile, sums, u8);
    int64_t k = 0;
    do {
      const int8_t* block = panels + k * kPanelRows;
      const bool last = k + depth >= k_padded_;
      const int8_t* next = !last           ? block + depth * kPanelRows
                           : tile.has_next ? panels + tile.panel_count * stride
                                           : nullptr;
      (gemv ? p_.kernels->gemv : p_.kernels->gemm)
          .run({.codes = p_.codes + tile.row * code_stride_ + k * (u8 ? 1 : 2),
                .code_stride = code_stride_,
                .rows = tile.rows,
                .panels = block,
                .panel_stride = stride,
                .panel_count = tile.panel_count,
                .groups = std::min(depth, k_padded_ - k) / kGroup,
                .start = k == 0 ? start_ : nullptr,
                .next = next,
                .acc = s_.acc,
                .acc_stride = kBlockN});
      k += depth;
    } while (k < k_padded_);
    load_columns(tile);
    add_outliers(tile, panels, stride, false);
    finish(tile);
  }

  // u8 codes are 128 too large: sum (a + 128) b - 128 sum b. uint32 wraps, the true sum fits.
  void find_start(const Tile& tile, const int32_t* sums, bool u8) {
    for (int64_t n = 0; n < tile.panel_count * kPanelRows; ++n) {
      start_[n] = u8 ? static_cast<int32_t>(0u - 128u * static_cast<uint32_t>(sums[n])) : 0;
    }
  }

  // Few rows of A: streams the rows of B as they lie, then copies B's outlier columns, whose cache lines are near, into
  // small panels for the outlier kernel.
  void run_dot(const Tile& tile) {
    p_.kernels->dot.run({.a = p_.a + tile.row * p_.a_stride,
                         .a_stride = p_.a_stride,
                         .rows = tile.rows,
                         .b = p_.b + tile.col * p_.b_stride,
                         .b_stride = p_.b_stride,
                         .cols = tile.cols,
                         .k = p_.k,
                         .c = s_.acc,
                         .c_stride = kBlockN});
    load_columns(tile);
    add_outliers(tile, s_.panels, kChunk * kPanelRows, true);
    finish(tile);
  }

  void run_given(const Tile& tile) {
    for (int64_t i = 0; i < tile.rows; ++i) {
      std::memcpy(s_.acc + i * kBlockN, p_.b + (tile.row + i) * p_.b_stride + tile.col * 4,
                  static_cast<size_t>(tile.cols) * 4);
    }
    load_columns(tile);
    finish(tile);
  }

  // col_stats and bias of the tile's columns as padded fp32 arrays.
  void load_columns(const Tile& tile) {
    if (p_.weights == Weights::kPacked) {
      col_stats_ = p_.blob.col_stats + tile.col;
      bias_ = p_.blob.bias != nullptr ? p_.blob.bias + tile.col : nullptr;
      return;
    }
    if (p_.y_dtype == INT8Q_S32) return;
    for (int64_t n = 0; n < kBlockN; ++n) own_stats_[n] = n < tile.cols ? p_.col_stats[tile.col + n] : 0.0f;
    col_stats_ = own_stats_;
    bias_ = nullptr;
    if (p_.bias == nullptr) return;
    for (int64_t n = 0; n < tile.cols; ++n) own_bias_[n] = load_element(p_.bias_dtype, p_.bias, tile.col + n);
    bias_ = own_bias_;
  }

  void add_outliers(const Tile& tile, const int8_t* panels, int64_t panel_stride, bool copy_columns) {
    if (count_ == 0) return;
    std::memset(s_.out, 0, static_cast<size_t>(tile.rows * kBlockN) * sizeof(float));
    for (int64_t first = 0; first < count_; first += kChunk) {
      const int64_t count = std::min(kChunk, count_ - first);
      gather_x(tile, first, count);
      const int32_t* cols = s_.cols + first;
      if (copy_columns) {
        copy_b_columns(tile, cols, count);
        cols = identity();
      }
      const uint16_t* kept[kChunk];
      find_kept(tile, s_.cols + first, count, kept);
      p_.kernels->outliers.run({.rows = tile.rows,
                                .panels = panels,
                                .panel_stride = panel_stride,
                                .panel_count = tile.panel_count,
                                .col_stats = col_stats_,
                                .count = count,
                                .cols = cols,
                                .x = s_.x,
                                .codes = p_.subtract ? s_.x_codes : nullptr,
                                .x_stride = kChunk,
                                .kept = kept,
                                .skip_zero = p_.element,
                                .acc = s_.acc,
                                .out = s_.out,
                                .acc_stride = kBlockN});
    }
  }

  // x[i][t] and its code for outlier columns [first, first + count) of the tile's rows; kept from tile to tile.
  void gather_x(const Tile& tile, int64_t first, int64_t count) {
    if (gathered_row_ == tile.row && gathered_first_ == first) return;
    gathered_row_ = tile.row;
    gathered_first_ = first;
    const int32_t dtype = p_.x.dtype == 0 ? INT8Q_F32 : p_.x.dtype == 1 ? INT8Q_F16 : INT8Q_BF16;
    for (int64_t i = 0; i < tile.rows; ++i) {
      const uint8_t* row = p_.x.row(tile.row + i);
      float* x = s_.x + i * kChunk;
      for (int64_t t = 0; t < count; ++t) {
        x[t] = load_element(dtype, row, s_.cols[first + t]);
        if (p_.element && !is_outlier(x[t])) x[t] = 0.0f;
      }
      if (!p_.subtract) continue;
      const uint8_t* codes = p_.codes + (tile.row + i) * code_stride_;
      for (int64_t t = 0; t < count; ++t) s_.x_codes[i * kChunk + t] = code_at(codes, s_.cols[first + t]);
    }
  }

  bool is_outlier(float x) const {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    bits &= 0x7fffffffu;
    return bits >= p_.limit && bits <= cpu::kInfBits;
  }

  int32_t code_at(const uint8_t* codes, int64_t k) const {
    if (p_.kernels->layout == CodeLayout::kU8) return codes[k] - 128;
    constexpr int64_t kPlace[4] = {0, 2, 1, 3};
    int16_t code;
    std::memcpy(&code, codes + (k / 4 * 4 + kPlace[k % 4]) * 2, sizeof code);
    return code;
  }

  // Columns cols[0..count) of the tile's rows of B, as columns 0, 1, ... of panels that are kChunk deep.
  void copy_b_columns(const Tile& tile, const int32_t* cols, int64_t count) {
    std::memset(s_.panels, 0, static_cast<size_t>(kChunk * kBlockN));
    for (int64_t n = 0; n < tile.cols; ++n) {
      const int8_t* row = p_.b + (tile.col + n) * p_.b_stride;
      int8_t* panel = s_.panels + n / kPanelRows * kChunk * kPanelRows + n % kPanelRows * kGroup;
      for (int64_t t = 0; t < count; ++t) panel[t / kGroup * kGroup * kPanelRows + t % kGroup] = row[cols[t]];
    }
  }

  static const int32_t* identity() {
    static const struct Identity {
      int32_t index[kChunk];
      Identity() {
        for (int32_t t = 0; t < kChunk; ++t) index[t] = t;
      }
    } identity;
    return identity.index;
  }

  // fp16 weights of those columns that the linear keeps; both lists ascend.
  void find_kept(const Tile& tile, const int32_t* cols, int64_t count, const uint16_t** kept) const {
    const bool any = p_.weights == Weights::kPacked && p_.blob.header->kept_count > 0;
    const int64_t* begin = any ? p_.blob.kept_cols : nullptr;
    const int64_t* end = any ? begin + p_.blob.header->kept_count : nullptr;
    const int64_t* next = begin;
    for (int64_t t = 0; t < count; ++t) {
      next = std::lower_bound(next, end, static_cast<int64_t>(cols[t]));
      const bool found = next != end && *next == cols[t];
      kept[t] = found ? p_.blob.kept_weights + (next - begin) * p_.blob.n_padded() + tile.col : nullptr;
    }
  }

  void finish(const Tile& tile) {
    uint8_t* y = p_.y + tile.row * p_.y_stride + tile.col * dtype_bytes(p_.y_dtype);
    if (p_.y_dtype == INT8Q_S32) {
      for (int64_t i = 0; i < tile.rows; ++i) {
        std::memcpy(y + i * p_.y_stride, s_.acc + i * kBlockN, static_cast<size_t>(tile.cols) * sizeof(int32_t));
      }
      return;
    }
    p_.kernels->epilogue[kernel_index(p_.y_dtype)].run({.rows = tile.rows,
                                                        .cols = tile.cols,
                                                        .acc = s_.acc,
                                                        .out = count_ > 0 ? s_.out : nullptr,
                                                        .acc_stride = kBlockN,
                                                        .row_stats = p_.row_stats + tile.row,
                                                        .col_stats = col_stats_,
                                                        .bias = bias_,
                                                        .y = y,
                                                        .y_stride = p_.y_stride,
                                                        .accumulate = p_.accumulate});
  }

  const Product& p_;
  const PartScratch& s_;
  const int64_t k_padded_;
  const int64_t code_stride_;
  int64_t count_ = 0;  // outlier columns
  int64_t packed_col_ = -1;
  int64_t gathered_row_ = -1, gathered_first_ = -1;
  const float* col_stats_ = nullptr;
  const float* bias_ = nullptr;
  alignas(64) float own_stats_[kBlockN];
  alignas(64) float own_bias_[kBlockN];
  alignas(64) int32_t sums_[kBlockN];
  alignas(64) int32_t start_[kBlockN];
};

}  // namespace

int64_t row_block_count(int64_t m, int64_t n, int64_t parts) {
  const int64_t panels = std::max<int64_t>(ceil_div(n, kPanelRows), 1), least = ceil_div(m, kBlockM);
  return parts == 1 ? least : std::max(least, std::min(ceil_div(kItemsPerPart * parts, panels), ceil_div(m, kLeastRows)));
}

int64_t item_count(int64_t m, int64_t n, int64_t parts) { return ceil_div(n, kPanelRows) * row_block_count(m, n, parts); }

namespace {

// Panels [panel, panel_end) x row blocks [block, block_end), of `blocks` in all.
struct Rectangle {
  int64_t panel, panel_end, block, block_end;
};

void run_rectangle(const Product& p, PartLoop& loop, const Rectangle& r, int64_t blocks) {
  const auto run = [&](int64_t panel, int64_t block) {
    const Range rows = part_range(p.m, block, blocks);
    const int64_t col = panel * kPanelRows,
                  cols = std::min(std::min(r.panel_end - panel, kBlockPanels) * kPanelRows, p.n - col);
    loop.run({rows.begin, rows.end - rows.begin, col, cols, ceil_div(cols, kPanelRows),
              p.weights == Weights::kPacked && panel + kBlockPanels < r.panel_end});
  };
  if (p.weights == Weights::kRowMajor) {  // a panel is packed once for all rows
    for (int64_t panel = r.panel; panel < r.panel_end; panel += kBlockPanels) {
      for (int64_t block = r.block; block < r.block_end; ++block) run(panel, block);
    }
    return;
  }
  for (int64_t block = r.block; block < r.block_end; ++block) {  // a row block's codes and outliers stay in L2
    for (int64_t panel = r.panel; panel < r.panel_end; panel += kBlockPanels) run(panel, block);
  }
}

}  // namespace

void multiply_part(const Product& product, const PartScratch& scratch, int64_t part, int64_t parts) {
  const int64_t blocks = row_block_count(product.m, product.n, parts);
  const Range range = part_range(item_count(product.m, product.n, parts), part, parts);
  if (range.begin == range.end) return;
  PartLoop loop(product, scratch);
  // Whole panels, between what is left of the first and of the last one.
  const int64_t first = ceil_div(range.begin, blocks), last = range.end / blocks;
  if (first > last) {
    return run_rectangle(product, loop, {last, first, range.begin % blocks, range.end % blocks}, blocks);
  }
  if (range.begin < first * blocks) run_rectangle(product, loop, {first - 1, first, range.begin % blocks, blocks}, blocks);
  run_rectangle(product, loop, {first, last, 0, blocks}, blocks);
  if (last * blocks < range.end) run_rectangle(product, loop, {last, last + 1, 0, range.end % blocks}, blocks);
}

}  // namespace int8q
