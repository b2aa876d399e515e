// SPDX-License-Identifier: Apache-2.0
//
// The gradient to the input, summed in fp32, dX = f * (greatest / 127), rounded once:
//
//   fp16        f = dY . (Wq o ratio)     ratio = col_stats / greatest, rounded to fp16, and so its product with a code
//   bf16, fp32  f = (dY o ratio) . Wq     rounded to bf16; fp32 as three bf16 terms, one after another; codes are exact
//
// Small gradients would be denormals of fp16 if the ratio were theirs. Before sm_80 bf16 and fp32, before sm_75 all, are
// multiplied in fp32.
//
// The product sums over n, and W's rows are n: a fragment of B wants two n of one column k in a register. ldmatrix.trans gives
// each lane two bytes, k = 2g and 2g + 1, of two rows n = 2q and 2q + 1. The even bytes are the fragment of one tile of eight
// columns, the odd bytes of another: tile 2p has columns 16p, 16p + 2, ..., tile 2p + 1 those between, and a lane holds four
// neighbours of Y in two tiles. Bytes become fp16 as 0x6400 + (code + 128) - 1152, bf16 by way of fp32.
//
// Layout of a stage: kM rows of g, 64 bytes as gemm.h's; then kDepth rows of W of 128 bytes, whose chunk c of row r lies at
// c ^ (r % 8); then fp16's ratios of these rows. A stage waits in registers while the one before is multiplied: g has to be made anyway.
#pragma once

#include "cuda/kernels/ptx.h"
#include "cuda/kernels/results.h"
#include "cuda/kernels/shapes.h"

namespace int8q::gpu {

template <class Arch, Multiply kHow, bool kAligned>
class BackwardBlock {
  using Tile = BackwardTile<kHow>;
  static constexpr int kTilesM = 4, kPairsN = 4;  // of a warp: 16 rows, 16 columns
  static constexpr int kPerChunk = kHow == Multiply::kF32 ? 4 : 8;
  static constexpr int kChunksG = Tile::kM * 4 / Tile::kThreads, kChunksW = Tile::kDepth * 8 / Tile::kThreads;

 public:
  INT8Q_DEVICE explicit BackwardBlock(const Backward& p) : p_(p) {
    const int64_t tiles_k = (p.k + Tile::kN - 1) / Tile::kN;
    row_ = block_index() / tiles_k * Tile::kM;
    col_ = block_index() % tiles_k * Tile::kN;
    warp_row_ = warp_index() % 2 * 64;
    warp_col_ = warp_index() / 2 * 64;
    scale_ = p.greatest > 0.0f ? divide(1.0f, p.greatest) : 0.0f;
  }

  INT8Q_DEVICE void run() {
    const int terms = kHow == Multiply::kBf16 && p_.dy_dtype == Dtype::kF32 ? 3 : 1;
    const int depth_steps = static_cast<int>((p_.n + Tile::kDepth - 1) / Tile::kDepth), steps = depth_steps * terms;
    U32x4 held[kChunksG + kChunksW];
    uint32_t ratios = 0;
    if (steps > 0) load_stage(0, 0, held, ratios);
    for (int step = 0; step < steps; ++step) {
      const uint32_t stage = static_cast<uint32_t>(step % 2 * Tile::kStageBytes);
      store_stage(stage, held, ratios);
      block_barrier();  // this step is there for all, and all are done with the one before
      if (step + 1 < steps) load_stage((step + 1) % depth_steps, (step + 1) / depth_steps, held, ratios);
      if constexpr (kHow == Multiply::kF32) {
        multiply_floats(stage);
      } else {
#pragma unroll 1
        for (int half = 0; half < 2; ++half) multiply_halves(stage, half);
      }
    }
    store_result();
  }

 private:
  // ---- Stages

  INT8Q_DEVICE static uint32_t w_at(int n, int chunk) {
    return static_cast<uint32_t>(Tile::kM * 64 + n * Tile::kN + (chunk ^ n % 8) * kCodeChunk);
  }

  INT8Q_DEVICE void load_stage(int step, int term, U32x4 (&held)[kChunksG + kChunksW], uint32_t& ratios) const {
    const int64_t n = static_cast<int64_t>(step) * Tile::kDepth;
    if (kHow == Multiply::kF16 && thread_index() < Tile::kDepth / 2) {
      const int64_t first = n + thread_index() * 2;
      ratios = static_cast<uint32_t>(float_to_half(ratio(first))) | static_cast<uint32_t>(float_to_half(ratio(first + 1)))
                                                                        << 16;
    }
#pragma unroll
    for (int c = 0; c < kChunksG; ++c) {
      const int i = thread_index() + c * Tile::kThreads;
      held[c] = gradients(row_ + i / 4, n + i % 4 * kPerChunk, term);
    }
#pragma unroll
    for (int c = 0; c < kChunksW; ++c) {
      const int i = thread_index() + c * Tile::kThreads;
      held[kChunksG + c] = weights(n + i / 8, col_ + i % 8 * kCodeChunk);
    }
  }
  INT8Q_DEVICE float ratio(int64_t n) const { return n < p_.n ? load(p_.col_stats + n) * scale_ : 0.0f; }

  INT8Q_DEVICE void store_stage(uint32_t stage, const U32x4 (&held)[kChunksG + kChunksW], uint32_t ratios) const {
    if (kHow == Multiply::kF16 && thread_index() < Tile::kDepth / 2) {
      store_shared(stage + static_cast<uint32_t>(Tile::kRatiosAt + thread_index() * 4), ratios);
    }
#pragma unroll
    for (int c = 0; c < kChunksG; ++c) {
      const int i = thread_index() + c * Tile::kThreads;
      store_shared(stage + swizzled(i / 4, i % 4), held[c]);
    }
#pragma unroll
    for (int c = 0; c < kChunksW; ++c) {
      const int i = thread_index() + c * Tile::kThreads;
      store_shared(stage + w_at(i / 8, i % 8), held[kChunksG + c]);
    }
  }

  // 16 bytes of g, from column n on.
  INT8Q_DEVICE U32x4 gradients(int64_t row, int64_t n, int term) const {
    uint32_t words[4] = {0, 0, 0, 0};
    if (row >= p_.m || n >= p_.n) return {0, 0, 0, 0};
    const uint8_t* dy = p_.dy + row * p_.dy_stride;
    float v[kChunk];
    if constexpr (kHow == Multiply::kF32) {
#pragma unroll
      for (int e = 0; e < kPerChunk; ++e) v[e] = n + e < p_.n ? load_element(p_.dy_dtype, dy, n + e) : 0.0f;
    } else {
      load_chunk<kAligned>(p_.dy_dtype, dy, n, p_.n, v);
    }
#pragma unroll
    for (int e = 0; e < kPerChunk; ++e) {
      if constexpr (kHow == Multiply::kF16) {
        words[e / 2] |= static_cast<uint32_t>(float_to_half(v[e])) << e % 2 * 16;
        continue;
      }
      const float g = n + e < p_.n ? v[e] * (load(p_.col_stats + n + e) * scale_) : 0.0f;
      if constexpr (kHow == Multiply::kF32) {
        words[e] = bits_of(g);
      } else {
        words[e / 2] |= static_cast<uint32_t>(bf16_term(g, term)) << e % 2 * 16;
      }
    }
    return {words[0], words[1], words[2], words[3]};
  }

  INT8Q_DEVICE U32x4 weights(int64_t n, int64_t k) const {
    return load_codes<kAligned>(p_.w, p_.w_stride, p_.n, p_.k, n, k);
  }

  // ---- Products

  // Sixteen n of a stage.
  INT8Q_DEVICE void multiply_halves(uint32_t stage, int half) {
    const int matrix = lane_index() / 8, row = lane_index() % 8;
    uint32_t ratios[2] = {0, 0};  // of n 2q, 2q + 1 and 8 + 2q, 9 + 2q
    if constexpr (kHow == Multiply::kF16) {
      const uint32_t at = stage + static_cast<uint32_t>(Tile::kRatiosAt + half * 32 + lane_index() % 4 * 4);
      ratios[0] = load_shared<uint32_t>(at);
      ratios[1] = load_shared<uint32_t>(at + 16);
    }
    uint32_t a[kTilesM][4];
#pragma unroll
    for (int i = 0; i < kTilesM; ++i) {
      ptx::ldmatrix(stage + swizzled(warp_row_ + i * 16 + matrix % 2 * 8 + row, half * 2 + matrix / 2), a[i]);
    }
#pragma unroll
    for (int pair = 0; pair < kPairsN; pair += 2) {
      uint32_t w[4];  // n 0 .. 7 and 8 .. 15 of this pair of tiles, then of the next
      ptx::ldmatrix_trans(stage + w_at(half * 16 + matrix % 2 * 8 + row, warp_col_ / kCodeChunk + pair + matrix / 2), w);
#pragma unroll
      for (int t = 0; t < 4; ++t) {
        const bool odd = t % 2 == 1;
        const uint32_t b[2] = {halves(w[t / 2 * 2], odd, ratios[0]), halves(w[t / 2 * 2 + 1], odd, ratios[1])};
#pragma unroll
        for (int i = 0; i < kTilesM; ++i) multiply_tile(f_[i][pair * 2 + t], a[i], b);
      }
    }
  }
  INT8Q_DEVICE static void multiply_tile(float (&f)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    if constexpr (kHow == Multiply::kF16) {
      ptx::mma_f16<Arch>(f, a, b);
    } else {
      ptx::mma_bf16(f, a, b);
    }
  }

  // Bytes 0 and 2, or 1 and 3, as two halves; of fp16 times these ratios.
  INT8Q_DEVICE static uint32_t halves(uint32_t bytes, bool odd, uint32_t ratios) {
    if constexpr (kHow == Multiply::kF16) {
      const uint32_t biased = byte_permute(bytes, 0x64, odd ? 0x4341 : 0x4240) ^ 0x00800080;
      const uint32_t codes = ptx::subtract_halves(biased, 0x64806480);  // 1024 + (code + 128) - 1152
      return ptx::multiply_halves(codes, ratios);
    } else {
      const uint32_t shifted = odd ? bytes >> 8 : bytes;
      const auto low = static_cast<float>(static_cast<int8_t>(shifted)),
                 high = static_cast<float>(static_cast<int8_t>(shifted >> 16));
      return byte_permute(bits_of(low), bits_of(high), 0x7632);
    }
  }

  INT8Q_DEVICE void multiply_floats(uint32_t stage) {
#pragma unroll 1
    for (int n = 0; n < Tile::kDepth; ++n) {
      float g[kTilesM][2];
#pragma unroll
      for (int i = 0; i < kTilesM; ++i) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          g[i][r] = load_shared<float>(stage + swizzled(local_row(i, r), n / 4) + static_cast<uint32_t>(n % 4 * 4));
        }
      }
#pragma unroll
      for (int pair = 0; pair < kPairsN; ++pair) {
        const int col = warp_col_ + pair * 16 + lane_index() % 4 * 4;
        const auto codes =
            load_shared<uint32_t>(stage + w_at(n, col / kCodeChunk) + static_cast<uint32_t>(col % kCodeChunk));
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const auto w = static_cast<float>(static_cast<int8_t>(codes >> e * 8));
#pragma unroll
          for (int i = 0; i < kTilesM; ++i) {
#pragma unroll
            for (int r = 0; r < 2; ++r) {
              float& f = f_[i][pair * 2 + e % 2][r * 2 + e / 2];
              f = fma(g[i][r], w, f);
            }
          }
        }
      }
    }
  }

  // ---- Results

  INT8Q_DEVICE int local_row(int tile, int half) const { return warp_row_ + tile * 16 + lane_index() / 4 + half * 8; }

  INT8Q_DEVICE void store_result() const {
    const auto write = [&](int first) {
#pragma unroll
      for (int i = 0; i < kTilesM; ++i) {
        if ((warp_row_ + i * 16) / Tile::kRowsAtOnce * Tile::kRowsAtOnce != first) continue;
#pragma unroll
        for (int pair = 0; pair < kPairsN; ++pair) {
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            const auto& even = f_[i][pair * 2];
            const auto& odd = f_[i][pair * 2 + 1];
            const int col = warp_col_ + pair * 16 + lane_index() % 4 * 4;
            store_shared(Results<Tile>::at(local_row(i, r), col), U32x4{bits_of(even[r * 2]), bits_of(odd[r * 2]),
                                                                        bits_of(even[r * 2 + 1]), bits_of(odd[r * 2 + 1])});
          }
        }
      }
    };
    const float scale = p_.greatest * (1.0f / 127.0f);
    Results<Tile>::exchange(p_.m - row_, p_.k - col_, write, [&](int row, int col, const uint32_t(&bits)[kChunk]) {
      uint8_t* dx = p_.dx + (row_ + row) * p_.dx_stride;
      float value[kChunk];
#pragma unroll
      for (int e = 0; e < kChunk; ++e) {
        value[e] = float_of(bits[e]) * scale;
        if (p_.accumulate && col_ + col + e < p_.k) value[e] += load_element(p_.dx_dtype, dx, col_ + col + e);
      }
      store_chunk(p_.dx_dtype, dx, col_ + col, p_.k, value);
    });
  }

  const Backward& p_;
  int64_t row_, col_;
  int warp_row_, warp_col_;
  float scale_;
  float f_[kTilesM][kPairsN * 2][4] = {};
};

template <class Arch, Multiply kHow, bool kAligned>
INT8Q_DEVICE void backward(const Backward& p) {
  BackwardBlock<Arch, kHow, kAligned>(p).run();
}

}  // namespace int8q::gpu
