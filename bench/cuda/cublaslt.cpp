// SPDX-License-Identifier: Apache-2.0
#include "cublaslt.h"

#include <limits>
#include <stdexcept>
#include <vector>

#include "cuda/cublaslt_product.h"
#include "gpu.h"

namespace int8q::bench::cublaslt {
namespace {

using cuda::cublaslt::Library;

constexpr size_t kWorkspaceBytes = size_t{32} << 20;  // what cuBLAS takes on Hopper

void check(int status, const char* what) {
  if (status != 0) throw std::runtime_error(std::string(what) + ": cublasStatus_t " + std::to_string(status));
}

Library& library() {
  static Library loaded;
  return loaded;
}

void* workspace() {
  static Memory& memory = *new Memory(kWorkspaceBytes);
  return memory.at();
}

}  // namespace

const std::string& open(const std::string& path) {
  library() = cuda::cublaslt::load(path);
  if (!is_there()) library().what = "none: " + library().what;
  return library().what;
}

bool is_there() { return library().handle != nullptr; }

struct Product::Parts {
  cuda::cublaslt::Product product;
  cuda::cublaslt::Algorithm algorithm{};

  int run(const cuda::cublaslt::Algorithm& by, const void* w, const void* x, void* y) const {
    return product.run(by, w, x, y, workspace(), kWorkspaceBytes, gpu().stream);
  }
};

Product::Product(Kind kind, int64_t m, int64_t n, int64_t k, const std::function<const void*()>& next_w, const void* x,
                 void* y) {
  const bool transposed = kind != Kind::kBf16Untransposed;
  parts_.reset(new Parts{cuda::cublaslt::Product(library(), {.m = m,
                                                             .n = n,
                                                             .k = k,
                                                             .x_stride = transposed ? k : n,
                                                             .w_stride = k,
                                                             .y_stride = transposed ? n : k,
                                                             .integers = kind == Kind::kS8,
                                                             .transposed = transposed})});
  check(parts_->product.make(), "a cuBLASLt product");
  std::vector<cuda::cublaslt::Proposal> proposals;
  check(parts_->product.propose(kWorkspaceBytes, proposals), "cublasLtMatmulAlgoGetHeuristic");
  double best = std::numeric_limits<double>::infinity();
  for (const auto& proposal : proposals) {
    if (proposal.state != 0 || parts_->run(proposal.algorithm, next_w(), x, y) != 0) continue;
    gpu().wait();
    Timed timed([&] { check(parts_->run(proposal.algorithm, next_w(), x, y), "cublasLtMatmul"); }, 1, false);
    if (const double seconds = timed.sample(); seconds < best) {
      best = seconds;
      parts_->algorithm = proposal.algorithm;
    }
  }
  if (best == std::numeric_limits<double>::infinity())
    throw std::runtime_error("cuBLASLt has no algorithm for this product");
}

Product::~Product() = default;

void Product::run(const void* w, const void* x, void* y) const {
  check(parts_->run(parts_->algorithm, w, x, y), "cublasLtMatmul");
}

}  // namespace int8q::bench::cublaslt
