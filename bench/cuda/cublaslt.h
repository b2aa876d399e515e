// SPDX-License-Identifier: Apache-2.0
//
// cuBLASLt's bare matrix products as opponents. They quantize nothing, scale nothing and add no bias.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

namespace int8q::bench::cublaslt {

// What was found, or why there is none. `path`: as of cuda::cublaslt::load.
const std::string& open(const std::string& path);
bool is_there();

enum class Kind {
  kS8,                // s32 [M,N] = s8 x [M,K] . s8 w [N,K]^T
  kBf16,              // bf16 likewise, summed in fp32
  kBf16Untransposed,  // bf16 [M,K] = bf16 x [M,N] . bf16 w [N,K], as backward has it
};

// One shape, by the fastest of the first algorithms that cuBLASLt proposes, which are tried on these matrices,
// with one w after another where the row rotates them.
class Product {
 public:
  Product(Kind kind, int64_t m, int64_t n, int64_t k, const std::function<const void*()>& next_w, const void* x, void* y);
  ~Product();
  // On gpu().stream.
  void run(const void* w, const void* x, void* y) const;

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace int8q::bench::cublaslt
