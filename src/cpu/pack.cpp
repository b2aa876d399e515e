// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#include "core/dtype.h"
#include "cpu/layer.h"

namespace int8q {
namespace {

constexpr int64_t kNone = INT64_MAX;

void keep_first(std::atomic<int64_t>& first, int64_t row) {
  for (int64_t seen = first.load(); row < seen && !first.compare_exchange_weak(seen, row);) {
  }
}

class Packer {
 public:
  Packer(const Context& context, const WeightSource& weight, const BlobSections& blob)
      : kernels_(*context.kernels), weight_(weight), blob_(blob) {}

  // Panels [range), with a scratch of 16 rows of codes.
  void pack_panels(Range range, int8_t* codes) {
    for (int64_t p = range.begin; p < range.end; ++p) {
      const int64_t row = p * cpu::kPanelRows, rows = std::min<int64_t>(cpu::kPanelRows, n() - row);
      auto* stats = const_cast<float*>(blob_.col_stats) + row;
      std::fill(stats, stats + cpu::kPanelRows, 0.0f);
      const int8_t* from = codes;
      int64_t stride = k();
      if (weight_.dtype == INT8Q_S8) {
        from = reinterpret_cast<const int8_t*>(weight_.data + row * weight_.row_bytes);
        stride = weight_.row_bytes;
        std::copy_n(weight_.col_stats + row, rows, stats);
        check_foreign(from, row, rows);
      } else {
        const FloatRows x{weight_.data + row * weight_.row_bytes, kernel_index(weight_.dtype), rows, k(),
                          weight_.row_bytes};
        quantize_to_s8(kernels_, x, {0, rows}, cpu::kNoOutliers, codes, k(), stats, nullptr);
      }
      for (int64_t i = 0; i < rows; ++i) {
        if (!std::isfinite(stats[i]) || stats[i] < 0.0f) keep_first(bad_row_, row + i);
      }
      kernels_.pack.run(from, stride, rows, k(), blob_.k_padded(),
                        const_cast<int8_t*>(blob_.panels) + p * blob_.panel_stride(),
                        const_cast<int32_t*>(blob_.col_sums) + row);
    }
  }

  void pack_bias() {
    if (blob_.bias == nullptr) return;
    auto* bias = const_cast<float*>(blob_.bias);
    for (int64_t i = 0; i < blob_.n_padded(); ++i) {
      bias[i] = i < n() ? load_element(weight_.bias_dtype, weight_.bias, i) : 0.0f;
      if (!std::isfinite(bias[i])) {
        fail(INT8Q_NOT_FINITE, "bias[%lld] is %g; expected a finite number", static_cast<long long>(i),
             static_cast<double>(bias[i]));
      }
    }
  }

  void pack_kept() {
    const int64_t count = blob_.header->kept_count;
    auto* kept = const_cast<uint16_t*>(blob_.kept_weights);
    std::copy_n(weight_.kept_cols, count, const_cast<int64_t*>(blob_.kept_cols));
    std::fill_n(kept, count * blob_.n_padded(), uint16_t{0});
    for (int64_t i = 0; i < n(); ++i) {
      for (int64_t t = 0; t < count; ++t) {
        uint16_t& w = kept[t * blob_.n_padded() + i];
        if (weight_.kept_weights != nullptr) {
          std::memcpy(&w, weight_.kept_weights + i * weight_.kept_row_bytes + t * 2, 2);
        } else {
          w = f32_to_f16(load_element(weight_.dtype, weight_.data + i * weight_.row_bytes, weight_.kept_cols[t]));
        }
        if ((w & 0x7fffu) >= 0x7c00u) {
          fail(INT8Q_NOT_FINITE,
               "kept weight at row %lld, column %lld is not finite in fp16; expected |w| <= 65504; do not keep this column",
               static_cast<long long>(i), static_cast<long long>(weight_.kept_cols[t]));
        }
      }
    }
  }

  void check() const {
    const long long row = bad_row_.load(), minus_128 = minus_128_row_.load();
    if (row != kNone) {
      fail(INT8Q_NOT_FINITE,
           weight_.dtype == INT8Q_S8 ? "col_stats[%lld] is %g; expected a finite number >= 0"
                                     : "weight row %lld holds NaN or Inf (absmax %g); expected finite weights",
           row, static_cast<double>(weight_.dtype == INT8Q_S8 ? weight_.col_stats[row] : blob_.col_stats[row]));
    }
    if (minus_128 != kNone) {
      fail(INT8Q_SIZE_OVERFLOW,
           "weight row %lld holds -128 and in_features is %lld; expected codes in [-127, 127], or K <= %lld", minus_128,
           static_cast<long long>(k()), static_cast<long long>(kMaxKForeign));
    }
  }

 private:
  int64_t n() const { return blob_.header->n; }
  int64_t k() const { return blob_.header->k; }

  void check_foreign(const int8_t* codes, int64_t row, int64_t rows) {
    if (k() <= kMaxKForeign) return;
    for (int64_t i = 0; i < rows; ++i) {
      if (std::memchr(codes + i * weight_.row_bytes, 0x80, static_cast<size_t>(k())) != nullptr)
        keep_first(minus_128_row_, row + i);
    }
  }

  const cpu::Kernels& kernels_;
  const WeightSource& weight_;
  const BlobSections& blob_;
  std::atomic<int64_t> bad_row_{kNone}, minus_128_row_{kNone};
};

}  // namespace

int64_t pack_scratch_bytes(const Context& context, int64_t k) {
  return context.pool.threads() * round_up(k * cpu::kPanelRows, kAlignment);
}

void pack_blob(Context& context, void* scratch, const WeightSource& weight, void* blob) {
  const BlobSections sections = blob_sections(blob);
  // Everything behind the panels starts as zeros: the gaps between sections are part of the checksum, and of files.
  auto* behind = const_cast<int8_t*>(sections.panels) + sections.n_padded() * sections.k_padded();
  std::memset(behind, 0, static_cast<size_t>(static_cast<int8_t*>(blob) + sections.header->blob_bytes - behind));
  Packer packer(context, weight, sections);
  const int64_t parts = context.pool.threads(), panels = sections.n_padded() / cpu::kPanelRows;
  const int64_t part_bytes = round_up(sections.header->k * cpu::kPanelRows, kAlignment);
  context.pool.run(parts, [&](int64_t part) {
    packer.pack_panels(part_range(panels, part, parts), static_cast<int8_t*>(scratch) + part * part_bytes);
  });
  packer.check();
  packer.pack_bias();
  packer.pack_kept();
  seal_blob(blob);
}

void unpack_row(const BlobSections& blob, int64_t n, int8_t* codes) {
  const int8_t* from = blob.panels + n / cpu::kPanelRows * blob.panel_stride() + n % cpu::kPanelRows * cpu::kGroup;
  const int64_t k = blob.header->k;
  for (int64_t j = 0; j < k; j += cpu::kGroup) {
    std::memcpy(codes + j, from + j * cpu::kPanelRows, static_cast<size_t>(std::min<int64_t>(cpu::kGroup, k - j)));
  }
}

}  // namespace int8q
