// SPDX-License-Identifier: Apache-2.0
#include "cuda/stateless.h"

#include <algorithm>

#include "core/dtype.h"
#include "cuda/kernels/arguments.h"

namespace int8q::cuda {
namespace {

// Blocks of a kernel whose threads stride over `items`: enough to fill the GPU several times over.
int64_t blocks_for(const Device& device, int64_t items, int threads) {
  return std::clamp<int64_t>(ceil_div(items, threads), 1, int64_t{8} * device.multiprocessors);
}

constexpr int64_t kMostCols = int64_t{1} << 30;  // sizes in shared memory are ints; it holds fewer columns in any case

// What quantize_rows and the products take in place.
bool in_place(const void* codes, int64_t stride, int64_t k) { return k % 16 == 0 && is_aligned(codes, stride); }

// Gives carve(carver), which returns the bytes that it used, the scratch memory for them.
template <class Carve>
void carve_scratch(ScratchLease& scratch, const Carve& carve) {
  const int64_t bytes = carve(Carver(nullptr));
  if (bytes > 0) carve(Carver(scratch.reserve(static_cast<uint64_t>(bytes))));
}

void dequantize(Queue& queue, Function function, const gpu::Dequantize& p) {
  if (p.rows == 0 || p.cols == 0) return;
  queue.launch(function, blocks_for(queue.device, p.rows * ceil_div(p.cols, 8), gpu::Dequantize::kThreads),
               gpu::Dequantize::kThreads, 0, p);
}

}  // namespace

void copy_codes(Queue& queue, const gpu::CopyCodes& p) {
  queue.launch(queue.device.kernels.copy_codes,
               blocks_for(queue.device, p.rows * ceil_div(p.to_cols, 16), gpu::CopyCodes::kThreads),
               gpu::CopyCodes::kThreads, 0, p);
}

void quantize_rows(Queue& queue, ScratchLease& scratch, const FloatRows& x, uint32_t limit, bool element, int8_t* q,
                   int64_t q_stride, float* row_stats, uint8_t* mask, int64_t* cols, int64_t* count) {
  if (x.cols > kMostCols) {
    fail(INT8Q_SIZE_OVERFLOW, "x->cols is %lld; a GPU's rows have at most %lld", static_cast<long long>(x.cols),
         static_cast<long long>(kMostCols));
  }
  const bool asks = mask != nullptr || cols != nullptr || count != nullptr;
  const bool finds = limit != gpu::kNoOutliers && (!element || asks);
  const bool copies = !in_place(q, q_stride, x.cols), finishes = asks || (finds && x.rows > 0);
  if (finishes) queue.device.expect_shared(gpu::FinishColumns::shared_bytes(x.cols));  // before anything is written
  QuantizedRows to{.codes = q,
                   .stride = copies ? round_up(x.cols, 16) : q_stride,
                   .row_stats = row_stats,
                   .found = nullptr,
                   .bitmaps = nullptr,
                   .counters = nullptr,
                   .counter_count = 0,
                   .blocks = quantizing_blocks(queue.device, x.rows)};
  const auto carve = [&](Carver carver) {
    if (copies) to.codes = carver.take<int8_t>(checked_mul(x.rows, to.stride, "scratch"), "scratch");
    if (finds) {
      to.found = carver.take<gpu::FoundColumns>(to.blocks, "scratch");
      to.bitmaps = carver.take<uint32_t>(static_cast<int64_t>(to.blocks) * gpu::bitmap_words(x.cols), "scratch");
    }
    return carver.used();
  };
  carve_scratch(scratch, carve);
  const Current current(queue.device);
  if (x.rows > 0) {
    quantize(queue, x, limit, to);
    if (copies && x.cols > 0) {
      copy_codes(queue, {.rows = x.rows,
                         .cols = x.cols,
                         .from = to.codes,
                         .from_stride = to.stride,
                         .to = q,
                         .to_stride = q_stride,
                         .to_cols = x.cols});
    }
  }
  if (!finishes) return;
  const gpu::FinishColumns p{.rows = x.rows,
                             .k = x.cols,
                             .found = to.found,
                             .bitmaps = to.bitmaps,
                             .found_blocks = finds ? to.blocks : 0,
                             .codes = element || !finds ? nullptr : q,
                             .codes_stride = q_stride,
                             .mask = mask,
                             .cols = cols,
                             .count = count};
  queue.launch(queue.device.kernels.finish_columns, p.codes == nullptr ? 1 : std::max(to.blocks, 1),
               gpu::FinishColumns::kThreads, gpu::FinishColumns::shared_bytes(x.cols), p);
}

void multiply(Queue& queue, ScratchLease& scratch, const Product& product) {
  if (product.m == 0 || product.n == 0) return;
  const Current current(queue.device);
  const bool accumulators = product.y_dtype == INT8Q_S32;
  const auto bias_dtype = static_cast<gpu::Dtype>(product.bias == nullptr ? 0 : kernel_index(product.bias_dtype));
  const auto y_dtype = static_cast<gpu::Dtype>(accumulators ? 0 : kernel_index(product.y_dtype));
  if (product.weights == Weights::kNone) {
    return dequantize(queue, queue.device.kernels.dequantize_accumulators,
                      {.rows = product.m,
                       .cols = product.n,
                       .codes = nullptr,
                       .accumulators = reinterpret_cast<const int32_t*>(product.b),
                       .stride = product.b_stride,
                       .row_stats = product.row_stats,
                       .col_stats = product.col_stats,
                       .bias = product.bias,
                       .bias_dtype = bias_dtype,
                       .y = product.y,
                       .y_stride = product.y_stride,
                       .y_dtype = y_dtype});
  }
  const bool copies = !in_place(product.a, product.a_stride, product.k), outliers = product.given_count > 0;
  int8_t* codes = const_cast<int8_t*>(product.a);
  const int64_t stride = copies ? round_up(product.k, 16) : product.a_stride;
  gpu::FoundColumns* found = nullptr;
  uint32_t* bitmap = nullptr;
  const auto carve = [&](Carver carver) {
    if (copies) codes = carver.take<int8_t>(checked_mul(product.m, stride, "scratch"), "scratch");
    if (outliers) {
      found = carver.take<gpu::FoundColumns>(1, "scratch");
      bitmap = carver.take<uint32_t>(gpu::bitmap_words(product.k), "scratch");
    }
    return carver.used();
  };
  carve_scratch(scratch, carve);
  if (copies && stride > 0) {
    copy_codes(queue, {.rows = product.m,
                       .cols = product.k,
                       .from = product.a,
                       .from_stride = product.a_stride,
                       .to = codes,
                       .to_stride = stride,
                       .to_cols = stride});
  }
  if (outliers) {
    const gpu::ListColumns list{
        .cols = product.given_cols, .count = product.given_count, .k = product.k, .found = found, .bitmap = bitmap};
    queue.launch(queue.device.kernels.list_columns, 1, gpu::ListColumns::kThreads,
                 gpu::ListColumns::shared_bytes(product.k), list);
  }
  multiply(queue, gpu::Gemm{.m = product.m,
                            .n = product.n,
                            .k = product.k,
                            .codes = codes,
                            .codes_stride = stride,
                            .row_stats = product.row_stats,
                            .w = product.b,
                            .w_stride = product.b_stride,
                            .col_stats = product.col_stats,
                            .bias = product.bias,
                            .bias_dtype = bias_dtype,
                            .found = found,
                            .bitmaps = bitmap,
                            .found_blocks = 1,
                            .scope = product.element ? gpu::OutlierScope::kElements : gpu::OutlierScope::kZeroedColumns,
                            .limit = product.limit,
                            .x = product.x.data,
                            .x_stride = product.x.row_bytes,
                            .x_dtype = static_cast<gpu::Dtype>(product.x.dtype),
                            .kept_count = 0,
                            .kept_cols = nullptr,
                            .kept_bitmap = nullptr,
                            .kept_weights = nullptr,
                            .kept_stride = 0,
                            .y = product.y,
                            .y_stride = product.y_stride,
                            .y_dtype = y_dtype,
                            .accumulators = accumulators,
                            .accumulate = product.accumulate,
                            .splits = 1,
                            .partials = nullptr,
                            .counters = nullptr});
}

void dequantize_rows(Queue& queue, const int8_t* q, int64_t q_stride, int64_t rows, int64_t cols, const float* stats,
                     const Output& y) {
  const Current current(queue.device);
  dequantize(queue, queue.device.kernels.dequantize_rows,
             {.rows = rows,
              .cols = cols,
              .codes = q,
              .accumulators = nullptr,
              .stride = q_stride,
              .row_stats = stats,
              .col_stats = nullptr,
              .bias = nullptr,
              .bias_dtype = gpu::Dtype::kF32,
              .y = y.data,
              .y_stride = y.row_bytes,
              .y_dtype = static_cast<gpu::Dtype>(kernel_index(y.dtype))});
}

void count_outliers(Queue& queue, const FloatRows& x, uint32_t limit, int64_t* counts) {
  if (x.cols == 0 || x.rows == 0) return;
  const Current current(queue.device);
  const gpu::CountOutliers p{.x = x.data,
                             .rows = x.rows,
                             .k = x.cols,
                             .x_stride = x.row_bytes,
                             .x_dtype = static_cast<gpu::Dtype>(x.dtype),
                             .limit = limit,
                             .counts = counts};
  // Enough blocks to fill the GPU several times over, of 32 rows or more, four a warp.
  const int64_t groups = ceil_div(x.cols, gpu::CountOutliers::kColumns);
  const int64_t most = std::max<int64_t>(1, int64_t{8} * queue.device.multiprocessors / groups);
  queue.launch(queue.device.kernels.count_outliers, groups * std::min(ceil_div(x.rows, 32), most),
               gpu::CountOutliers::kThreads, gpu::CountOutliers::kSharedBytes, p);
}

}  // namespace int8q::cuda
