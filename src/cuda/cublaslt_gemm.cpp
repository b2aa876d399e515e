// SPDX-License-Identifier: Apache-2.0
#include "cuda/cublaslt_gemm.h"

#include <cstdlib>
#include <cstring>
#include <vector>

#include "core/error.h"

namespace int8q::cuda {

std::unique_ptr<CublasLt> CublasLt::open() {
  const char* asked = std::getenv("INT8Q_CUDA_GEMM");
  if (asked == nullptr || *asked == '\0') return nullptr;
  if (std::strcmp(asked, "cublaslt") != 0) {
    fail(INT8Q_INVALID_ARGUMENT, "INT8Q_CUDA_GEMM is %s; expected cublaslt, or unset for int8q's own kernels", asked);
  }
  cublaslt::Library library = cublaslt::load("");
  if (library.handle == nullptr) {
    fail(INT8Q_NO_DEVICE,
         "INT8Q_CUDA_GEMM is cublaslt, which does not load: %s; add its folder to LD_LIBRARY_PATH, or unset it",
         library.what.c_str());
  }
  return std::unique_ptr<CublasLt>(new CublasLt(std::move(library)));
}

std::unique_ptr<CublasLt::Plan> CublasLt::make_plan(const cublaslt::Shape& shape) const {
  cublaslt::Product product(library_, shape);
  std::vector<cublaslt::Proposal> proposals;
  if (product.make() != 0 || product.propose(0, proposals) != 0) return nullptr;
  for (const cublaslt::Proposal& proposal : proposals) {
    if (proposal.state == 0) return std::unique_ptr<Plan>(new Plan{product, proposal.algorithm});
  }
  return nullptr;
}

const CublasLt::Plan* CublasLt::plan_for(const gpu::Gemm& p) {
  // Codes are padded by zeros to 16; weights are not.
  const bool regular = p.k % 4 == 0 && p.n % 4 == 0 && p.w_stride % 4 == 0 && reinterpret_cast<uintptr_t>(p.w) % 4 == 0;
  if (!regular || p.k == 0) return nullptr;
  const std::lock_guard lock(mutex_);
  const auto [place, is_new] = plans_.try_emplace({p.m, p.n, p.k, p.codes_stride, p.w_stride});
  if (is_new) {
    place->second = make_plan({.m = p.m,
                               .n = p.n,
                               .k = p.k,
                               .x_stride = p.codes_stride,
                               .w_stride = p.w_stride,
                               .y_stride = p.n,
                               .integers = true,
                               .transposed = true});
  }
  return place->second.get();
}

}  // namespace int8q::cuda
