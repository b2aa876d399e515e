// SPDX-License-Identifier: Apache-2.0
//
// Weights to the device, in whatever form they come, and back.
#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "core/context.h"
#include "core/dtype.h"
#include "cuda/layer.h"
#include "cuda/stateless.h"

namespace int8q::cuda {
namespace {

constexpr int64_t kStagingBytes = 16 << 20;

// Device memory that is freed unless it is handed on, and what is known of it by then.
class Making {
 public:
  // borrowed: INT8Q_BORROW_*, of what gets no memory.
  Making(Context& context, const BlobHeader& header, uint32_t borrowed)
      : queue(*context.gpu), weights(new DeviceWeights{}), allocator_(context.allocator) {
    weights->device = &queue.device;
    weights->header = header;
    Carver size(nullptr);
    carve(size, borrowed);
    weights->header.blob_bytes = static_cast<uint64_t>(size.used());
    if (size.used() == 0) return;
    weights->memory = allocator_.allocate(weights->header.blob_bytes, "linear");
    Carver carver(weights->memory);
    carve(carver, borrowed);
  }
  ~Making() {
    if (weights == nullptr) return;
    queue.device.driver.cuStreamSynchronize(queue.stream);  // for who writes there; what it says is no news by now
    free_weights(allocator_, weights.release());
  }
  Making(const Making&) = delete;
  Making& operator=(const Making&) = delete;

  int8_t* codes() { return const_cast<int8_t*>(weights->codes); }

  // Stats of the rows, which are on the device.
  void take_stats() {
    const int64_t n = weights->header.n;
    std::vector<float> stats(static_cast<size_t>(n));
    queue.download(stats.data(), weights->col_stats, n * 4);
    queue.wait();
    for (int64_t i = 0; i < n; ++i) {
      const float stat = stats[static_cast<size_t>(i)];
      if (!std::isfinite(stat) || stat < 0.0f) {
        fail(INT8Q_NOT_FINITE, "row %lld of the weights has the stat %g; expected finite weights, and stats >= 0",
             static_cast<long long>(i), static_cast<double>(stat));
      }
      weights->greatest = std::max(weights->greatest, stat);
    }
    if (weights->greatest > 0.0f) weights->greatest = std::max(weights->greatest, 0x1p-100f);  // 1 / greatest is finite
  }

  // `bytes` holds [N] elements.
  void put_bias(int32_t dtype, const void* elements) {
    const int64_t n = weights->header.n;
    std::vector<float> bias(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; ++i) {
      float& value = bias[static_cast<size_t>(i)];
      value = load_element(dtype, elements, i);
      if (!std::isfinite(value)) {
        fail(INT8Q_NOT_FINITE, "bias[%lld] is %g; expected a finite number", static_cast<long long>(i),
             static_cast<double>(value));
      }
    }
    queue.upload(const_cast<void*>(weights->bias), bias.data(), n * 4);
    queue.wait();
  }

  // cols: on the host. weight(t, i): fp16 of kept column t in row i.
  template <class Weight>
  void put_kept(const int64_t* cols, const Weight& weight) {
    const BlobHeader& h = weights->header;
    std::vector<uint32_t> bitmap(static_cast<size_t>(gpu::bitmap_words(h.k)));
    for (int64_t t = 0; t < h.kept_count; ++t) bitmap[static_cast<size_t>(cols[t] / 32)] |= 1u << cols[t] % 32;
    std::vector<uint16_t> kept(static_cast<size_t>(h.kept_count * weights->n_padded()));
    for (int64_t t = 0; t < h.kept_count; ++t) {
      for (int64_t i = 0; i < h.n; ++i) {
        const uint16_t w = weight(t, i);
        if ((w & 0x7fffu) >= 0x7c00u) {
          fail(INT8Q_NOT_FINITE,
               "kept weight at row %lld, column %lld is not finite in fp16; expected |w| <= 65504; do not keep this column",
               static_cast<long long>(i), static_cast<long long>(cols[t]));
        }
        kept[static_cast<size_t>(t * weights->n_padded() + i)] = w;
      }
    }
    queue.upload(const_cast<int64_t*>(weights->kept_cols), cols, h.kept_count * 8);
    queue.upload(const_cast<uint32_t*>(weights->kept_bitmap), bitmap.data(), static_cast<int64_t>(bitmap.size()) * 4);
    queue.upload(const_cast<uint16_t*>(weights->kept_weights), kept.data(), static_cast<int64_t>(kept.size()) * 2);
    queue.wait();
  }

  DeviceWeights* finish() {
    queue.wait();
    return weights.release();
  }

  Queue& queue;
  std::unique_ptr<DeviceWeights> weights;

 private:
  void carve(Carver& carver, uint32_t borrowed) {
    const BlobHeader& h = weights->header;
    if ((borrowed & INT8Q_BORROW_WEIGHT) == 0) {
      weights->stride = round_up(h.k, 16);
      weights->codes = carver.take<int8_t>(checked_mul(h.n, weights->stride, "linear"), "linear");
    }
    if ((borrowed & INT8Q_BORROW_WEIGHT) == 0) weights->col_stats = carver.take<float>(h.n, "linear");
    if (h.has_bias != 0 && (borrowed & INT8Q_BORROW_BIAS) == 0) weights->bias = carver.take<float>(h.n, "linear");
    if (h.kept_count == 0) return;
    weights->kept_cols = carver.take<int64_t>(h.kept_count, "linear");
    weights->kept_bitmap = carver.take<uint32_t>(gpu::bitmap_words(h.k), "linear");
    weights->kept_weights = carver.take<uint16_t>(checked_mul(h.kept_count, weights->n_padded(), "linear"), "linear");
  }

  Allocator allocator_;
};

// The fp16 values of kept columns: [kept_count][N].
std::vector<uint16_t> kept_columns(Queue& queue, const DeviceWeightSource& source) {
  const int8q_matrix& w = source.weight;
  const int64_t n = w.rows, kept = source.options.kept_count;
  std::vector<uint16_t> values(static_cast<size_t>(n * kept));
  if (source.kept_weights.data != nullptr) {
    const int8q_matrix& k = source.kept_weights;
    std::vector<uint16_t> rows(values.size());
    queue.copy_rows(rows.data(), kept * 2, k.data, k.row_stride * 2, kept * 2, n, true);
    queue.wait();
    for (int64_t t = 0; t < kept; ++t) {
      for (int64_t i = 0; i < n; ++i) values[static_cast<size_t>(t * n + i)] = rows[static_cast<size_t>(i * kept + t)];
    }
    return values;
  }
  const int64_t bytes = dtype_bytes(w.dtype);
  std::vector<uint8_t> column(static_cast<size_t>(n * bytes));
  for (int64_t t = 0; t < kept; ++t) {
    queue.copy_rows(column.data(), bytes, static_cast<const uint8_t*>(w.data) + source.options.kept_cols[t] * bytes,
                    w.row_stride * bytes, bytes, n, true);
    queue.wait();
    for (int64_t i = 0; i < n; ++i)
      values[static_cast<size_t>(t * n + i)] = f32_to_f16(load_element(w.dtype, column.data(), i));
  }
  return values;
}

}  // namespace

DeviceWeights* make_weights(Context& context, const DeviceWeightSource& source) {
  const int8q_matrix& w = source.weight;
  const int8q_linear_options& options = source.options;
  const bool s8 = w.dtype == INT8Q_S8, borrowed = (options.flags & INT8Q_BORROW_WEIGHT) != 0;
  const Device& device = context.gpu->device;
  const Current current(device);
  if (w.rows > 0) {
    if (w.cols > 0) device.expect_reachable(w.data, "weight->data");
    device.expect_reachable(source.col_stats, "col_stats");
    device.expect_reachable(source.bias.data, "bias->data");
    if (options.kept_count > 0) device.expect_reachable(source.kept_weights.data, "options->kept_weights->data");
  }
  BlobHeader header{};
  header.outlier_mode = options.outlier_mode;
  header.n = w.rows;
  header.k = w.cols;
  header.kept_count = options.kept_count;
  header.threshold = threshold_of(options);
  header.has_bias = source.bias.size != 0 ? 1 : 0;
  Making making(context, header, options.flags);
  Queue& queue = making.queue;
  if (borrowed) {
    making.weights->codes = static_cast<const int8_t*>(w.data);
    making.weights->stride = w.row_stride;
    making.weights->col_stats = source.col_stats;
  } else if (s8 && w.rows > 0 && w.cols > 0) {  // with zeros behind K, as quantize_rows leaves them
    copy_codes(queue, {.rows = w.rows,
                       .cols = w.cols,
                       .from = static_cast<const int8_t*>(w.data),
                       .from_stride = w.row_stride,
                       .to = making.codes(),
                       .to_stride = making.weights->stride,
                       .to_cols = making.weights->stride});
  }
  if (w.rows > 0 && !borrowed) {
    auto* stats = const_cast<float*>(making.weights->col_stats);
    if (s8) {
      queue.copy_rows(stats, w.rows * 4, source.col_stats, w.rows * 4, w.rows * 4, 1);
    } else {
      const FloatRows rows{static_cast<const uint8_t*>(w.data), kernel_index(w.dtype), w.rows, w.cols,
                           w.row_stride * dtype_bytes(w.dtype)};
      quantize(queue, rows, gpu::kNoOutliers,
               {.codes = making.codes(),
                .stride = making.weights->stride,
                .row_stats = stats,
                .found = nullptr,
                .bitmaps = nullptr,
                .counters = nullptr,
                .counter_count = 0,
                .blocks = quantizing_blocks(queue.device, w.rows)});
    }
  }
  making.take_stats();
  if (header.has_bias != 0 && (options.flags & INT8Q_BORROW_BIAS) != 0) {
    making.weights->bias = source.bias.data;
    making.weights->bias_dtype = source.bias.dtype;
  } else if (header.has_bias != 0) {
    std::vector<uint8_t> bias(static_cast<size_t>(w.rows * dtype_bytes(source.bias.dtype)));
    queue.download(bias.data(), source.bias.data, static_cast<int64_t>(bias.size()));
    queue.wait();
    making.put_bias(source.bias.dtype, bias.data());
  }
  if (options.kept_count > 0) {
    const std::vector<uint16_t> kept = kept_columns(queue, source);
    making.put_kept(options.kept_cols, [&](int64_t t, int64_t i) { return kept[static_cast<size_t>(t * w.rows + i)]; });
  }
  return making.finish();
}

DeviceWeights* copy_blob(Context& context, const BlobSections& blob) {
  const BlobHeader& header = *blob.header;
  const Current current(context.gpu->device);
  Making making(context, header, 0);
  Queue& queue = making.queue;
  const int64_t stride = making.weights->stride, panel_bytes = stride * cpu::kPanelRows;
  const int64_t at_once = std::max<int64_t>(1, panel_bytes == 0 ? 1 : kStagingBytes / panel_bytes);
  std::vector<int8_t> staging(static_cast<size_t>(std::min(at_once, blob.panel_count()) * panel_bytes));
  for (int64_t first = 0; first < blob.panel_count() && stride > 0; first += at_once) {
    const int64_t panels = std::min(at_once, blob.panel_count() - first), row = first * cpu::kPanelRows;
    for (int64_t p = 0; p < panels; ++p) unpack_panel(blob, first + p, staging.data() + p * panel_bytes, stride);
    queue.upload(making.codes() + row * stride, staging.data(),
                 std::min(panels * cpu::kPanelRows, header.n - row) * stride);
    queue.wait();  // the staging memory is used again
  }
  queue.upload(const_cast<float*>(making.weights->col_stats), blob.col_stats, header.n * 4);
  making.take_stats();
  if (blob.bias != nullptr) making.put_bias(INT8Q_F32, blob.bias);
  if (header.kept_count > 0) {
    making.put_kept(blob.kept_cols, [&](int64_t t, int64_t i) { return blob.kept_weights[t * blob.n_padded() + i]; });
  }
  return making.finish();
}

void free_weights(const Allocator& allocator, DeviceWeights* weights) {
  if (weights->memory != nullptr) allocator.deallocate(weights->memory, weights->header.blob_bytes);
  delete weights;
}

void export_weights(Context& context, const DeviceWeights& weights, const int8q_matrix& codes, float* col_stats,
                    const int8q_matrix& bias, int64_t* kept_cols, const int8q_matrix& kept_weights) {
  const BlobHeader& h = weights.header;
  Queue& queue = *context.gpu;
  const Current current(queue.device);
  if (codes.data != nullptr) queue.copy_rows(codes.data, codes.row_stride, weights.codes, weights.stride, h.k, h.n);
  if (col_stats != nullptr) queue.copy_rows(col_stats, h.n * 4, weights.col_stats, h.n * 4, h.n * 4, 1);
  if (bias.data != nullptr && weights.bias_dtype == INT8Q_F32) {
    queue.copy_rows(bias.data, h.n * 4, weights.bias, h.n * 4, h.n * 4, 1);
  } else if (bias.data != nullptr) {
    std::vector<uint8_t> borrowed(static_cast<size_t>(h.n * dtype_bytes(weights.bias_dtype)));
    std::vector<float> floats(static_cast<size_t>(h.n));
    queue.download(borrowed.data(), weights.bias, static_cast<int64_t>(borrowed.size()));
    queue.wait();
    for (int64_t i = 0; i < h.n; ++i) {
      floats[static_cast<size_t>(i)] = load_element(weights.bias_dtype, borrowed.data(), i);
    }
    queue.upload(bias.data, floats.data(), h.n * 4);
    queue.wait();
  }
  const int64_t list = h.kept_count * 8;
  if (kept_cols != nullptr) queue.copy_rows(kept_cols, list, weights.kept_cols, list, list, 1);
  if (kept_weights.data == nullptr) return;
  for (int64_t t = 0; t < h.kept_count; ++t) {
    queue.copy_rows(static_cast<uint16_t*>(kept_weights.data) + t, kept_weights.row_stride * 2,
                    weights.kept_weights + t * weights.n_padded(), 2, 2, h.n);
  }
}

}  // namespace int8q::cuda
