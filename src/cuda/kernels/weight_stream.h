// SPDX-License-Identifier: Apache-2.0
//
// W for few rows of activations, read once, at the speed of memory: sixteen rows at a time, by the eight warps of a block.
//
// Lane (g, q) = (l / 4, l % 4) takes 16 bytes of rows g and g + 8 at k = 64 j + 16 q, and a warp every eighth j: a step. 2 * kAhead
// loads of a lane are on their way, each of which makes room for one of the next round, with kGoesOn those of the last for the next
// sixteen rows: with four steps, 8 warps of two blocks have 64 KiB on their way, where 3 TB/s for a microsecond are 22 KiB of each
// of 132 SMs. But for what outlier columns have of them nobody else needs these bytes: they pass L1 by, and from sm_80 on L2 asks
// for 256 where it is asked for 64.
#pragma once

#include "cuda/kernels/elements.h"
#include "cuda/kernels/shapes.h"

namespace int8q::gpu {

// kAligned: rows begin at multiples of 16 bytes; else bytes come one by one. kGoesOn: run() asks for the next rows, so that begin()
// is for the first alone.
template <int kAhead, bool kAligned, bool kGoesOn>
class WeightStream {
  using Shape = WeightStreamShape;
  static constexpr int kStride = Shape::kWarps * Shape::kStep, kRound = kStride * kAhead;

 public:
  INT8Q_DEVICE explicit WeightStream(const Gemm& p)
      : p_(p), k_(static_cast<int>(p.k)), whole_k_(kAligned ? k_ / kCodeChunk * kCodeChunk : k_) {}

  // Asks for the first steps of the rows from col on.
  INT8Q_DEVICE void begin(int64_t col) {
    begin_rows(col);
#pragma unroll
    for (int s = 0; s < kAhead; ++s) load_step(s);
  }

  // multiply(low, high, k) with this lane's codes of each step of the rows from col on, which have been asked for; behind K codes are
  // anything, activations 0. Asks for the rows from next_col on, if kGoesOn. between() is called once, behind the first round.
  template <class Multiply, class Between>
  INT8Q_DEVICE void run(int64_t col, int64_t next_col, const Multiply& multiply, const Between& between) {
    int k = first_k();
    do {
      const bool last = k + kRound >= k_;
      if (last && whole_k_ < k_) load_rest(col, k);
      if (!last) {
        at_ += kRound, left_of_low_ -= kRound, left_of_high_ -= kRound;
      } else if (kGoesOn) {
        begin_rows(next_col);
      } else {
        left_of_low_ = left_of_high_ = 0;
      }
#pragma unroll
      for (int s = 0; s < kAhead; ++s) {
        if (k + s * kStride < k_) multiply(low_[s], high_[s], k + s * kStride + k_of_lane());
        load_step(s);
      }
      if (k == first_k()) between();
      k += kRound;
    } while (k < k_);
  }

 private:
  INT8Q_DEVICE static int first_k() { return warp_index() * Shape::kStep; }
  INT8Q_DEVICE static int k_of_lane() { return lane_index() % 4 * kCodeChunk; }

  INT8Q_DEVICE void begin_rows(int64_t col) {
    const int64_t n = col + lane_index() / 4;
    const int k = first_k() + k_of_lane();
    at_ = n * p_.w_stride + k;
    left_of_low_ = n < p_.n ? whole_k_ - k : 0;
    left_of_high_ = n + 8 < p_.n ? whole_k_ - k : 0;
  }

  INT8Q_DEVICE void load_step(int s) {
    const int8_t *low = p_.w + at_, *high = low + 8 * p_.w_stride;
    const int k = s * kStride;
    if constexpr (kAligned) {
      if (k < left_of_low_) low_[s] = load_once(reinterpret_cast<const U32x4*>(low + k));
      if (k < left_of_high_) high_[s] = load_once(reinterpret_cast<const U32x4*>(high + k));
    } else {
#pragma unroll 1
      for (int row = 0; row < 2; ++row) {  // bytes of one at a time: there are no registers for more
        low_[s] = high_[s];
        high_[s] = load_codes(low + row * 8 * p_.w_stride + k, valid_codes((row == 0 ? left_of_low_ : left_of_high_) - k));
      }
    }
  }

  // Of aligned rows the last chunk, which is none, by the lane whose it is among the steps from k on.
  INT8Q_DEVICE void load_rest(int64_t col, int k) {
    const int64_t n = col + lane_index() / 4;
    const int8_t* from = p_.w + n * p_.w_stride + whole_k_;
    const int until = whole_k_ - k - k_of_lane(), valid = until % kStride == 0 ? k_ - whole_k_ : 0;
    const U32x4 low = load_codes(from, n < p_.n ? valid : 0);
    const U32x4 high = load_codes(from + 8 * p_.w_stride, n + 8 < p_.n ? valid : 0);
#pragma unroll
    for (int s = 0; s < kAhead; ++s) {
      if (s * kStride == until) low_[s] = low, high_[s] = high;
    }
  }

  const Gemm& p_;
  const int k_, whole_k_;  // K; of whole chunks, or all of it where they are loaded by bytes
  // Where in W this lane's chunk of the first step ahead begins, and how much of K rows g and g + 8 have from there on: nothing of
  // rows beyond W, whose results nobody stores.
  int64_t at_ = 0;
  int left_of_low_ = 0, left_of_high_ = 0;
  U32x4 low_[kAhead] = {}, high_[kAhead] = {};
};

}  // namespace int8q::gpu
