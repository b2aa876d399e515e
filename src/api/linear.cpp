// SPDX-License-Identifier: Apache-2.0
//
// The linear layer's life: blob sizes, creating, packing, opening, describing, exporting, destroying.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>

#include "api/arguments.h"
#include "cuda/layer.h"

namespace int8q::api {
namespace {

struct Source {
  WeightSource weight;
  int8q_matrix matrix, bias, kept_weights;
  int8q_linear_options options;
};

void check_kept(const Context& context, Source& source) {
  const int8q_linear_options& options = source.options;
  const int64_t n = source.matrix.rows, k = source.matrix.cols;
  if (options.kept_count < 0 || options.kept_count > k) {
    fail(INT8Q_INVALID_ARGUMENT, "options->kept_count is %lld; expected 0 to K = %lld",
         static_cast<long long>(options.kept_count), static_cast<long long>(k));
  }
  check_array(options.kept_cols, options.kept_count, alignof(int64_t), "options->kept_cols");
  for (int64_t t = 0; t < options.kept_count; ++t) {
    const int64_t col = options.kept_cols[t];
    if (col < 0 || col >= k || (t > 0 && col <= options.kept_cols[t - 1])) {
      fail(INT8Q_INVALID_ARGUMENT, "options->kept_cols[%lld] is %lld; expected ascending columns in [0, %lld)",
           static_cast<long long>(t), static_cast<long long>(col), static_cast<long long>(k));
    }
  }
  if (options.kept_weights != nullptr) {
    source.kept_weights =
        check_matrix(context, options.kept_weights, "options->kept_weights", {INT8Q_F16}, n, options.kept_count);
    source.weight.kept_weights = static_cast<const uint8_t*>(source.kept_weights.data);
    source.weight.kept_row_bytes = source.kept_weights.row_stride * 2;
  } else if (options.kept_count > 0 && source.matrix.dtype == INT8Q_S8) {
    fail(INT8Q_INVALID_ARGUMENT,
         "options->kept_weights is NULL; expected F16 [%lld, %lld], since S8 weights cannot give them",
         static_cast<long long>(n), static_cast<long long>(options.kept_count));
  }
  source.weight.kept_cols = options.kept_cols;
}

Source check_source(const Context& context, const int8q_matrix* weight, const float* col_stats, const int8q_matrix* bias,
                    const int8q_linear_options* options) {
  Source source{};
  if (options != nullptr) source.options = read_struct(options, "options");
  const uint32_t flags = source.options.flags;
  if ((flags & ~static_cast<uint32_t>(INT8Q_BORROW_WEIGHT | INT8Q_BORROW_BIAS)) != 0) {
    fail(INT8Q_INVALID_ARGUMENT, "options->flags is %u; expected 0, INT8Q_BORROW_WEIGHT (1), INT8Q_BORROW_BIAS (2) or both",
         flags);
  }
  outlier_limit(source.options.outlier_mode, source.options.threshold);
  source.matrix = check_matrix(context, weight, "weight", {INT8Q_F32, INT8Q_F16, INT8Q_BF16, INT8Q_S8}, -1, -1);
  const int8q_matrix& m = source.matrix;
  const bool s8 = m.dtype == INT8Q_S8;
  if (s8) check_array(col_stats, m.rows, alignof(float), "col_stats");
  if (!s8 && col_stats != nullptr) {
    fail(INT8Q_INVALID_ARGUMENT, "col_stats is %p; expected NULL for %s weights, whose absmax the library computes",
         static_cast<const void*>(col_stats), dtype_name(m.dtype));
  }
  if (flags != 0 && !context.gpu) {
    fail(INT8Q_INVALID_ARGUMENT, "options->flags is %u for a context of the CPU; expected 0: only CUDA's borrow", flags);
  }
  if ((flags & INT8Q_BORROW_WEIGHT) != 0 && !s8) {
    fail(INT8Q_INVALID_ARGUMENT, "options->flags has INT8Q_BORROW_WEIGHT (1) and weights are %s; expected S8",
         dtype_name(m.dtype));
  }
  if (s8 && context.gpu && m.cols > kMaxKForeign) {
    fail(INT8Q_SIZE_OVERFLOW, "weight->cols is %lld; S8 weights of a GPU are not looked at, and exact up to K = %lld",
         static_cast<long long>(m.cols), static_cast<long long>(kMaxKForeign));
  }
  if (bias != nullptr) source.bias = check_matrix(context, bias, "bias", kFloats, 1, m.rows);
  source.weight = {.dtype = m.dtype,
                   .data = static_cast<const uint8_t*>(m.data),
                   .row_bytes = m.row_stride * dtype_bytes(m.dtype),
                   .col_stats = col_stats,
                   .bias = static_cast<const uint8_t*>(source.bias.data),
                   .bias_dtype = source.bias.dtype,
                   .kept_cols = nullptr,
                   .kept_weights = nullptr,
                   .kept_row_bytes = 0};
  check_kept(context, source);
  return source;
}

int64_t bytes_of(const Source& s, bool has_bias) {
  return blob_bytes(s.matrix.rows, s.matrix.cols, has_bias, s.options.kept_count);
}

void pack(Context& context, const Source& source, bool has_bias, void* blob, int64_t bytes) {
  ScratchLease lease(context);
  void* scratch = lease.reserve(static_cast<uint64_t>(pack_scratch_bytes(context, source.matrix.cols)));
  auto* header = new (blob) BlobHeader{};
  header->layout = BlobHeader::kLayout;
  header->outlier_mode = source.options.outlier_mode;
  header->n = source.matrix.rows;
  header->k = source.matrix.cols;
  header->kept_count = source.options.kept_count;
  header->threshold = threshold_of(source.options);
  header->has_bias = has_bias ? 1 : 0;
  header->blob_bytes = static_cast<uint64_t>(bytes);
  pack_blob(context, scratch, source.weight, blob);
}

// A blob of the context's allocator that is freed unless it is handed on.
class OwnedBlob {
 public:
  OwnedBlob(const Allocator& allocator, uint64_t bytes)
      : allocator_(allocator), bytes_(bytes), memory_(allocator.allocate(bytes, "packed linear")) {}
  ~OwnedBlob() { allocator_.deallocate(memory_, bytes_); }
  OwnedBlob(const OwnedBlob&) = delete;
  OwnedBlob& operator=(const OwnedBlob&) = delete;
  void* get() const { return memory_; }
  void release() { memory_ = nullptr; }

 private:
  Allocator allocator_;
  uint64_t bytes_;
  void* memory_;
};

Linear* make_handle(const Context& c, void* owned, const BlobSections& sections) {
  void* memory = c.handles.allocate(sizeof(Linear), "linear");
  return new (memory)
      Linear{.handles = c.handles, .allocator = c.allocator, .owned = owned, .blob = sections, .on_device = nullptr};
}

Linear* make_device_handle(const Context& c, cuda::DeviceWeights* weights) {
  try {
    BlobSections header_alone{};
    header_alone.header = &weights->header;
    Linear* linear = make_handle(c, nullptr, header_alone);
    linear->on_device = weights;
    return linear;
  } catch (...) {
    cuda::free_weights(c.allocator, weights);
    throw;
  }
}

void check_sizes(int64_t n, int64_t k, int32_t has_bias, int64_t kept_count) {
  if (n < 0) fail(INT8Q_INVALID_ARGUMENT, "out_features is %lld; expected a size >= 0", static_cast<long long>(n));
  if (k < 0) fail(INT8Q_INVALID_ARGUMENT, "in_features is %lld; expected a size >= 0", static_cast<long long>(k));
  if (has_bias != 0 && has_bias != 1) fail(INT8Q_INVALID_ARGUMENT, "has_bias is %d; expected 0 or 1", has_bias);
  if (kept_count < 0 || kept_count > k) {
    fail(INT8Q_INVALID_ARGUMENT, "kept_count is %lld; expected 0 to in_features, %lld", static_cast<long long>(kept_count),
         static_cast<long long>(k));
  }
}

}  // namespace
}  // namespace int8q::api

using namespace int8q::api;
using int8q::BlobSections;
using int8q::Context;
using int8q::fail;
using int8q::Linear;

extern "C" {

int32_t int8q_query_blob(int64_t out_features, int64_t in_features, int32_t has_bias, int64_t kept_count, uint64_t* bytes) {
  return guarded([&] {
    require(bytes != nullptr, "bytes", "where to put the size");
    check_sizes(out_features, in_features, has_bias, kept_count);
    *bytes = static_cast<uint64_t>(int8q::blob_bytes(out_features, in_features, has_bias != 0, kept_count));
  });
}

int32_t int8q_create_linear(int8q_context* context, const int8q_matrix* weight, const float* col_stats,
                            const int8q_matrix* bias, const int8q_linear_options* options, int8q_linear** linear) {
  return guarded([&] {
    Context& c = check_context(context);
    require(linear != nullptr, "linear", "where to put the handle");
    const Source source = check_source(c, weight, col_stats, bias, options);
    const int64_t bytes = bytes_of(source, bias != nullptr);
    if (c.gpu) {
      *linear = make_device_handle(
          c, int8q::cuda::make_weights(c, {source.matrix, col_stats, source.bias, source.kept_weights, source.options}));
      return;
    }
    OwnedBlob blob(c.allocator, static_cast<uint64_t>(bytes));
    pack(c, source, bias != nullptr, blob.get(), bytes);
    *linear = make_handle(c, blob.get(), int8q::blob_sections(blob.get()));
    blob.release();
  });
}

int32_t int8q_pack_linear(int8q_context* context, const int8q_matrix* weight, const float* col_stats,
                          const int8q_matrix* bias, const int8q_linear_options* options, void* blob, uint64_t blob_bytes) {
  return guarded([&] {
    Context& c = check_cpu_context(context);
    const Source source = check_source(c, weight, col_stats, bias, options);
    const int64_t bytes = bytes_of(source, bias != nullptr);
    require(blob != nullptr, "blob", "memory of int8q_query_blob bytes");
    check_array(blob, 1, int8q::kAlignment, "blob");
    if (blob_bytes < static_cast<uint64_t>(bytes)) {
      fail(INT8Q_BUFFER_TOO_SMALL, "blob_bytes is %llu; expected at least %lld",
           static_cast<unsigned long long>(blob_bytes), static_cast<long long>(bytes));
    }
    const int64_t kept = source.options.kept_count;
    check_overlap(extent(blob, bytes, "blob"), {extent(source.matrix, "weight"), extent(source.bias, "bias"),
                                                extent(col_stats, source.matrix.rows * 4, "col_stats"),
                                                extent(source.options.kept_cols, kept * 8, "options->kept_cols"),
                                                extent(source.kept_weights, "options->kept_weights")});
    pack(c, source, bias != nullptr, blob, bytes);
  });
}

int32_t int8q_open_linear(int8q_context* context, const void* blob, uint64_t blob_bytes, uint32_t flags,
                          int8q_linear** linear) {
  return guarded([&] {
    Context& c = check_context(context);
    require(linear != nullptr, "linear", "where to put the handle");
    require(blob != nullptr, "blob", "a blob of int8q_pack_linear or int8q_get_blob");
    if ((flags & ~static_cast<uint32_t>(INT8Q_TRUST_CHECKSUM)) != 0) {
      fail(INT8Q_INVALID_ARGUMENT, "flags is %u; expected 0 or INT8Q_TRUST_CHECKSUM (1)", flags);
    }
    const BlobSections sections = int8q::validate_blob(blob, blob_bytes, (flags & INT8Q_TRUST_CHECKSUM) != 0);
    *linear = c.gpu ? make_device_handle(c, int8q::cuda::copy_blob(c, sections)) : make_handle(c, nullptr, sections);
  });
}

int32_t int8q_get_blob(const int8q_linear* linear, const void** blob, uint64_t* bytes) {
  return guarded([&] {
    const Linear& l = check_linear(linear);
    require(blob != nullptr, "blob", "where to put the address");
    require(bytes != nullptr, "bytes", "where to put the size");
    if (l.on_device != nullptr)
      fail(INT8Q_UNSUPPORTED, "linear is on a GPU, where it has no blob; int8q_export_linear gives its parts");
    *blob = l.blob.header;
    *bytes = l.blob.header->blob_bytes;
  });
}

int32_t int8q_describe_linear(const int8q_linear* linear, int8q_linear_info* info) {
  return guarded([&] {
    const int8q::BlobHeader& header = *check_linear(linear).blob.header;
    const int8q_linear_info mine{.size = sizeof(int8q_linear_info),
                                 .outlier_mode = header.outlier_mode,
                                 .threshold = header.threshold,
                                 .has_bias = header.has_bias,
                                 .out_features = header.n,
                                 .in_features = header.k,
                                 .kept_count = header.kept_count,
                                 .blob_bytes = header.blob_bytes};
    write_struct(mine, info, "info");
  });
}

int32_t int8q_export_linear(int8q_context* context, const int8q_linear* linear, const int8q_matrix* codes, float* col_stats,
                            const int8q_matrix* bias, int64_t* kept_cols, const int8q_matrix* kept_weights) {
  return guarded([&] {
    Context& c = check_context(context);
    const Linear& l = check_linear(c, linear);
    const BlobSections& blob = l.blob;
    const int64_t n = blob.header->n, k = blob.header->k, kept = blob.header->kept_count;
    int8q_matrix q{}, b{}, w{};
    if (codes != nullptr) q = check_matrix(c, codes, "codes", {INT8Q_S8}, n, k);
    if (bias != nullptr) {
      if (blob.header->has_bias == 0)
        fail(INT8Q_INVALID_ARGUMENT, "bias is given; expected NULL, since the linear has none");
      b = check_matrix(c, bias, "bias", {INT8Q_F32}, 1, n);
    }
    if (kept_weights != nullptr) w = check_matrix(c, kept_weights, "kept_weights", {INT8Q_F16}, n, kept);
    check_array(col_stats, 0, alignof(float), "col_stats");
    check_array(kept_cols, 0, alignof(int64_t), "kept_cols");
    const Extent qs = extent(q, "codes"), bs = extent(b, "bias"), ws = extent(w, "kept_weights");
    const Extent stats = extent(col_stats, n * 4, "col_stats"), cols = extent(kept_cols, kept * 8, "kept_cols");
    for (const Extent& out : {qs, bs, ws, stats, cols}) check_apart(out, l);
    check_overlap(qs, {bs, ws, stats, cols});
    check_overlap(bs, {ws, stats, cols});
    check_overlap(ws, {stats, cols});
    check_overlap(stats, {cols});

    if (c.gpu) return int8q::cuda::export_weights(c, *l.on_device, q, col_stats, b, kept_cols, w);
    const int64_t parts = c.pool.threads();
    if (codes != nullptr) {
      c.pool.run(parts, [&](int64_t part) {
        const int8q::Range panels = int8q::panel_range(n, part, parts);
        for (int64_t p = panels.begin; p < panels.end; ++p) {
          int8q::unpack_panel(blob, p, static_cast<int8_t*>(q.data) + p * int8q::cpu::kPanelRows * q.row_stride,
                              q.row_stride);
        }
      });
    }
    if (col_stats != nullptr) std::copy_n(blob.col_stats, n, col_stats);
    if (bias != nullptr && n > 0) std::memcpy(b.data, blob.bias, static_cast<size_t>(n) * sizeof(float));
    if (kept_cols != nullptr) std::copy_n(blob.kept_cols, kept, kept_cols);
    if (kept_weights == nullptr) return;
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t t = 0; t < kept; ++t) {
        std::memcpy(static_cast<char*>(w.data) + (i * w.row_stride + t) * 2, blob.kept_weights + t * blob.n_padded() + i,
                    2);
      }
    }
  });
}

int32_t int8q_destroy_linear(int8q_linear* linear) {
  return guarded([&] {
    check_linear(linear);
    const int8q::Allocator handles = linear->handles, allocator = linear->allocator;
    if (linear->on_device != nullptr) int8q::cuda::free_weights(allocator, linear->on_device);
    if (linear->owned != nullptr) allocator.deallocate(linear->owned, linear->blob.header->blob_bytes);
    poison(linear);
    handles.deallocate(linear, sizeof(Linear));
  });
}

}  // extern "C"
