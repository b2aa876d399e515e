// SPDX-License-Identifier: Apache-2.0
//
// Validation of what the C functions receive: handles, matrices, arrays, overlap. Each failure names the argument, its
// value and what was expected. Below the API everything is trusted.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "api/boundary.h"
#include "core/context.h"
#include "core/dtype.h"
#include "core/linear.h"
#include "cpu/layer.h"

namespace int8q::api {

using DtypeSet = std::initializer_list<int32_t>;
inline constexpr DtypeSet kFloats = {INT8Q_F32, INT8Q_F16, INT8Q_BF16};

Context& check_context(int8q_context* context);
Context& check_cpu_context(int8q_context* context);  // UNSUPPORTED for a GPU's
const Linear& check_linear(const int8q_linear* linear);
// One of the context's backend and device.
const Linear& check_linear(const Context& context, const int8q_linear* linear);

// Overwrites the magic, the first member of a handle whose life has ended; volatile, or the compiler would drop the store.
inline void poison(void* handle) { *static_cast<volatile uint64_t*>(handle) = 0; }

// A validated copy; row_stride is cols where there is one row. rows or cols of -1 expect any size. A GPU's elements are aligned.
int8q_matrix check_matrix(const Context& context, const int8q_matrix* matrix, const char* name, DtypeSet dtypes,
                          int64_t rows, int64_t cols);

// A float or int64_t array: naturally aligned, not NULL unless count is 0.
void check_array(const void* array, int64_t count, size_t alignment, const char* name);

// Bytes from the first to past the last element.
struct Extent {
  const char* name;
  const uint8_t* begin;
  int64_t row_bytes;   // of one row's elements
  int64_t row_stride;  // bytes
  int64_t rows;
};
Extent extent(const int8q_matrix& matrix, const char* name);
Extent extent(const void* array, int64_t bytes, const char* name);

// What a linear holds: its blob, or on a GPU its memory, and there its codes, which may be the caller's.
Extent weights_extent(const Linear& linear);

// OVERLAP if out shares a byte with one of others. Views that interleave (columns of one buffer, the same stride) do not.
void check_overlap(const Extent& out, std::initializer_list<Extent> others);
// Nor may it overlap what a linear reads: its own memory, and on a GPU what it borrows of the caller's.
void check_apart(const Extent& out, const Linear& linear);

inline FloatRows float_rows(const int8q_matrix& m) {
  return {static_cast<const uint8_t*>(m.data), kernel_index(m.dtype), m.rows, m.cols, m.row_stride * dtype_bytes(m.dtype)};
}
inline Output output(const int8q_matrix& m) {
  return {static_cast<uint8_t*>(m.data), m.dtype, m.row_stride * dtype_bytes(m.dtype)};
}

}  // namespace int8q::api
