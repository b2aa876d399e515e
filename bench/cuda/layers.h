// SPDX-License-Identifier: Apache-2.0
//
// What the rows of a size share on the device, made once: weights in bf16 and as codes, so many copies that no cache holds
// them, int8q's linears over these codes, activations, and one output that all rows overwrite.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "gpu.h"
#include "support/suite.h"

namespace int8q::bench {

// A context on gpu()'s stream. One a row: a context's scratch memory, whose address graphs keep, may move as it grows.
Context cuda_context();

// Memory that rows overwrite and nobody reads; at least so large from the beginning, since graphs keep its address.
void reserve_output(int64_t bytes);
void* output();

class Layers {
 public:
  static Layers& of(Size size);
  explicit Layers(Size size);

  // The next copy at each call; the first one always where `rotated` is false.
  std::function<const void*()> next_codes(bool rotated) const;
  std::function<const void*()> next_bf16(bool rotated) const;
  // Linears that borrow the codes, likewise.
  std::function<const Linear*()> next_linear(int32_t outlier_mode, bool rotated);
  // How many calls use each copy once.
  int copies_of_codes() const { return codes_copies_; }
  int copies_of_bf16() const { return bf16_copies_; }
  const float* col_stats() const { return reinterpret_cast<const float*>(stats_.at()); }
  Matrix bias() const { return Matrix(INT8Q_BF16, 1, size_.n, bias_.at()); }

 private:
  Size size_;
  int64_t codes_stride_, bf16_stride_;
  int codes_copies_, bf16_copies_;
  Memory codes_, bf16_, stats_, bias_;
  std::map<int32_t, std::vector<Linear>> linears_;
};

// The most rows of any benchmark: activations of fewer are their first rows.
void set_most_rows(int64_t rows);
// bf16 [M,K] with so many outlier columns.
const void* bf16_activations(int64_t k, int64_t outliers);
// Their codes, with 7 outlier columns, and row_stats.
struct Codes {
  const int8_t* codes;
  const float* row_stats;
};
Codes s8_activations(int64_t k);

// The same activations so often that no cache holds the next rows, with 7 outlier columns, and places for their codes.
class RotatedRows {
 public:
  static const RotatedRows& of(int64_t k);
  explicit RotatedRows(int64_t k);

  struct Block {
    const void* x;  // bf16 [m][k]
    int8_t* codes;  // [m][k]
    float* row_stats;
  };
  // The next m rows at each call.
  std::function<Block()> next(int64_t m) const;
  // How many calls use each row once.
  int blocks(int64_t m) const { return static_cast<int>(rows_ / m); }

 private:
  int64_t k_, rows_;
  Memory x_, codes_, stats_;
};

}  // namespace int8q::bench
