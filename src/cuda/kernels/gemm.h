// SPDX-License-Identifier: Apache-2.0
//
// The int8 product of LLM.int8() (arXiv 2208.07339, section 3) on tensor cores, with everything behind it in place:
//
//   acc = codes . W^T    s32, exact: 127^2 * K < 2^31
//   y   = what epilogue.h makes of it
//
// A stage lies in shared memory as epilogue.h draws it; its rows have kK = 64 bytes. Codes of outlier columns are taken as 0 when
// they are in registers, four instructions for each sixteen rows of a warp and 32 columns, in the steps that have such columns.
//
// Where large tiles are too few for the GPU, Y has small ones, and where these are, several blocks share one (kSplits), each a
// part of K.
#pragma once

#include "cuda/kernels/epilogue.h"

namespace int8q::gpu {

template <class Arch, class Tile, bool kAligned, bool kSplits>
class GemmBlock : GemmEpilogue<Arch, Tile> {
  using Epilogue = GemmEpilogue<Arch, Tile>;
  using Epilogue::acc_, Epilogue::row_, Epilogue::col_, Epilogue::p_, Epilogue::tile_;
  using Epilogue::kTilesM, Epilogue::kTilesN;
  static constexpr int kChunksM = Tile::kM * 4 / Tile::kThreads, kChunksN = Tile::kN * 4 / Tile::kThreads;
  static_assert(kChunksM * Tile::kThreads == Tile::kM * 4 && kChunksN * Tile::kThreads == Tile::kN * 4);

 public:
  INT8Q_DEVICE explicit GemmBlock(const Gemm& p)
      : Epilogue(p, kSplits ? block_index() / p.splits : block_index()),
        codes_(p.codes + (row_ + thread_index() / 4) * p.codes_stride),
        w_(p.w + (col_ + thread_index() / 4) * p.w_stride),
        rows_(static_cast<int>(p.m - row_ < Tile::kM ? p.m - row_ : Tile::kM)),
        rows_of_w_(static_cast<int>(p.n - col_ < Tile::kN ? p.n - col_ : Tile::kN)),
        passes_over_(Epilogue::passes_over()) {}

  INT8Q_DEVICE void run() {
    multiply_codes();
    if constexpr (kSplits) {
      if (p_.splits > 1 && !add_partials()) return;
    }
    Epilogue::template finish<Epilogue::Columns::kPassedOver>();
  }

 private:
  // ---- Codes

  // Stages are filled kStages - 1 steps ahead: by cp.async, or through registers, which hold a stage while the one before is
  // multiplied.
  INT8Q_DEVICE void multiply_codes() {
    const int all = static_cast<int>((p_.k + Tile::kK - 1) / Tile::kK);
    const int share = kSplits ? (all + p_.splits - 1) / p_.splits : all;
    const int first = kSplits ? block_index() % p_.splits * share : 0, left = all - first;
    const int steps = left < share ? left : share;
    const auto stage = [](int step) { return static_cast<uint32_t>(step % Tile::kStages * Tile::kStageBytes); };
    if constexpr (kHasAsyncCopy<Arch>) {
      const auto fetch = [&](int step) {
        if (step < steps) copy_stage(stage(step), first + step);
        ptx::commit_copies();
      };
#pragma unroll
      for (int s = 0; s < Tile::kStages - 1; ++s) fetch(s);
      Epilogue::find_first(Tile::kThreads);
      for (int step = 0; step < steps; ++step) {
        ptx::wait_copies<Tile::kStages - 2>();
        block_barrier();  // this step is there for all, and all are done with the one before
        fetch(step + Tile::kStages - 1);
        multiply_stage(stage(step), first + step);
      }
      ptx::wait_copies<0>();
    } else {
      static_assert(Tile::kStages == 2);
      U32x4 held[kChunksM + kChunksN];
      if (steps > 0) load_stage(first, held);
      Epilogue::find_first(Tile::kThreads);
      for (int step = 0; step < steps; ++step) {
        store_stage(stage(step), held);
        block_barrier();  // this step is there for all, and all are done with the one before
        if (step + 1 < steps) load_stage(first + step + 1, held);
        multiply_stage(stage(step), first + step);
      }
    }
  }

  // Leaves this block's sums, and takes all others' if it is the last to come: whether it is. Sums of integers do not depend on
  // the order. The counter is told of them by one thread, between fences, as in CUDA's cooperative groups.
  INT8Q_DEVICE bool add_partials() {
    const int split = block_index() % p_.splits;
    int32_t* const of_tile = p_.partials + static_cast<int64_t>(tile_) * p_.splits * (Tile::kM * Tile::kN);
    const auto place = [&](int s, int i, int j) {
      return reinterpret_cast<U32x4*>(of_tile + static_cast<int64_t>(s) * (Tile::kM * Tile::kN)) +
             (i * kTilesN + j) * Tile::kThreads + thread_index();
    };
#pragma unroll
    for (int i = 0; i < kTilesM; ++i) {
#pragma unroll
      for (int j = 0; j < kTilesN; ++j) {
        const auto& acc = acc_[i][j];
        store(place(split, i, j), U32x4{static_cast<uint32_t>(acc[0]), static_cast<uint32_t>(acc[1]),
                                        static_cast<uint32_t>(acc[2]), static_cast<uint32_t>(acc[3])});
      }
    }
    block_barrier();  // and all have read the last stages
    if (thread_index() == 0) {
      device_fence();
      const uint32_t before = atomic_add(p_.counters + tile_, 1u);
      if (before + 1 == static_cast<uint32_t>(p_.splits)) atomic_add(p_.counters + tile_, 0u - before - 1);
      device_fence();
      store_shared(0, before);
    }
    block_barrier();
    if (load_shared<uint32_t>(0) + 1 != static_cast<uint32_t>(p_.splits)) return false;
#pragma unroll 1
    for (int s = 0; s < p_.splits; ++s) {
      if (s == split) continue;
#pragma unroll
      for (int i = 0; i < kTilesM; ++i) {
#pragma unroll
        for (int j = 0; j < kTilesN; ++j) {
          const U32x4 other = load_from_l2(place(s, i, j));
          acc_[i][j][0] += static_cast<int32_t>(other.x);
          acc_[i][j][1] += static_cast<int32_t>(other.y);
          acc_[i][j][2] += static_cast<int32_t>(other.z);
          acc_[i][j][3] += static_cast<int32_t>(other.w);
        }
      }
    }
    return true;
  }

  // Step `step` of K. Few have outlier columns, and the others nothing between their products.
  INT8Q_DEVICE void multiply_stage(uint32_t stage, int step) {
    U32x2 over{0, 0};
    if (passes_over_) over = load_shared<U32x2>(static_cast<uint32_t>(Tile::kStagesBytes + step * (Tile::kK / 8)));
    if ((over.x | over.y) == 0) {
#pragma unroll
      for (int half = 0; half < 2; ++half) Epilogue::multiply_s8(stage, half);
    } else {
      Epilogue::template multiply_s8<true>(stage, 0, over.x);
      Epilogue::template multiply_s8<true>(stage, 1, over.y);
    }
  }

  // A chunk of 16 bytes of a stage, by the thread that brings it.
  struct Chunk {
    int row, column;  // of A, or behind its rows of W; of 16 bytes
    const int8_t* from;
    int valid;  // bytes that exist; others are zero
  };
  template <bool kW>
  INT8Q_DEVICE Chunk chunk(int step, int c) const {
    constexpr int kRowsAtOnce = Tile::kThreads / 4;
    const int row = thread_index() / 4 + c * kRowsAtOnce, column = thread_index() % 4;
    const int k = step * Tile::kK + column * kCodeChunk, left = static_cast<int>(p_.k) - k;
    if constexpr (kW) {
      return {Tile::kM + row, column, w_ + k + c * kRowsAtOnce * p_.w_stride, row < rows_of_w_ ? valid_codes(left) : 0};
    } else {  // codes are padded to whole chunks
      return {row, column, codes_ + k + c * kRowsAtOnce * p_.codes_stride, row < rows_ && left > 0 ? kCodeChunk : 0};
    }
  }

  INT8Q_DEVICE void copy_stage(uint32_t stage, int step) const {
#pragma unroll
    for (int c = 0; c < kChunksM; ++c) {
      const Chunk a = chunk<false>(step, c);
      ptx::copy_async(stage + swizzled(a.row, a.column), a.from, a.valid);
    }
#pragma unroll(kAligned ? kChunksN : 1)  // bytes one by one are slow in any case, and many registers
    for (int c = 0; c < kChunksN; ++c) {
      const Chunk w = chunk<true>(step, c);
      if constexpr (kAligned) {
        ptx::copy_async(stage + swizzled(w.row, w.column), w.from, w.valid);
      } else {
        store_shared(stage + swizzled(w.row, w.column), load_bytes(w));
      }
    }
  }

  INT8Q_DEVICE void load_stage(int step, U32x4 (&held)[kChunksM + kChunksN]) const {
#pragma unroll
    for (int c = 0; c < kChunksM; ++c) held[c] = load_bytes(chunk<false>(step, c));
#pragma unroll
    for (int c = 0; c < kChunksN; ++c) held[kChunksM + c] = load_bytes(chunk<true>(step, c));
  }
  INT8Q_DEVICE void store_stage(uint32_t stage, const U32x4 (&held)[kChunksM + kChunksN]) const {
#pragma unroll
    for (int c = 0; c < kChunksM + kChunksN; ++c) {
      const int i = thread_index() + c * Tile::kThreads;
      store_shared(stage + swizzled(i / 4, i % 4), held[c]);
    }
  }

  INT8Q_DEVICE static U32x4 load_bytes(const Chunk& chunk) {
    const bool whole = chunk.valid == kCodeChunk && reinterpret_cast<uint64_t>(chunk.from) % kCodeChunk == 0;
    return whole ? load(reinterpret_cast<const U32x4*>(chunk.from)) : load_codes(chunk.from, chunk.valid);
  }

  // The first row that this thread brings of each operand, and how many rows there are in the tile.
  const int8_t* const codes_;
  const int8_t* const w_;
  const int rows_, rows_of_w_;
  const bool passes_over_;
};

template <class Arch, class Tile, bool kAligned, bool kSplits>
INT8Q_DEVICE void gemm(const Gemm& p) {
  GemmBlock<Arch, Tile, kAligned, kSplits>(p).run();
}

}  // namespace int8q::gpu