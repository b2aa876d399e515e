// SPDX-License-Identifier: Apache-2.0
//
// Every kernel in plain C++: what runs on a CPU without AVX2 and on other architectures, and the reference that reads like
// the contract in cpu/kernels.h. Compiled with base flags; the compiler vectorizes what it can.
#include <bit>
#include <cmath>
#include <cstring>

#include "core/dtype.h"
#include "cpu/kernels.h"

namespace int8q::cpu {
namespace {

constexpr float kInv127 = 1.0f / 127.0f;
constexpr float kInv16129 = 1.0f / 16129.0f;

inline uint32_t magnitude_bits(float f) { return std::bit_cast<uint32_t>(f) & 0x7fffffffu; }

template <int D>
uint32_t scan(const void* x, int64_t k, uint32_t limit, uint64_t* column_bits) {
  uint32_t absmax = 0;
  for (int64_t j = 0; j < k; ++j) {
    const uint32_t bits = magnitude_bits(load_element<D>(x, j));
    if (bits >= limit && bits <= kInfBits) {
      if (column_bits != nullptr) column_bits[j / 64] |= uint64_t{1} << (j % 64);
    } else if (bits > absmax) {
      absmax = bits;
    }
  }
  return absmax;
}

// emit(j, code) for each j in [0, k).
template <int D, class Emit>
void encode_codes(const void* x, int64_t k, float absmax, uint32_t limit, const Emit& emit) {
  const bool zero_row = !(absmax > 0.0f);
  const bool tiny = absmax < 0x1p-120f;
  const float multiplier = 127.0f * (1.0f / absmax);
  for (int64_t j = 0; j < k; ++j) {
    const float value = load_element<D>(x, j);
    const uint32_t bits = magnitude_bits(value);
    if (zero_row || (bits >= limit && bits <= kInfBits)) {
      emit(j, 0);
    } else {
      emit(j, static_cast<int>(std::nearbyint(tiny ? (value / absmax) * 127.0f : value * multiplier)));
    }
  }
}

template <int D>
void encode(const void* x, int64_t k, int64_t k_padded, float absmax, uint32_t limit, void* codes) {
  auto* out = static_cast<int16_t*>(codes);
  encode_codes<D>(x, k, absmax, limit, [&](int64_t j, int code) { out[pair_place(j)] = static_cast<int16_t>(code); });
  for (int64_t j = k; j < k_padded; ++j) out[pair_place(j)] = 0;
}

template <int D>
void encode_s8(const void* x, int64_t k, int64_t, float absmax, uint32_t limit, void* codes) {
  auto* out = static_cast<int8_t*>(codes);
  encode_codes<D>(x, k, absmax, limit, [&](int64_t j, int code) { out[j] = static_cast<int8_t>(code); });
}

void widen(const int8_t* a, int64_t k, int64_t k_padded, void* codes) {
  auto* out = static_cast<int16_t*>(codes);
  for (int64_t j = 0; j < k_padded; ++j) out[pair_place(j)] = j < k ? a[j] : int8_t{0};
}

// One row of codes against one panel: 16 sums of four products a group, at most 4 * 127 * 128 each, wrapping in uint32.
void gemm(const GemmBlock& block) {
  for (int64_t p = 0; p < block.panel_count; ++p) {
    const int8_t* panel = block.panels + p * block.panel_stride;
    for (int64_t i = 0; i < block.rows; ++i) {
      const auto* codes = reinterpret_cast<const int16_t*>(block.codes + i * block.code_stride);
      int32_t* acc = block.acc + i * block.acc_stride + p * kPanelRows;
      uint32_t sums[kPanelRows] = {};
      for (int64_t g = 0; g < block.groups; ++g) {
        const int16_t* a = codes + g * kGroup;
        const int8_t* b = panel + g * kPanelRows * kGroup;
        for (int n = 0; n < kPanelRows; ++n, b += kGroup) {
          sums[n] += static_cast<uint32_t>(a[0] * b[0] + a[1] * b[2] + a[2] * b[1] + a[3] * b[3]);
        }
      }
      for (int n = 0; n < kPanelRows; ++n) {
        if (block.accumulate) sums[n] += static_cast<uint32_t>(acc[n]);
        acc[n] = static_cast<int32_t>(static_cast<uint32_t>(block.start[p * kPanelRows + n]) + sums[n]);
      }
    }
  }
}

// |sum| <= 128 * 128 * 131,071 < 2^31.
void dot(const DotBlock& block) {
  for (int64_t n = 0; n < block.cols; ++n) {
    const int8_t* b = block.b + n * block.b_stride;
    for (int64_t i = 0; i < block.rows; ++i) {
      const int8_t* a = block.a + i * block.a_stride;
      int32_t sum = 0;
      for (int64_t j = 0; j < block.k; ++j) sum += a[j] * b[j];
      block.c[i * block.c_stride + n] = sum;
    }
  }
}

void columns(const int8_t* panel, const int32_t* cols, int64_t count, int8_t* small, int32_t* sums) {
  for (int n = 0; n < kPanelRows; ++n) {
    sums[n] = 0;
    for (int64_t t = 0; t < (count + kGroup - 1) / kGroup * kGroup; ++t) {
      const int64_t c = t < count ? cols[t] : 0;
      const int8_t code = t < count ? panel[c / kGroup * kGroup * kPanelRows + n * kGroup + c % kGroup] : int8_t{0};
      small[t / kGroup * kGroup * kPanelRows + n * kGroup + t % kGroup] = code;
      sums[n] += code;
    }
  }
}

void outliers(const OutlierBlock& block) {
  for (int64_t i = 0; block.start && block.count > 0 && i < block.rows; ++i) {
    for (int64_t n = 0; n < block.panel_count * kPanelRows; ++n) block.out[i * block.out_stride + n] = 0.0f;
  }
  for (int64_t p = 0; p < block.panel_count; ++p) {
    const int64_t first = p * kPanelRows;
    for (int64_t t = 0; t < block.count; ++t) {
      const int8_t* group = block.panels + p * block.panel_stride + t / kGroup * kGroup * kPanelRows + t % kGroup;
      const uint16_t* kept = block.kept[t];
      float w[kPanelRows];
      for (int n = 0; n < kPanelRows; ++n) {
        w[n] = kept != nullptr ? f16_to_f32(kept[first + n])
                               : (static_cast<float>(group[n * kGroup]) * block.col_stats[first + n]) * kInv127;
      }
      for (int64_t i = 0; i < block.rows; ++i) {
        const float x = block.x[i * block.x_stride + t];
        if (block.skip_zero && x == 0.0f) continue;
        float* out = block.out + i * block.out_stride + first;
        for (int n = 0; n < kPanelRows; ++n) out[n] = std::fmaf(x, w[n], out[n]);
      }
    }
  }
}

template <int D>
void epilogue(const EpilogueBlock& block) {
  for (int64_t i = 0; i < block.rows; ++i) {
    const int32_t* acc = block.acc + i * block.acc_stride;
    uint8_t* y = block.y + i * block.y_stride;
    for (int64_t n = 0; n < block.cols; ++n) {
      const float scale = (block.row_stats[i] * block.col_stats[n]) * kInv16129;
      const float o = block.out != nullptr ? block.out[i * block.acc_stride + n] : 0.0f;
      float value = std::fmaf(static_cast<float>(acc[n]), scale, o);
      if (block.bias != nullptr) value += block.bias[n];
      if (block.accumulate) value += load_element<D>(y, n);
      store_element<D>(y, n, value);
    }
  }
}

template <int D>
void dequantize(const int8_t* q, int64_t k, float stat, void* y) {
  for (int64_t j = 0; j < k; ++j) store_element<D>(y, j, (static_cast<float>(q[j]) * stat) * kInv127);
}

template <int D>
void scale(const void* dy, int64_t n, const float* col_stats, void* g) {
  for (int64_t j = 0; j < n; ++j) store_element<0>(g, j, load_element<D>(dy, j) * (col_stats[j] * kInv127));
}

void unpack(const int8_t* panel, int64_t k_begin, int64_t k_count, void* w, int64_t w_stride) {
  for (int64_t j = 0; j < k_count; ++j) {
    const int64_t k = k_begin + j;
    const int8_t* codes = panel + k / kGroup * kGroup * kPanelRows + k % kGroup;
    auto* column = reinterpret_cast<float*>(static_cast<uint8_t*>(w) + j / kPanelRows * w_stride) + j % kPanelRows;
    for (int64_t r = 0; r < kPanelRows; ++r) column[r * kPanelRows] = codes[r * kGroup];
  }
}

void backward(const BackwardBlock& block) {
  for (int64_t i = 0; i < block.rows; ++i) {
    const auto* g = reinterpret_cast<const float*>(static_cast<const uint8_t*>(block.g) + i * block.g_stride);
    for (int64_t j = 0; j < block.k; j += kPanelRows) {
      const auto* w =
          reinterpret_cast<const float*>(static_cast<const uint8_t*>(block.w) + j / kPanelRows * block.w_stride);
      float* dx = block.dx + i * block.dx_stride + j;
      if (!block.accumulate) std::memset(dx, 0, kPanelRows * sizeof(float));
      for (int64_t n = 0; n < block.n; ++n) {
        for (int64_t c = 0; c < kPanelRows; ++c) dx[c] = std::fmaf(g[n], w[n * kPanelRows + c], dx[c]);
      }
    }
  }
  for (int64_t p = 0; p < block.next_count; ++p) {
    unpack(block.next + p * block.next_stride, 0, block.k, static_cast<uint8_t*>(block.next_w) + p * kPanelRows * 64,
           block.w_stride);
  }
}

template <int D>
void store(const float* v, int64_t k, void* y, bool accumulate) {
  for (int64_t j = 0; j < k; ++j) store_element<D>(y, j, accumulate ? load_element<D>(y, j) + v[j] : v[j]);
}

constexpr Kernels kTable = {
    "generic",
    CodeLayout::kS16Pairs,
    {{"scan_f32_generic", scan<0>}, {"scan_f16_generic", scan<1>}, {"scan_bf16_generic", scan<2>}},
    {{"encode_f32_generic", encode<0>}, {"encode_f16_generic", encode<1>}, {"encode_bf16_generic", encode<2>}},
    {{"encode_s8_f32_generic", encode_s8<0>},
     {"encode_s8_f16_generic", encode_s8<1>},
     {"encode_s8_bf16_generic", encode_s8<2>}},
    {"widen_s16_generic", widen},
    {"pack_s8_generic", pack_s8_generic},
    {"gemm_s16s8_1x16_generic", gemm},
    {"gemv_s16s8_1x16_generic", gemm},
    {"dot_s8s8_1x1_generic", dot},
    {"columns_s8_generic", columns},
    {"outliers_f32_generic", outliers},
    {{"epilogue_f32_generic", epilogue<0>}, {"epilogue_f16_generic", epilogue<1>}, {"epilogue_bf16_generic", epilogue<2>}},
    {{"dequantize_f32_generic", dequantize<0>},
     {"dequantize_f16_generic", dequantize<1>},
     {"dequantize_bf16_generic", dequantize<2>}},
    {{"scale_f32_generic", scale<0>}, {"scale_f16_generic", scale<1>}, {"scale_bf16_generic", scale<2>}},
    {"unpack_f32_generic", unpack},
    {"backward_f32_generic", backward},
    {{"store_f32_generic", store<0>}, {"store_f16_generic", store<1>}, {"store_bf16_generic", store<2>}},
};

}  // namespace

void pack_s8_generic(const int8_t* b, int64_t b_stride, int64_t rows, int64_t k, int64_t k_padded, int8_t* panel,
                     int32_t* sums) {
  std::memset(panel, 0, static_cast<size_t>(k_padded * kPanelRows));
  for (int64_t r = 0; r < kPanelRows; ++r) {
    sums[r] = 0;
    if (r >= rows) continue;
    const int8_t* row = b + r * b_stride;
    const int64_t whole = k / kGroup * kGroup;
    int32_t sum = 0;
    for (int64_t j = 0; j < k; ++j) sum += row[j];
    for (int64_t j = 0; j < whole; j += kGroup) std::memcpy(panel + j * kPanelRows + r * kGroup, row + j, kGroup);
    if (k > whole) std::memcpy(panel + whole * kPanelRows + r * kGroup, row + whole, static_cast<size_t>(k - whole));
    sums[r] = sum;
  }
}

const Kernels& generic_kernels() { return kTable; }

}  // namespace int8q::cpu
