// SPDX-License-Identifier: Apache-2.0
//
// A cuBLASLt without a GPU, for s8 products in the memory of the driver that plays one (libcuda.cpp): what
// src/cuda/cublaslt_product.h calls of it, with what cuBLASLt asks of pointers and sizes, and what its caller promised of
// pointers. int8q_stub_cublaslt_live tells how many descriptions, layouts and preferences there are.
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "cuda/cublaslt_product.h"

namespace cublaslt = int8q::cuda::cublaslt;

namespace {

constexpr int kNotSupported = 15, kInvalidValue = 7;

std::atomic<int64_t> live;
struct Counted {
  Counted() { ++live; }
  ~Counted() { --live; }
};

struct Description : Counted {};

struct Layout : Counted {
  Layout(int its_type, uint64_t its_rows, uint64_t its_cols, int64_t its_stride)
      : type(its_type), rows(static_cast<int64_t>(its_rows)), cols(static_cast<int64_t>(its_cols)), stride(its_stride) {}
  int type;
  int64_t rows, cols, stride;
};

struct Preference : Counted {
  uint32_t alignment[4] = {256, 256, 256, 256};  // of a, b, c, d: cuBLASLt's defaults
};

template <class T>
int destroy(void* thing) {
  delete static_cast<T*>(thing);
  return 0;
}

}  // namespace

extern "C" {
#define STUB __attribute__((visibility("default")))

int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void* stream);
int cuStreamSynchronize(void* stream);

STUB int64_t int8q_stub_cublaslt_live() { return live; }

STUB size_t cublasLtGetVersion() { return 130000; }
STUB int cublasLtCreate(void** handle) {
  static int any;
  *handle = &any;
  return 0;
}
STUB int cublasLtDestroy(void*) { return 0; }
STUB int cublasLtMatmulDescCreate(void** desc, int compute_type, int scale_type) {
  *desc = new Description;
  return compute_type == cublaslt::kCompute32I && scale_type == cublaslt::kR32I ? 0 : kNotSupported;
}
STUB int cublasLtMatmulDescDestroy(void* desc) { return destroy<Description>(desc); }
STUB int cublasLtMatmulDescSetAttribute(void*, int attribute, const void* value, size_t bytes) {
  if (bytes != 4) return kInvalidValue;
  const int wanted = attribute == cublaslt::kDescTransA ? cublaslt::kOpT : cublaslt::kOpN;
  return *static_cast<const int32_t*>(value) == wanted ? 0 : kNotSupported;
}
STUB int cublasLtMatrixLayoutCreate(void** layout, int type, uint64_t rows, uint64_t cols, int64_t stride) {
  *layout = new Layout(type, rows, cols, stride);
  return 0;
}
STUB int cublasLtMatrixLayoutDestroy(void* layout) { return destroy<Layout>(layout); }
STUB int cublasLtMatmulPreferenceCreate(void** preference) {
  *preference = new Preference;
  return 0;
}
STUB int cublasLtMatmulPreferenceDestroy(void* preference) { return destroy<Preference>(preference); }
STUB int cublasLtMatmulPreferenceSetAttribute(void* preference, int attribute, const void* value, size_t bytes) {
  constexpr int kMinAlignmentA = 5, kMinAlignmentD = 8;
  if (attribute < kMinAlignmentA || attribute > kMinAlignmentD) return 0;
  if (bytes != sizeof(uint32_t)) return kInvalidValue;
  static_cast<Preference*>(preference)->alignment[attribute - kMinAlignmentA] = *static_cast<const uint32_t*>(value);
  return 0;
}

STUB int cublasLtMatmulAlgoGetHeuristic(void*, void*, void* w, void* x, void*, void* y, void* preference, int wanted,
                                        cublaslt::Proposal* proposals, int* found) {
  const auto &a = *static_cast<Layout*>(w), &b = *static_cast<Layout*>(x), &d = *static_cast<Layout*>(y);
  *found = 0;
  const bool types = a.type == cublaslt::kR8I && b.type == cublaslt::kR8I && d.type == cublaslt::kR32I;
  const bool regular = a.rows % 4 == 0 && a.cols % 4 == 0 && a.stride % 4 == 0 && b.stride % 4 == 0 && d.stride % 4 == 0;
  const bool sizes = a.rows == b.rows && d.rows == a.cols && d.cols == b.cols;
  if (!types || !regular || !sizes || wanted < 1) return kNotSupported;
  proposals[0] = {};
  for (size_t i = 0; i < 4; ++i) {
    proposals[0].algorithm.opaque[i] = static_cast<Preference*>(preference)->alignment[i];
  }
  *found = 1;
  return 0;
}

// Column-major: d = a^T . b.
STUB int cublasLtMatmul(void*, void*, const void* alpha, const void* w, void* w_layout, const void* x, void* x_layout,
                        const void* beta, const void* c, void*, void* y, void* y_layout,
                        const cublaslt::Algorithm* algorithm, void*, size_t, void* stream) {
  const auto &a = *static_cast<Layout*>(w_layout), &b = *static_cast<Layout*>(x_layout),
             &d = *static_cast<Layout*>(y_layout);
  if (*static_cast<const int32_t*>(alpha) != 1 || *static_cast<const int32_t*>(beta) != 0) return kInvalidValue;
  const void* const matrices[] = {w, x, c, y};
  for (size_t i = 0; i < 4; ++i) {
    if (reinterpret_cast<uintptr_t>(matrices[i]) % algorithm->opaque[i] != 0) return kInvalidValue;
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
                             column.size() * 4, stream) != 0 ||
        cuStreamSynchronize(stream) != 0) {
      return kInvalidValue;
    }
  }
  return 0;
}

}  // extern "C"
