// SPDX-License-Identifier: Apache-2.0
//
// The integer product of rows by cuBLASLt instead of our kernels, where INT8Q_CUDA_GEMM=cublaslt asks for it; the kernel
// finish_s8 then does what stands behind it. To compare with, and for GPUs on which ours are slow.
#pragma once

#include <array>
#include <deque>
#include <memory>
#include <mutex>
#include <utility>

#include "cuda/cublaslt_product.h"
#include "cuda/kernels/arguments.h"

namespace int8q::cuda {

class CublasLt {
 public:
  ~CublasLt() { library_.cublasLtDestroy(library_.handle); }
  CublasLt(const CublasLt&) = delete;
  CublasLt& operator=(const CublasLt&) = delete;

  // NULL unless the environment asks for it, when a GPU is opened, with its context current. NO_DEVICE where cuBLASLt is not
  // found, INVALID_ARGUMENT for another name.
  static std::unique_ptr<CublasLt> open();

  struct Plan {
    cublaslt::Product product;
    cublaslt::Algorithm algorithm;
  };
  // How to multiply p's codes, made under a lock at the first call of a size; NULL: cuBLASLt does not take it. Any thread.
  std::shared_ptr<const Plan> plan_for(const gpu::Gemm& p);

  const std::string& what() const { return library_.what; }

 private:
  using Key = std::array<int64_t, 5>;
  static constexpr size_t kMostPlans = 64;      // the oldest goes first; who runs it holds it
  static constexpr int64_t kRowAlignment = 16;  // bytes, of all that a plan is run on

  explicit CublasLt(cublaslt::Library library) : library_(std::move(library)) {}
  std::shared_ptr<const Plan> make_plan(const cublaslt::Shape& shape) const;

  const cublaslt::Library library_;
  std::mutex mutex_;
  std::deque<std::pair<Key, std::shared_ptr<const Plan>>> plans_;  // NULL: cuBLASLt has none
};

}  // namespace int8q::cuda
