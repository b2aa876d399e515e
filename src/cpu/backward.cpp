// SPDX-License-Identifier: Apache-2.0
//
// dX[M,K] = (dY o col_stats/127) . Wq in two phases, for at most kBlockRows rows of dY at a time, so that the workspace stays
// bounded. W is never dequantized as a whole.
//
//   scale    g[blocks of kDepth n][rows][kDepth] = dY o col_stats/127     each element once
//   barrier
//   tiles    of rows x 64 columns of dX, for each block of n:
//              w = the codes as floats                 64 KiB, L2; once for all rows of the tile
//              dx += g . w                             one chain an element, n ascending: the same bits for any M, threads, tiles
#include <algorithm>
#include <cstring>

#include "core/dtype.h"
#include "cpu/layer.h"

namespace int8q {
namespace {

using cpu::kPanelRows;

constexpr int64_t kCols = 64;
// A block of n: g of 256 rows is 272 KiB, w and dx 64 KiB each: they stay in an L2 of 1 MiB, beside the codes that come next.
// Loading and storing dx costs one part in a hundred of 256 steps.
constexpr int64_t kDepth = 256;
constexpr int64_t kPanelBytes = kDepth * 64;
// An odd number of cache lines: the rows of a register tile do not fall on one L1 set.
constexpr int64_t kRowBytes = kDepth * 4 + 64;
constexpr int64_t kBlockRows = 256;    // converting a code costs as much as multiplying it by 5 rows
constexpr int64_t kLeastCutRows = 64;  // of what is left of a tile where few columns are shared by many threads
// Below these one thread finishes sooner than two agree to.
constexpr int64_t kSerialScale = 32 << 10;
constexpr int64_t kSerialMultiply = 1 << 20;

struct Workspace {
  uint8_t* g;  // [ceil(N / kDepth)][rows] of kRowBytes
  uint8_t* w;  // the asking part's own: [kCols / 16] panels of kPanelBytes
  float* dx;   // likewise: [rows][kCols]
};

Workspace carve(Carver& carver, const Linear& linear, int64_t rows, int64_t part, int64_t parts) {
  const int64_t most = std::min(rows, kBlockRows);
  Workspace mine{};
  mine.g = carver.take<uint8_t>(checked_mul(ceil_div(linear.n(), kDepth), most * kRowBytes, "workspace"), "workspace");
  for (int64_t i = 0; i < parts; ++i) {
    auto* w = carver.take<uint8_t>(kCols / cpu::kPanelRows * kPanelBytes, "workspace");
    auto* dx = carver.take<float>(most * kCols, "workspace");
    if (i != part) continue;
    mine.w = w;
    mine.dx = dx;
  }
  return mine;
}

// One row block of one call.
struct Gradient {
  const cpu::Kernels& kernels;
  const Linear& linear;
  const FloatRows& dy;
  const Output& dx;
  bool accumulate;
  Range rows;

  int64_t count() const { return rows.end - rows.begin; }
  uint8_t* g_at(const Workspace& w, int64_t n, int64_t row) const { return w.g + (n / kDepth * count() + row) * kRowBytes; }

  // Packed codes of rows n.. and columns k.., and how many panels a block of n has there; NULL past the last ones.
  const int8_t* panels_at(int64_t n, int64_t k) const {
    if (n >= linear.n() || k >= linear.k()) return nullptr;
    return linear.blob.panels + n / kPanelRows * linear.blob.panel_stride() + k * kPanelRows;
  }
  int64_t depth_at(int64_t n) const { return std::min(kDepth, linear.n() - n); }

  void scale(const Workspace& w, Range part) const {
    for (int64_t i = part.begin; i < part.end; ++i) {
      for (int64_t n = 0; n < linear.n(); n += kDepth) {
        kernels.scale[dy.dtype].run(dy.at(rows.begin + i, n), depth_at(n), linear.blob.col_stats + n, g_at(w, n, i));
      }
    }
  }

  void multiply(const Workspace& w, int64_t k, Range tile) const {
    const int64_t m = tile.end - tile.begin, stride = linear.blob.panel_stride();
    std::memset(w.dx, 0, static_cast<size_t>(m * kCols) * sizeof(float));
    for (int64_t n = 0; n < linear.n(); n += kDepth) {
      const int64_t panels = ceil_div(depth_at(n), kPanelRows);
      for (int64_t p = 0; p < panels; ++p) {
        kernels.unpack.run(panels_at(n, k) + p * stride, 0, kCols, w.w + p * kPanelRows * 64, kPanelBytes);
      }
      const bool last = n + kDepth >= linear.n();
      const int64_t next = last ? 0 : n + kDepth;
      kernels.backward.run({.rows = m,
                            .n = depth_at(n),
                            .k = kCols,
                            .g = g_at(w, n, tile.begin),
                            .g_stride = kRowBytes,
                            .w = w.w,
                            .w_stride = kPanelBytes,
                            .next = panels_at(next, last ? k + kCols : k),
                            .next_stride = stride,
                            .next_count = ceil_div(depth_at(next), kPanelRows),
                            .dx = w.dx,
                            .dx_stride = kCols});
    }
    store(w, k, tile);
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
  const bool serial = dy.rows * dy.cols < kSerialMultiply && dy.rows * dy.cols * linear.k() < kSerialMultiply;
  const int64_t threads = context.pool.threads(), parts = serial ? 1 : threads;
  const auto workspace_of = [&](int64_t part) {
    Carver carver(workspace);
    return carve(carver, linear, dy.rows, part, threads);
  };
  const int64_t blocks = ceil_div(dy.rows, kBlockRows), columns = ceil_div(linear.k(), kCols);
  for (int64_t block = 0; block < blocks; ++block) {
    const Gradient gradient{*context.kernels, linear, dy, dx, accumulate, part_range(dy.rows, block, blocks)};
    const int64_t m = gradient.count(), scaling = m * dy.cols < kSerialScale ? 1 : parts;
    context.pool.run(scaling, [&](int64_t part) { gradient.scale(workspace_of(part), part_range(m, part, scaling)); });
    // Items of 64 columns x all rows, or x parts of the rows where there are too few columns to share.
    const int64_t cuts = parts == 1 ? 1 : std::min(ceil_div(kItemsPerPart * parts, columns), ceil_div(m, kLeastCutRows));
    const int64_t items = columns * cuts, sharing = std::min(parts, items);
    context.pool.run(sharing, [&](int64_t part) {
      const Workspace w = workspace_of(part);
      const Range range = part_range(items, part, sharing);
      for (int64_t t = range.begin; t < range.end; ++t) {
        gradient.multiply(w, t / cuts * kCols, part_range(m, t % cuts, cuts));
      }
    });
  }
}

}  // namespace int8q
