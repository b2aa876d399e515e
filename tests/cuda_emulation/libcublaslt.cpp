// SPDX-License-Identifier: Apache-2.0
//
// A cuBLASLt without a GPU, for s8 products in the memory of the driver that plays one (libcuda.cpp): what
// src/cuda/cublaslt_product.h calls of it, with what cuBLASLt asks of pointers and sizes.
#include <cstddef>
#include <cstdint>
#include <vector>

#include "cuda/cublaslt_product.h"

namespace cublaslt = int8q::cuda::cublaslt;

namespace {

constexpr int kNotSupported = 15, kInvalidValue = 7;

struct Layout {
  int type;
  int64_t rows, cols, stride;
};

}  // namespace

extern "C" {
#define STUB __attribute__((visibility("default")))

int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void* stream);

STUB size_t cublasLtGetVersion() { return 130000; }
STUB int cublasLtCreate(void** handle) {
  static int any;
  *handle = &any;
  return 0;
}
STUB int cublasLtMatmulDescCreate(void** desc, int compute_type, int scale_type) {
  static int any;
  *desc = &any;
  return compute_type == cublaslt::kCompute32I && scale_type == cublaslt::kR32I ? 0 : kNotSupported;
}
STUB int cublasLtMatmulDescSetAttribute(void*, int attribute, const void* value, size_t bytes) {
  if (bytes != 4) return kInvalidValue;
  const int wanted = attribute == cublaslt::kDescTransA ? cublaslt::kOpT : cublaslt::kOpN;
  return *static_cast<const int32_t*>(value) == wanted ? 0 : kNotSupported;
}
STUB int cublasLtMatrixLayoutCreate(void** layout, int type, uint64_t rows, uint64_t cols, int64_t stride) {
  *layout = new Layout{type, static_cast<int64_t>(rows), static_cast<int64_t>(cols), stride};  // as long as the process
  return 0;
}
STUB int cublasLtMatmulPreferenceCreate(void** preference) {
  static int any;
  *preference = &any;
  return 0;
}
STUB int cublasLtMatmulPreferenceSetAttribute(void*, int, const void*, size_t) { return 0; }

STUB int cublasLtMatmulAlgoGetHeuristic(void*, void*, void* w, void* x, void*, void* y, void*, int wanted,
                                        cublaslt::Proposal* proposals, int* found) {
  const auto &a = *static_cast<Layout*>(w), &b = *static_cast<Layout*>(x), &d = *static_cast<Layout*>(y);
  *found = 0;
  const bool types = a.type == cublaslt::kR8I && b.type == cublaslt::kR8I && d.type == cublaslt::kR32I;
  const bool regular = a.rows % 4 == 0 && a.cols % 4 == 0 && a.stride % 4 == 0 && b.stride % 4 == 0 && d.stride % 4 == 0;
  const bool sizes = a.rows == b.rows && d.rows == a.cols && d.cols == b.cols;
  if (!types || !regular || !sizes || wanted < 1) return kNotSupported;
  proposals[0] = {};
  *found = 1;
  return 0;
}

// Column-major: d = a^T . b.
STUB int cublasLtMatmul(void*, void*, const void* alpha, const void* w, void* w_layout, const void* x, void* x_layout,
                        const void* beta, const void*, void*, void* y, void* y_layout, const cublaslt::Algorithm*, void*,
                        size_t, void* stream) {
  const auto &a = *static_cast<Layout*>(w_layout), &b = *static_cast<Layout*>(x_layout),
             &d = *static_cast<Layout*>(y_layout);
  if (*static_cast<const int32_t*>(alpha) != 1 || *static_cast<const int32_t*>(beta) != 0) return kInvalidValue;
  for (const void* at : {w, x, static_cast<const void*>(y)}) {
    if (reinterpret_cast<uintptr_t>(at) % 4 != 0) return kNotSupported;
  }
  std::vector<int32_t> column(static_cast<size_t>(d.rows));
  for (int64_t j = 0; j < d.cols; ++j) {
    const auto* of_x = static_cast<const int8_t*>(x) + j * b.stride;
    for (int64_t i = 0; i < d.rows; ++i) {
      const auto* of_w = static_cast<const int8_t*>(w) + i * a.stride;
      int32_t sum = 0;
      for (int64_t k = 0; k < a.rows; ++k) sum += of_w[k] * of_x[k];
      column[static_cast<size_t>(i)] = sum;
    }
    if (cuMemcpyHtoDAsync_v2(reinterpret_cast<uint64_t>(static_cast<int32_t*>(y) + j * d.stride), column.data(),
                             column.size() * 4, stream) != 0) {
      return kInvalidValue;
    }
  }
  return 0;
}

}  // extern "C"
