// SPDX-License-Identifier: Apache-2.0
//
// w8a16.h's product for few rows of activations, M <= 48, or 16 where it is by fp32: W is read once, at the speed of
// memory.
//
// Sixteen rows of W (weight_stream.h) are an MMA's rows, eight rows of activations its columns. Four of a lane's bytes of W and
// the four activations beside them are its share of one m16n8k16: its k is permuted, alike for both operands, and neither is
// shuffled. X comes through L1: of row g 32 bytes of 16-bit elements, or 64 of fp32, which three MMAs take.
//
// By fp32 a lane multiplies the same bytes, and four lanes add up.
//
// Shared memory: the warps' sums [M][kWarps][16], which are added in the order of warps: a row of Y does not depend
// on how many there are, nor on the run. Registers: 4 sums an eighth of the rows, 8 of widened codes, 16 or 32 of W.
#pragma once

#include "cuda/kernels/w8a16.h"
#include "cuda/kernels/weight_stream.h"

namespace int8q::gpu {

template <class Arch, Multiply kHow, int kEights, bool kAligned>
class W8a16SkinnyBlock {
  using Shape = W8a16SkinnyShape;
  static constexpr int kRows = kEights * 8;
  static constexpr bool kMma = kHow != Multiply::kF32;
  // Steps of W ahead, as in skinny.h.
  static constexpr int kMostAhead = kEights > 2 || !kMma ? 2 : 4;
  static constexpr int kAhead = kAligned ? kMostAhead : kMostAhead / 2;
  static constexpr int kPerEight = kMma ? 4 : 16;  // sums of a lane

 public:
  INT8Q_DEVICE explicit W8a16SkinnyBlock(const Gemm& p) : p_(p), w_(p) {}

  INT8Q_DEVICE void run() {
    const int64_t stride = static_cast<int64_t>(block_count()) * Shape::kRowsOfW;
    int64_t col = block_index() * int64_t{Shape::kRowsOfW};
    w_.begin(col);
    for (; col < p_.n; col += stride) {
      float f[kEights][kPerEight] = {};
      w_.run(
          col, col + stride, [&](const U32x4& low, const U32x4& high, int k) { multiply_step(low, high, k, f); }, [] {});
      store_sums(f);
      block_barrier();
      finish(col);
      block_barrier();  // all have read the sums
    }
  }

 private:
  // ---- The product of 16 rows of W

  INT8Q_DEVICE void multiply_step(const U32x4& low, const U32x4& high, int k, float (&f)[kEights][kPerEight]) const {
    if constexpr (kMma) {
      multiply_halves(low, high, k, f);
    } else {
      multiply_floats(low, high, k, f);
    }
  }

  INT8Q_DEVICE void multiply_halves(const U32x4& low, const U32x4& high, int64_t k, float (&f)[kEights][kPerEight]) const {
    const uint32_t lows[4] = {low.x, low.y, low.z, low.w}, highs[4] = {high.x, high.y, high.z, high.w};
#pragma unroll
    for (int t = 0; t < 4; t += 2) {
      uint32_t a[2][4];
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        widen<kHow>(lows[t + s], a[s][0], a[s][2]);
        widen<kHow>(highs[t + s], a[s][1], a[s][3]);
      }
#pragma unroll
      for (int i = 0; i < kEights; ++i) {
        const int row = i * 8 + lane_index() / 4;
        if (i * 8 >= p_.m) continue;
        const auto multiply_chunk = [&](const U32x4& x) {
          multiply_tile<Arch, kHow>(f[i], a[0], {x.x, x.y});
          multiply_tile<Arch, kHow>(f[i], a[1], {x.z, x.w});
        };
        if (kHow == Multiply::kBf16 && p_.x_dtype == Dtype::kF32) {
          float v[kChunk];
          load_floats<kAligned>(p_, Dtype::kF32, row, k + t * 4, v);
#pragma unroll 1
          for (int term = 0; term < 3; ++term) multiply_chunk(take_term(v));
        } else {
          multiply_chunk(load_halves<kAligned>(p_, row, k + t * 4));
        }
      }
    }
  }

  INT8Q_DEVICE void multiply_floats(const U32x4& low, const U32x4& high, int64_t k, float (&f)[kEights][kPerEight]) const {
    const uint32_t lows[4] = {low.x, low.y, low.z, low.w}, highs[4] = {high.x, high.y, high.z, high.w};
#pragma unroll
    for (int t = 0; t < 4; t += 2) {
      float w[kChunk][2];
#pragma unroll
      for (int e = 0; e < kChunk; ++e)
        w[e][0] = code_at(lows[t + e / 4], e % 4), w[e][1] = code_at(highs[t + e / 4], e % 4);
#pragma unroll
      for (int m = 0; m < kRows; ++m) {
        if (m >= p_.m) continue;
        float v[kChunk];
        load_floats<kAligned>(p_, p_.x_dtype, m, k + t * 4, v);
#pragma unroll
        for (int e = 0; e < kChunk; ++e) {
#pragma unroll
          for (int r = 0; r < 2; ++r) f[m / 8][m % 8 * 2 + r] = fma(v[e], w[e][r], f[m / 8][m % 8 * 2 + r]);
        }
      }
    }
  }

  // ---- Results

  INT8Q_DEVICE uint32_t sum_at(int warp, int m, int n) const {
    return static_cast<uint32_t>(((m * Shape::kWarps + warp) * Shape::kRowsOfW + n) * 4);
  }

  INT8Q_DEVICE void store_sums(const float (&f)[kEights][kPerEight]) const {
    const int g = lane_index() / 4, q = lane_index() % 4;
#pragma unroll
    for (int t = 0; t < kEights; ++t) {
#pragma unroll
      for (int i = 0; i < kPerEight; ++i) {
        const int m = kMma ? t * 8 + q * 2 + i % 2 : t * 8 + i / 2;
        const int n = kMma ? g + i / 2 * 8 : g + i % 2 * 8;
        float sum = f[t][i];
        if constexpr (!kMma) {
          sum += float_of(shuffle_xor(bits_of(sum), 1));
          sum += float_of(shuffle_xor(bits_of(sum), 2));
          if (m % 4 != q) continue;
        }
        if (m < p_.m) store_shared(sum_at(warp_index(), m, n), sum);
      }
    }
  }

  INT8Q_DEVICE void finish(int64_t col) const {
    for (int i = thread_index(); i < p_.m * Shape::kRowsOfW; i += Shape::kThreads) {
      const int m = i / Shape::kRowsOfW;
      const int64_t n = col + i % Shape::kRowsOfW;
      if (n >= p_.n) continue;
      float f = 0.0f;
#pragma unroll
      for (int warp = 0; warp < Shape::kWarps; ++warp) f += load_shared<float>(sum_at(warp, m, i % Shape::kRowsOfW));
      float value = f * (load(p_.col_stats + n) * (1.0f / 127.0f));
      value = add_kept_columns(p_, 0, m, n, value);
      if (p_.bias != nullptr) value += load_element(p_.bias_dtype, static_cast<const uint8_t*>(p_.bias), n);
      uint8_t* y = p_.y + m * p_.y_stride;
      if (p_.accumulate) value += load_element(p_.y_dtype, y, n);
      store_element(p_.y_dtype, y, n, value);
    }
  }

  const Gemm& p_;
  WeightStream<kAhead, kAligned, true> w_;
};

template <class Arch, Multiply kHow, int kEights, bool kAligned>
INT8Q_DEVICE void w8a16_skinny(const Gemm& p) {
  W8a16SkinnyBlock<Arch, kHow, kEights, kAligned>(p).run();
}

}  // namespace int8q::gpu
