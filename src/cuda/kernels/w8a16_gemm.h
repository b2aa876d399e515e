// SPDX-License-Identifier: Apache-2.0
//
// w8a16.h's product for more rows than w8a16_skinny.h's: tiles of Y, of 128 x 128 in warps of 64 x 64, or smaller ones
// where those would leave the GPU idle.
//
// Layout of a stage: kM rows of x, 64 bytes as gemm.h's, that is 32 halves or 16 floats; then kN rows of as many codes,
// whose two chunks of 16 lie at c ^ (r / 4 % 2), so that the eight rows of one chunk, which ldmatrix reads at once, lie in
// all 32 banks. A word of a chunk is { 2q, 2q + 1, 8 + 2q, 9 + 2q }, which is what lane q of a fragment of B needs: it is
// permuted when it is stored, by four instructions for 16 codes, and widened by each warp when it is read.
//
// A stage waits in registers while the one before is multiplied. fp32 x goes through the stages once for each bf16 term.
// Registers: 128 sums, 16 of A, 24 of the next stage.
#pragma once

#include "cuda/kernels/results.h"
#include "cuda/kernels/w8a16.h"

namespace int8q::gpu {

template <class Arch, class Tile, Multiply kHow, bool kAligned>
class W8a16Block {
  static constexpr int kTilesM = Tile::kWarpM / 16, kTilesN = Tile::kWarpN / 8;
  static constexpr int kDepth = Tile::kDepth, kPerChunk = kDepth / 4;  // elements of 16 bytes of x
  static constexpr int kChunksX = Tile::kM * 4 / Tile::kThreads;
  static constexpr int kChunksW = Tile::kN * (kDepth / kCodeChunk) / Tile::kThreads;
  static_assert(kChunksX > 0 && kChunksW > 0);

 public:
  INT8Q_DEVICE explicit W8a16Block(const Gemm& p) : p_(p) {
    const int64_t tiles_m = (p.m + Tile::kM - 1) / Tile::kM;  // blocks side by side share W, and X lies in L2
    row_ = block_index() % tiles_m * Tile::kM;
    col_ = block_index() / tiles_m * Tile::kN;
    warp_row_ = warp_index() % (Tile::kM / Tile::kWarpM) * Tile::kWarpM;
    warp_col_ = warp_index() / (Tile::kM / Tile::kWarpM) * Tile::kWarpN;
  }

  INT8Q_DEVICE void run() {
    const int depth_steps = static_cast<int>((p_.k + kDepth - 1) / kDepth);
    const int steps = kHow == Multiply::kBf16 ? depth_steps * terms_of(p_.x_dtype) : depth_steps;
    U32x4 held[kChunksX + kChunksW];
    if (steps > 0) load_stage(0, 0, held);
    for (int step = 0; step < steps; ++step) {
      const uint32_t stage = static_cast<uint32_t>(step % 2 * Tile::kStageBytes);
      store_stage(stage, held);
      block_barrier();  // this step is there for all, and all are done with the one before
      if (step + 1 < steps) load_stage((step + 1) % depth_steps, (step + 1) / depth_steps, held);
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
    constexpr int kChunks = kDepth / kCodeChunk;
    return static_cast<uint32_t>(Tile::kM * 64 + n * kDepth + (chunk ^ n / 4 % kChunks) * kCodeChunk);
  }

  INT8Q_DEVICE void load_stage(int step, int term, U32x4 (&held)[kChunksX + kChunksW]) const {
    const int64_t k = static_cast<int64_t>(step) * kDepth;
#pragma unroll
    for (int c = 0; c < kChunksX; ++c) {
      const int i = thread_index() + c * Tile::kThreads;
      held[c] = activations(row_ + i / 4, k + i % 4 * kPerChunk, term);
    }
#pragma unroll
    for (int c = 0; c < kChunksW; ++c) {
      const int i = thread_index() + c * Tile::kThreads;
      constexpr int kChunks = kDepth / kCodeChunk;
      held[kChunksX + c] =
          load_codes<kAligned>(p_.w, p_.w_stride, p_.n, p_.k, col_ + i / kChunks, k + i % kChunks * kCodeChunk);
    }
  }

  INT8Q_DEVICE void store_stage(uint32_t stage, const U32x4 (&held)[kChunksX + kChunksW]) const {
#pragma unroll
    for (int c = 0; c < kChunksX; ++c) {
      const int i = thread_index() + c * Tile::kThreads;
      store_shared(stage + swizzled(i / 4, i % 4), held[c]);
    }
#pragma unroll
    for (int c = 0; c < kChunksW; ++c) {
      const int i = thread_index() + c * Tile::kThreads;
      constexpr int kChunks = kDepth / kCodeChunk;
      store_shared(stage + w_at(i / kChunks, i % kChunks), permuted(held[kChunksX + c]));
    }
  }
  INT8Q_DEVICE static U32x4 permuted(const U32x4& w) {
    if constexpr (kHow == Multiply::kF32) return w;
    return {byte_permute(w.x, w.z, 0x5410), byte_permute(w.x, w.z, 0x7632), byte_permute(w.y, w.w, 0x5410),
            byte_permute(w.y, w.w, 0x7632)};
  }

  // 16 bytes of x from column k on.
  INT8Q_DEVICE U32x4 activations(int64_t row, int64_t k, int term) const {
    if constexpr (kHow == Multiply::kF32) {
      float v[kChunk];
      load_floats<kAligned>(p_, p_.x_dtype, row, k / kChunk * kChunk, v);
      const bool upper = k % kChunk != 0;
      return {bits_of(upper ? v[4] : v[0]), bits_of(upper ? v[5] : v[1]), bits_of(upper ? v[6] : v[2]),
              bits_of(upper ? v[7] : v[3])};
    }
    if (kHow == Multiply::kF16 || p_.x_dtype == Dtype::kBf16) return load_halves<kAligned>(p_, row, k);
    float v[kChunk];
    load_floats<kAligned>(p_, Dtype::kF32, row, k, v);
#pragma unroll 1
    for (; term > 0; --term) take_term(v);
    return take_term(v);
  }

  // ---- Products

  // Sixteen k of a stage.
  INT8Q_DEVICE void multiply_halves(uint32_t stage, int half) {
    const int matrix = lane_index() / 8, row = lane_index() % 8;
    uint32_t a[kTilesM][4];
#pragma unroll
    for (int i = 0; i < kTilesM; ++i) {
      ptx::ldmatrix(stage + swizzled(warp_row_ + i * 16 + matrix % 2 * 8 + row, half * 2 + matrix / 2), a[i]);
    }
#pragma unroll
    for (int j = 0; j < kTilesN; j += 4) {
      uint32_t w[4];
      ptx::ldmatrix(stage + w_at(warp_col_ + (j + matrix) * 8 + row, half), w);
#pragma unroll
      for (int t = 0; t < 4; ++t) {
        uint32_t b[2];
        widen<kHow>(w[t], b[0], b[1]);
#pragma unroll
        for (int i = 0; i < kTilesM; ++i) multiply_tile<Arch, kHow>(f_[i][j + t], a[i], b);
      }
    }
  }

  // Four k at a time: 32 fma for a word of codes, with sums where the tensor cores would have them.
  INT8Q_DEVICE void multiply_floats(uint32_t stage) {
#pragma unroll 1
    for (int k = 0; k < kDepth; k += 4) {
      U32x4 x[kTilesM][2];
#pragma unroll
      for (int i = 0; i < kTilesM; ++i) {
#pragma unroll
        for (int r = 0; r < 2; ++r) x[i][r] = load_shared<U32x4>(stage + swizzled(local_row(i, r * 2), k / 4));
      }
#pragma unroll
      for (int j = 0; j < kTilesN; ++j) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const auto codes = load_shared<uint32_t>(stage + w_at(local_col(j, c), 0) + static_cast<uint32_t>(k));
#pragma unroll
          for (int i = 0; i < kTilesM; ++i) {
#pragma unroll
            for (int r = 0; r < 2; ++r) {
              float& f = f_[i][j][r * 2 + c];
              f = fma(float_of(x[i][r].x), code_at(codes, 0), f);
              f = fma(float_of(x[i][r].y), code_at(codes, 1), f);
              f = fma(float_of(x[i][r].z), code_at(codes, 2), f);
              f = fma(float_of(x[i][r].w), code_at(codes, 3), f);
            }
          }
        }
      }
    }
  }

  // ---- Results

  INT8Q_DEVICE int local_row(int tile, int i) const { return warp_row_ + tile * 16 + lane_index() / 4 + i / 2 * 8; }
  INT8Q_DEVICE int local_col(int tile, int i) const { return warp_col_ + tile * 8 + lane_index() % 4 * 2 + i % 2; }

  INT8Q_DEVICE void store_result() const {
    const auto write = [&](int first) {
#pragma unroll
      for (int i = 0; i < kTilesM; ++i) {
        if ((warp_row_ + i * 16) / Tile::kRowsAtOnce * Tile::kRowsAtOnce != first) continue;
#pragma unroll
        for (int j = 0; j < kTilesN; ++j) {
#pragma unroll
          for (int c = 0; c < 4; c += 2) {
            store_shared(Results<Tile>::at(local_row(i, c), local_col(0, 0), j * 8),
                         U32x2{bits_of(f_[i][j][c]), bits_of(f_[i][j][c + 1])});
          }
        }
      }
    };
    Results<Tile>::exchange(p_.m - row_, p_.n - col_, write, [&](int col) {
      return [this, col](int row, const uint32_t(&bits)[kChunk]) {
        ResultColumns(p_, col_ + col).store(p_, row_ + row, bits, true, 0);
      };
    });
  }

  const Gemm& p_;
  int64_t row_, col_;
  int warp_row_, warp_col_;
  float f_[kTilesM][kTilesN][4] = {};
};

template <class Arch, class Tile, Multiply kHow, bool kAligned>
INT8Q_DEVICE void w8a16_gemm(const Gemm& p) {
  W8a16Block<Arch, Tile, kHow, kAligned>(p).run();
}

}  // namespace int8q::gpu
