// SPDX-License-Identifier: Apache-2.0
//
// What the kernels must give, in plain loops: the expressions of int8q.h, so every comparison is of bits.
#pragma once

#include <cstdint>
#include <vector>

#include "int8q/int8q.h"

namespace tool {

// A matrix with memory of its own.
struct Tensor {
  int32_t dtype;
  int64_t rows, cols;
  std::vector<uint8_t> bytes;

  Tensor(int32_t dtype, int64_t rows, int64_t cols);
  int8q_matrix view();
  float at(int64_t i, int64_t j) const;
  int32_t integer(int64_t i, int64_t j) const;  // S8, S32
  void set(int64_t i, int64_t j, float value);  // rounded to the dtype, half to even
  void set_integer(int64_t i, int64_t j, int32_t value);
};

struct Quantized {
  std::vector<int8_t> codes;  // [rows][cols]
  std::vector<float> stats;
  std::vector<int64_t> cols;  // outlier columns
};

bool is_outlier(float x, int32_t mode, float threshold);
Quantized quantize(const Tensor& x, int32_t mode, float threshold);

// y [M,N] given codes of x and w; kept[t] columns use their fp16-rounded float weights.
struct LinearOracle {
  const Tensor& x;
  const Quantized& qx;
  const Quantized& qw;
  const std::vector<float>* bias;
  int32_t mode;
  float threshold;
  float value(int64_t i, int64_t j) const;
};

int64_t product(const int8_t* a, const int8_t* b, int64_t k);

// Outputs of `got` that differ in bits from the expected float, rounded to got's dtype; NaN equals NaN.
bool same(const Tensor& got, int64_t i, int64_t j, float expected);

}  // namespace tool
