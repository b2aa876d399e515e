// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstring>

#include "core/dtype.h"
#include "cpu/layer.h"

namespace int8q {
namespace {

using cpu::Kernels;

struct Workspace {
  uint8_t* codes;         // [M] rows of code_row_bytes; NULL in mode ALL
  float* row_stats;       // [M]; NULL in mode ALL
  uint64_t* column_bits;  // [parts][ceil(K / 64)]; NULL in modes OFF and ALL
  PartScratch part;       // of the asking part
};

bool quantizes_nothing(const Linear& linear) { return linear.outlier_mode() == INT8Q_OUTLIERS_ALL; }

Workspace carve(Carver& carver, const Kernels& kernels, const Linear& linear, int64_t rows, int64_t part, int64_t parts) {
  const bool all = quantizes_nothing(linear), outliers = linear.outlier_mode() != INT8Q_OUTLIERS_OFF;
  Workspace w{};
  if (!all) {
    w.codes = carver.take<uint8_t>(checked_mul(rows, code_row_bytes(kernels, linear.k()), "workspace"), "workspace");
    w.row_stats = carver.take<float>(rows, "workspace");
  }
  if (outliers && !all) {
    w.column_bits = carver.take<uint64_t>(checked_mul(parts, ceil_div(linear.k(), 64), "workspace"), "workspace");
  }
  for (int64_t i = 0; i < parts; ++i) {
    const PartScratch scratch = carve_part_scratch(carver, rows, linear.k(), outliers, false);
    if (i == part) w.part = scratch;
  }
  return w;
}

uint32_t limit_of(const Linear& linear) { return outlier_limit(linear.outlier_mode(), linear.threshold()); }

}  // namespace

int64_t forward_workspace_bytes(const Kernels& kernels, const Linear& linear, int64_t rows, int64_t parts) {
  Carver carver(nullptr);
  carve(carver, kernels, linear, rows, 0, parts);
  return std::max<int64_t>(carver.used(), kAlignment);
}

void quantize_input_part(const Kernels& kernels, const Linear& linear, const FloatRows& x, void* workspace, int64_t part,
                         int64_t parts) {
  if (quantizes_nothing(linear)) return;
  Carver carver(workspace);
  const Workspace w = carve(carver, kernels, linear, x.rows, part, parts);
  uint64_t* bits = nullptr;
  if (w.column_bits != nullptr) {
    const int64_t words = ceil_div(x.cols, 64);
    bits = w.column_bits + part * words;
    std::memset(bits, 0, static_cast<size_t>(words) * sizeof(uint64_t));
  }
  quantize_to_codes(kernels, x, part_range(x.rows, part, parts), limit_of(linear), w.codes, w.row_stats, bits);
}

void forward_part(const Kernels& kernels, const Linear& linear, const FloatRows& x, const Output& y, bool accumulate,
                  void* workspace, int64_t part, int64_t parts) {
  Carver carver(workspace);
  const Workspace w = carve(carver, kernels, linear, x.rows, part, parts);
  const bool element = linear.outlier_mode() == INT8Q_OUTLIERS_ELEMENT;
  Product product{};
  product.kernels = &kernels;
  product.m = x.rows;
  product.n = linear.n();
  product.k = linear.k();
  product.codes = w.codes;
  product.row_stats = w.row_stats;
  product.weights = Weights::kPacked;
  product.blob = linear.blob;
  product.x = x;
  product.limit = limit_of(linear);
  product.all = quantizes_nothing(linear);
  product.element = element;
  product.subtract = !element && !product.all;
  product.column_bits = w.column_bits;
  product.bit_parts = parts;
  product.y = y.data;
  product.y_dtype = y.dtype;
  product.y_stride = y.row_bytes;
  product.accumulate = accumulate;
  multiply_part(product, w.part, part, parts);
}

// One layout of the workspace, for `parts` parts, whichever phase runs on how many threads.
void forward(Context& context, const Linear* const* linears, int64_t count, const FloatRows& x, const Output* ys,
             bool accumulate, void* workspace) {
  if (x.rows == 0) return;
  const Kernels& kernels = *context.kernels;
  int64_t outputs = 0;
  for (int64_t i = 0; i < count; ++i) outputs += linears[i]->n();
  const bool serial = is_serial_product(x.rows, x.cols, outputs);
  const int64_t parts = serial ? 1 : context.pool.threads();
  const auto quantize = [&](int64_t part) { quantize_input_part(kernels, *linears[0], x, workspace, part, parts); };
  const auto multiply = [&](int64_t part) {
    for (int64_t i = 0; i < count; ++i) {
      if (linears[i]->n() > 0) forward_part(kernels, *linears[i], x, ys[i], accumulate, workspace, part, parts);
    }
  };
  if (!quantizes_nothing(*linears[0])) {
    if (x.rows * x.cols < kSerialElements) {
      context.pool.run(1, [&](int64_t) {
        for (int64_t part = 0; part < parts; ++part) quantize(part);
      });
    } else {
      context.pool.run(parts, quantize);
    }
  }
  context.pool.run(parts, multiply, wake_for(x.rows, x.cols, outputs));
}

}  // namespace int8q
