// SPDX-License-Identifier: Apache-2.0
//
// oneDNN's bare matrix products as opponents: weights packed by itself, the primitive made once, its OpenMP threads. They
// quantize nothing and scale nothing. A build without oneDNN adds no rows.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "support/suite.h"

namespace int8q::bench::onednn {

std::string version();  // "none" in a build without

// Its widest instruction set from here on: that of one of int8q's ISAs, any for the best of them; not what the environment
// says.
void hold_to(const std::string& isa);

enum class Kind {
  kS8,    // s32 [M,N] = s8 [M,K] . s8 [K,N]
  kBf16,  // bf16
  kF32,
};

// One shape with `copies` packed weights, used in turn. What they hold does not matter to the time; no denormals.
class Matmul {
 public:
  Matmul(Kind kind, int64_t m, Size size, int64_t copies, int threads);
  ~Matmul();
  void run();  // waits for the result

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

// Adds gemm/onednn:s8 (or bf16, f32) of a layer of this size where oneDNN is there; backward multiplies by its transpose.
void add(const char* operation, Kind kind, Size size, int64_t m, int threads, bool rotated, const std::string& peak);

}  // namespace int8q::bench::onednn
