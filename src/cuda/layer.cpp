// SPDX-License-Identifier: Apache-2.0
#include "cuda/layer.h"

#include <algorithm>

#include "core/context.h"
#include "core/dtype.h"
#include "cuda/kernels/shapes.h"

namespace int8q::cuda {
namespace {

static_assert(gpu::kNoOutliers == cpu::kNoOutliers);

constexpr int kBlocksPerSm = 2;            // of the persistent kernels
constexpr int kQuantizingBlocksPerSm = 4;  // of which each waits for a row at a time
// Codes up to which each block quantizes X for itself, instead of a launch more. An SM's two blocks then take 16 instructions an
// element twice, of which it issues 128 threads' a cycle, that is bytes / 4 cycles; and read 2 bytes an element twice from L2, at
// some 25 bytes a cycle (5.5 TB/s, 132 SMs), bytes / 6. 16 KiB: 4096 cycles, 2.3 us at 1.75 GHz, where the launch costs 2 to 3 us.
// Counted in sm_80's code. On an H100 five rows of K=4096 take by two launches what four take by one, two of K=14336 6.7 us more than
// one.
constexpr int64_t kFusedBytes = 16 << 10;

constexpr auto dtype_of(int32_t abi) { return static_cast<gpu::Dtype>(kernel_index(abi)); }

// Rows up to which a kernel of `skinny` serves: 8 << index.
size_t skinny_index(int64_t rows) {
  size_t index = 0;
  while (8 << index < rows) ++index;
  return index;
}

bool fuses(const Device& device, int64_t rows, int64_t k) {
  if (rows > device.shapes.skinny_rows || rows * round_up(k, 16) > kFusedBytes) return false;
  const int up_to = 8 << skinny_index(rows);
  return gpu::SkinnyShape::shared_bytes(up_to, rows, k, true) <= device.shared_bytes;
}

void launch_skinny(Queue& queue, const gpu::Gemm& p, bool fused) {
  const size_t index = skinny_index(p.m);
  const Kernels& kernels = queue.device.kernels;
  const int64_t tiles = ceil_div(p.n, gpu::SkinnyShape::kRowsOfW), blocks = queue.device.multiprocessors * kBlocksPerSm;
  queue.launch(fused ? kernels.skinny_fused[index] : kernels.skinny[index][is_aligned(p.w, p.w_stride)],
               std::min(tiles, blocks), gpu::SkinnyShape::kThreads,
               gpu::SkinnyShape::shared_bytes(8 << index, p.m, p.k, fused), p);
}

int64_t tiles_of(const Tile& tile, const gpu::Gemm& p) {
  return checked_mul(ceil_div(p.m, tile.m), ceil_div(p.n, tile.n), "the result");
}

// Small tiles that share K take two blocks an SM, of which each has 256 of K left.
constexpr int64_t kMostSplits = 4, kLeastOfASplit = 256;
int64_t most_splitting_blocks(const Device& device) { return int64_t{kBlocksPerSm} * device.multiprocessors; }

int splits_of(const Device& device, int64_t tiles, int64_t k) {
  const int64_t splits = std::min(most_splitting_blocks(device) / tiles, k / kLeastOfASplit);
  return static_cast<int>(std::clamp<int64_t>(splits, 1, kMostSplits));
}

// A tile's coordinates have 31 bits.
constexpr int64_t kMostByMaps = (int64_t{1} << 31) - 256;

// A tile of gemm_wgmma's takes as long for its first copies and its results as for so much of K; for K itself, by 128 columns 1.1
// times what columns say, for shared memory is too slow for them. As measured on an H100.
constexpr int64_t kFixedOfTile = 2048, kLeastColumns = 144;

// Which of gemm_wgmma's tiles takes this product in the fewest cycles: for aligned weights, where there is room for the list of
// outlier columns and tiles keep an SM of five busy at least. -1: none.
int wgmma_tile_for(const Device& device, const gpu::Gemm& p) {
  if (!device.has_wgmma() || p.k == 0 || p.m > kMostByMaps || p.n > kMostByMaps || p.k > kMostByMaps) return -1;
  if (p.found != nullptr) {
    if (p.scope == gpu::OutlierScope::kElements || !gpu::WgmmaTile<256>::finds_first(p.k, p.kept_count > 0)) return -1;
  }
  if (!is_aligned(p.w, p.w_stride)) return -1;
  int best = -1;
  int64_t fewest = INT64_MAX;
  for (int i = 1; i >= 0; --i) {
    const Tile& tile = device.shapes.wgmma[static_cast<size_t>(i)];
    const int64_t blocks = tiles_of(tile, p), waves = ceil_div(blocks, device.multiprocessors);
    const int64_t of_tile = std::max<int64_t>(tile.n, kLeastColumns) * p.k + tile.n * kFixedOfTile;
    const int64_t cycles = checked_mul(waves, of_tile, "the result");
    if (5 * blocks >= device.multiprocessors && cycles < fewest) best = i, fewest = cycles;
  }
  return best;
}

// Rows of `cols` bytes, copied by boxes of 64 or 128 bytes of each.
gpu::TensorMap map_of(const Device& device, const void* matrix, int64_t rows, int64_t cols, int64_t stride, int box_rows,
                      int box_cols) {
  gpu::TensorMap map;
  const uint64_t sizes[] = {static_cast<uint64_t>(cols), static_cast<uint64_t>(rows)},
                 strides[] = {static_cast<uint64_t>(stride)};
  const uint32_t box[] = {static_cast<uint32_t>(box_cols), static_cast<uint32_t>(box_rows)}, ones[] = {1, 1};
  check(device.driver.cuTensorMapEncodeTiled(&map, kOfBytes, 2, const_cast<void*>(matrix), sizes, strides, box, ones,
                                             kNotInterleaved, box_cols == 64 ? kSwizzled64 : kSwizzled128, kPromotedTo256,
                                             kZerosOutside),
        "cuTensorMapEncodeTiled");
  return map;
}

void launch_wgmma(Queue& queue, const gpu::Gemm& p, size_t which) {
  const Device& device = queue.device;
  const Tile& tile = device.shapes.wgmma[which];
  constexpr int kK = gpu::WgmmaTile<256>::kK;  // of both
  const gpu::GemmByMaps maps{map_of(device, p.codes, p.m, p.k, p.codes_stride, tile.m, kK),
                             map_of(device, p.w, p.n, p.k, p.w_stride, tile.n, kK), p};
  queue.launch(device.kernels.gemm_wgmma[which], tiles_of(tile, p), tile.threads,
               tile.shared_bytes(p.k, p.found != nullptr, p.kept_count > 0), maps);
}

// sums: [M][N], NULL without cuBLASLt. Whether it takes this product.
bool multiply_by_cublaslt(Queue& queue, gpu::Gemm p, int32_t* sums) {
  if (sums == nullptr) return false;
  const Device& device = queue.device;
  const std::shared_ptr<const CublasLt::Plan> plan = device.cublaslt->plan_for(p);
  if (plan == nullptr) return false;
  const int status = plan->product.run(plan->algorithm, p.w, p.codes, sums, nullptr, 0, queue.stream);
  if (status != 0) fail(INT8Q_DEVICE_FAILED, "cublasLtMatmul: cublasStatus_t %d", status);
  queue.count_launch();
  p.partials = sums;
  const Tile& tile = device.shapes.small;
  queue.launch(device.kernels.finish, tiles_of(tile, p), tile.threads,
               tile.shared_bytes(p.k, p.found != nullptr, p.kept_count > 0), p);
  return true;
}

struct Workspace {
  QuantizedRows x{};
  int32_t* partials = nullptr;
  int32_t* products = nullptr;  // [rows][n], of cuBLASLt

  Workspace() = default;
  // n: the most of the linears.
  Workspace(Carver& carver, const Device& device, int64_t rows, int64_t k, int64_t n) {
    x.stride = round_up(k, 16);
    x.blocks = quantizing_blocks(device, rows);
    x.codes = carver.take<int8_t>(checked_mul(rows, x.stride, "workspace"), "workspace");
    x.row_stats = carver.take<float>(rows, "workspace");
    x.found = carver.take<gpu::FoundColumns>(x.blocks, "workspace");
    x.bitmaps = carver.take<uint32_t>(static_cast<int64_t>(x.blocks) * gpu::bitmap_words(k), "workspace");
    // For any number of rows up to this one.
    const int64_t splitting = rows > device.shapes.skinny_rows ? most_splitting_blocks(device) : 0;
    x.counter_count = static_cast<int>(splitting / 2);  // two blocks or more share one
    x.counters = carver.take<uint32_t>(x.counter_count, "workspace");
    partials = carver.take<int32_t>(splitting * device.shapes.small.m * device.shapes.small.n, "workspace");
    if (device.cublaslt == nullptr || rows <= device.shapes.skinny_rows) return;
    products = carver.take<int32_t>(checked_mul(rows, n, "workspace"), "workspace");
  }
};

gpu::OutlierScope scope_of(int32_t outlier_mode) {
  return outlier_mode == INT8Q_OUTLIERS_ELEMENT ? gpu::OutlierScope::kElements
         : outlier_mode == INT8Q_OUTLIERS_ALL   ? gpu::OutlierScope::kAll
                                                : gpu::OutlierScope::kColumns;
}

// places: with x quantized, or empty where the product quantizes it.
gpu::Gemm product_of(const DeviceWeights& w, const FloatRows& x, const Workspace& places, const Output& y,
                     bool accumulate) {
  const BlobHeader& h = w.header;
  const QuantizedRows& quantized = places.x;
  return {.m = x.rows,
          .n = h.n,
          .k = h.k,
          .codes = quantized.codes,
          .codes_stride = quantized.stride,
          .row_stats = quantized.row_stats,
          .w = w.codes,
          .w_stride = w.stride,
          .col_stats = w.col_stats,
          .bias = w.bias,
          .bias_dtype = dtype_of(w.bias_dtype),
          .found = h.outlier_mode == INT8Q_OUTLIERS_OFF ? nullptr : quantized.found,
          .bitmaps = quantized.bitmaps,
          .found_blocks = quantized.blocks,
          .scope = scope_of(h.outlier_mode),
          .limit = outlier_limit(h.outlier_mode, h.threshold),
          .x = x.data,
          .x_stride = x.row_bytes,
          .x_dtype = static_cast<gpu::Dtype>(x.dtype),
          .kept_count = static_cast<int>(h.kept_count),
          .kept_cols = w.kept_cols,
          .kept_bitmap = w.kept_bitmap,
          .kept_weights = w.kept_weights,
          .kept_stride = w.n_padded(),
          .y = y.data,
          .y_stride = y.row_bytes,
          .y_dtype = dtype_of(y.dtype),
          .accumulators = false,
          .accumulate = accumulate,
          .splits = 1,
          .partials = places.partials,
          .counters = quantized.counters};
}

// How floats of this dtype are multiplied by codes.
gpu::Multiply float_product(const Device& device, int dtype) {
  const int tag = device.image->tag;
  if (tag >= 75 && dtype == kernel_index(INT8Q_F16)) return gpu::Multiply::kF16;
  return tag >= 80 ? gpu::Multiply::kBf16 : gpu::Multiply::kF32;
}

template <template <gpu::Multiply> class Tile>
int shared_bytes_of(gpu::Multiply how) {
  return how == gpu::Multiply::kF16    ? Tile<gpu::Multiply::kF16>::kSharedBytes
         : how == gpu::Multiply::kBf16 ? Tile<gpu::Multiply::kBf16>::kSharedBytes
                                       : Tile<gpu::Multiply::kF32>::kSharedBytes;
}

// Whether w8a16_wgmma.h has the product of these floats, of rows of `depth`, and codes.
bool has_wgmma_for(const Device& device, const FloatRows& floats, gpu::Multiply how, int64_t cols, int64_t depth) {
  return device.has_wgmma() && how != gpu::Multiply::kF32 && floats.dtype != kernel_index(INT8Q_F32) &&
         is_aligned(floats) && depth > 0 && depth <= kMostByMaps / 2 && cols <= kMostByMaps && floats.rows <= kMostByMaps;
}

// Its tiles, of 64 << i rows.
struct TileOfHalves {
  int m, n, shared_bytes;
};
template <class T>
constexpr TileOfHalves tile_of_halves() {
  return {T::kM, T::kN, T::kSharedBytes};
}
constexpr TileOfHalves kTilesOfHalves[] = {tile_of_halves<gpu::W8a16WgmmaTile<64, 64>>(),
                                           tile_of_halves<gpu::W8a16WgmmaTile<128, 128>>(),
                                           tile_of_halves<gpu::W8a16WgmmaTile<256, 128>>()};
using AnyTileOfHalves = gpu::W8a16WgmmaTile<64, 64>;  // for what all have

// Launches the kernel whose blocks, one an SM, take the fewest cycles for 16 of the sum: two products of m / 2, or what it
// takes to make halves of codes; of 64 columns half of that, whose warpgroups have half of the sum. map_w(n): of the codes,
// for tiles of n columns.
template <class Maps, class MapW>
void launch_wgmma_of_halves(Queue& queue, const std::array<Function, 3>& functions, const FloatRows& floats, int64_t cols,
                            int64_t depth, const MapW& map_w, const decltype(Maps::p)& p) {
  constexpr int kCyclesOfHalves = 128;
  const Device& device = queue.device;
  size_t best = 0;
  int64_t fewest = INT64_MAX, blocks_of_best = 0;
  for (size_t i = std::size(kTilesOfHalves); i-- > 0;) {
    const TileOfHalves& tile = kTilesOfHalves[i];
    const int64_t blocks = checked_mul(ceil_div(p.m, tile.m), ceil_div(cols, tile.n), "the result");
    const int64_t cycles = ceil_div(blocks, device.multiprocessors) * std::max(tile.m, kCyclesOfHalves) * tile.n / 128;
    if (cycles < fewest) best = i, fewest = cycles, blocks_of_best = blocks;
  }
  const TileOfHalves& tile = kTilesOfHalves[best];
  const int64_t stride = floats.rows == 1 ? round_up(depth * 2, 16) : floats.row_bytes;
  const Maps maps{map_of(device, floats.data, floats.rows, depth * 2, stride, tile.m, AnyTileOfHalves::kDepth * 2),
                  map_w(tile.n), p};
  queue.launch(functions[best], blocks_of_best, AnyTileOfHalves::kBlockThreads, tile.shared_bytes, maps);
}

// Mode ALL, in one launch: X is read where it is.
void multiply_floats(Queue& queue, const gpu::Gemm& p, const FloatRows& x) {
  using Skinny = gpu::W8a16SkinnyShape;
  const Device& device = queue.device;
  const Kernels& kernels = device.kernels;
  const gpu::Multiply how = float_product(device, x.dtype);
  const auto product = static_cast<size_t>(how);
  const bool aligned_w = is_aligned(p.w, p.w_stride), aligned = aligned_w && is_aligned(x);
  if (p.m <= Skinny::most_rows(how)) {
    const auto& function = p.m <= Skinny::kFew ? kernels.w8a16_few : kernels.w8a16_skinny;
    const int64_t tiles = ceil_div(p.n, Skinny::kRowsOfW), blocks = device.multiprocessors * kBlocksPerSm;
    return queue.launch(function[product][aligned], std::min(tiles, blocks), Skinny::kThreads, Skinny::shared_bytes(p.m),
                        p);
  }
  // Kept columns would have to be 0 in X.
  if (aligned_w && p.kept_count == 0 && has_wgmma_for(device, x, how, p.n, p.k)) {
    const auto map_w = [&](int n) { return map_of(device, p.w, p.n, p.k, p.w_stride, n, AnyTileOfHalves::kDepth); };
    return launch_wgmma_of_halves<gpu::W8a16ByMaps>(queue, kernels.w8a16_wgmma[product], x, p.n, p.k, map_w, p);
  }
  const auto tiles_of_size = [&](int64_t m, int64_t n) {
    return checked_mul(ceil_div(p.m, m), ceil_div(p.n, n), "the result");
  };
  using Large = gpu::W8a16LargeTile<gpu::Multiply::kF16>;  // all have its rows, columns and threads
  using Small = gpu::W8a16SmallTile<gpu::Multiply::kF16>;
  const int64_t tiles = tiles_of_size(Large::kM, Large::kN);
  // Large tiles wherever they keep three SMs of four busy.
  if (!aligned || how == gpu::Multiply::kF32 || 4 * tiles >= 3 * device.multiprocessors) {
    return queue.launch(kernels.w8a16[product][aligned], tiles, Large::kThreads, shared_bytes_of<gpu::W8a16LargeTile>(how),
                        p);
  }
  queue.launch(kernels.w8a16_small[product], tiles_of_size(Small::kM, Small::kN), Small::kThreads,
               shared_bytes_of<gpu::W8a16SmallTile>(how), p);
}

}  // namespace

int quantizing_blocks(const Device& device, int64_t rows) {
  return static_cast<int>(std::min<int64_t>(rows, device.multiprocessors * kQuantizingBlocksPerSm));
}

void quantize(Queue& queue, const FloatRows& x, uint32_t limit, const QuantizedRows& to) {
  const gpu::QuantizeRows p{.x = x.data,
                            .rows = x.rows,
                            .k = x.cols,
                            .x_stride = x.row_bytes,
                            .limit = limit,
                            .codes = to.codes,
                            .codes_stride = to.stride,
                            .padded = round_up(x.cols, 16),
                            .row_stats = to.row_stats,
                            .found = to.found,
                            .bitmaps = to.bitmaps,
                            .counters = to.counters,
                            .counter_count = to.counter_count};
  queue.launch(queue.device.kernels.quantize_rows[static_cast<size_t>(x.dtype)][is_aligned(x)], to.blocks,
               gpu::QuantizeRows::kThreads, gpu::QuantizeRows::shared_bytes(x.cols), p);
}

void multiply(Queue& queue, gpu::Gemm p) {
  const Device& device = queue.device;
  if (p.m <= device.shapes.skinny_rows) return launch_skinny(queue, p, false);
  if (const int wgmma = wgmma_tile_for(device, p); wgmma >= 0) return launch_wgmma(queue, p, static_cast<size_t>(wgmma));
  const bool aligned = is_aligned(p.w, p.w_stride);
  const auto launch = [&](const Tile& tile, Function function) {
    queue.launch(function, tiles_of(tile, p) * p.splits, tile.threads,
                 tile.shared_bytes(p.k, p.found != nullptr, p.kept_count > 0), p);
  };
  // Large tiles wherever they keep three SMs of four busy.
  if (!aligned || 4 * tiles_of(device.shapes.large, p) >= 3 * device.multiprocessors) {
    return launch(device.shapes.large, device.kernels.gemm[aligned]);
  }
  if (p.counters != nullptr) p.splits = splits_of(device, tiles_of(device.shapes.small, p), p.k);
  launch(device.shapes.small, device.kernels.gemm_small);
}

int64_t forward_workspace_bytes(const Device& device, const BlobHeader& linear, int64_t rows) {
  if (linear.outlier_mode == INT8Q_OUTLIERS_ALL) return kAlignment;
  Carver carver(nullptr);
  const Workspace workspace(carver, device, rows, linear.k, linear.n);
  return std::max(carver.used(), kAlignment);
}

void forward(Queue& queue, const Linear* const* linears, int64_t count, const FloatRows& x, const Output* ys,
             bool accumulate, void* workspace) {
  if (x.rows == 0) return;
  const Current current(queue.device);
  if (linears[0]->outlier_mode() == INT8Q_OUTLIERS_ALL) {
    for (int64_t i = 0; i < count; ++i) {
      const gpu::Gemm p = product_of(*linears[i]->on_device, x, {}, ys[i], accumulate);
      if (p.n > 0) multiply_floats(queue, p, x);
    }
    return;
  }
  const bool may_fuse = fuses(queue.device, x.rows, x.cols) && is_aligned(x);
  Carver carver(workspace);
  int64_t most = 0;
  for (int64_t i = 0; i < count; ++i) most = std::max(most, linears[i]->n());
  const Workspace places(carver, queue.device, x.rows, x.cols, most);
  bool quantized = false;
  for (int64_t i = 0; i < count; ++i) {
    const DeviceWeights& weights = *linears[i]->on_device;
    const bool fused = may_fuse && is_aligned(weights.codes, weights.stride);
    const gpu::Gemm p = product_of(weights, x, fused ? Workspace{} : places, ys[i], accumulate);
    if (p.n == 0) continue;
    if (fused) {
      launch_skinny(queue, p, true);
      continue;
    }
    if (!quantized) quantize(queue, x, p.limit, places.x);
    quantized = true;
    if (!multiply_by_cublaslt(queue, p, places.products)) multiply(queue, p);
  }
}

void backward(Queue& queue, const Linear& linear, const FloatRows& dy, const Output& dx, bool accumulate) {
  const DeviceWeights& w = *linear.on_device;
  if (dy.rows == 0 || w.header.k == 0) return;
  const gpu::Multiply how = float_product(queue.device, dy.dtype);
  const gpu::Backward p{.m = dy.rows,
                        .n = w.header.n,
                        .k = w.header.k,
                        .dy = dy.data,
                        .dy_stride = dy.row_bytes,
                        .dy_dtype = static_cast<gpu::Dtype>(dy.dtype),
                        .w = w.codes,
                        .w_stride = w.stride,
                        .col_stats = w.col_stats,
                        .greatest = w.greatest,
                        .dx = dx.data,
                        .dx_stride = dx.row_bytes,
                        .dx_dtype = dtype_of(dx.dtype),
                        .accumulate = accumulate};
  using F16 = gpu::BackwardTile<gpu::Multiply::kF16>;  // all three have its rows, columns and threads
  const bool aligned_w = is_aligned(p.w, p.w_stride), aligned = aligned_w && is_aligned(dy);
  const Device& device = queue.device;
  const Current current(device);
  if (aligned_w && has_wgmma_for(device, dy, how, p.k, p.n)) {
    const auto map_w = [&](int n) { return map_of(device, p.w, p.n, p.k, p.w_stride, AnyTileOfHalves::kDepth, n); };
    return launch_wgmma_of_halves<gpu::BackwardByMaps>(queue, device.kernels.backward_wgmma[static_cast<size_t>(how)], dy,
                                                       p.k, p.n, map_w, p);
  }
  const int64_t blocks = checked_mul(ceil_div(p.m, F16::kM), ceil_div(p.k, F16::kN), "dx");
  queue.launch(device.kernels.backward[static_cast<size_t>(how)][aligned], blocks, F16::kThreads,
               shared_bytes_of<gpu::BackwardTile>(how), p);
}

}  // namespace int8q::cuda
