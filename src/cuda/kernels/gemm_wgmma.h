// SPDX-License-Identifier: Apache-2.0
//
// The int8 product of gemm.h on sm_90a, for large results, aligned weights and outliers by columns:
//
//   acc = codes . W^T    s32, exact: 127^2 * K < 2^31
//   y   = what epilogue.h makes of it
//
// One thread brings stages of kK = 128 bytes of each row by the copy engine; two warpgroups multiply them, 64 x 256 each:
//
//   full[s]    one arrival and 48 KiB: the stage is there
//   empty[s]   one arrival of each of the eight warps: they are done with it
//
//     thread 256     wait empty, expect 48 KiB, copy A and B                    ... stage after stage
//     warps 0 .. 7   wait full, 4 products of 32 bytes, wait for the stage before, give that back
//
// So a warpgroup has two stages of products on their way, and the copies of the other stages beside them.
//
// Layout of a stage in shared memory: 128 rows of A, then 256 rows of B, of 128 bytes, whose eight chunks of 16 are
// swizzled: chunk c of row r lies at c ^ (r % 8). What is beyond K, M or N is zero.
//
// Registers: 128 accumulators and, behind them, up to 64 of fragments of outlier columns. Each of an SM's four parts has
// 512 a lane for its warps, here three: 168, of which the one that does not multiply gives 128 away (setmaxnreg, by whole
// warpgroups). Shared memory: 4 stages of 48 KiB, the bitmap of outlier columns, 64 bytes of barriers.
#pragma once

#include "cuda/kernels/epilogue.h"
#include "cuda/kernels/ptx_sm90.h"

namespace int8q::gpu {

template <class Arch>
class WgmmaBlock : GemmEpilogue<Arch, WgmmaTile, false> {
  static_assert(kHasWgmma<Arch>);
  using Tile = WgmmaTile;
  using Epilogue = GemmEpilogue<Arch, Tile, false>;
  using Epilogue::acc_, Epilogue::row_, Epilogue::col_, Epilogue::p_;
  static constexpr int kWarps = Tile::kThreads / kWarp, kWarpsOfGroup = 4;
  static constexpr int kDepth = 32;  // bytes of a product

 public:
  INT8Q_DEVICE explicit WgmmaBlock(const GemmByMaps& maps)
      : Epilogue(maps.p, block_index()),
        maps_(maps),
        barriers_(static_cast<uint32_t>(Tile::barriers_at(maps.p.k, maps.p.found != nullptr, maps.p.kept_count > 0))),
        steps_(static_cast<int>((maps.p.k + Tile::kK - 1) / Tile::kK)) {}

  INT8Q_DEVICE void run() {
    if (thread_index() == 0) init_barriers();
    block_barrier();
    if (thread_index() == Tile::kThreads) bring_stages(0, steps_ < Tile::kStages ? steps_ : Tile::kStages);
    Epilogue::find_first(Tile::kBlockThreads);  // while these are on their way; finish begins with a barrier
    if (warp_index() >= kWarps) {
      ptx::lower_registers<Tile::kRegistersToBring>();
      if (thread_index() == Tile::kThreads) bring_stages(Tile::kStages, steps_);
      return leave_block();
    }
    ptx::raise_registers<Tile::kRegistersToMultiply>();
    multiply_stages();
    Epilogue::template finish<Epilogue::Columns::kFound>();
  }

 private:
  INT8Q_DEVICE static uint32_t stage(int step) { return static_cast<uint32_t>(step % Tile::kStages * Tile::kStageBytes); }
  INT8Q_DEVICE uint32_t full(int step) const { return barriers_ + static_cast<uint32_t>(step % Tile::kStages * 8); }
  INT8Q_DEVICE uint32_t empty(int step) const { return full(step) + Tile::kStages * 8; }
  // Of the phase of a stage's barriers that ends with this step.
  INT8Q_DEVICE static uint32_t parity(int step) { return static_cast<uint32_t>(step / Tile::kStages % 2); }

  INT8Q_DEVICE void init_barriers() const {
#pragma unroll
    for (int s = 0; s < Tile::kStages; ++s) {
      ptx::init_barrier(full(s), 1);
      ptx::init_barrier(empty(s), kWarps);
    }
    ptx::proxy_fence();
  }

  INT8Q_DEVICE void bring_stages(int first, int last) const {
#pragma unroll 1
    for (int step = first; step < last; ++step) {
      if (step >= Tile::kStages) ptx::wait_barrier(empty(step), parity(step - Tile::kStages));
      ptx::arrive_and_expect(full(step), Tile::kStageBytes);
      ptx::copy_tile(stage(step), maps_.codes, step * Tile::kK, static_cast<int>(row_), full(step));
      ptx::copy_tile(stage(step) + Tile::kM * Tile::kK, maps_.w, step * Tile::kK, static_cast<int>(col_), full(step));
    }
  }

  INT8Q_DEVICE void multiply_stages() {
    const auto a = static_cast<uint32_t>(warp_index() / kWarpsOfGroup * 64 * Tile::kK), b = uint32_t{Tile::kM * Tile::kK};
#pragma unroll 1
    for (int step = 0; step < steps_; ++step) {
      ptx::wait_barrier(full(step), parity(step));
      ptx::fence_products();
#pragma unroll
      for (uint32_t k = 0; k < Tile::kK; k += kDepth) {
        ptx::multiply_tile(acc_[0], stage(step) + a + k, stage(step) + b + k);
      }
      ptx::commit_products();
      ptx::wait_products<1>();
      if (step > 0 && lane_index() == 0) ptx::arrive(empty(step - 1));
    }
    ptx::wait_products<0>();
  }

  const GemmByMaps& maps_;
  const uint32_t barriers_;
  const int steps_;
};

template <class Arch>
INT8Q_DEVICE void gemm_wgmma(const GemmByMaps& maps) {
  WgmmaBlock<Arch>(maps).run();
}

}  // namespace int8q::gpu
