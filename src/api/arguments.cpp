// SPDX-License-Identifier: Apache-2.0
#include "api/arguments.h"

#include <string>

#include "cuda/layer.h"

namespace int8q::api {
namespace {

std::string list(DtypeSet dtypes) {
  std::string text;
  for (const int32_t dtype : dtypes) text += (text.empty() ? "INT8Q_" : ", INT8Q_") + std::string(dtype_name(dtype));
  return text;
}

bool contains(DtypeSet dtypes, int32_t dtype) {
  for (const int32_t d : dtypes) {
    if (d == dtype) return true;
  }
  return false;
}

void check_shape(const char* name, const char* what, int64_t value, int64_t expected) {
  if (value < 0)
    fail(INT8Q_INVALID_ARGUMENT, "%s->%s is %lld; expected a size >= 0", name, what, static_cast<long long>(value));
  if (expected >= 0 && value != expected) {
    fail(INT8Q_INVALID_ARGUMENT, "%s->%s is %lld; expected %lld, to match the other arguments", name, what,
         static_cast<long long>(value), static_cast<long long>(expected));
  }
}

const uint8_t* end_of(const Extent& e) {
  return e.rows == 0 || e.row_bytes == 0 ? e.begin : e.begin + (e.rows - 1) * e.row_stride + e.row_bytes;
}

bool disjoint(const Extent& a, const Extent& b) {
  if (end_of(a) == a.begin || end_of(b) == b.begin) return true;
  if (end_of(a) <= b.begin || end_of(b) <= a.begin) return true;
  const int64_t stride = a.rows > 1 ? a.row_stride : b.row_stride;
  if ((a.rows > 1 && a.row_stride != stride) || (b.rows > 1 && b.row_stride != stride) || stride == 0) return false;
  // Columns of one buffer: place both on the ring of one stride. b may start below a.
  const int64_t offset = ((b.begin - a.begin) % stride + stride) % stride;
  return offset >= a.row_bytes && offset + b.row_bytes <= stride;
}

}  // namespace

Context& check_context(int8q_context* context) {
  if (context == nullptr || reinterpret_cast<uintptr_t>(context) % alignof(int8q_context) != 0 ||
      context->magic != int8q_context::kMagic) {
    fail(INT8Q_INVALID_HANDLE, "context is %p; expected a live handle of int8q_create_context",
         static_cast<void*>(context));
  }
  return *context;
}

const Linear& check_linear(const int8q_linear* linear) {
  if (linear == nullptr || reinterpret_cast<uintptr_t>(linear) % alignof(int8q_linear) != 0 ||
      linear->magic != int8q_linear::kMagic) {
    fail(INT8Q_INVALID_HANDLE, "linear is %p; expected a live handle of int8q_create_linear or int8q_open_linear",
         static_cast<const void*>(linear));
  }
  return *linear;
}

Context& check_cpu_context(int8q_context* context) {
  Context& c = check_context(context);
  if (c.gpu) fail(INT8Q_UNSUPPORTED, "context is a GPU's; this function needs one of INT8Q_BACKEND_CPU");
  return c;
}

const Linear& check_linear(const Context& context, const int8q_linear* linear) {
  const Linear& l = check_linear(linear);
  const auto place = [](const cuda::Device* device) {
    return device == nullptr ? std::string("the CPU") : "GPU " + std::to_string(device->ordinal);
  };
  const cuda::Device* wanted = context.gpu ? &context.gpu->device : nullptr;
  const cuda::Device* found = l.on_device != nullptr ? l.on_device->device : nullptr;
  if (found != wanted) {
    fail(INT8Q_INVALID_ARGUMENT, "linear is on %s; expected one made by a context of %s", place(found).c_str(),
         place(wanted).c_str());
  }
  return l;
}

int8q_matrix check_matrix(const Context& context, const int8q_matrix* matrix, const char* name, DtypeSet dtypes,
                          int64_t rows, int64_t cols) {
  int8q_matrix m = read_struct(matrix, name);
  if (!contains(dtypes, m.dtype)) {
    fail(INT8Q_INVALID_DTYPE, "%s->dtype is %d (INT8Q_%s); expected one of %s", name, m.dtype, dtype_name(m.dtype),
         list(dtypes).c_str());
  }
  check_shape(name, "rows", m.rows, rows);
  check_shape(name, "cols", m.cols, cols);
  if (m.rows <= 1 || m.cols == 0) m.row_stride = m.cols;
  if (m.row_stride < m.cols) {
    fail(INT8Q_INVALID_ARGUMENT, "%s->row_stride is %lld; expected at least cols, %lld", name,
         static_cast<long long>(m.row_stride), static_cast<long long>(m.cols));
  }
  // An array beside the matrix, of stats or indices, has up to 8 bytes a row or column.
  checked_mul(m.rows, 8, name);
  checked_mul(m.cols, 8, name);
  const int64_t span = checked_add(checked_mul(m.rows, m.row_stride, name), m.cols, name);
  checked_mul(span, dtype_bytes(m.dtype), name);
  if (m.data == nullptr && m.rows > 0 && m.cols > 0) {
    fail(INT8Q_INVALID_ARGUMENT, "%s->data is NULL; expected %lld x %lld elements", name, static_cast<long long>(m.rows),
         static_cast<long long>(m.cols));
  }
  if (context.gpu) check_array(m.data, 0, static_cast<size_t>(dtype_bytes(m.dtype)), name);
  return m;
}

void check_array(const void* array, int64_t count, size_t alignment, const char* name) {
  if (array == nullptr) {
    if (count > 0) fail(INT8Q_INVALID_ARGUMENT, "%s is NULL; expected %lld elements", name, static_cast<long long>(count));
    return;
  }
  if (reinterpret_cast<uintptr_t>(array) % alignment != 0) {
    fail(INT8Q_MISALIGNED, "%s is at %p; expected an address that is a multiple of %zu", name, array, alignment);
  }
}

Extent extent(const int8q_matrix& m, const char* name) {
  const int64_t bytes = dtype_bytes(m.dtype);
  return {name, static_cast<const uint8_t*>(m.data), m.cols * bytes, m.row_stride * bytes, m.rows};
}

Extent extent(const void* array, int64_t bytes, const char* name) {
  return {name, static_cast<const uint8_t*>(array), array == nullptr ? 0 : bytes, bytes, 1};
}

Extent weights_extent(const Linear& linear) {
  const void* memory = linear.on_device != nullptr ? linear.on_device->memory : linear.blob.header;
  return extent(memory, static_cast<int64_t>(linear.blob.header->blob_bytes), "the linear's weights");
}

void check_overlap(const Extent& out, std::initializer_list<Extent> others) {
  for (const Extent& other : others) {
    if (!disjoint(out, other)) {
      fail(INT8Q_OVERLAP, "%s at %p overlaps %s at %p; expected an output of its own", out.name,
           static_cast<const void*>(out.begin), other.name, static_cast<const void*>(other.begin));
    }
  }
}

void check_apart(const Extent& out, const Linear& linear) {
  check_overlap(out, {weights_extent(linear)});
  if (linear.on_device == nullptr) return;
  const cuda::DeviceWeights& w = *linear.on_device;
  const Extent codes = {"the linear's codes", reinterpret_cast<const uint8_t*>(w.codes), linear.k(), w.stride, linear.n()};
  const int64_t bias_bytes = w.bias == nullptr ? 0 : linear.n() * dtype_bytes(w.bias_dtype);
  check_overlap(out, {codes, extent(w.col_stats, linear.n() * 4, "the linear's col_stats"),
                      extent(w.bias, bias_bytes, "the linear's bias")});
}

}  // namespace int8q::api
