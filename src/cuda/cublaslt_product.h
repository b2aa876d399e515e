// SPDX-License-Identifier: Apache-2.0
//
// cuBLASLt, as far as products of matrices need it. Some 500 MB that nobody has to have: it is looked for by dlopen, by who asks
// for it, and what is needed of its header stands here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace int8q::cuda::cublaslt {

// Of cublasLt.h, cublas_api.h and library_types.h of CUDA 12 and 13.
enum : int {
  kR32F = 0,
  kR8I = 3,
  kR32I = 10,
  kR16BF = 14,
  kCompute32F = 68,
  kCompute32I = 72,
  kOpN = 0,
  kOpT = 1,
  kDescTransA = 3,
  kDescTransB = 4,
  kPreferMaxWorkspaceBytes = 1,
  kPreferMinAlignmentA = 5,  // of b, c and d: what follows
  kPreferMinAlignmentD = 8,
};
struct Algorithm {  // cublasLtMatmulAlgo_t
  uint64_t opaque[8];
};
struct Proposal {  // cublasLtMatmulHeuristicResult_t
  Algorithm algorithm;
  size_t workspace_bytes;
  int state;
  float waves;
  int reserved[4];
};
static_assert(sizeof(Proposal) == 96);

// name, parameters. Each returns a cublasStatus_t.
#define INT8Q_CUBLASLT_FUNCTIONS(F)                                                                                       \
  F(cublasLtCreate, void** handle)                                                                                        \
  F(cublasLtDestroy, void* handle)                                                                                        \
  F(cublasLtMatmulDescCreate, void** desc, int compute_type, int scale_type)                                              \
  F(cublasLtMatmulDescDestroy, void* desc)                                                                                \
  F(cublasLtMatmulDescSetAttribute, void* desc, int attribute, const void* value, size_t bytes)                           \
  F(cublasLtMatrixLayoutCreate, void** layout, int type, uint64_t rows, uint64_t cols, int64_t stride)                    \
  F(cublasLtMatrixLayoutDestroy, void* layout)                                                                            \
  F(cublasLtMatmulPreferenceCreate, void** preference)                                                                    \
  F(cublasLtMatmulPreferenceDestroy, void* preference)                                                                    \
  F(cublasLtMatmulPreferenceSetAttribute, void* preference, int attribute, const void* value, size_t bytes)               \
  F(cublasLtMatmulAlgoGetHeuristic, void* handle, void* desc, void* a, void* b, void* c, void* d, void* preference,       \
    int wanted, Proposal* proposals, int* found)                                                                          \
  F(cublasLtMatmul, void* handle, void* desc, const void* alpha, const void* a, void* a_layout, const void* b,            \
    void* b_layout, const void* beta, const void* c, void* c_layout, void* d, void* d_layout, const Algorithm* algorithm, \
    void* workspace, size_t workspace_bytes, void* stream)

struct Library {
#define INT8Q_DECLARE(name, ...) int (*name)(__VA_ARGS__) = nullptr;
  INT8Q_CUBLASLT_FUNCTIONS(INT8Q_DECLARE)
#undef INT8Q_DECLARE
  void* handle = nullptr;  // NULL: there is none. Of the context that was current when it was loaded
  std::string what;        // "130401 of /path/libcublasLt.so.13", or why there is none
};

// path: the library; empty: libcublasLt.so.13, then .12.
Library load(const std::string& path);

// Row-major y [M,N] = x [M,K] . w [N,K]^T, or (transposed false) y [M,K] = x [M,N] . w [N,K]; strides in elements.
struct Shape {
  int64_t m, n, k;
  int64_t x_stride, w_stride, y_stride;
  bool integers;  // s32 of s8, else bf16 of bf16, summed in fp32
  bool transposed;
};

// A product's operation and layouts. Failures are statuses: 0, or a cublasStatus_t.
class Product {
 public:
  Product(const Library& library, const Shape& shape) : library_(library), shape_(shape) {}
  ~Product();
  Product(const Product&) = delete;
  Product& operator=(const Product&) = delete;
  int make();
  // What cuBLASLt proposes, the fastest first by its own estimate. alignment: of every matrix that will be passed, in bytes.
  int propose(size_t most_workspace_bytes, std::vector<Proposal>& list, uint32_t alignment = 256) const;
  int run(const Algorithm& by, const void* w, const void* x, void* y, void* workspace, size_t workspace_bytes,
          void* stream) const;

 private:
  const Library& library_;
  const Shape shape_;
  void *desc_ = nullptr, *w_ = nullptr, *x_ = nullptr, *y_ = nullptr;
};

}  // namespace int8q::cuda::cublaslt
