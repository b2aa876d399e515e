// SPDX-License-Identifier: Apache-2.0
#include "cpu/product.h"

#include <algorithm>
#include <cstring>
#include <numeric>

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
        code_stride_(code_row_bytes(*product.kernels, product.k)),
        code_bytes_(product.kernels->layout == CodeLayout::kU8 ? 1 : 2) {
    find_outlier_columns();
    if (p_.all) std::memset(s_.acc, 0, static_cast<size_t>(std::min(p_.m, kBlockM) * kBlockN) * sizeof(int32_t));
    x_stride_ = round_up(count_, kGroup);
  }

  // Rows whose outlier columns the scratch holds at once.
  int64_t most_rows() const { return count_ == 0 ? p_.m : std::max<int64_t>(s_.gathered / x_stride_, 1); }

  void run(const Tile& tile) {
    switch (p_.weights) {
      case Weights::kPacked:
        if (p_.all) return run_floats(tile, p_.blob.panels + tile.col / kPanelRows * p_.blob.panel_stride());
        return run_panels(tile, p_.blob.panels + tile.col / kPanelRows * p_.blob.panel_stride(),
                          p_.blob.col_sums + tile.col);
      case Weights::kRowMajor: return p_.codes == nullptr ? run_dot(tile) : run_panels(tile, pack(tile), sums_);
      case Weights::kNone: return run_given(tile);
    }
  }

 private:
  void find_outlier_columns() {
    if (p_.all) {
      std::iota(s_.cols, s_.cols + p_.k, 0);
      count_ = p_.k;
      return;
    }
    if (p_.given_count > 0) {
      for (int64_t t = 0; t < p_.given_count; ++t) s_.cols[t] = static_cast<int32_t>(p_.given_cols[t]);
      count_ = p_.given_count;
      return;
    }
    if (p_.limit == cpu::kNoOutliers || p_.column_bits == nullptr) return;
    count_ = list_columns(p_.column_bits, p_.bit_parts, p_.k, s_.cols);
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
    const int64_t depth = p_.m <= cpu::kGemvRows ? std::max<int64_t>(k_padded_, 1) : kBlockK;
    const int64_t stride = k_padded_ * kPanelRows;
    find_start(sums, tile.panel_count);
    int64_t k = 0;
    do {
      const int8_t* block = panels + k * kPanelRows;
      const bool last = k + depth >= k_padded_;
      const int8_t* next = !last           ? block + depth * kPanelRows
                           : tile.has_next ? panels + tile.panel_count * stride
                                           : nullptr;
      run_gemm(tile, p_.codes + tile.row * code_stride_ + k * code_bytes_, code_stride_, block, stride,
               std::min(depth, k_padded_ - k) / kGroup, k > 0, next);
      std::memset(start_, 0, sizeof start_);
      k += depth;
    } while (k < k_padded_);
    load_columns(tile);
    add_outliers(tile, panels, stride);
    finish(tile);
  }

  void run_floats(const Tile& tile, const int8_t* panels) {
    load_columns(tile);
    if (count_ > 0) gather_x(tile);
    for (int64_t first = 0; first < count_; first += kChunk) {
      add_columns(tile, panels + first * kPanelRows, p_.blob.panel_stride(), first);
    }
    finish(tile);
  }

  void run_gemm(const Tile& tile, const uint8_t* codes, int64_t code_stride, const int8_t* panels, int64_t panel_stride,
                int64_t groups, bool accumulate, const int8_t* next) {
    (p_.m <= cpu::kGemvRows ? p_.kernels->gemv : p_.kernels->gemm)
        .run({.codes = codes,
              .code_stride = code_stride,
              .rows = tile.rows,
              .panels = panels,
              .panel_stride = panel_stride,
              .panel_count = tile.panel_count,
              .groups = groups,
              .start = start_,
              .accumulate = accumulate,
              .next = next,
              .acc = s_.acc,
              .acc_stride = kBlockN});
  }

  // u8 codes are 128 too large: sum (a + 128) b - 128 sum b. uint32 wraps, the true sum fits.
  void find_start(const int32_t* sums, int64_t panel_count) {
    const bool u8 = p_.kernels->layout == CodeLayout::kU8;
    for (int64_t n = 0; n < panel_count * kPanelRows; ++n) {
      start_[n] = u8 ? static_cast<int32_t>(0u - 128u * static_cast<uint32_t>(sums[n])) : 0;
    }
  }

  // Few rows of A: streams the rows of B as they lie; its outlier columns, whose cache lines are near, follow.
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
    add_outliers(tile, nullptr, 0);
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

  // panels: B's, or NULL where B is row-major.
  void add_outliers(const Tile& tile, const int8_t* panels, int64_t panel_stride) {
    if (count_ == 0) return;
    gather_x(tile);
    constexpr int64_t kSmallStride = kChunk * kPanelRows;
    for (int64_t first = 0; first < count_; first += kChunk) {
      const int64_t count = std::min(kChunk, count_ - first);
      const int32_t* cols = s_.cols + first;
      if (panels == nullptr) {
        copy_b_columns(tile, cols, count);
      } else {
        int32_t sums[kBlockN];
        for (int64_t p = 0; p < tile.panel_count; ++p) {
          p_.kernels->columns.run(panels + p * panel_stride, cols, count, s_.columns + p * kSmallStride,
                                  sums + p * kPanelRows);
        }
        if (p_.subtract) {
          find_start(sums, tile.panel_count);
          run_gemm(tile, s_.x_codes + first * code_bytes_, x_stride_ * code_bytes_, s_.columns, kSmallStride,
                   ceil_div(count, kGroup), true, nullptr);
        }
      }
      add_columns(tile, s_.columns, kSmallStride, first);
    }
  }

  // Up to kChunk outlier columns from the `first` on, which are those of the panels.
  void add_columns(const Tile& tile, const int8_t* panels, int64_t panel_stride, int64_t first) {
    const int64_t count = std::min(kChunk, count_ - first);
    const uint16_t* kept[kChunk];
    find_kept(tile, s_.cols + first, count, kept);
    p_.kernels->outliers.run({.rows = tile.rows,
                              .panels = panels,
                              .panel_stride = panel_stride,
                              .panel_count = tile.panel_count,
                              .col_stats = col_stats_,
                              .count = count,
                              .x = s_.x + first,
                              .x_stride = x_stride_,
                              .kept = kept,
                              .start = first == 0,
                              .skip_zero = p_.element,
                              .out = s_.out,
                              .out_stride = kBlockN});
  }

  // Outlier columns of the tile's rows of X, and their codes negated; kept from tile to tile.
  void gather_x(const Tile& tile) {
    if (gathered_row_ == tile.row) return;
    gathered_row_ = tile.row;
    switch (p_.x.dtype) {
      case 0: gather_elements<INT8Q_F32>(tile); break;
      case 1: gather_elements<INT8Q_F16>(tile); break;
      default: gather_elements<INT8Q_BF16>(tile);
    }
    if (!p_.subtract) return;
    for (int64_t i = 0; i < tile.rows; ++i) {
      const uint8_t* codes = p_.codes + (tile.row + i) * code_stride_;
      uint8_t* to = s_.x_codes + i * x_stride_ * code_bytes_;
      std::memset(to, 0, static_cast<size_t>(x_stride_ * code_bytes_));
      for (int64_t t = 0; t < count_; ++t) copy_negated(codes, s_.cols[t], to, t);
    }
  }

  template <int32_t kDtype>
  void gather_elements(const Tile& tile) {
    for (int64_t i = 0; i < tile.rows; ++i) {
      const uint8_t* row = p_.x.row(tile.row + i);
      float* x = s_.x + i * x_stride_;
      for (int64_t t = 0; t < count_; ++t) {
        x[t] = load_element(kDtype, row, s_.cols[t]);
        if (p_.element && !is_outlier(x[t])) x[t] = 0.0f;
      }
    }
  }

  // Code t of `to` becomes minus code k of `codes`, which is none of -128: both layouts hold that.
  void copy_negated(const uint8_t* codes, int64_t k, uint8_t* to, int64_t t) const {
    if (code_bytes_ == 1) {
      to[t] = static_cast<uint8_t>(-codes[k]);
      return;
    }
    int16_t code;
    std::memcpy(&code, codes + cpu::pair_place(k) * 2, sizeof code);
    code = static_cast<int16_t>(-code);
    std::memcpy(to + cpu::pair_place(t) * 2, &code, sizeof code);
  }

  bool is_outlier(float x) const {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    bits &= 0x7fffffffu;
    return bits >= p_.limit && bits <= cpu::kInfBits;
  }

  // Columns cols[0..count) of the tile's rows of B, as small panels.
  void copy_b_columns(const Tile& tile, const int32_t* cols, int64_t count) {
    std::memset(s_.columns, 0, static_cast<size_t>(kChunk * kBlockN));
    for (int64_t n = 0; n < tile.cols; ++n) {
      const int8_t* row = p_.b + (tile.col + n) * p_.b_stride;
      int8_t* panel = s_.columns + n / kPanelRows * kChunk * kPanelRows + n % kPanelRows * kGroup;
      for (int64_t t = 0; t < count; ++t) panel[t / kGroup * kGroup * kPanelRows + t % kGroup] = row[cols[t]];
    }
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
                                                        .row_stats = p_.all ? kZeros : p_.row_stats + tile.row,
                                                        .col_stats = col_stats_,
                                                        .bias = bias_,
                                                        .y = y,
                                                        .y_stride = p_.y_stride,
                                                        .accumulate = p_.accumulate});
  }

  static constexpr float kZeros[kBlockM] = {};

  const Product& p_;
  const PartScratch& s_;
  const int64_t k_padded_;
  const int64_t code_stride_;
  const int64_t code_bytes_;
  int64_t count_ = 0;  // outlier columns
  int64_t packed_col_ = -1;
  int64_t gathered_row_ = -1;
  int64_t x_stride_ = 0;  // outlier columns, whole groups
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
  const auto run = [&](int64_t panel, int64_t row, int64_t rows) {
    const int64_t col = panel * kPanelRows,
                  cols = std::min(std::min(r.panel_end - panel, kBlockPanels) * kPanelRows, p.n - col);
    loop.run({row, rows, col, cols, ceil_div(cols, kPanelRows),
              p.weights == Weights::kPacked && panel + kBlockPanels < r.panel_end});
  };
  const auto run_rows = [&](int64_t block, const auto& body) {
    const Range rows = part_range(p.m, block, blocks);
    for (int64_t row = rows.begin; row < rows.end; row += loop.most_rows()) {
      body(row, std::min(loop.most_rows(), rows.end - row));
    }
  };
  if (p.weights == Weights::kRowMajor) {  // a panel is packed once for all rows
    for (int64_t panel = r.panel; panel < r.panel_end; panel += kBlockPanels) {
      for (int64_t block = r.block; block < r.block_end; ++block) {
        run_rows(block, [&](int64_t row, int64_t rows) { run(panel, row, rows); });
      }
    }
    return;
  }
  for (int64_t block = r.block; block < r.block_end; ++block) {  // a row block's codes and outliers stay in L2
    run_rows(block, [&](int64_t row, int64_t rows) {
      for (int64_t panel = r.panel; panel < r.panel_end; panel += kBlockPanels) run(panel, row, rows);
    });
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
