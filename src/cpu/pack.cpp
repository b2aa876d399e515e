// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "core/dtype.h"
#include "cpu/layer.h"

namespace int8q {
namespace {

constexpr int64_t kNone = INT64_MAX;

void keep_first(std::atomic<int64_t>& first, int64_t row) {
  for (int64_t seen = first.load(); row < seen && !first.compare_exchange_weak(seen, row);) {
  }
}

// Columns that are packed, then written: 4 KiB of a panel, so that the stores drain while the next are read.
constexpr int64_t kChunkCols = 256;

// What one part has for the panel that it is at: its rows' codes, and the panel before it goes to the blob.
struct PackScratch {
  int8_t* codes;  // [16] rows, odd_lines(k) apart
  int8_t* panel;

  static int64_t bytes(int64_t k) { return (odd_lines(k) + round_up(k, cpu::kPadK)) * cpu::kPanelRows; }
  PackScratch(void* scratch, int64_t k, int64_t part)
      : codes(static_cast<int8_t*>(scratch) + part * bytes(k)), panel(codes + odd_lines(k) * cpu::kPanelRows) {}
};

// Copies whole cache lines past the caches: reading a line that is overwritten whole would be a third of all traffic.
void stream_lines(int8_t* to, const int8_t* from, int64_t bytes) {
#if defined(__SSE2__)
  for (int64_t i = 0; i < bytes; i += 16) {
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + i), _mm_load_si128(reinterpret_cast<const __m128i*>(from + i)));
  }
#else
  std::memcpy(to, from, static_cast<size_t>(bytes));
#endif
}

// Streamed stores are seen by whoever waits for this part.
void finish_streams() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

class Packer {
 public:
  Packer(const Context& context, const WeightSource& weight, const BlobSections& blob)
      : kernels_(*context.kernels), weight_(weight), blob_(blob) {}

  // Returns the panels' part of the blob's checksum.
  uint64_t pack_panels(Range panels, const PackScratch& scratch) {
    uint64_t checksum = 0;
    for (int64_t p = panels.begin; p < panels.end; ++p) {
      const int64_t row = p * cpu::kPanelRows, rows = std::min<int64_t>(cpu::kPanelRows, n() - row);
      auto* stats = const_cast<float*>(blob_.col_stats) + row;
      std::fill(stats, stats + cpu::kPanelRows, 0.0f);
      const int8_t* codes = scratch.codes;
      int64_t stride = odd_lines(k());
      if (weight_.dtype == INT8Q_S8) {
        codes = reinterpret_cast<const int8_t*>(weight_.data + row * weight_.row_bytes);
        stride = weight_.row_bytes;
        std::copy_n(weight_.col_stats + row, rows, stats);
        check_foreign(codes, row, rows);
      } else {
        const FloatRows x{weight_.data + row * weight_.row_bytes, kernel_index(weight_.dtype), rows, k(),
                          weight_.row_bytes};
        quantize_to_s8(kernels_, x, {0, rows}, cpu::kNoOutliers, scratch.codes, stride, stats, nullptr);
      }
      for (int64_t i = 0; i < rows; ++i) {
        if (!std::isfinite(stats[i]) || stats[i] < 0.0f) keep_first(bad_row_, row + i);
      }
      pack_panel(p, codes, stride, rows, scratch.panel);
      checksum += panel_checksum(blob_, p, scratch.panel);
    }
    finish_streams();
    return checksum;
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

  void pack_panel(int64_t p, const int8_t* codes, int64_t stride, int64_t rows, int8_t* panel) {
    auto* to = const_cast<int8_t*>(blob_.panels) + p * blob_.panel_stride();
    auto* sums = const_cast<int32_t*>(blob_.col_sums) + p * cpu::kPanelRows;
    for (int64_t j = 0; j < blob_.k_padded(); j += kChunkCols) {
      const int64_t padded = std::min(kChunkCols, blob_.k_padded() - j), at = j * cpu::kPanelRows;
      int32_t chunk_sums[cpu::kPanelRows];
      kernels_.pack.run(codes + j, stride, rows, std::min(kChunkCols, k() - j), padded, panel + at, chunk_sums);
      for (int64_t i = 0; i < cpu::kPanelRows; ++i) sums[i] += chunk_sums[i];
      stream_lines(to + at, panel + at, padded * cpu::kPanelRows);
    }
  }

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

Range panel_range(int64_t n, int64_t part, int64_t parts) { return part_range(item_count(1, n, parts), part, parts); }

int64_t pack_scratch_bytes(const Context& context, int64_t k) { return context.pool.threads() * PackScratch::bytes(k); }

void pack_blob(Context& context, void* scratch, const WeightSource& weight, void* blob) {
  const BlobSections sections = blob_sections(blob);
  // Everything behind the panels starts as zeros: the gaps between sections are part of the checksum, and of files.
  auto* behind = const_cast<int8_t*>(sections.panels) + sections.n_padded() * sections.k_padded();
  std::memset(behind, 0, static_cast<size_t>(static_cast<int8_t*>(blob) + sections.header->blob_bytes - behind));
  Packer packer(context, weight, sections);
  const int64_t parts = context.pool.threads();
  std::atomic<uint64_t> checksum{0};
  context.pool.run(parts, [&](int64_t part) {
    checksum +=
        packer.pack_panels(panel_range(sections.header->n, part, parts), PackScratch(scratch, sections.header->k, part));
  });
  packer.check();
  packer.pack_bias();
  packer.pack_kept();
  seal_blob(blob, checksum);
}

void unpack_panel(const BlobSections& blob, int64_t panel, int8_t* codes, int64_t stride) {
  const int8_t* from = blob.panels + panel * blob.panel_stride();
  const int64_t k = blob.header->k, rows = std::min<int64_t>(cpu::kPanelRows, blob.header->n - panel * cpu::kPanelRows);
  for (int64_t begin = 0; begin < k; begin += 64) {  // 16 lines stay in L1 while each row takes its dwords
    const int64_t whole = std::min<int64_t>(begin + 64, k / cpu::kGroup * cpu::kGroup);
    for (int64_t r = 0; r < rows; ++r) {
      const int8_t* row = from + r * cpu::kGroup;
      int8_t* to = codes + r * stride;
      for (int64_t j = begin; j < whole; j += cpu::kGroup) std::memcpy(to + j, row + j * cpu::kPanelRows, cpu::kGroup);
      for (int64_t j = std::max(begin, whole); j < std::min(begin + 64, k); ++j) {
        to[j] = row[whole * cpu::kPanelRows + j % cpu::kGroup];
      }
    }
  }
}

}  // namespace int8q
