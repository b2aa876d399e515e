// SPDX-License-Identifier: Apache-2.0
//
// What the tests of kernels share: values, architectures, a matrix of the oracle's in emulated memory.
#pragma once

#include <gtest/gtest.h>

#include <memory>

#include "core/dtype.h"
#include "cuda/kernels/arch.h"
#include "cuda/kernels/arguments.h"
#include "cuda_emulation/emulator.h"
#include "support/kernel_cases.h"
#include "support/oracle.h"

namespace int8q::test {

// Values that provoke, in rows of their own kinds.
inline void fill_provoking(Grid& x, uint64_t seed) {
  Random random(seed);
  const int dtype = kernel_index(x.dtype());
  for (int64_t i = 0; i < x.rows(); ++i) {
    const int special = static_cast<int>(random.below(3)) * 8;
    const float scale = random.below(4) == 0 ? 0x1p-124f : 1.0f;
    for (int64_t j = 0; j < x.cols(); ++j) x.set(i, j, provoking(random, dtype, special, random.below(200) == 0) * scale);
  }
}

}  // namespace int8q::test

namespace int8q::gpu {

using emulation::Buffer;
using test::Grid;
using test::Random;

// Rows of `cols` bytes, to be copied by boxes.
inline TensorMap map_of(const void* matrix, int64_t rows, int64_t cols, int64_t stride, int box_rows, int box_cols) {
  TensorMap map;
  EXPECT_EQ(emulation::encode_tensor_map(&map, matrix, {static_cast<uint64_t>(cols), static_cast<uint64_t>(rows)},
                                         static_cast<uint64_t>(stride),
                                         {static_cast<uint32_t>(box_cols), static_cast<uint32_t>(box_rows)}),
            0);
  return map;
}

inline int32_t abi(Dtype dtype) { return test::kFloatDtypes[static_cast<int>(dtype)]; }

#if !defined(INT8Q_EMULATED_ARCHITECTURES)
#define INT8Q_EMULATED_ARCHITECTURES Sm70, Sm75, Sm80, Sm86, Sm90, Sm120
#endif
using Architectures = testing::Types<INT8Q_EMULATED_ARCHITECTURES>;

}  // namespace int8q::gpu

namespace int8q::emulation {

// A copy of a Grid, whose rows begin at multiples of `alignment` bytes; 1: of an element, and nowhere better.
class Matrix {
 public:
  Matrix(test::Grid& from, int64_t alignment, uint64_t seed) {
    const int64_t element = dtype_bytes(from.dtype()), row = from.cols() * element;
    stride_ =
        alignment == 1 ? row + element * static_cast<int64_t>(seed % 3) : (row + alignment - 1) / alignment * alignment;
    buffer_ = std::make_unique<Buffer<uint8_t>>(from.rows() == 0 ? 0 : (from.rows() - 1) * stride_ + row, "a matrix",
                                                alignment == 1 ? element : 0);
    for (int64_t i = 0; i < from.rows(); ++i) {
      const auto* bytes = static_cast<const uint8_t*>(from.view()->data) + i * from.view()->row_stride * element;
      for (int64_t j = 0; j < row; ++j) buffer_->set(i * stride_ + j, bytes[j]);
    }
  }
  uint8_t* data() const { return buffer_->device(); }
  int64_t stride() const { return stride_; }
  float element(int32_t dtype, int64_t i, int64_t j) const {
    return load_element(dtype, buffer_->device() + i * stride_, j);
  }

 private:
  int64_t stride_;
  std::unique_ptr<Buffer<uint8_t>> buffer_;
};

}  // namespace int8q::emulation
