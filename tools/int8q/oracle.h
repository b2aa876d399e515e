// SPDX-License-Identifier: Apache-2.0
//
// What the kernels must give, in plain loops: the expressions of int8q.h, so every comparison is of bits. No product feeds
// a sum here but through std::fmaf, so a compiler that contracts a * b + c cannot change a result.
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

// y = fmaf(float(acc), (row_stat * col_stat) * (1/16129), o)
float dequantize(int32_t acc, float row_stat, float col_stat, float o);

// Y before accumulation: [M][N] from the codes of x and w. In columns `kept` the fp16 rounding of w stands for its codes.
struct LinearOracle {
  const Tensor& x;
  const Quantized& qx;
  const Tensor& w;
  const Quantized& qw;
  const Tensor* bias;  // [1,N]
  const std::vector<int64_t>& kept;
  int32_t mode;
  float threshold;
  std::vector<float> values() const;

 private:
  float value(int64_t i, int64_t j) const;
  float weight(int64_t j, int64_t k) const;
};

int32_t product(const int8_t* a, const int8_t* b, int64_t k);
float round_to_f16(float value);
float round_to_bf16(float value);

// Equal in bits; NaN equals NaN.
bool same(float a, float b);
// The same, once the expected float is rounded to got's dtype.
bool same(const Tensor& got, int64_t i, int64_t j, float expected);

}  // namespace tool
