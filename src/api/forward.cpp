// SPDX-License-Identifier: Apache-2.0
//
// Forward, part-wise forward, backward: validate without allocating, then delegate to cpu/layer.h.
#include "api/arguments.h"

namespace int8q::api {
namespace {

constexpr int32_t kMaxParts = 1024;
constexpr int32_t kMaxLinears = 64;

void check_flags(uint32_t flags) {
  if ((flags & ~static_cast<uint32_t>(INT8Q_ACCUMULATE)) != 0) {
    fail(INT8Q_INVALID_ARGUMENT, "flags is %u; expected 0 or INT8Q_ACCUMULATE (1)", flags);
  }
}

void check_parts(int32_t part, int32_t parts) {
  if (parts < 1 || parts > kMaxParts) fail(INT8Q_INVALID_ARGUMENT, "parts is %d; expected 1 to %d", parts, kMaxParts);
  if (part < 0 || part >= parts) fail(INT8Q_INVALID_ARGUMENT, "part is %d; expected 0 to parts - 1 = %d", part, parts - 1);
}

void check_workspace(const void* workspace, uint64_t bytes, int64_t needed) {
  require(workspace != nullptr, "workspace", "memory of int8q_query_workspace bytes");
  check_array(workspace, 1, kAlignment, "workspace");
  if (bytes < static_cast<uint64_t>(needed)) {
    fail(INT8Q_BUFFER_TOO_SMALL, "workspace_bytes is %llu; expected at least %lld (int8q_query_workspace)",
         static_cast<unsigned long long>(bytes), static_cast<long long>(needed));
  }
}

Extent blob_extent(const Linear& linear) {
  return extent(linear.blob.header, static_cast<int64_t>(linear.blob.header->blob_bytes), "the linear's blob");
}

// x [M,K], y [M,N], the workspace, and that none of the written ones overlaps another.
struct Call {
  int8q_matrix x, y;
};

Call check_forward(const Linear& linear, const int8q_matrix* x, const int8q_matrix* y, const void* workspace,
                   int64_t needed, uint64_t bytes) {
  Call call{};
  call.x = check_matrix(x, "x", kFloats, -1, linear.k());
  call.y = check_matrix(y, "y", kFloats, call.x.rows, linear.n());
  check_workspace(workspace, bytes, needed);
  const Extent own = extent(workspace, needed, "workspace"), ys = extent(call.y, "y"), xs = extent(call.x, "x");
  check_overlap(ys, {xs, own, blob_extent(linear)});
  check_overlap(own, {xs, blob_extent(linear)});
  return call;
}

void check_alike(const Linear& first, const Linear& other, int32_t index) {
  if (other.k() != first.k() || other.outlier_mode() != first.outlier_mode() || other.threshold() != first.threshold()) {
    fail(INT8Q_INVALID_ARGUMENT,
         "linears[%d] has in_features %lld, outlier_mode %d, threshold %g; expected those of linears[0], %lld, %d, %g",
         index, static_cast<long long>(other.k()), other.outlier_mode(), static_cast<double>(other.threshold()),
         static_cast<long long>(first.k()), first.outlier_mode(), static_cast<double>(first.threshold()));
  }
}

}  // namespace
}  // namespace int8q::api

using namespace int8q::api;
using int8q::Context;
using int8q::fail;
using int8q::Linear;
using int8q::Output;

extern "C" {

int32_t int8q_query_workspace(int8q_context* context, const int8q_linear* linear, int32_t operation, int64_t rows,
                              int32_t parts, uint64_t* bytes) {
  return guarded([&] {
    const Context& c = check_context(context);
    const Linear& l = check_linear(linear);
    require(bytes != nullptr, "bytes", "where to put the size");
    if (rows < 0) fail(INT8Q_INVALID_ARGUMENT, "rows is %lld; expected a size >= 0", static_cast<long long>(rows));
    if (parts < 0 || parts > kMaxParts) fail(INT8Q_INVALID_ARGUMENT, "parts is %d; expected 0 to %d", parts, kMaxParts);
    const int64_t threads = parts == 0 ? c.pool.threads() : parts;
    if (operation == INT8Q_FORWARD) {
      *bytes = static_cast<uint64_t>(int8q::forward_workspace_bytes(*c.kernels, l, rows, threads));
    } else if (operation == INT8Q_BACKWARD) {
      *bytes = static_cast<uint64_t>(int8q::backward_workspace_bytes(l, rows, threads));
    } else {
      fail(INT8Q_INVALID_ARGUMENT, "operation is %d; expected INT8Q_FORWARD (1) or INT8Q_BACKWARD (2)", operation);
    }
  });
}

int32_t int8q_forward(int8q_context* context, const int8q_linear* linear, const int8q_matrix* x, uint32_t flags,
                      const int8q_matrix* y, void* workspace, uint64_t workspace_bytes) {
  return guarded([&] {
    Context& c = check_context(context);
    const Linear* l = &check_linear(linear);
    check_flags(flags);
    if (x == nullptr) fail(INT8Q_INVALID_ARGUMENT, "x is NULL; pass a struct");
    const int64_t rows = check_matrix(x, "x", kFloats, -1, l->k()).rows;
    const int64_t needed = int8q::forward_workspace_bytes(*c.kernels, *l, rows, c.pool.threads());
    const Call call = check_forward(*l, x, y, workspace, needed, workspace_bytes);
    const Output out = output(call.y);
    int8q::forward(c, &l, 1, float_rows(call.x), &out, (flags & INT8Q_ACCUMULATE) != 0, workspace);
  });
}

int32_t int8q_forward_many(int8q_context* context, const int8q_linear* const* linears, int32_t count, const int8q_matrix* x,
                           uint32_t flags, const int8q_matrix* const* ys, void* workspace, uint64_t workspace_bytes) {
  return guarded([&] {
    Context& c = check_context(context);
    check_flags(flags);
    if (count < 0 || count > kMaxLinears) fail(INT8Q_INVALID_ARGUMENT, "count is %d; expected 0 to %d", count, kMaxLinears);
    if (count == 0) return;
    check_array(linears, count, alignof(void*), "linears");
    check_array(ys, count, alignof(void*), "ys");
    const Linear& first = check_linear(linears[0]);
    const int64_t rows = check_matrix(x, "x", kFloats, -1, first.k()).rows;
    const int64_t needed = int8q::forward_workspace_bytes(*c.kernels, first, rows, c.pool.threads());
    Output outs[kMaxLinears];
    int8q_matrix views[kMaxLinears];
    int8q_matrix in{};
    for (int32_t i = 0; i < count; ++i) {
      check_alike(first, check_linear(linears[i]), i);
      const Call call = check_forward(*linears[i], x, ys[i], workspace, needed, workspace_bytes);
      for (int32_t j = 0; j < i; ++j) check_overlap(extent(call.y, "ys[i]"), {extent(views[j], "an earlier one of ys")});
      for (int32_t j = 0; j < count; ++j) check_overlap(extent(call.y, "ys[i]"), {blob_extent(check_linear(linears[j]))});
      views[i] = call.y;
      outs[i] = output(call.y);
      in = call.x;
    }
    int8q::forward(c, linears, count, float_rows(in), outs, (flags & INT8Q_ACCUMULATE) != 0, workspace);
  });
}

int32_t int8q_quantize_part(int8q_context* context, const int8q_linear* linear, const int8q_matrix* x, void* workspace,
                            uint64_t workspace_bytes, int32_t part, int32_t parts) {
  return guarded([&] {
    const Context& c = check_context(context);
    const Linear& l = check_linear(linear);
    check_parts(part, parts);
    const int8q_matrix in = check_matrix(x, "x", kFloats, -1, l.k());
    const int64_t needed = int8q::forward_workspace_bytes(*c.kernels, l, in.rows, parts);
    check_workspace(workspace, workspace_bytes, needed);
    check_overlap(extent(workspace, needed, "workspace"), {extent(in, "x"), blob_extent(l)});
    int8q::quantize_input_part(*c.kernels, l, float_rows(in), workspace, part, parts);
  });
}

int32_t int8q_forward_part(int8q_context* context, const int8q_linear* linear, const int8q_matrix* x, uint32_t flags,
                           const int8q_matrix* y, void* workspace, uint64_t workspace_bytes, int32_t part, int32_t parts) {
  return guarded([&] {
    const Context& c = check_context(context);
    const Linear& l = check_linear(linear);
    check_flags(flags);
    check_parts(part, parts);
    const int64_t rows = check_matrix(x, "x", kFloats, -1, l.k()).rows;
    const int64_t needed = int8q::forward_workspace_bytes(*c.kernels, l, rows, parts);
    const Call call = check_forward(l, x, y, workspace, needed, workspace_bytes);
    if (rows == 0 || l.n() == 0) return;
    int8q::forward_part(*c.kernels, l, float_rows(call.x), output(call.y), (flags & INT8Q_ACCUMULATE) != 0, workspace, part,
                        parts);
  });
}

int32_t int8q_backward(int8q_context* context, const int8q_linear* linear, const int8q_matrix* dy, uint32_t flags,
                       const int8q_matrix* dx, void* workspace, uint64_t workspace_bytes) {
  return guarded([&] {
    Context& c = check_context(context);
    const Linear& l = check_linear(linear);
    check_flags(flags);
    const int8q_matrix in = check_matrix(dy, "dy", kFloats, -1, l.n());
    const int8q_matrix out = check_matrix(dx, "dx", kFloats, in.rows, l.k());
    const int64_t needed = int8q::backward_workspace_bytes(l, in.rows, c.pool.threads());
    check_workspace(workspace, workspace_bytes, needed);
    const Extent own = extent(workspace, needed, "workspace");
    check_overlap(extent(out, "dx"), {extent(in, "dy"), own, blob_extent(l)});
    check_overlap(own, {extent(in, "dy"), blob_extent(l)});
    int8q::backward(c, l, float_rows(in), output(out), (flags & INT8Q_ACCUMULATE) != 0, workspace);
  });
}

}  // extern "C"
