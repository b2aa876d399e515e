// SPDX-License-Identifier: Apache-2.0
//
// The rows of an ISA's kernel table that are the templates of this folder over its vector type and code layout.
#pragma once

#include "cpu/simd/backward.h"
#include "cpu/simd/outliers.h"
#include "cpu/simd/pack.h"

// Names carry the ISA; three dtypes a kernel.
#define INT8Q_BY_DTYPE(op, isa, run)                                                         \
  {                                                                                          \
    {op "_f32_" isa, run<V, 0>}, {op "_f16_" isa, run<V, 1>}, { op "_bf16_" isa, run<V, 2> } \
  }
#define INT8Q_ENCODE(op, isa, To)                                                                                 \
  {                                                                                                               \
    {op "_f32_" isa, encode<V, 0, To>}, {op "_f16_" isa, encode<V, 1, To>}, { op "_bf16_" isa, encode<V, 2, To> } \
  }

namespace int8q::cpu {
namespace {

// gemm, gemv, dot and backward, whose tiles are the ISA's choice.
struct Products {
  Kernel<Gemm> gemm;
  Kernel<Gemm> gemv;
  Kernel<Dot> dot;
  Kernel<Backward> backward;
};

}  // namespace
}  // namespace int8q::cpu

#define INT8Q_KERNEL_TABLE(isa, layout_of_codes, To, codes, products)                                                \
  {                                                                                                                  \
    isa, layout_of_codes, INT8Q_BY_DTYPE("scan", isa, scan), INT8Q_ENCODE("encode", isa, To),                        \
        INT8Q_BY_DTYPE("encode_s8", isa, encode_s8), {"widen_" codes "_" isa, widen<V, To>}, {"pack_s8_" isa, pack}, \
        (products).gemm, (products).gemv, (products).dot, {"columns_s8_" isa, columns<V>},                           \
        {"outliers_f32_" isa, outliers<V>}, INT8Q_BY_DTYPE("epilogue", isa, epilogue),                               \
        INT8Q_BY_DTYPE("dequantize", isa, dequantize), INT8Q_BY_DTYPE("scale", isa, scale),                          \
        {"unpack_f32_" isa, unpack<FusedStep<V>>}, (products).backward, INT8Q_BY_DTYPE("store", isa, store)          \
  }
