// SPDX-License-Identifier: Apache-2.0
//
// The stateless operations: validate, then delegate to cpu/stateless.h.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "api/arguments.h"
#include "cpu/stateless.h"
#include "cuda/stateless.h"

namespace int8q::api {
namespace {

// bias as check_matrix gives it; data NULL if there is none.
int8q_matrix check_bias(const Context& context, const int8q_matrix* bias, int64_t n) {
  return bias == nullptr ? int8q_matrix{} : check_matrix(context, bias, "bias", kFloats, 1, n);
}

void check_stats(const float* row_stats, int64_t m, const float* col_stats, int64_t n) {
  check_array(row_stats, m, alignof(float), "row_stats");
  check_array(col_stats, n, alignof(float), "col_stats");
}

// K for which the s32 product of foreign codes is exact: looks for -128 only where it matters, and where it can.
void check_depth(const Context& context, const int8q_matrix& a, const char* name) {
  const int64_t most = context.gpu ? kMaxKForeign : kMaxK;
  if (a.cols > most) {
    fail(INT8Q_SIZE_OVERFLOW, "%s->cols is %lld; the s32 product is exact up to K = %lld; split the product along K", name,
         static_cast<long long>(a.cols), static_cast<long long>(most));
  }
  if (a.cols <= kMaxKForeign) return;
  for (int64_t i = 0; i < a.rows; ++i) {
    if (std::memchr(static_cast<const char*>(a.data) + i * a.row_stride, 0x80, static_cast<size_t>(a.cols)) != nullptr) {
      fail(INT8Q_SIZE_OVERFLOW, "%s holds -128 in row %lld and K is %lld; expected codes in [-127, 127], or K <= %lld",
           name, static_cast<long long>(i), static_cast<long long>(a.cols), static_cast<long long>(kMaxKForeign));
    }
  }
}

struct Operands {
  int8q_matrix a, b, bias, y;
};

Operands check_operands(const Context& context, const int8q_matrix* a, const int8q_matrix* b, const int8q_matrix* bias,
                        const int8q_matrix* y, DtypeSet outputs, const char* y_name) {
  Operands o{};
  o.a = check_matrix(context, a, "a", {INT8Q_S8}, -1, -1);
  o.b = check_matrix(context, b, "b", {INT8Q_S8}, -1, o.a.cols);
  o.bias = check_bias(context, bias, o.b.rows);
  o.y = check_matrix(context, y, y_name, outputs, o.a.rows, o.b.rows);
  check_depth(context, o.a, "a");
  check_depth(context, o.b, "b");
  return o;
}

Product make_product(const Operands& o, const float* row_stats, const float* col_stats) {
  Product p{};
  p.m = o.a.rows;
  p.n = o.b.rows;
  p.k = o.a.cols;
  p.a = static_cast<const int8_t*>(o.a.data);
  p.a_stride = o.a.row_stride;
  p.row_stats = row_stats;
  p.weights = Weights::kRowMajor;
  p.b = static_cast<const int8_t*>(o.b.data);
  p.b_stride = o.b.row_stride;
  p.col_stats = col_stats;
  p.bias = static_cast<const uint8_t*>(o.bias.data);
  p.bias_dtype = o.bias.dtype;
  p.limit = cpu::kNoOutliers;
  p.y = static_cast<uint8_t*>(o.y.data);
  p.y_dtype = o.y.dtype;
  p.y_stride = o.y.row_stride * dtype_bytes(o.y.dtype);
  return p;
}

void check_outlier_cols(const Context& context, const int64_t* cols, int64_t count, int64_t k) {
  if (count < 0 || count > k) {
    fail(INT8Q_INVALID_ARGUMENT, "outlier_count is %lld; expected 0 to K = %lld", static_cast<long long>(count),
         static_cast<long long>(k));
  }
  check_array(cols, count, alignof(int64_t), "outlier_cols");
  if (context.gpu) return;
  for (int64_t t = 0; t < count; ++t) {
    if (cols[t] < 0 || cols[t] >= k || (t > 0 && cols[t] <= cols[t - 1])) {
      fail(INT8Q_INVALID_ARGUMENT, "outlier_cols[%lld] is %lld; expected ascending columns in [0, %lld)",
           static_cast<long long>(t), static_cast<long long>(cols[t]), static_cast<long long>(k));
    }
  }
}

void run_product(Context& context, Product& product) {
  ScratchLease lease(context);
  if (context.gpu) return cuda::multiply(*context.gpu, lease, product);
  multiply(context, lease, product);
}

}  // namespace
}  // namespace int8q::api

using namespace int8q::api;
using int8q::Context;
using int8q::fail;
using int8q::Product;
using int8q::ScratchLease;

extern "C" {

int32_t int8q_quantize_rows(int8q_context* context, const int8q_matrix* x, int32_t outlier_mode, float threshold,
                            const int8q_matrix* q, float* row_stats, uint8_t* outlier_mask, int64_t* outlier_cols,
                            int64_t* outlier_count) {
  return guarded([&] {
    Context& c = check_context(context);
    const int8q_matrix in = check_matrix(c, x, "x", kFloats, -1, -1);
    const int8q_matrix out = check_matrix(c, q, "q", {INT8Q_S8}, in.rows, in.cols);
    const uint32_t limit = int8q::outlier_limit(outlier_mode, threshold);
    check_array(row_stats, in.rows, alignof(float), "row_stats");
    check_array(outlier_cols, 0, alignof(int64_t), "outlier_cols");
    check_array(outlier_count, 0, alignof(int64_t), "outlier_count");
    require(outlier_cols == nullptr || outlier_count != nullptr, "outlier_count", "a place for the number of outlier_cols");
    const Extent xs = extent(in, "x"), qs = extent(out, "q"), stats = extent(row_stats, in.rows * 4, "row_stats");
    const Extent mask = extent(outlier_mask, in.cols, "outlier_mask"),
                 cols = extent(outlier_cols, in.cols * 8, "outlier_cols");
    const Extent count = extent(outlier_count, 8, "outlier_count");
    check_overlap(qs, {xs, stats, mask, cols, count});
    check_overlap(stats, {xs, mask, cols, count});
    check_overlap(mask, {xs, cols, count});
    check_overlap(cols, {xs, count});
    check_overlap(count, {xs});
    ScratchLease lease(c);
    const bool element = outlier_mode == INT8Q_OUTLIERS_ELEMENT;
    auto* codes = static_cast<int8_t*>(out.data);
    if (c.gpu) {
      return int8q::cuda::quantize_rows(*c.gpu, lease, float_rows(in), limit, element, codes, out.row_stride, row_stats,
                                        outlier_mask, outlier_cols, outlier_count);
    }
    quantize_rows(c, lease, float_rows(in), limit, element, codes, out.row_stride, row_stats, outlier_mask, outlier_cols,
                  outlier_count);
  });
}

int32_t int8q_multiply(int8q_context* context, const int8q_matrix* a, const int8q_matrix* b, const int8q_matrix* c) {
  return guarded([&] {
    Context& ctx = check_context(context);
    const Operands o = check_operands(ctx, a, b, nullptr, c, {INT8Q_S32}, "c");
    check_overlap(extent(o.y, "c"), {extent(o.a, "a"), extent(o.b, "b")});
    Product p = make_product(o, nullptr, nullptr);
    run_product(ctx, p);
  });
}

int32_t int8q_dequantize_accumulators(int8q_context* context, const int8q_matrix* acc, const float* row_stats,
                                      const float* col_stats, const int8q_matrix* bias, const int8q_matrix* y) {
  return guarded([&] {
    Context& ctx = check_context(context);
    const int8q_matrix in = check_matrix(ctx, acc, "acc", {INT8Q_S32}, -1, -1);
    check_stats(row_stats, in.rows, col_stats, in.cols);
    const int8q_matrix bias_in = check_bias(ctx, bias, in.cols);
    const int8q_matrix out = check_matrix(ctx, y, "y", kFloats, in.rows, in.cols);
    check_overlap(extent(out, "y"), {extent(in, "acc"), extent(row_stats, in.rows * 4, "row_stats"),
                                     extent(col_stats, in.cols * 4, "col_stats"), extent(bias_in, "bias")});
    Product p = make_product({in, in, bias_in, out}, row_stats, col_stats);
    p.m = in.rows;
    p.n = in.cols;
    p.k = 0;
    p.weights = int8q::Weights::kNone;
    p.b_stride = in.row_stride * 4;
    run_product(ctx, p);
  });
}

int32_t int8q_scaled_multiply(int8q_context* context, const int8q_matrix* a, const float* row_stats, const int8q_matrix* b,
                              const float* col_stats, const int8q_matrix* bias, const int8q_matrix* y) {
  return guarded([&] {
    Context& ctx = check_context(context);
    const Operands o = check_operands(ctx, a, b, bias, y, kFloats, "y");
    check_stats(row_stats, o.a.rows, col_stats, o.b.rows);
    check_overlap(extent(o.y, "y"), {extent(o.a, "a"), extent(o.b, "b"), extent(row_stats, o.a.rows * 4, "row_stats"),
                                     extent(col_stats, o.b.rows * 4, "col_stats"), extent(o.bias, "bias")});
    Product p = make_product(o, row_stats, col_stats);
    run_product(ctx, p);
  });
}

int32_t int8q_mixed_scaled_multiply(int8q_context* context, const int8q_matrix* x, const int8q_matrix* a,
                                    const float* row_stats, const int8q_matrix* b, const float* col_stats,
                                    int32_t outlier_mode, float threshold, const int64_t* outlier_cols,
                                    int64_t outlier_count, const int8q_matrix* bias, const int8q_matrix* y) {
  return guarded([&] {
    Context& ctx = check_context(context);
    const Operands o = check_operands(ctx, a, b, bias, y, kFloats, "y");
    const int8q_matrix in = check_matrix(ctx, x, "x", kFloats, o.a.rows, o.a.cols);
    check_stats(row_stats, o.a.rows, col_stats, o.b.rows);
    if (outlier_mode == INT8Q_OUTLIERS_OFF) {
      fail(INT8Q_INVALID_ARGUMENT,
           "outlier_mode is INT8Q_OUTLIERS_OFF (1); expected COLUMN (0), ELEMENT (2) or ALL (3); without outliers use "
           "int8q_scaled_multiply");
    }
    const uint32_t limit = int8q::outlier_limit(outlier_mode, threshold);
    check_outlier_cols(ctx, outlier_cols, outlier_count, o.a.cols);
    check_overlap(extent(o.y, "y"),
                  {extent(in, "x"), extent(o.a, "a"), extent(o.b, "b"), extent(row_stats, o.a.rows * 4, "row_stats"),
                   extent(col_stats, o.b.rows * 4, "col_stats"), extent(outlier_cols, outlier_count * 8, "outlier_cols"),
                   extent(o.bias, "bias")});
    Product p = make_product(o, row_stats, col_stats);
    p.x = float_rows(in);
    p.limit = limit;
    p.element = outlier_mode == INT8Q_OUTLIERS_ELEMENT;
    p.given_cols = outlier_cols;
    p.given_count = outlier_count;
    run_product(ctx, p);
  });
}

int32_t int8q_dequantize_rows(int8q_context* context, const int8q_matrix* q, const float* stats, const int8q_matrix* y) {
  return guarded([&] {
    Context& ctx = check_context(context);
    const int8q_matrix in = check_matrix(ctx, q, "q", {INT8Q_S8}, -1, -1);
    check_array(stats, in.rows, alignof(float), "stats");
    const int8q_matrix out = check_matrix(ctx, y, "y", kFloats, in.rows, in.cols);
    check_overlap(extent(out, "y"), {extent(in, "q"), extent(stats, in.rows * 4, "stats")});
    if (ctx.gpu) {
      return int8q::cuda::dequantize_rows(*ctx.gpu, static_cast<const int8_t*>(in.data), in.row_stride, in.rows, in.cols,
                                          stats, output(out));
    }
    dequantize_rows(ctx, static_cast<const int8_t*>(in.data), in.row_stride, in.rows, in.cols, stats, output(out));
  });
}

int32_t int8q_count_outliers(int8q_context* context, const int8q_matrix* x, float threshold, int64_t* counts) {
  return guarded([&] {
    Context& ctx = check_context(context);
    const int8q_matrix in = check_matrix(ctx, x, "x", kFloats, -1, -1);
    const uint32_t limit = int8q::outlier_limit(INT8Q_OUTLIERS_COLUMN, threshold);
    check_array(counts, in.cols, alignof(int64_t), "counts");
    check_overlap(extent(counts, in.cols * 8, "counts"), {extent(in, "x")});
    if (ctx.gpu) return int8q::cuda::count_outliers(*ctx.gpu, float_rows(in), limit, counts);
    ScratchLease lease(ctx);
    count_outliers(ctx, lease, float_rows(in), limit, counts);
  });
}

int32_t int8q_select_outlier_cols(const int64_t* counts, int64_t cols, int64_t rows, double min_fraction,
                                  int64_t* outlier_cols, int64_t* outlier_count) {
  return guarded([&] {
    if (cols < 0) fail(INT8Q_INVALID_ARGUMENT, "cols is %lld; expected a size >= 0", static_cast<long long>(cols));
    if (rows <= 0)
      fail(INT8Q_INVALID_ARGUMENT, "rows is %lld; expected how many rows were counted, > 0", static_cast<long long>(rows));
    if (!(min_fraction >= 0.0 && min_fraction <= 1.0))
      fail(INT8Q_INVALID_ARGUMENT, "min_fraction is %g; expected 0 to 1", min_fraction);
    check_array(counts, cols, alignof(int64_t), "counts");
    check_array(outlier_cols, cols, alignof(int64_t), "outlier_cols");
    check_array(outlier_count, 1, alignof(int64_t), "outlier_count");
    const int64_t bytes = int8q::checked_mul(cols, 8, "cols");
    const Extent in = extent(counts, bytes, "counts"), out = extent(outlier_cols, bytes, "outlier_cols");
    check_overlap(out, {in, extent(outlier_count, 8, "outlier_count")});
    check_overlap(extent(outlier_count, 8, "outlier_count"), {in});
    int64_t found = 0;
    for (int64_t k = 0; k < cols; ++k) {
      if (counts[k] > 0 && static_cast<double>(counts[k]) >= min_fraction * static_cast<double>(rows))
        outlier_cols[found++] = k;
    }
    *outlier_count = found;
  });
}

}  // extern "C"
