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

std::shared_ptr<const CublasLt::Plan> CublasLt::make_plan(const cublaslt::Shape& shape) const {
  const std::shared_ptr<Plan> plan(new Plan{cublaslt::Product(library_, shape), {}});
  std::vector<cublaslt::Proposal> proposals;
  if (plan->product.make() != 0 || plan->product.propose(0, proposals, kRowAlignment) != 0) return nullptr;
  for (const cublaslt::Proposal& proposal : proposals) {
    if (proposal.state != 0) continue;
    plan->algorithm = proposal.algorithm;
    return plan;
  }
  return nullptr;
}

std::shared_ptr<const CublasLt::Plan> CublasLt::plan_for(const gpu::Gemm& p) {
  // Codes are padded by zeros to 16, and aligned as workspaces are; borrowed weights need be neither.
  const bool aligned = p.w_stride % kRowAlignment == 0 && reinterpret_cast<uintptr_t>(p.w) % kRowAlignment == 0;
  if (!aligned || p.k % 4 != 0 || p.n % 4 != 0 || p.k == 0) return nullptr;
  const Key key{p.m, p.n, p.k, p.codes_stride, p.w_stride};
  const std::lock_guard lock(mutex_);
  for (const auto& [its_key, plan] : plans_) {
    if (its_key == key) return plan;
  }
  if (plans_.size() == kMostPlans) plans_.pop_front();
  plans_.emplace_back(key, make_plan({.m = p.m,
                                      .n = p.n,
                                      .k = p.k,
                                      .x_stride = p.codes_stride,
                                      .w_stride = p.w_stride,
                                      .y_stride = p.n,
                                      .integers = true,
                                      .transposed = true}));
  return plans_.back().second;
}

}  // namespace int8q::cuda
