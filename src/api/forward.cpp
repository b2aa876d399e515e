// SPDX-License-Identifier: Apache-2.0
//
// Forward, part-wise forward, backward: validate without allocating, then delegate to cpu/layer.h.
#include <algorithm>

#include "api/arguments.h"
#include "cuda/layer.h"

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

int64_t forward_workspace(const Context& context, const Linear& linear, int64_t rows, int64_t parts) {
  if (context.gpu) return cuda::forward_workspace_bytes(context.gpu->device, *linear.blob.header, rows);
  return forward_workspace_bytes(*context.kernels, linear, rows, parts == 0 ? context.pool.threads() : parts);
}

int64_t backward_workspace(const Context& context, const Linear& linear, int64_t rows, int64_t parts) {
  if (context.gpu) return kAlignment;
  return backward_workspace_bytes(linear, rows, parts == 0 ? context.pool.threads() : parts);
}

void run_forward(Context& context, const Linear* const* linears, int64_t count, const FloatRows& x, const Output* ys,
                 bool accumulate, void* workspace) {
  if (context.gpu) return cuda::forward(*context.gpu, linears, count, x, ys, accumulate, workspace);
  forward(context, linears, count, x, ys, accumulate, workspace);
}

// x [M,K], y [M,N], the workspace, and that none of the written ones overlaps another.
struct Call {
  int8q_matrix x, y;
};

Call check_forward(const Context& context, const Linear& linear, const int8q_matrix* x, const int8q_matrix* y,
                   const void* workspace, int64_t needed, uint64_t bytes) {
  Call call{};
  call.x = check_matrix(context, x, "x", kFloats, -1, linear.k());
  call.y = check_matrix(context, y, "y", kFloats, call.x.rows, linear.n());
  check_workspace(workspace, bytes, needed);
  const Extent own = extent(workspace, needed, "workspace"), ys = extent(call.y, "y"), xs = extent(call.x, "x");
  check_overlap(ys, {xs, own});
  check_apart(ys, linear);
  check_overlap(own, {xs});
  check_apart(own, linear);
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
    const Linear& l = check_linear(c, linear);
    require(bytes != nullptr, "bytes", "where to put the size");
    if (rows < 0) fail(INT8Q_INVALID_ARGUMENT, "rows is %lld; expected a size >= 0", static_cast<long long>(rows));
    if (parts < 0 || parts > kMaxParts) fail(INT8Q_INVALID_ARGUMENT, "parts is %d; expected 0 to %d", parts, kMaxParts);
    if (operation == INT8Q_FORWARD) {
      *bytes = static_cast<uint64_t>(forward_workspace(c, l, rows, parts));
    } else if (operation == INT8Q_BACKWARD) {
      *bytes = static_cast<uint64_t>(backward_workspace(c, l, rows, parts));
    } else {
      fail(INT8Q_INVALID_ARGUMENT, "operation is %d; expected INT8Q_FORWARD (1) or INT8Q_BACKWARD (2)", operation);
    }
  });
}

int32_t int8q_forward(int8q_context* context, const int8q_linear* linear, const int8q_matrix* x, uint32_t flags,
                      const int8q_matrix* y, void* workspace, uint64_t workspace_bytes) {
  return guarded([&] {
    Context& c = check_context(context);
    const Linear* l = &check_linear(c, linear);
    check_flags(flags);
    if (x == nullptr) fail(INT8Q_INVALID_ARGUMENT, "x is NULL; pass a struct");
    const int64_t rows = check_matrix(c, x, "x", kFloats, -1, l->k()).rows;
    const int64_t needed = forward_workspace(c, *l, rows, 0);
    const Call call = check_forward(c, *l, x, y, workspace, needed, workspace_bytes);
    const Output out = output(call.y);
    run_forward(c, &l, 1, float_rows(call.x), &out, (flags & INT8Q_ACCUMULATE) != 0, workspace);
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
    const Linear& first = check_linear(c, linears[0]);
    const int64_t rows = check_matrix(c, x, "x", kFloats, -1, first.k()).rows;
    int64_t needed = 0;
    for (int32_t i = 0; i < count; ++i) {
      const Linear& linear = check_linear(c, linears[i]);
      check_alike(first, linear, i);
      needed = std::max(needed, forward_workspace(c, linear, rows, 0));
    }
    Output outs[kMaxLinears];
    int8q_matrix views[kMaxLinears];
    int8q_matrix in{};
    for (int32_t i = 0; i < count; ++i) {
      const Call call = check_forward(c, *linears[i], x, ys[i], workspace, needed, workspace_bytes);
      for (int32_t j = 0; j < i; ++j) check_overlap(extent(call.y, "ys[i]"), {extent(views[j], "an earlier one of ys")});
      for (int32_t j = 0; j < count; ++j) check_apart(extent(call.y, "ys[i]"), check_linear(c, linears[j]));
      views[i] = call.y;
      outs[i] = output(call.y);
      in = call.x;
    }
    run_forward(c, linears, count, float_rows(in), outs, (flags & INT8Q_ACCUMULATE) != 0, workspace);
  });
}

int32_t int8q_quantize_part(int8q_context* context, const int8q_linear* linear, const int8q_matrix* x, void* workspace,
                            uint64_t workspace_bytes, int32_t part, int32_t parts) {
  return guarded([&] {
    const Context& c = check_cpu_context(context);
    const Linear& l = check_linear(c, linear);
    check_parts(part, parts);
    const int8q_matrix in = check_matrix(c, x, "x", kFloats, -1, l.k());
    const int64_t needed = forward_workspace(c, l, in.rows, parts);
    check_workspace(workspace, workspace_bytes, needed);
    check_overlap(extent(workspace, needed, "workspace"), {extent(in, "x"), weights_extent(l)});
    int8q::quantize_input_part(*c.kernels, l, float_rows(in), workspace, part, parts);
  });
}

int32_t int8q_forward_part(int8q_context* context, const int8q_linear* linear, const int8q_matrix* x, uint32_t flags,
                           const int8q_matrix* y, void* workspace, uint64_t workspace_bytes, int32_t part, int32_t parts) {
  return guarded([&] {
    const Context& c = check_cpu_context(context);
    const Linear& l = check_linear(c, linear);
    check_flags(flags);
    check_parts(part, parts);
    const int64_t rows = check_matrix(c, x, "x", kFloats, -1, l.k()).rows;
    const int64_t needed = forward_workspace(c, l, rows, parts);
    const Call call = check_forward(c, l, x, y, workspace, needed, workspace_bytes);
    if (rows == 0 || l.n() == 0) return;
    int8q::forward_part(*c.kernels, l, float_rows(call.x), output(call.y), (flags & INT8Q_ACCUMULATE) != 0, workspace, part,
                        parts);
  });
}

int32_t int8q_backward(int8q_context* context, const int8q_linear* linear, const int8q_matrix* dy, uint32_t flags,
                       const int8q_matrix* dx, void* workspace, uint64_t workspace_bytes) {
  return guarded([&] {
    Context& c = check_context(context);
    const Linear& l = check_linear(c, linear);
    check_flags(flags);
    const int8q_matrix in = check_matrix(c, dy, "dy", kFloats, -1, l.n());
    const int8q_matrix out = check_matrix(c, dx, "dx", kFloats, in.rows, l.k());
    const int64_t needed = backward_workspace(c, l, in.rows, 0);
    check_workspace(workspace, workspace_bytes, needed);
    const Extent own = extent(workspace, needed, "workspace");
    check_overlap(extent(out, "dx"), {extent(in, "dy"), own});
    check_apart(extent(out, "dx"), l);
    check_overlap(own, {extent(in, "dy")});
    check_apart(own, l);
    if (c.gpu) return int8q::cuda::backward(*c.gpu, l, float_rows(in), output(out), (flags & INT8Q_ACCUMULATE) != 0);
    int8q::backward(c, l, float_rows(in), output(out), (flags & INT8Q_ACCUMULATE) != 0, workspace);
  });
}

}  // extern "C"
