// SPDX-License-Identifier: Apache-2.0
//
// The int8 product of gemm.h on sm_90a, for large results, aligned weights and outliers by columns:
//
//   acc = codes . W^T    s32, exact: 127^2 * K < 2^31
//   y   = what epilogue.h makes of it
//
// One thread brings stages of kK = 128 bytes of each row by the copy engine; two warpgroups multiply them, 64 x kN each:
//
//   full[s]    one arrival and kStageBytes: the stage is there
//   empty[s]   one arrival of each of the eight warps: they are done with it
//
//     thread 256     wait empty, expect kStageBytes, copy A and B               ... stage after stage
//     warps 0 .. 7   wait full, 4 products of 32 bytes, wait for the stage before, give that back
//
// So a warpgroup has two stages of products on their way, and the copies of the other stages beside them. Meanwhile three more
// warps list the outlier columns and gather the first 16 of them, of codes, X and W, if X has 16 bits: two products are left to
// be made of these. Those behind them, and fp32 X, epilogue.h gathers.
//
//   meeting    one arrival of each of the three warps, whenever they wait for each other
//   gathered   the same, for who multiplies: the list is there, and what was gathered
//
// Layout of a stage in shared memory: 128 rows of A, then kN rows of B, of 128 bytes, whose eight chunks of 16 are
// swizzled: chunk c of row r lies at c ^ (r % 8). What is beyond K, M or N is zero.
//
// Registers: kN / 2 accumulators and, behind them, up to 64 of fragments of outlier columns. Each of an SM's four parts has
// 512 a lane for its warps, here three: 168, of which the one that does not multiply gives 112 away (setmaxnreg, by whole
// warpgroups). Shared memory: 192 KiB of stages; 16 or 24 KiB of gathered columns, laid as epilogue.h's stages, rows of 32 codes,
// of which 16 are 0, and 16 halves; the bitmap of outlier columns, barriers, lists.
#pragma once

#include "cuda/kernels/epilogue.h"
#include "cuda/kernels/ptx_sm90.h"

namespace int8q::gpu {

template <class Arch, class Tile>
class WgmmaBlock : GemmEpilogue<Arch, Tile, false> {
  static_assert(kHasWgmma<Arch>);
  using Epilogue = GemmEpilogue<Arch, Tile, false>;
  using Epilogue::acc_, Epilogue::row_, Epilogue::col_, Epilogue::p_;
  using typename Epilogue::Gathered;
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
    if (thread_index() >= Tile::kThreads) {
      ptx::lower_registers<Tile::kRegistersToBring>();
      if (thread_index() == Tile::kThreads) bring_stages();
      if (p_.found != nullptr && warp_index() > kWarps) gather_columns(warp_index() - kWarps - 1);
      return leave_block();
    }
    ptx::raise_registers<Tile::kRegistersToMultiply>();
    multiply_stages();
    Epilogue::template finish<Epilogue::Columns::kGathered>(p_.found != nullptr ? wait_for_columns() : Gathered{});
  }

 private:
  INT8Q_DEVICE static uint32_t stage(int step) { return static_cast<uint32_t>(step % Tile::kStages * Tile::kStageBytes); }
  INT8Q_DEVICE uint32_t full(int step) const { return barriers_ + static_cast<uint32_t>(step % Tile::kStages * 8); }
  INT8Q_DEVICE uint32_t empty(int step) const { return full(step) + Tile::kStages * 8; }
  INT8Q_DEVICE uint32_t meeting() const { return barriers_ + 2 * Tile::kStages * 8; }
  INT8Q_DEVICE uint32_t gathered() const { return meeting() + 8; }
  // Of the phase of a stage's barriers that ends with this step.
  INT8Q_DEVICE static uint32_t parity(int step) { return static_cast<uint32_t>(step / Tile::kStages % 2); }

  INT8Q_DEVICE void init_barriers() const {
#pragma unroll
    for (int s = 0; s < Tile::kStages; ++s) {
      ptx::init_barrier(full(s), 1);
      ptx::init_barrier(empty(s), kWarps);
    }
    ptx::init_barrier(meeting(), Tile::kGatheringWarps);
    ptx::init_barrier(gathered(), Tile::kGatheringWarps);
    ptx::proxy_fence();
  }

  INT8Q_DEVICE void bring_stages() const {
#pragma unroll 1
    for (int step = 0; step < steps_; ++step) {
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

  // ---- Outlier columns

  INT8Q_DEVICE uint32_t list_of(int warp) const {
    return barriers_ + static_cast<uint32_t>(Tile::kListsAt + warp * 2 * Tile::kGathered * 4);
  }
  INT8Q_DEVICE uint32_t count_at() const { return list_of(Tile::kGatheringWarps); }
  INT8Q_DEVICE bool gathers() const { return p_.x_dtype != Dtype::kF32; }

  INT8Q_DEVICE Gathered wait_for_columns() const {
    ptx::wait_barrier(gathered(), 0);
    const auto count = load_shared<uint32_t>(count_at());
    return {count, gathers() && count > 0 ? Tile::kGathered : 0u};
  }

  // By three warps: the list of all, and the first of them.
  INT8Q_DEVICE void gather_columns(int warp) const {
    constexpr int kThreads = Tile::kGatheringWarps * kWarp;
    const int thread = warp * kWarp + lane_index();
    const ColumnList columns = Epilogue::column_list();
    uint32_t met = 0;
    const auto meet = [&] {
      warp_barrier();
      if (lane_index() == 0) ptx::arrive(meeting());
      ptx::wait_barrier(meeting(), met++ % 2);
    };
    columns.clear(kThreads, thread);
    meet();
    columns.merge(p_.found, p_.bitmaps, p_.found_blocks, kThreads, thread, meet);
    meet();
    const uint32_t list = list_of(warp), of_x = list + Tile::kGathered * 4, mine = static_cast<uint32_t>(lane_index() * 4);
    if (lane_index() < Tile::kGathered) store_shared(list + mine, -1);
    warp_barrier();
    const uint32_t count = for_each_word(columns.bitmap, columns.words, [list](int w, uint32_t bits, uint32_t rank) {
      for (; bits != 0 && rank < Tile::kGathered; bits &= bits - 1)
        store_shared(list + rank++ * 4, w * 32 + lowest_bit(bits));
    });
    if (thread == 0) store_shared(count_at(), count);
    warp_barrier();
    if (lane_index() < Tile::kGathered) {
      const int column = load_shared<int>(list + mine);
      store_shared(of_x + mine, column >= 0 && is_kept(p_, column) ? -1 : column);  // whose floats are added at the end
    }
    warp_barrier();
    if (gathers() && count > 0) gather_rows(thread, kThreads, list, of_x);
    warp_barrier();
    if (lane_index() == 0) ptx::arrive(gathered());
  }

  // Eighths of rows: of A, which takes two loads for one of W, and of W.
  INT8Q_DEVICE void gather_rows(int thread, int threads, uint32_t list, uint32_t of_x) const {
#pragma unroll 1
    for (int i = thread; i < Tile::kM * 2; i += threads) {
      const int64_t m = row_ + i / 2;
      uint32_t code[8] = {}, x[8] = {};
      if (m < p_.m) {
        gather_eight(reinterpret_cast<const uint8_t*>(p_.codes + m * p_.codes_stride), list, i % 2, code);
        gather_eight(reinterpret_cast<const uint16_t*>(p_.x + m * p_.x_stride), of_x, i % 2, x);
      }
#pragma unroll
      for (int e = 0; e < 8; ++e) code[e] = (0 - code[e]) & 0xffu;
      store_eight(i / 2, i % 2, code, x);
    }
    const bool f16 = p_.x_dtype == Dtype::kF16;
#pragma unroll 1
    for (int i = thread; i < Tile::kN * 2; i += threads) {
      const int64_t n = col_ + i / 2;
      uint32_t code[8] = {}, half[8];
      if (n < p_.n) gather_eight(reinterpret_cast<const uint8_t*>(p_.w + n * p_.w_stride), list, i % 2, code);
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const float value = Epilogue::code_of(code[e]);
        half[e] = f16 ? static_cast<uint32_t>(float_to_half(value)) : bits_of(value) >> 16;
      }
      store_eight(Tile::kM + i / 2, i % 2, code, half);
    }
  }

  template <class T>
  INT8Q_DEVICE static void gather_eight(const T* row, uint32_t list, int eighth, uint32_t (&v)[8]) {
    int columns[8];
#pragma unroll
    for (int e = 0; e < 8; ++e) columns[e] = load_shared<int>(list + static_cast<uint32_t>(eighth * 32), e * 4);
    gather(row, columns, v);
  }
  INT8Q_DEVICE static void store_eight(int row, int eighth, const uint32_t (&codes)[8], const uint32_t (&halves)[8]) {
    const auto at = [row](int chunk) { return Tile::kGatheredAt + swizzled(row, chunk); };
    uint32_t four[2] = {0, 0}, two[4] = {0, 0, 0, 0};
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      four[e / 4] |= codes[e] << e % 4 * 8;
      two[e / 2] |= halves[e] << e % 2 * 16;
    }
    store_shared(at(0) + static_cast<uint32_t>(eighth * 8), U32x2{four[0], four[1]});
    store_shared(at(1) + static_cast<uint32_t>(eighth * 8), U32x2{0, 0});
    store_shared(at(2 + eighth), U32x4{two[0], two[1], two[2], two[3]});
  }

  const GemmByMaps& maps_;
  const uint32_t barriers_;
  const int steps_;
};

template <class Arch, class Tile>
INT8Q_DEVICE void gemm_wgmma(const GemmByMaps& maps) {
  WgmmaBlock<Arch, Tile>(maps).run();
}

}  // namespace int8q::gpu
