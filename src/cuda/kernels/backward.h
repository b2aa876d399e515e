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
// neighbours of Y in two tiles.
//
// Layout of a stage: kM rows of g, 64 bytes as gemm.h's; then kDepth rows of W of 128 bytes, whose chunk c of row r lies at
// c ^ (r % 8); then the ratios of these rows, fp32 ones stored a stage before, since g needs them. A stage waits in registers,
// as it came from memory, while the one before is multiplied; g is made of it when it is stored.
#pragma once

#include "cuda/kernels/halves.h"
#include "cuda/kernels/results.h"

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
    if constexpr (kHow == Multiply::kF16) {
      multiply<uint16_t>();
    } else {
      p_.dy_dtype == Dtype::kF32 ? multiply<uint32_t>() : multiply<uint16_t>();
    }
    store_result();
  }

 private:
  // ---- Stages

  // What a thread brings of a stage, as it comes from memory: nobody waits for it before it is stored. G: the bits of an element of dY.
  template <class G>
  struct Held {
    uint32_t dy[kChunksG][kPerChunk * sizeof(G) / 4];
    U32x4 w[kChunksW];
    float stats[2];  // col_stats: fp16's of two rows of W; one of the stage behind this one
  };

  template <class G>
  INT8Q_DEVICE void multiply() {
    constexpr int kTerms = kHow == Multiply::kBf16 && sizeof(G) == 4 ? 3 : 1;
    const int depth_steps = static_cast<int>((p_.n + Tile::kDepth - 1) / Tile::kDepth), steps = depth_steps * kTerms;
    Held<G> held;
    if constexpr (kHow != Multiply::kF16) {
      store_ratio(0, stat(thread_index()));
      block_barrier();
    }
    if (steps > 0) load_stage(0, depth_steps, held);
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      const uint32_t stage = stage_at(step);
      store_stage<G>(step, step / depth_steps, held);
      block_barrier();  // this step is there for all, and all are done with the one before
      if (step + 1 < steps) load_stage(step + 1, depth_steps, held);
      if constexpr (kHow == Multiply::kF32) {
        multiply_floats(stage);
      } else {
#pragma unroll 1
        for (int half = 0; half < 2; ++half) multiply_halves(stage, half);
      }
    }
  }

  INT8Q_DEVICE static uint32_t w_at(int n, int chunk) {
    return static_cast<uint32_t>(Tile::kM * 64 + n * Tile::kN + (chunk ^ n % 8) * kCodeChunk);
  }

  INT8Q_DEVICE static uint32_t stage_at(int step) { return static_cast<uint32_t>(step % 2 * Tile::kStageBytes); }
  INT8Q_DEVICE float stat(int64_t n) const { return n < p_.n ? load(p_.col_stats + n) : 0.0f; }
  INT8Q_DEVICE void store_ratio(int step, float stat) const {
    if (thread_index() >= Tile::kDepth) return;
    store_shared(stage_at(step) + static_cast<uint32_t>(Tile::kRatiosAt + thread_index() * 4), stat * scale_);
  }

  template <class G>
  INT8Q_DEVICE void load_stage(int step, int depth_steps, Held<G>& held) const {
    const int64_t first = static_cast<int64_t>(step % depth_steps) * Tile::kDepth;
    const int64_t n = first + thread_index() % 4 * kPerChunk;
    if constexpr (kHow == Multiply::kF16) {
      held.stats[0] = stat(first + thread_index() * 2);
      held.stats[1] = stat(first + thread_index() * 2 + 1);
    } else {
      held.stats[0] = stat(static_cast<int64_t>((step + 1) % depth_steps) * Tile::kDepth + thread_index());
    }
#pragma unroll
    for (int c = 0; c < kChunksG; ++c) {
      const int64_t row = row_ + (thread_index() + c * Tile::kThreads) / 4;
      load_bits(reinterpret_cast<const G*>(p_.dy + row * p_.dy_stride), n, row < p_.m ? p_.n : 0, kAligned, held.dy[c]);
    }
#pragma unroll
    for (int c = 0; c < kChunksW; ++c) {
      const int i = thread_index() + c * Tile::kThreads;
      held.w[c] = weights(first + i / 8, col_ + i % 8 * kCodeChunk);
    }
  }

  template <class G>
  INT8Q_DEVICE void store_stage(int step, int term, const Held<G>& held) const {
    const uint32_t stage = stage_at(step);
    [[maybe_unused]] float ratios[kPerChunk];
    if constexpr (kHow == Multiply::kF16) {
      if (thread_index() < Tile::kDepth / 2) {
        store_shared(stage + static_cast<uint32_t>(Tile::kRatiosAt + thread_index() * 4),
                     static_cast<uint32_t>(float_to_half(held.stats[0] * scale_)) |
                         static_cast<uint32_t>(float_to_half(held.stats[1] * scale_)) << 16);
      }
    } else {
      store_ratio(step + 1, held.stats[0]);
      const uint32_t at = stage + static_cast<uint32_t>(Tile::kRatiosAt + thread_index() % 4 * kPerChunk * 4);
#pragma unroll
      for (int e = 0; e < kPerChunk; ++e) ratios[e] = load_shared<float>(at + static_cast<uint32_t>(e) * 4);
    }
#pragma unroll
    for (int c = 0; c < kChunksG; ++c) {
      const int i = thread_index() + c * Tile::kThreads;
      store_shared(stage + swizzled(i / 4, i % 4), gradients<G>(held.dy[c], ratios, term));
    }
#pragma unroll
    for (int c = 0; c < kChunksW; ++c) {
      const int i = thread_index() + c * Tile::kThreads;
      store_shared(stage + w_at(i / 8, i % 8), held.w[c]);
    }
  }

  // 16 bytes of g.
  template <class G, int kWords>
  INT8Q_DEVICE U32x4 gradients(const uint32_t (&dy)[kWords], const float (&ratios)[kPerChunk], int term) const {
    if constexpr (kHow == Multiply::kF16) {
      return {dy[0], dy[1], dy[2], dy[3]};
    } else {
      // Where there are products of bf16, 16 bits are bf16.
      float g[kPerChunk];
      floats_of<G>(kHow == Multiply::kBf16 ? Dtype::kBf16 : p_.dy_dtype, dy, g);
#pragma unroll
      for (int e = 0; e < kPerChunk; ++e) g[e] *= ratios[e];
      if constexpr (kHow == Multiply::kF32) {
        return {bits_of(g[0]), bits_of(g[1]), bits_of(g[2]), bits_of(g[3])};
      } else if constexpr (sizeof(G) == 2) {
        return {ptx::round_to_bf16(g[0], g[1]), ptx::round_to_bf16(g[2], g[3]), ptx::round_to_bf16(g[4], g[5]),
                ptx::round_to_bf16(g[6], g[7])};
      } else {
#pragma unroll 1
        for (; term > 0; --term) take_term(g);
        return take_term(g);
      }
    }
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
        for (int i = 0; i < kTilesM; ++i) multiply_tile<Arch, kHow>(f_[i][pair * 2 + t], a[i], b);
      }
    }
  }
  // Bytes 0 and 2, or 1 and 3, as two halves; of fp16 times these ratios.
  INT8Q_DEVICE static uint32_t halves(uint32_t bytes, bool odd, uint32_t ratios) {
    if constexpr (kHow == Multiply::kF16) {
      const uint32_t biased = byte_permute(bytes, 0x64, odd ? 0x4341 : 0x4240) ^ 0x00800080;
      return ptx::multiply_halves(f16_of_biased(biased), ratios);
    } else {
      return bf16_of_codes(odd ? bytes >> 8 : bytes);
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
        const int col = local_col() + pair * 16;
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
  // Of four neighbours; the next are 16 behind.
  INT8Q_DEVICE int local_col() const { return warp_col_ + lane_index() % 4 * 4; }

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
            store_shared(
                Results<Tile>::at(local_row(i, r), local_col(), pair * 16),
                U32x4{bits_of(even[r * 2]), bits_of(odd[r * 2]), bits_of(even[r * 2 + 1]), bits_of(odd[r * 2 + 1])});
          }
        }
      }
    };
    Results<Tile>::exchange(p_.m - row_, p_.k - col_, write, [&](int first) {
      return
          [this, col = col_ + first](int row, const uint32_t(&bits)[kChunk]) { store_gradient(p_, row_ + row, col, bits); };
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
