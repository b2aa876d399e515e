// SPDX-License-Identifier: Apache-2.0
//
// What every operation must give, in plain loops written from int8q.h alone: no code of the library is used, conversions
// of 16-bit floats included. All documented results are exact expressions, so results are compared by their bits.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cpu/registry.h"
#include "int8q/int8q.h"

namespace int8q::test {

// A matrix in memory of its own whose rows may be further apart than they are long, and which may start at any byte.
// Whatever is no element holds a pattern that must survive.
class Grid {
 public:
  Grid(int32_t dtype, int64_t rows, int64_t cols, int64_t gap = 0, int64_t offset = 0);
  Grid(const Grid& other);
  Grid& operator=(const Grid& other);

  int8q_matrix* view() { return &view_; }
  int64_t rows() const { return view_.rows; }
  int64_t cols() const { return view_.cols; }
  int32_t dtype() const { return view_.dtype; }
  float at(int64_t i, int64_t j) const;
  void set(int64_t i, int64_t j, float value);  // rounds half to even
  int32_t integer(int64_t i, int64_t j) const;
  void set_integer(int64_t i, int64_t j, int32_t value);
  bool gaps_untouched() const;
  const std::vector<uint8_t>& bytes() const { return bytes_; }

 private:
  uint8_t* place(int64_t i, int64_t j) const;
  std::vector<uint8_t> bytes_;
  int64_t offset_;
  int8q_matrix view_;
};

float from_f16(uint16_t h);
uint16_t to_f16(float f);
float from_bf16(uint16_t h);
uint16_t to_bf16(float f);
float rounded_to(int32_t dtype, float value);
bool same_bits(float a, float b);  // NaN equals NaN

struct Quantized {
  int64_t rows, cols;
  std::vector<float> x;
  std::vector<int8_t> codes;
  std::vector<float> stats;
  std::vector<int64_t> outlier_cols;
};

bool is_outlier(float x, int32_t mode, float threshold);
Quantized quantize(const Grid& x, int32_t mode, float threshold);

// A linear's reference: weights quantized without outliers, or given codes and stats.
struct LayerOracle {
  Quantized w;
  std::vector<float> bias;  // empty: none
  std::vector<int64_t> kept_cols;
  std::vector<uint16_t> kept;  // [N][kept_cols]
  int32_t mode;
  float threshold;
  // The fp32 value before it is rounded to y's type.
  float forward(const Quantized& x, int64_t i, int64_t j) const;
};

int32_t dot(const int8_t* a, const int8_t* b, int64_t k);
float dequantize(int32_t acc, float row_stat, float col_stat, float outlier_part);
float backward(const Grid& dy, const Quantized& w, int64_t i, int64_t k);
// By vdpbf16ps: g rounded to bf16, of each pair of n the second first, denormals zero throughout.
float backward_bf16(const Grid& dy, const Quantized& w, int64_t i, int64_t k);
float without_denormals(float f);

// Supported ISAs; names the others, with the reason, once a process.
std::vector<const cpu::Isa*> runnable_isas();

// Normal values cut at 3.5; outliers of size 20 in three columns of every other row, and one in a column of the last row
// alone; in one row of 32 the default threshold and bf16's value below it.
void fill_activations(Grid& x, uint64_t seed);
void fill_normal(Grid& w, uint64_t seed, float scale);

constexpr int32_t kFloatDtypes[3] = {INT8Q_F32, INT8Q_F16, INT8Q_BF16};
constexpr int32_t kModes[4] = {INT8Q_OUTLIERS_COLUMN, INT8Q_OUTLIERS_OFF, INT8Q_OUTLIERS_ELEMENT, INT8Q_OUTLIERS_ALL};

}  // namespace int8q::test
