// SPDX-License-Identifier: Apache-2.0
//
// Blocks: how many threads, which tile of the result, how much shared memory. Host and device read the same numbers.
#pragma once

#include "cuda/kernels/arch.h"
#include "cuda/kernels/arguments.h"

namespace int8q::gpu {

// ---------------------------------------------------------------------------------------------------- gemm.h

// GatheredBytes: of outlier columns that are gathered beside the product.
template <int M, int N, int WarpM, int WarpN, int Stages, int BytesBehind, int K = 64, int GatheredBytes = 0>
struct GemmTile {
  static constexpr int kM = M, kN = N, kK = K, kWarpM = WarpM, kWarpN = WarpN, kStages = Stages;
  static constexpr int kThreads = M / WarpM * (N / WarpN) * kWarp;
  static constexpr int kStageBytes = (M + N) * kK, kStagesBytes = Stages * kStageBytes;
  static constexpr int kGatheredAt = kStagesBytes, kBehindAt = kGatheredAt + GatheredBytes;
  static constexpr int kMostBytes = kBehindAt + BytesBehind;                 // unless the list takes more
  static constexpr int kRowsAtOnce = kStagesBytes >= M * N * 4 ? M : M / 2;  // of Y, in the stages' place
  static_assert(kStagesBytes >= kRowsAtOnce * N * 4);
  static constexpr int kColumnsAtOnce = 32;  // outlier columns

  // The list of outlier columns. Where there is room behind the stages, and what is gathered meanwhile, its bitmap lies there, so
  // that the product passes over these columns; else it begins when the stages are done with, behind the one that columns are
  // brought in. Kept columns are asked for again while results are stored.
  static_assert(kStageBytes + BytesBehind + kColumnsAtOnce * 4 <= kStagesBytes);
  INT8Q_CONSTEXPR static bool finds_first(int64_t k, bool kept) {
    return BytesBehind > 0 && bitmap_bytes(k) + (kept ? rank_bytes(k) + kColumnsAtOnce * 4 : 0) <= BytesBehind;
  }
  INT8Q_CONSTEXPR static int bitmap_at(int64_t k, bool kept) {
    return finds_first(k, kept) ? kBehindAt : kept ? kRowsAtOnce * N * 4 : kStageBytes;
  }
  INT8Q_CONSTEXPR static int rank_at(int64_t k, bool kept) {
    return finds_first(k, kept) && !kept ? kStageBytes : bitmap_at(k, kept) + bitmap_bytes(k);
  }
  INT8Q_CONSTEXPR static int shared_bytes(int64_t k, bool outliers, bool kept) {
    if (!outliers) return kStagesBytes;
    const int bitmap = bitmap_at(k, kept) + bitmap_bytes(k), rank = rank_at(k, kept) + rank_bytes(k) + kColumnsAtOnce * 4;
    const int list = bitmap > rank ? bitmap : rank;
    return list > kStagesBytes ? list : kStagesBytes;
  }
};

// What so many blocks of an SM have behind their stages, of which a block takes 1 KiB that it does not see: 4 KiB at most, for K
// up to 32640.
template <class Arch>
INT8Q_CONSTEXPR int bytes_behind(int blocks, int stages_bytes) {
  const int left = (Arch::kSharedBytes + 1024) / blocks - 1024 - stages_bytes;
  return left < 0 ? 0 : left < 4096 ? left : 4096;
}

// Four warps of 64 x 64: 128 accumulators and 32 registers of fragments a thread, so that an operand's byte is read from shared
// memory for 64 rows or columns; and as many stages as leave two blocks an SM. Before cp.async a stage waits in registers,
// for which warps are 64 x 32.
template <class Arch>
struct LargeTileOf {
  static constexpr int kStages = Arch::kSharedBytes < 128 * 1024 ? 3 : 4;
  using Tile = GemmTile<128, 128, 64, 64, kStages, bytes_behind<Arch>(2, kStages * 16384)>;
};
template <>
struct LargeTileOf<Sm75> {
  using Tile = GemmTile<128, 64, 64, 32, 2, bytes_behind<Sm75>(2, 2 * 12288)>;
};
template <>
struct LargeTileOf<Sm70> : LargeTileOf<Sm75> {};

template <class Arch>
using LargeTile = typename LargeTileOf<Arch>::Tile;

// For few rows, more than skinny.h's: a quarter of the registers, so that four blocks share an SM (three of sm_70's, which have no
// registers for two ways of products), and K can be split.
template <class Arch>
using SmallTile = GemmTile<64, 64, 32, 32, kHasAsyncCopy<Arch> ? 3 : 2,
                           kHasInt8Mma<Arch> ? bytes_behind<Arch>(4, (kHasAsyncCopy<Arch> ? 3 : 2) * 8192) : 0>;
static_assert(2 * LargeTile<Sm75>::shared_bytes(0, false, false) <= Sm75::kSharedBytes);
static_assert(2 * LargeTile<Sm86>::shared_bytes(0, false, false) <= Sm86::kSharedBytes);
static_assert(2 * LargeTile<Sm80>::shared_bytes(0, false, false) <= Sm80::kSharedBytes);

// ---------------------------------------------------------------------------------------------------- gemm_wgmma.h

// Two warpgroups of 64 x N. With 256, the widest product that there is, a byte of W is read from shared memory for 64 rows, of
// A for 256, 10 KiB in the 128 cycles of an instruction; with 128 there are twice as many tiles for an SM each. Rows of 128
// bytes, which the copy engine swizzles; stages of 192 KiB fill an SM, but for rows of 64 bytes for the first outlier columns,
// and their bitmap: K up to 80000, with kept columns half of it.
template <int N>
using TileOfWgmma = GemmTile<128, N, 16, N, N == 256 ? 4 : 6, 10 * 1024, 128, (128 + N) * 64>;
template <int N>
struct WgmmaTile : TileOfWgmma<N> {
  using Base = TileOfWgmma<N>;
  static constexpr int kBlockThreads = Base::kThreads + 128;  // the last warpgroup brings the stages
  static constexpr int kGathered = 16, kGatheringWarps = 3;   // outlier columns, and who gathers them
  // A thread, of the 168 that a block of three warpgroups begins with.
  static constexpr int kRegistersToMultiply = 224, kRegistersToBring = 56;
  static_assert(Base::kThreads * kRegistersToMultiply + 128 * kRegistersToBring <= kBlockThreads * 168);

  // Behind all that the block stores, which must not touch them.
  INT8Q_CONSTEXPR static int barriers_at(int64_t k, bool outliers, bool kept) {
    return (Base::shared_bytes(k, outliers, kept) + 7) / 8 * 8;
  }
  // Of stages, of those who gather, and of what they gathered; behind them two lists of these columns for each of their warps, and
  // how many there are.
  INT8Q_CONSTEXPR static int shared_bytes(int64_t k, bool outliers, bool kept) {
    return barriers_at(k, outliers, kept) + kBytesOfBarriers;
  }
  static constexpr int kListsAt = (2 * Base::kStages + 2) * 8;  // behind the first barrier
  static constexpr int kBytesOfBarriers = kListsAt + kGatheringWarps * 2 * kGathered * 4 + 4;
  static_assert(Base::kMostBytes + kBytesOfBarriers <= Sm90::kSharedBytes);
};

// ---------------------------------------------------------------------------------------------------- weight_stream.h

struct WeightStreamShape {
  static constexpr int kThreads = 256, kWarps = kThreads / kWarp;
  static constexpr int kRowsOfW = 16;
  static constexpr int kStep = 64;  // k's of a warp's step
};

// ---------------------------------------------------------------------------------------------------- skinny.h

struct SkinnyShape : WeightStreamShape {
  static constexpr int kColumns = kWarp;  // outlier columns at once

  INT8Q_CONSTEXPR static int code_stride(int64_t k) { return static_cast<int>(((k + kStep - 1) / kStep | 1) * kStep); }
  // Multiples of 16 bytes, in the order of the file's comment.
  INT8Q_CONSTEXPR static int columns_at(int rows) { return 2 * rows * kRowsOfW * 4; }
  INT8Q_CONSTEXPR static int maxima_at(int rows, int64_t k) { return columns_at(rows) + (list_bytes(k) + 15) / 16 * 16; }
  INT8Q_CONSTEXPR static int stats_at(int rows, int64_t k) { return maxima_at(rows, k) + kWarps * 4; }
  INT8Q_CONSTEXPR static int group_at(int rows, int64_t k) { return stats_at(rows, k) + rows * 4; }
  INT8Q_CONSTEXPR static int codes_at(int rows, int64_t k) {
    return group_at(rows, k) + (rows * 5 + 2 * kRowsOfW) * kColumns;
  }
  // rows: M up to eights.
  INT8Q_CONSTEXPR static int shared_bytes(int rows, int64_t m, int64_t k, bool fused) {
    return codes_at(rows, k) + (fused ? static_cast<int>(m) * code_stride(k) : 0);
  }
};

// ---------------------------------------------------------------------------------------------------- backward.h

enum class Multiply { kF16, kBf16, kF32 };

template <Multiply kHow>
struct BackwardTile {
  static constexpr int kM = 128, kN = 128;                         // of dX; kN of K
  static constexpr int kDepth = kHow == Multiply::kF32 ? 16 : 32;  // n of a stage: 64 bytes of g
  static constexpr int kThreads = 128;                             // four warps of 64 x 64
  static constexpr int kRatiosAt = kM * 64 + kDepth * kN;
  static constexpr int kStageBytes = kRatiosAt + kDepth * (kHow == Multiply::kF16 ? 2 : 4);
  static constexpr int kRowsAtOnce = 32;  // of dX: 16 KiB
  static constexpr int kSharedBytes = 2 * kStageBytes;
  static_assert(kRowsAtOnce * kN * 4 <= kSharedBytes);
};

// ---------------------------------------------------------------------------------------------------- w8a16_skinny.h

struct W8a16SkinnyShape : WeightStreamShape {
  static constexpr int kFew = 16, kMost = 48;

  INT8Q_CONSTEXPR static int most_rows(Multiply how) { return how == Multiply::kF32 ? kFew : kMost; }
  INT8Q_CONSTEXPR static int shared_bytes(int64_t m) { return static_cast<int>(m) * kWarps * kRowsOfW * 4; }
};

// ---------------------------------------------------------------------------------------------------- w8a16_gemm.h

template <int M, int N, int WarpM, int WarpN, Multiply kHow>
struct W8a16Tile {
  static constexpr int kM = M, kN = N, kWarpM = WarpM, kWarpN = WarpN;
  static constexpr int kThreads = M / WarpM * (N / WarpN) * kWarp;
  static constexpr int kDepth = kHow == Multiply::kF32 ? 16 : 32;  // k of a stage: 64 bytes of x
  static constexpr int kStageBytes = M * 64 + N * kDepth;
  static constexpr int kRowsAtOnce = 32;  // of Y
  static constexpr int kSharedBytes = 2 * kStageBytes;
  static_assert(kRowsAtOnce * N * 4 <= kSharedBytes);
};
template <Multiply kHow>
using W8a16LargeTile = W8a16Tile<128, 128, 64, 64, kHow>;
template <Multiply kHow>
using W8a16SmallTile = W8a16Tile<64, 64, 32, 32, kHow>;

// ---------------------------------------------------------------------------------------------------- w8a16_wgmma.h

// kM rows of Y, or of dX, by 128 columns, of which two warpgroups have 64 each; or by 64, of which both have half of the sum.
// Codes become halves once for kM rows, some 40 instructions of a warp for 16 of the sum, beside a product of kM / 2 cycles;
// stages of 64 of the sum fill an SM.
template <int M, int N>
struct W8a16WgmmaTile {
  static constexpr int kM = M, kN = N, kDepth = 64;
  static constexpr int kThreads = 256, kBlockThreads = kThreads + 128;  // the last warpgroup brings the stages
  static constexpr int kRowsAtOnce = kM;
  static constexpr int kBytesOfFloats = kM * kDepth * 2, kStageBytes = kBytesOfFloats + kN * kDepth;
  static constexpr int kStages = 200 * 1024 / kStageBytes;
  static constexpr int kRatiosAt = kStages * kStageBytes;  // of a stage's sum, twice 16 bits each; of the gradient alone
  static constexpr int kBarriersAt = kRatiosAt + kStages * kDepth * 4;
  static constexpr int kSharedBytes = kBarriersAt + 2 * kStages * 8;
  static constexpr int kRegistersToMultiply = WgmmaTile<256>::kRegistersToMultiply;
  static constexpr int kRegistersToBring = WgmmaTile<256>::kRegistersToBring;
  static_assert(kStageBytes % 1024 == 0 && kBytesOfFloats % 1024 == 0);  // where the swizzle repeats
  static_assert(kRowsAtOnce * kN * 4 <= kRatiosAt && kSharedBytes <= Sm90a::kSharedBytes);
};

}  // namespace int8q::gpu
