// SPDX-License-Identifier: Apache-2.0
#include "cpu/stateless.h"

#include <algorithm>
#include <cstring>

#include "core/dtype.h"

namespace int8q {
namespace {

struct MultiplyScratch {
  uint8_t* codes;    // [M] rows, where A is widened and B packed; else NULL
  PartScratch part;  // of the asking part
};

MultiplyScratch carve(Carver& carver, const Product& product, bool packs, int64_t part, int64_t parts) {
  const bool outliers = product.given_count > 0;
  MultiplyScratch scratch{};
  if (packs) {
    scratch.codes =
        carver.take<uint8_t>(checked_mul(product.m, code_row_bytes(*product.kernels, product.k), "scratch"), "scratch");
  }
  for (int64_t i = 0; i < parts; ++i) {
    const PartScratch s = carve_part_scratch(carver, product.m, packs ? product.k : product.given_count, outliers, packs);
    if (i == part) scratch.part = s;
  }
  return scratch;
}

}  // namespace

void quantize_rows(Context& context, ScratchLease& scratch, const FloatRows& x, uint32_t limit, bool element, int8_t* q,
                   int64_t q_stride, float* row_stats, uint8_t* mask, int64_t* cols, int64_t* count) {
  const int64_t parts = context.pool.threads(), words = ceil_div(x.cols, 64);
  Carver size(nullptr);
  size.take<uint64_t>(checked_mul(parts, words, "scratch"), "scratch");
  size.take<int64_t>(x.cols, "scratch");
  Carver carver(scratch.reserve(static_cast<uint64_t>(std::max<int64_t>(size.used(), 1))));
  auto* bits = carver.take<uint64_t>(parts * words, "scratch");
  auto* outliers = carver.take<int64_t>(x.cols, "scratch");
  if (parts * words > 0) std::memset(bits, 0, static_cast<size_t>(parts * words) * sizeof(uint64_t));

  context.pool.run(parts, [&](int64_t part) {
    quantize_to_s8(*context.kernels, x, part_range(x.rows, part, parts), limit, q, q_stride, row_stats,
                   bits + part * words);
  });
  const int64_t found = list_columns(bits, parts, x.cols, outliers);
  if (!element && found > 0) {
    context.pool.run(parts, [&](int64_t part) {
      const Range rows = part_range(x.rows, part, parts);
      for (int64_t i = rows.begin; i < rows.end; ++i) {
        for (int64_t t = 0; t < found; ++t) q[i * q_stride + outliers[t]] = 0;
      }
    });
  }
  if (mask != nullptr) {
    std::fill_n(mask, x.cols, uint8_t{0});
    for (int64_t t = 0; t < found; ++t) mask[outliers[t]] = 1;
  }
  if (cols != nullptr) std::copy_n(outliers, found, cols);
  if (count != nullptr) *count = found;
}

void count_outliers(Context& context, ScratchLease& scratch, const FloatRows& x, uint32_t limit, int64_t* counts) {
  if (x.cols == 0) return;
  const int64_t parts = context.pool.threads(), words = ceil_div(x.cols, 64);
  Carver size(nullptr);
  size.take<int64_t>(checked_mul(parts, words * 64, "scratch"), "scratch");
  size.take<uint64_t>(parts * words, "scratch");
  Carver carver(scratch.reserve(static_cast<uint64_t>(std::max<int64_t>(size.used(), 1))));
  auto* sums = carver.take<int64_t>(parts * words * 64, "scratch");
  auto* bits = carver.take<uint64_t>(parts * words, "scratch");
  context.pool.run(parts, [&](int64_t part) {
    int64_t* sum = sums + part * words * 64;
    uint64_t* mine = bits + part * words;
    std::fill_n(sum, words * 64, int64_t{0});
    const Range rows = part_range(x.rows, part, parts);
    for (int64_t i = rows.begin; i < rows.end; ++i) {
      std::fill_n(mine, words, uint64_t{0});
      context.kernels->scan[x.dtype].run(x.row(i), x.cols, limit, mine);
      for (int64_t w = 0; w < words; ++w) {
        for (uint64_t b = mine[w]; b != 0; b &= b - 1) ++sum[w * 64 + __builtin_ctzll(b)];
      }
    }
  });
  for (int64_t part = 0; part < parts; ++part) {
    for (int64_t k = 0; k < x.cols; ++k) counts[k] += sums[part * words * 64 + k];
  }
}

void multiply(Context& context, ScratchLease& scratch, Product& product) {
  if (product.m == 0 || product.n == 0) return;
  const cpu::Kernels& kernels = *context.kernels;
  product.kernels = &kernels;
  const bool row_major = product.weights == Weights::kRowMajor;
  const bool packs = row_major && product.m > kDotRows;
  const int64_t parts = std::min<int64_t>(context.pool.threads(), item_count(product.m, product.n, context.pool.threads()));
  Carver size(nullptr);
  carve(size, product, packs, 0, parts);
  void* memory = scratch.reserve(static_cast<uint64_t>(size.used()));
  if (packs) {
    Carver carver(memory);
    uint8_t* codes = carve(carver, product, packs, 0, parts).codes;
    const int64_t stride = code_row_bytes(kernels, product.k);
    context.pool.run(parts, [&](int64_t part) {
      const Range rows = part_range(product.m, part, parts);
      for (int64_t i = rows.begin; i < rows.end; ++i) {
        kernels.widen.run(product.a + i * product.a_stride, product.k, round_up(product.k, cpu::kPadK), codes + i * stride);
      }
    });
    product.codes = codes;
  }
  context.pool.run(parts, [&](int64_t part) {
    Carver carver(memory);
    multiply_part(product, carve(carver, product, packs, part, parts).part, part, parts);
  });
}

void dequantize_rows(Context& context, const int8_t* q, int64_t q_stride, int64_t rows, int64_t cols, const float* stats,
                     const Output& y) {
  if (cols == 0) return;
  const int64_t parts = context.pool.threads();
  const cpu::DequantizeRow run = context.kernels->dequantize[kernel_index(y.dtype)].run;
  context.pool.run(parts, [&](int64_t part) {
    const Range range = part_range(rows, part, parts);
    for (int64_t i = range.begin; i < range.end; ++i) run(q + i * q_stride, cols, stats[i], y.data + i * y.row_bytes);
  });
}

}  // namespace int8q
