// SPDX-License-Identifier: Apache-2.0
//
// dX[M,K] = (dY o col_stats/127) . Wq in fp32. W is never dequantized as a whole:
//
//   tile = up to 256 rows x up to 4 blocks of 64 columns of dX; for 64 n at a time:
//     g[256][64] = dY scaled          64 KiB, L2; once for all blocks of the tile
//     for each block:
//       w[64][64]  = codes as fp32    16 KiB, L1; converted once for 256 rows: 1 conversion to 256 fmas
//       dx += g . w                   one fmaf chain an element, n ascending: the same bits for any M, ISA, threads
#include <algorithm>
#include <cstring>

#include "core/dtype.h"
#include "cpu/layer.h"

namespace int8q {
namespace {

constexpr int64_t kRows = 256;
constexpr int64_t kCols = 64;
constexpr int64_t kMostBlocks = 4;
constexpr int64_t kDepth = 64;
constexpr int64_t kTilesPerPart = 4;  // so many at least, where narrower tiles give them

struct Scratch {
  float* dx;  // [kMostBlocks][rows][kCols]
  float* g;   // [rows][kDepth]
  float* w;   // [kDepth][kCols]
};

Scratch carve(Carver& carver, int64_t rows, int64_t part, int64_t parts) {
  const int64_t block = std::min(rows, kRows);
  Scratch mine{};
  for (int64_t i = 0; i < parts; ++i) {
    const Scratch s{carver.take<float>(kMostBlocks * block * kCols, "workspace"),
                    carver.take<float>(block * kDepth, "workspace"), carver.take<float>(kDepth * kCols, "workspace")};
    if (i == part) mine = s;
  }
  return mine;
}

void backward_tile(const cpu::Kernels& kernels, const Linear& linear, const FloatRows& dy, const Output& dx,
                   bool accumulate, const Scratch& s, Range rows, Range blocks) {
  const int64_t m = rows.end - rows.begin, block_floats = m * kCols;
  const BlobSections& blob = linear.blob;
  std::memset(s.dx, 0, static_cast<size_t>((blocks.end - blocks.begin) * block_floats) * sizeof(float));
  for (int64_t n = 0; n < linear.n(); n += kDepth) {
    const int64_t depth = std::min(kDepth, linear.n() - n);
    for (int64_t i = 0; i < m; ++i) {
      kernels.scale[dy.dtype].run(dy.at(rows.begin + i, n), depth, blob.col_stats + n, s.g + i * kDepth);
    }
    for (int64_t b = blocks.begin; b < blocks.end; ++b) {
      for (int64_t p = 0; p < depth; p += cpu::kPanelRows) {
        kernels.unpack.run(blob.panels + (n + p) / cpu::kPanelRows * blob.panel_stride(), b * kCols, kCols, s.w + p * kCols,
                           kCols);
      }
      kernels.backward.run({m, depth, kCols, s.g, kDepth, s.w, kCols, s.dx + (b - blocks.begin) * block_floats, kCols});
    }
  }
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t b = blocks.begin; b < blocks.end; ++b) {
      kernels.store[kernel_index(dx.dtype)].run(
          s.dx + (b - blocks.begin) * block_floats + i * kCols, std::min(kCols, linear.k() - b * kCols),
          dx.data + (rows.begin + i) * dx.row_bytes + b * kCols * dtype_bytes(dx.dtype), accumulate);
    }
  }
}

}  // namespace

int64_t backward_workspace_bytes(int64_t rows, int64_t parts) {
  Carver carver(nullptr);
  carve(carver, rows, 0, parts);
  return std::max<int64_t>(carver.used(), kAlignment);
}

void backward(Context& context, const Linear& linear, const FloatRows& dy, const Output& dx, bool accumulate,
              void* workspace) {
  const int64_t row_blocks = ceil_div(dy.rows, kRows), blocks = ceil_div(linear.k(), kCols);
  const int64_t wanted = kTilesPerPart * context.pool.threads();
  const int64_t width = std::clamp<int64_t>(row_blocks * blocks / wanted, 1, kMostBlocks);
  const int64_t columns = ceil_div(blocks, width), tiles = row_blocks * columns;
  if (tiles == 0) return;
  const int64_t parts = std::min<int64_t>(tiles, context.pool.threads());
  context.pool.run(parts, [&](int64_t part) {
    Carver carver(workspace);
    const Scratch scratch = carve(carver, dy.rows, part, parts);
    const Range range = part_range(tiles, part, parts);
    for (int64_t t = range.begin; t < range.end; ++t) {
      backward_tile(*context.kernels, linear, dy, dx, accumulate, scratch, part_range(dy.rows, t % row_blocks, row_blocks),
                    part_range(blocks, t / row_blocks, columns));
    }
  });
}

}  // namespace int8q
