// SPDX-License-Identifier: Apache-2.0
//
// dX[M,K] = (dY o col_stats/127) . Wq in two phases, for at most kBlockRows rows of dY at a time, so that the workspace stays
// bounded. W is never dequantized as a whole.
//
//   scale    g[blocks of n][rows][n of a block] = dY o col_stats/127      each element once
//   barrier
//   tiles    of rows x 64 columns of dX, for each block of n:
//              w = the codes as floats                 64 KiB, L2; once for all rows of the tile
//              dx += g . w                             one chain an element, n in one order: the same bits for any M, threads, tiles
//
// g and w are fp32, one n a step, or, for bf16 dY where the kernels have it, bf16 and two n a step.
#include <algorithm>
#include <cstring>
#include <utility>

#include "core/dtype.h"
#include "cpu/layer.h"

namespace int8q {
namespace {

using cpu::kPanelRows;

constexpr int64_t kCols = 64;
// A block of n: g of 256 rows is 272 KiB, w and dx 64 KiB each: they stay in an L2 of 1 MiB, beside the codes that come next.
// Loading and storing dx costs one part in a hundred of 256 steps.
constexpr int64_t kSteps = 256;
constexpr int64_t kPanelBytes = kSteps * 64;
constexpr int64_t kRowBytes = odd_lines(kSteps * 4);
constexpr int64_t kBlockRows = 256;    // converting a code costs as much as multiplying it by 5 rows
constexpr int64_t kLeastCutRows = 64;  // of what is left of a tile where few columns are shared by many threads

struct Method {
  cpu::UnpackPanel unpack;
  cpu::Backward multiply;
  int64_t step;  // n of a step

  int64_t depth() const { return kSteps * step; }
};

Method method_for(const cpu::Kernels& kernels, int dtype) {
  if (dtype == kernel_index(INT8Q_BF16) && kernels.backward_bf16.run != nullptr) {
    return {kernels.unpack_bf16.run, kernels.backward_bf16.run, 2};
  }
  return {kernels.unpack.run, kernels.backward.run, 1};
}

struct Workspace {
  uint8_t* g;     // [blocks of n][rows] of kRowBytes
  uint8_t* w[2];  // the asking part's own: this block's and the next one's [kCols / 16] panels of kPanelBytes
  float* dx;      // likewise: [rows][kCols]
};

Workspace carve(Carver& carver, const Linear& linear, int64_t rows, int64_t part, int64_t parts) {
  const int64_t most = std::min(rows, kBlockRows);
  Workspace mine{};
  mine.g = carver.take<uint8_t>(checked_mul(ceil_div(linear.n(), kSteps), most * kRowBytes, "workspace"), "workspace");
  for (int64_t i = 0; i < parts; ++i) {
    auto* w = carver.take<uint8_t>(2 * kCols / kPanelRows * kPanelBytes, "workspace");
    auto* dx = carver.take<float>(most * kCols, "workspace");
    if (i != part) continue;
    mine.w[0] = w;
    mine.w[1] = w + kCols / kPanelRows * kPanelBytes;
    mine.dx = dx;
  }
  return mine;
}

// One row block of one call.
struct Gradient {
  const cpu::Kernels& kernels;
  Method method;
  const Linear& linear;
  const FloatRows& dy;
  const Output& dx;
  bool accumulate;
  Range rows;
  int64_t cuts;  // of the rows; an item is 64 columns of one of them

  int64_t count() const { return rows.end - rows.begin; }
  int64_t blocks() const { return ceil_div(linear.n(), method.depth()); }
  int64_t depth(int64_t block) const { return std::min(method.depth(), linear.n() - block * method.depth()); }
  uint8_t* g_at(const Workspace& w, int64_t block, int64_t row) const { return w.g + (block * count() + row) * kRowBytes; }

  void scale(const Workspace& w, Range part) const {
    for (int64_t i = part.begin; i < part.end; ++i) {
      for (int64_t b = 0; b < blocks(); ++b) {
        const int64_t n = b * method.depth();
        kernels.scale[dy.dtype].run(dy.at(rows.begin + i, n), depth(b), linear.blob.col_stats + n, g_at(w, b, i));
      }
    }
  }

  // Codes of a block of n in the columns of an item.
  struct Codes {
    const int8_t* panels;
    int64_t count;
  };
  Codes codes(int64_t item, int64_t block) const {
    const int64_t panel = block * method.depth() / kPanelRows;
    return {linear.blob.panels + panel * linear.blob.panel_stride() + item / cuts * kCols * kPanelRows,
            ceil_div(depth(block), kPanelRows)};
  }

  void multiply(Workspace& w, Range items) const {
    if (blocks() > 0) unpack(codes(items.begin, 0), w.w[0]);
    for (int64_t item = items.begin; item < items.end; ++item) {
      const Range tile = part_range(count(), item % cuts, cuts);
      for (int64_t b = 0; b < blocks(); ++b) {
        const bool last = b + 1 == blocks();
        const Codes next = !last ? codes(item, b + 1) : item + 1 < items.end ? codes(item + 1, 0) : Codes{nullptr, 0};
        method.multiply({.rows = tile.end - tile.begin,
                         .n = depth(b),
                         .k = kCols,
                         .g = g_at(w, b, tile.begin),
                         .g_stride = kRowBytes,
                         .w = w.w[0],
                         .w_stride = kPanelBytes,
                         .next_count = next.count,
                         .next = next.panels,
                         .next_stride = linear.blob.panel_stride(),
                         .next_w = w.w[1],
                         .dx = w.dx,
                         .dx_stride = kCols,
                         .accumulate = b > 0});
        std::swap(w.w[0], w.w[1]);
      }
      if (blocks() == 0) std::memset(w.dx, 0, static_cast<size_t>((tile.end - tile.begin) * kCols) * sizeof(float));
      store(w, item / cuts * kCols, tile);
    }
  }

  void unpack(const Codes& codes, uint8_t* w) const {
    for (int64_t p = 0; p < codes.count; ++p) {
      method.unpack(codes.panels + p * linear.blob.panel_stride(), 0, kCols, w + p * kPanelRows / method.step * 64,
                    kPanelBytes);
    }
  }

  void store(const Workspace& w, int64_t k, Range tile) const {
    uint8_t* out = dx.data + (rows.begin + tile.begin) * dx.row_bytes + k * dtype_bytes(dx.dtype);
    for (int64_t i = 0; i < tile.end - tile.begin; ++i) {
      kernels.store[kernel_index(dx.dtype)].run(w.dx + i * kCols, std::min(kCols, linear.k() - k), out + i * dx.row_bytes,
                                                accumulate);
    }
  }
};

}  // namespace

int64_t backward_workspace_bytes(const Linear& linear, int64_t rows, int64_t parts) {
  Carver carver(nullptr);
  carve(carver, linear, rows, 0, parts);
  return std::max<int64_t>(carver.used(), kAlignment);
}

void backward(Context& context, const Linear& linear, const FloatRows& dy, const Output& dx, bool accumulate,
              void* workspace) {
  if (linear.k() == 0) return;
  const bool serial = is_serial_product(dy.rows, dy.cols, linear.k());
  const int64_t threads = context.pool.threads(), parts = serial ? 1 : threads;
  const auto workspace_of = [&](int64_t part) {
    Carver carver(workspace);
    return carve(carver, linear, dy.rows, part, threads);
  };
  const Method method = method_for(*context.kernels, dy.dtype);
  const int64_t blocks = ceil_div(dy.rows, kBlockRows), columns = ceil_div(linear.k(), kCols);
  for (int64_t block = 0; block < blocks; ++block) {
    const Range rows = part_range(dy.rows, block, blocks);
    const int64_t m = rows.end - rows.begin;
    // Items of all rows, or of parts of them where there are too few columns to share.
    const int64_t cuts = parts == 1 ? 1 : std::min(ceil_div(kItemsPerPart * parts, columns), ceil_div(m, kLeastCutRows));
    const Gradient gradient{*context.kernels, method, linear, dy, dx, accumulate, rows, cuts};
    const int64_t scaling = m * dy.cols < kSerialElements ? 1 : parts, sharing = std::min(parts, columns * cuts);
    context.pool.run(scaling, [&](int64_t part) { gradient.scale(workspace_of(part), part_range(m, part, scaling)); });
    const auto multiply = [&](int64_t part) {
      Workspace w = workspace_of(part);
      gradient.multiply(w, part_range(columns * cuts, part, sharing));
    };
    context.pool.run(sharing, multiply, wake_for(m, dy.cols, linear.k()));
  }
}

}  // namespace int8q
