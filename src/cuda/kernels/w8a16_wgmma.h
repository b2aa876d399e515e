// SPDX-License-Identifier: Apache-2.0
//
// The products of 16-bit floats and int8 weights on sm_90a, for many rows: that of w8a16.h and that of backward.h, whose
// comments say what they are. Both are taken transposed, for wgmma takes its left operand from registers, where codes
// become halves, and the floats as the copy engine lays them:
//
//   forward    Y^T = W . X^T                  sums over k; codes as they are, exact
//   gradient   dX^T = (W o ratio)^T . dY^T    sums over n; ratio = col_stats / greatest, and its product with a code is
//                                             rounded to the floats' dtype
//
// One thread brings stages of 64 of the sum; of the gradient a warp stores the ratios of a stage beside them. Two
// warpgroups multiply, each 64 columns of the result by all rows of the tile; or, in tiles of 64 columns, both the same,
// each every other stage, and their sums are added at the end:
//
//   full[s]    one arrival and the bytes of both tiles, for the gradient one more: the stage is there
//   empty[s]   one arrival of each warp that multiplies it: they are done with it
//
//     warps 0 .. 7   four products of 16 of the sum; wait full of the next stage, and for the products of the one before, give
//                    that back; the next stage's codes to halves
//
// So codes become halves while products are under way, of this warpgroup or of the other.
//
// Layout of a stage: kM rows of floats, 128 bytes, chunk c of row r at c ^ (r % 8). Then the codes, forward kN rows of 64
// bytes, for the gradient 64 rows of kN bytes: chunk c of row r at c ^ (r / 2 % 4) where they have 64 bytes, as the floats'
// where 128.
//
// A lane's rows g and g + 8 of a warp's fragment are its columns 2g and 2g + 1 of Y: of the gradient's codes they lie side by
// side, and results are stored as two neighbours.
//
// Registers: kM / 2 sums, 32 words of halves, and what codes and addresses take; of 168 as gemm_wgmma.h's.
#pragma once

#include "cuda/kernels/halves.h"
#include "cuda/kernels/ptx_sm90.h"
#include "cuda/kernels/results.h"

namespace int8q::gpu {

template <class Maps>
inline constexpr bool kIsGradient = false;
template <>
inline constexpr bool kIsGradient<BackwardByMaps> = true;

template <class Arch, class Tile, bool kF16, class Maps>
class HalvesByWgmma {
  static_assert(kHasWgmma<Arch>);
  static constexpr bool kGradient = kIsGradient<Maps>, kShares = Tile::kN == 64;  // the sum
  static constexpr int kWarps = Tile::kThreads / kWarp, kWarpsOfGroup = 4, kTiles = Tile::kM / 8;
  static constexpr int kSlice = 16, kSlices = Tile::kDepth / kSlice;  // of the sum: of a product, in a stage
  static constexpr int kEvery = kShares ? 2 : 1;                      // stages, of which a warpgroup takes one
  static_assert(Tile::kStages % kEvery == 0);                         // so that it sees each phase of its stages' barriers

 public:
  INT8Q_DEVICE explicit HalvesByWgmma(const Maps& maps) : maps_(maps), p_(maps.p) {
    const int64_t tiles = (p_.m + Tile::kM - 1) / Tile::kM;  // blocks side by side share W
    row_ = block_index() % tiles * Tile::kM;
    col_ = block_index() / tiles * Tile::kN;
    const int64_t stages = ((kGradient ? p_.n : p_.k) + Tile::kDepth - 1) / Tile::kDepth;
    steps_ = static_cast<int>((stages + 2 * kEvery - 1) / (2 * kEvery) * (2 * kEvery));  // what is beyond the sum is 0
  }

  INT8Q_DEVICE void run() {
    if (thread_index() == 0) init_barriers();
    block_barrier();
    if (warp_index() >= kWarps) {
      ptx::lower_registers<Tile::kRegistersToBring>();
      if (thread_index() == Tile::kThreads) bring_stages();
      if constexpr (kGradient) {
        if (warp_index() == kWarps + 1) bring_ratios();
      }
      return leave_block();
    }
    ptx::raise_registers<Tile::kRegistersToMultiply>();
    multiply_stages();
    store_results();
  }

 private:
  // Which of the warpgroups that share a sum, and which 16 columns of the tile.
  INT8Q_DEVICE static int share() { return kShares ? warp_index() / kWarpsOfGroup : 0; }
  INT8Q_DEVICE static int warp_of_columns() { return kShares ? warp_index() % kWarpsOfGroup : warp_index(); }

  // ---- Stages

  // A step's stage, and the parity of its barriers' phases that end with this step.
  struct Place {
    int stage;
    uint32_t parity;
    INT8Q_DEVICE Place next(int by) const {
      return stage + by < Tile::kStages ? Place{stage + by, parity} : Place{stage + by - Tile::kStages, parity ^ 1};
    }
  };

  INT8Q_DEVICE static uint32_t floats(int stage) { return static_cast<uint32_t>(stage * Tile::kStageBytes); }
  INT8Q_DEVICE static uint32_t codes(int stage) { return floats(stage) + Tile::kBytesOfFloats; }
  INT8Q_DEVICE static uint32_t ratios(int stage) {
    return static_cast<uint32_t>(Tile::kRatiosAt + stage * Tile::kDepth * 4);
  }
  INT8Q_DEVICE static uint32_t full(int stage) { return static_cast<uint32_t>(Tile::kBarriersAt + stage * 8); }
  INT8Q_DEVICE static uint32_t empty(int stage) { return full(stage) + Tile::kStages * 8; }

  INT8Q_DEVICE static void init_barriers() {
#pragma unroll
    for (int s = 0; s < Tile::kStages; ++s) {
      ptx::init_barrier(full(s), kGradient ? 2 : 1);
      ptx::init_barrier(empty(s), kWarps / kEvery);
    }
    ptx::proxy_fence();
  }
  // At first at once.
  INT8Q_DEVICE static void wait_until_empty(const Place& place) { ptx::wait_barrier(empty(place.stage), place.parity ^ 1); }

  INT8Q_DEVICE void bring_stages() const {
    Place place{0, 0};
#pragma unroll 1
    for (int step = 0; step < steps_; ++step, place = place.next(1)) {
      const int first = step * Tile::kDepth, col = static_cast<int>(col_);
      const uint32_t barrier = full(place.stage);
      wait_until_empty(place);
      ptx::arrive_and_expect(barrier, Tile::kStageBytes);
      ptx::copy_tile(floats(place.stage), maps_.floats, first * 2, static_cast<int>(row_), barrier);
      ptx::copy_tile(codes(place.stage), maps_.w, kGradient ? col : first, kGradient ? first : col, barrier);
    }
  }

  // By a warp: of two n in each lane, as halves, and what is left of them.
  INT8Q_DEVICE void bring_ratios() const {
    const float scale = p_.greatest > 0.0f ? divide(1.0f, p_.greatest) : 0.0f;
    const auto ratio = [this, scale](int64_t n) { return n < p_.n ? load(p_.col_stats + n) * scale : 0.0f; };
    Place place{0, 0};
#pragma unroll 1
    for (int step = 0; step < steps_; ++step, place = place.next(1)) {
      const int64_t n = static_cast<int64_t>(step) * Tile::kDepth + lane_index() * 2;
      const float low = ratio(n), high = ratio(n + 1);
      const uint32_t both = round_to_halves<kF16>(low, high);
      const uint32_t left = round_to_halves<kF16>(low - float_of_half<kF16>(both), high - float_of_half<kF16>(both >> 16));
      wait_until_empty(place);
      store_shared(ratios(place.stage) + static_cast<uint32_t>(lane_index() * 8), U32x2{both, left});
      warp_barrier();
      if (lane_index() == 0) ptx::arrive(full(place.stage));
    }
  }

  // ---- Products

  // Those of a stage and, while they are under way, the halves of the next. Two at least: a compiler would serialize what it
  // may pass over.
  INT8Q_DEVICE void multiply_stages() {
    Place place{share(), 0};
    int before = -1;  // stage, of this warpgroup
    uint32_t a[2][kSlices][4];
    ptx::wait_barrier(full(place.stage), place.parity);
    make_halves(place.stage, a[0]);
#pragma unroll 1
    for (int step = share(); step + 2 * kEvery < steps_; step += 2 * kEvery) {
      multiply_stage<false>(before, place, a[0], a[1]);
      multiply_stage<false>(before, place, a[1], a[0]);
    }
    multiply_stage<false>(before, place, a[0], a[1]);
    multiply_stage<true>(before, place, a[1], a[0]);
    ptx::wait_products<0>();
  }

  // a: its halves. Then `before` is this stage, `place` the next one, and `other` has that one's halves.
  template <bool kLast>
  INT8Q_DEVICE void multiply_stage(int& before, Place& place, uint32_t (&a)[kSlices][4], uint32_t (&other)[kSlices][4]) {
    ptx::fence_products(a);
#pragma unroll
    for (int slice = 0; slice < kSlices; ++slice)
      ptx::multiply_tile<kF16>(sums_, a[slice], floats(place.stage) + static_cast<uint32_t>(slice * kSlice * 2));
    ptx::commit_products();
    if constexpr (kLast) return;
    const Place next = place.next(kEvery);
    ptx::wait_barrier(full(next.stage), next.parity);
    ptx::wait_products<1>();
    if (before >= 0) {
      warp_barrier();  // all lanes have read its codes
      if (lane_index() == 0) ptx::arrive(empty(before));
    }
    make_halves(next.stage, other);
    before = place.stage, place = next;
  }

  // What becomes a fragment of the warp's 16 columns and 16 of the sum; two codes in each, as they lie side by side.
  struct Codes {
    uint32_t two[4];
    U32x2 ratios[2];  // of the gradient: of n 2q and 2q + 1, of 8 and 9 + 2q
  };

  INT8Q_DEVICE Codes load_codes(int stage, int slice) const {
    constexpr int kRow = kGradient ? Tile::kN : Tile::kDepth;
    const int g = lane_index() / 4, q = lane_index() % 4, warp = warp_of_columns();
    Codes found;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (kGradient) {  // columns 2g and 2g + 1 of row n: its last bits alone are in the swizzle
        const int n = q * 2 + i % 2, chunk = warp ^ (kRow == 64 ? n / 2 : n);
        found.two[i] = load_shared<uint16_t>(codes(stage) + static_cast<uint32_t>(n * kRow + chunk * kCodeChunk + g * 2),
                                             (slice * kSlice + i / 2 * 8) * kRow);
      } else {  // k 2q and 2q + 1, or 8 and 9 + 2q, of columns 2g and 2g + 1, whose swizzle is the same
        const int place = (warp * 16 + g * 2) * kRow + (slice ^ g % 4) * kCodeChunk + q * 2;
        found.two[i] = load_shared<uint16_t>(codes(stage) + static_cast<uint32_t>(place), i % 2 * kRow + i / 2 * 8);
      }
    }
    if constexpr (kGradient) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        found.ratios[i] = load_shared<U32x2>(ratios(stage) + static_cast<uint32_t>(q * 8), (slice * kSlice + i * 8) * 4);
      }
    }
    return found;
  }

  INT8Q_DEVICE void make_halves(int stage, uint32_t (&a)[kSlices][4]) const {
#pragma unroll
    for (int slice = 0; slice < kSlices; ++slice) {
      const Codes codes = load_codes(stage, slice);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if constexpr (kGradient) {
          const uint32_t* two = codes.two + i / 2 * 2;
          a[slice][i] = scaled(byte_permute(two[0], two[1], i % 2 == 0 ? 0x0400 : 0x0501), codes.ratios[i / 2]);
        } else {
          a[slice][i] = halves_of_codes<kF16>(byte_permute(codes.two[i], 0, 0x0100));
        }
      }
    }
  }

  // Codes in bytes 0 and 2, each times its ratio, rounded once but for what is left of the ratio.
  INT8Q_DEVICE static uint32_t scaled(uint32_t codes, const U32x2& ratio) {
    const uint32_t halves = halves_of_codes<kF16>(codes);
    return fma_halves<kF16>(halves, ratio.x, fma_halves<kF16>(halves, ratio.y, 0));
  }

  // ---- Results

  // body(at, j, e): where this lane's sums j, e and j, 2 + e go, side by side.
  template <class Body>
  INT8Q_DEVICE void for_each_two(const Body& body) const {
    const int row = lane_index() % 4 * 2, col = warp_of_columns() * 16 + lane_index() / 4 * 2;
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) body(Results<Tile>::at(j * 8 + row + e, col), j, e);
    }
  }

  INT8Q_DEVICE void store_results() const {
    if constexpr (kShares) {
      block_barrier();  // all have read the last stages
      if (share() == 1) {
        for_each_two([this](uint32_t at, int j, int e) {
          store_shared(at, U32x2{bits_of(sums_[j][e]), bits_of(sums_[j][2 + e])});
        });
      }
    }
    const auto write = [this](int) {
      if (share() == 1) return;
      for_each_two([this](uint32_t at, int j, int e) {
        float low = sums_[j][e], high = sums_[j][2 + e];
        if constexpr (kShares) {
          const auto others = load_shared<U32x2>(at);
          low += float_of(others.x), high += float_of(others.y);
        }
        store_shared(at, U32x2{bits_of(low), bits_of(high)});
      });
    };
    const int64_t cols = kGradient ? p_.k : p_.n;
    Results<Tile>::exchange(p_.m - row_, cols - col_, write, [&](int first) {
      if constexpr (kGradient) {
        return [this, col = col_ + first](int row, const uint32_t(&bits)[kChunk]) {
          store_gradient(p_, row_ + row, col, bits);
        };
      } else {
        return [this, columns = ResultColumns(p_, col_ + first)](int row, const uint32_t(&bits)[kChunk]) {
          columns.store(p_, row_ + row, bits, false, 0);
        };
      }
    });
  }

  const Maps& maps_;
  const decltype(Maps::p)& p_;
  int64_t row_, col_;
  int steps_;
  float sums_[kTiles][4] = {};
};

template <class Arch, class Tile, bool kF16>
INT8Q_DEVICE void w8a16_wgmma(const W8a16ByMaps& maps) {
  HalvesByWgmma<Arch, Tile, kF16, W8a16ByMaps>(maps).run();
}
template <class Arch, class Tile, bool kF16>
INT8Q_DEVICE void backward_wgmma(const BackwardByMaps& maps) {
  HalvesByWgmma<Arch, Tile, kF16, BackwardByMaps>(maps).run();
}

}  // namespace int8q::gpu
