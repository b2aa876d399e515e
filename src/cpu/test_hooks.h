// SPDX-License-Identifier: Apache-2.0
//
// What only test builds (INT8Q_TEST_HOOKS, registry.cpp and the AVX-VNNI folder) can do: run the AVX-VNNI kernels, encoded
// as EVEX, on CPUs with AVX512-VNNI; and corrupt the first output of one kernel, named by INT8Q_CORRUPT_KERNEL, so that
// tests can show that they would notice. Included by registry.cpp alone.
#pragma once

#include "cpu/cpuid.h"
#include "cpu/kernels.h"

#if !defined(INT8Q_TEST_HOOKS)

namespace int8q::cpu {

inline bool supports_avxvnni() { return cpu_features().avxvnni; }

template <const Kernels& (*kTable)()>
const Kernels& table() {
  return kTable();
}

}  // namespace int8q::cpu

#else

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

namespace int8q::cpu {

inline bool supports_avxvnni() { return cpu_features().avx512vnni; }

// Flips one bit of the value at p: the lowest of an integer, the highest of a float's mantissa.
inline void flip(void* p, int byte, unsigned char bit) { static_cast<unsigned char*>(p)[byte] ^= bit; }
inline void flip_float(void* p, int dtype) { flip(p, dtype == 0 ? 2 : dtype == 1 ? 1 : 0, dtype == 1 ? 0x02 : 0x40); }

template <const Kernels& (*kTable)()>
struct Corrupt {
  template <int D>
  static uint32_t scan(const void* x, int64_t k, uint32_t limit, uint64_t* bits) {
    return kTable().scan[D].run(x, k, limit, bits) ^ 0x400000u;
  }
  template <int D>
  static void encode(const void* x, int64_t k, int64_t padded, float absmax, uint32_t limit, void* codes) {
    kTable().encode[D].run(x, k, padded, absmax, limit, codes);
    if (padded > 0) flip(codes, 0, 1);
  }
  template <int D>
  static void encode_s8(const void* x, int64_t k, int64_t padded, float absmax, uint32_t limit, void* codes) {
    kTable().encode_s8[D].run(x, k, padded, absmax, limit, codes);
    if (k > 0) flip(codes, 0, 1);
  }
  static void widen(const int8_t* a, int64_t k, int64_t padded, void* codes) {
    kTable().widen.run(a, k, padded, codes);
    if (padded > 0) flip(codes, 0, 1);
  }
  static void pack(const int8_t* b, int64_t stride, int64_t rows, int64_t k, int64_t padded, int8_t* panel, int32_t* sums) {
    kTable().pack.run(b, stride, rows, k, padded, panel, sums);
    if (padded > 0) flip(panel, 0, 1);
  }
  static void gemm(const GemmBlock& block) {
    kTable().gemm.run(block);
    if (block.rows > 0 && block.panel_count > 0) flip(block.acc, 0, 1);
  }
  static void gemv(const GemmBlock& block) {
    kTable().gemv.run(block);
    if (block.rows > 0 && block.panel_count > 0) flip(block.acc, 0, 1);
  }
  static void dot(const DotBlock& block) {
    kTable().dot.run(block);
    if (block.rows > 0 && block.cols > 0) flip(block.c, 0, 1);
  }
  static void columns(const int8_t* panel, const int32_t* cols, int64_t count, int8_t* small, int32_t* sums) {
    kTable().columns.run(panel, cols, count, small, sums);
    if (count > 0) flip(small, 0, 1);
  }
  static void outliers(const OutlierBlock& block) {
    kTable().outliers.run(block);
    if (block.rows > 0 && block.panel_count > 0) flip_float(block.out, 0);
  }
  template <int D>
  static void epilogue(const EpilogueBlock& block) {
    kTable().epilogue[D].run(block);
    if (block.rows > 0 && block.cols > 0) flip_float(block.y, D);
  }
  template <int D>
  static void dequantize(const int8_t* q, int64_t k, float stat, void* y) {
    kTable().dequantize[D].run(q, k, stat, y);
    if (k > 0) flip_float(y, D);
  }
  template <int D>
  static void scale(const void* dy, int64_t n, const float* stats, void* g) {
    kTable().scale[D].run(dy, n, stats, g);
    const bool bf16 = D == 2 && kTable().backward_bf16.run != nullptr;
    if (n > 0) flip_float(g, bf16 ? 2 : 0);
  }
  static void unpack(const int8_t* panel, int64_t k_begin, int64_t k_count, void* w, int64_t stride) {
    kTable().unpack.run(panel, k_begin, k_count, w, stride);
    if (k_count > 0) flip_float(w, 0);
  }
  static void backward(const BackwardBlock& block) {
    kTable().backward.run(block);
    if (block.rows > 0 && block.k > 0) flip_float(block.dx, 0);
  }
  template <int D>
  static void store(const float* v, int64_t k, void* y, bool accumulate) {
    kTable().store[D].run(v, k, y, accumulate);
    if (k > 0) flip_float(y, D);
  }
  static void unpack_bf16(const int8_t* panel, int64_t k_begin, int64_t k_count, void* w, int64_t stride) {
    kTable().unpack_bf16.run(panel, k_begin, k_count, w, stride);
    if (k_count > 0) flip_float(w, 2);
  }
  static void backward_bf16(const BackwardBlock& block) {
    kTable().backward_bf16.run(block);
    if (block.rows > 0 && block.k > 0) flip_float(block.dx, 0);
  }

  static Kernels corrupted(const char* name) {
    Kernels t = kTable();
    const auto replace = [&](auto& kernel, auto run) {
      if (kernel.name != nullptr && std::strcmp(kernel.name, name) == 0) kernel.run = run;
    };
    const auto replace3 = [&](auto& kernels, auto f32, auto f16, auto bf16) {
      replace(kernels[0], f32);
      replace(kernels[1], f16);
      replace(kernels[2], bf16);
    };
    replace3(t.scan, scan<0>, scan<1>, scan<2>);
    replace3(t.encode, encode<0>, encode<1>, encode<2>);
    replace3(t.encode_s8, encode_s8<0>, encode_s8<1>, encode_s8<2>);
    replace(t.widen, widen);
    replace(t.pack, pack);
    replace(t.gemm, gemm);
    replace(t.gemv, gemv);
    replace(t.dot, dot);
    replace(t.columns, columns);
    replace(t.outliers, outliers);
    replace3(t.epilogue, epilogue<0>, epilogue<1>, epilogue<2>);
    replace3(t.dequantize, dequantize<0>, dequantize<1>, dequantize<2>);
    replace3(t.scale, scale<0>, scale<1>, scale<2>);
    replace(t.unpack, unpack);
    replace(t.backward, backward);
    replace3(t.store, store<0>, store<1>, store<2>);
    replace(t.unpack_bf16, unpack_bf16);
    replace(t.backward_bf16, backward_bf16);
    return t;
  }
};

template <const Kernels& (*kTable)()>
const Kernels& table() {
  const char* name = std::getenv("INT8Q_CORRUPT_KERNEL");
  if (name == nullptr) return kTable();
  static std::mutex mutex;
  static auto* tables = new std::map<std::string, Kernels>;  // contexts point into it
  const std::lock_guard<std::mutex> lock(mutex);
  return tables->try_emplace(name, Corrupt<kTable>::corrupted(name)).first->second;
}

}  // namespace int8q::cpu

#endif
