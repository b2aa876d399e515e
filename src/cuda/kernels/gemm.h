// SPDX-License-Identifier: Apache-2.0
//
// The int8 product of LLM.int8() (arXiv 2208.07339, section 3) on tensor cores, with everything behind it in place:
//
//   acc = codes . W^T                            s32, exact: 127^2 * K < 2^31
//   acc -= codes . W^T of the outlier columns    s32, exact: as if those columns had never been in the sum
//   f   = float(acc) * (row_stats / 127)
//   f  += x . W^T of the outlier columns         fp32 sums; x fp16 or bf16 as it is, fp32 as three bf16 terms
//   y   = f * (col_stats / 127) + bias           rounded once
//
// With element scope the columns stay in acc, and outlier elements are added one by one in ascending order of columns, so that
// a row does not depend on the others; so are columns where there is no bf16 product, before sm_80.
//
// Layout of a stage in shared memory: kM rows of A, then kN rows of B, of kK = 64 bytes, whose four chunks of 16 are swizzled:
// chunk c of row r lies at c ^ (r / 2 % 4). Eight rows of one chunk, which ldmatrix reads at once, then lie in all 32 banks.
// Outlier columns are brought as a stage whose rows begin with 32 bytes of them: 32 codes, 16 halves or 8 floats.
//
// C fragments of s32 and fp32 have one layout, so acc becomes f in the same registers.
#pragma once

#include "cuda/kernels/elements.h"
#include "cuda/kernels/outlier_columns.h"
#include "cuda/kernels/ptx.h"

namespace int8q::gpu {

template <int M, int N, int WarpM, int WarpN, int Stages>
struct GemmTile {
  static constexpr int kM = M, kN = N, kK = 64, kWarpM = WarpM, kWarpN = WarpN, kStages = Stages;
  static constexpr int kThreads = M / WarpM * (N / WarpN) * kWarp;
  static constexpr int kStageBytes = (M + N) * kK;
  static constexpr int kColumnsAtOnce = 32;

  // Outlier columns begin when the stages are done with, behind the one that they are brought in.
  INT8Q_CONSTEXPR static int shared_bytes(int64_t k, bool outliers) {
    const int stages = Stages * kStageBytes, results = M * N * 4, most = stages > results ? stages : results;
    const int columns = kStageBytes + (2 * bitmap_words(k) + 2 + kColumnsAtOnce) * 4;
    return outliers && columns > most ? columns : most;
  }
};

// Four warps of 64 x 64: 128 accumulators, 16 + 16 of fragments. 64 KiB: two blocks an SM.
using LargeTile = GemmTile<128, 128, 64, 64, 4>;

inline constexpr int kChunkBytes = 16;

INT8Q_DEVICE uint32_t swizzled(int row, int chunk) {
  return static_cast<uint32_t>(row * 64 + (chunk ^ (row / 2 % 4)) * kChunkBytes);
}

template <class Arch, class Tile, bool kAligned>
class GemmBlock {
  static constexpr int kTilesM = Tile::kWarpM / 16, kTilesN = Tile::kWarpN / 8;
  static constexpr int kTilesAtOnce = 8;  // rows of tiles that follow each other, for W in L2

 public:
  INT8Q_DEVICE explicit GemmBlock(const Gemm& p) : p_(p) {
    const int64_t tiles_m = (p.m + Tile::kM - 1) / Tile::kM, tiles_n = (p.n + Tile::kN - 1) / Tile::kN;
    const int64_t group = block_index() / (kTilesAtOnce * tiles_n), in_group = block_index() % (kTilesAtOnce * tiles_n);
    const int64_t left = tiles_m - group * kTilesAtOnce, rows = left < kTilesAtOnce ? left : kTilesAtOnce;
    row_ = (group * kTilesAtOnce + in_group % rows) * Tile::kM;
    col_ = in_group / rows * Tile::kN;
    warp_row_ = warp_index() % (Tile::kM / Tile::kWarpM) * Tile::kWarpM;
    warp_col_ = warp_index() / (Tile::kM / Tile::kWarpM) * Tile::kWarpN;
  }

  INT8Q_DEVICE void run() {
    multiply_codes();
    if (p_.accumulators && p_.found == nullptr) return store_accumulators();
    if (p_.found == nullptr) {
      scale_rows();
      return store_floats();
    }
    block_barrier();  // all have read the last stages
    const ColumnList columns(Tile::kStageBytes, p_.k, p_.found, p_.bitmaps, p_.found_blocks, Tile::kThreads);
    if (!p_.element) subtract_columns(columns);
    if (p_.accumulators) return store_accumulators();
    scale_rows();
    add_columns(columns);
    store_floats();
  }

 private:
  // ---- Codes

  INT8Q_DEVICE void multiply_codes() {
    const int steps = static_cast<int>((p_.k + Tile::kK - 1) / Tile::kK);
    const auto fetch = [&](int step) {
      if (step < steps) fetch_stage(step);
      ptx_commit();
    };
#pragma unroll
    for (int s = 0; s < Tile::kStages - 1; ++s) fetch(s);
    for (int step = 0; step < steps; ++step) {
      ptx_wait();
      block_barrier();  // this step is there for all, and all are done with the one before
      fetch(step + Tile::kStages - 1);
      const uint32_t stage = static_cast<uint32_t>(step % Tile::kStages * Tile::kStageBytes);
#pragma unroll
      for (int half = 0; half < 2; ++half) multiply_s8(stage, half);
    }
    ptx_wait_all();
  }

  INT8Q_DEVICE void fetch_stage(int step) {
    const uint32_t stage = static_cast<uint32_t>(step % Tile::kStages * Tile::kStageBytes);
    for_each_chunk(Tile::kM, [&](int row, int chunk) {
      const int64_t k = step * Tile::kK + chunk * kChunkBytes;
      const bool inside = row_ + row < p_.m && k < p_.k;  // codes are padded to whole chunks
      copy_chunk<true>(stage + swizzled(row, chunk), p_.codes + (row_ + row) * p_.codes_stride + k,
                       inside ? kChunkBytes : 0);
    });
    for_each_chunk(Tile::kN, [&](int row, int chunk) {
      const int64_t k = step * Tile::kK + chunk * kChunkBytes, left = p_.k - k;
      const int valid = col_ + row < p_.n ? static_cast<int>(left < 0 ? 0 : left < kChunkBytes ? left : kChunkBytes) : 0;
      copy_chunk<kAligned>(stage + Tile::kM * Tile::kK + swizzled(row, chunk), p_.w + (col_ + row) * p_.w_stride + k,
                           valid);
    });
  }

  // body(row, chunk) of `rows` rows of four chunks, shared by the block's threads.
  template <class Body>
  INT8Q_DEVICE static void for_each_chunk(int rows, const Body& body) {
#pragma unroll 4
    for (int i = thread_index(); i < rows * 4; i += Tile::kThreads) body(i / 4, i % 4);
  }

  template <bool kWhole>
  INT8Q_DEVICE static void copy_chunk(uint32_t at, const int8_t* from, int valid) {
    if constexpr (kWhole && kHasAsyncCopy<Arch>) {
      ptx::copy_async(at, from, valid);
    } else {
      uint32_t words[4] = {0, 0, 0, 0};
#pragma unroll
      for (int i = 0; i < kChunkBytes; ++i) {
        if (i < valid) words[i / 4] |= static_cast<uint32_t>(load(reinterpret_cast<const uint8_t*>(from) + i)) << i % 4 * 8;
      }
      store_shared(at, U32x4{words[0], words[1], words[2], words[3]});
    }
  }

  INT8Q_DEVICE static void ptx_commit() {
    if constexpr (kHasAsyncCopy<Arch>) ptx::commit_copies();
  }
  INT8Q_DEVICE static void ptx_wait() {
    if constexpr (kHasAsyncCopy<Arch>) ptx::wait_copies<Tile::kStages - 2>();
  }
  INT8Q_DEVICE static void ptx_wait_all() {
    if constexpr (kHasAsyncCopy<Arch>) ptx::wait_copies<0>();
  }

  // ---- Products of 32 bytes of each row of a stage

  INT8Q_DEVICE void load_fragments(uint32_t stage, int half, uint32_t (&a)[kTilesM][4], uint32_t (&b)[kTilesN][2]) const {
    const int matrix = lane_index() / 8, row = lane_index() % 8;
#pragma unroll
    for (int i = 0; i < kTilesM; ++i) {
      ptx::ldmatrix(stage + swizzled(warp_row_ + i * 16 + matrix % 2 * 8 + row, half * 2 + matrix / 2), a[i]);
    }
#pragma unroll
    for (int j = 0; j < kTilesN; j += 2) {
      uint32_t two[4];
      ptx::ldmatrix(stage + Tile::kM * Tile::kK + swizzled(warp_col_ + j * 8 + matrix / 2 * 8 + row, half * 2 + matrix % 2),
                    two);
      b[j][0] = two[0], b[j][1] = two[1], b[j + 1][0] = two[2], b[j + 1][1] = two[3];
    }
  }

  INT8Q_DEVICE void multiply_s8(uint32_t stage, int half) {
    uint32_t a[kTilesM][4], b[kTilesN][2];
    load_fragments(stage, half, a, b);
#pragma unroll
    for (int i = 0; i < kTilesM; ++i) {
#pragma unroll
      for (int j = 0; j < kTilesN; ++j) ptx::mma_s8<Arch>(acc_[i][j], a[i], b[j]);
    }
  }

  template <bool kF16>
  INT8Q_DEVICE void multiply_halves() {
    uint32_t a[kTilesM][4], b[kTilesN][2];
    load_fragments(0, 0, a, b);
#pragma unroll
    for (int i = 0; i < kTilesM; ++i) {
#pragma unroll
      for (int j = 0; j < kTilesN; ++j) {
        if constexpr (kF16) {
          ptx::mma_f16(f_[i][j], a[i], b[j]);
        } else {
          ptx::mma_bf16(f_[i][j], a[i], b[j]);
        }
      }
    }
  }

  // ---- Outlier columns

  // Brings columns [first, first + kCount) of A and W to the first 32 bytes of stage 0's rows: a(row, column) and
  // w(row, column) give the bits of an element; columns beyond the list are 0. Ends in a barrier.
  template <int kCount, class A, class W>
  INT8Q_DEVICE void bring_columns(const ColumnList& columns, uint32_t first, const A& a, const W& w) const {
    constexpr int kPerWord = kCount / 8, kBits = 32 / kPerWord, kPerChunk = kCount / 2;
    const auto index = [&](int t) { return columns.end() + static_cast<uint32_t>(t) * 4; };
    block_barrier();  // all have read what was there
    if (thread_index() < kCount) {
      const uint32_t r = first + static_cast<uint32_t>(thread_index());
      store_shared(index(thread_index()), r < columns.count ? columns.column(r) : -1);
    }
    block_barrier();
#pragma unroll 1
    for (int i = thread_index(); i < (Tile::kM + Tile::kN) * 2; i += Tile::kThreads) {
      const bool is_w = i >= Tile::kM * 2;
      const int row = is_w ? i / 2 - Tile::kM : i / 2, chunk = i % 2;
      const bool inside = is_w ? col_ + row < p_.n : row_ + row < p_.m;
      uint32_t words[4] = {0, 0, 0, 0};
#pragma unroll
      for (int e = 0; e < kPerChunk; ++e) {
        const int column = load_shared<int>(index(chunk * kPerChunk + e));
        if (!inside || column < 0) continue;
        words[e / kPerWord] |= (is_w ? w(col_ + row, column) : a(row_ + row, column)) << e % kPerWord * kBits;
      }
      const uint32_t at = (is_w ? Tile::kM * Tile::kK : 0) + swizzled(row, chunk);
      store_shared(at, U32x4{words[0], words[1], words[2], words[3]});
    }
    block_barrier();
  }

  INT8Q_DEVICE int32_t weight(int64_t n, int k) const { return load(p_.w + n * p_.w_stride + k); }
  INT8Q_DEVICE float activation(int64_t m, int k) const { return load_element(p_.x_dtype, p_.x + m * p_.x_stride, k); }

  INT8Q_DEVICE void subtract_columns(const ColumnList& columns) {
    const auto minus_code = [&](int64_t m, int k) {
      return static_cast<uint32_t>(-load(p_.codes + m * p_.codes_stride + k)) & 0xffu;
    };
    const auto code = [&](int64_t n, int k) { return static_cast<uint32_t>(weight(n, k)) & 0xffu; };
    for (uint32_t first = 0; first < columns.count; first += 32) {
      bring_columns<32>(columns, first, minus_code, code);
      multiply_s8(0, 0);
    }
  }

  INT8Q_DEVICE void add_columns(const ColumnList& columns) {
    if (p_.element || Arch::kVersion < 80) return add_elements(columns);
    if constexpr (Arch::kVersion >= 80) {
      if (p_.x_dtype == Dtype::kF16) {
        const auto x = [&](int64_t m, int k) { return static_cast<uint32_t>(float_to_half(activation(m, k))); };
        const auto w = [&](int64_t n, int k) {
          return static_cast<uint32_t>(float_to_half(static_cast<float>(weight(n, k))));
        };
        for (uint32_t first = 0; first < columns.count; first += 16) {
          bring_columns<16>(columns, first, x, w);
          multiply_halves<true>();
        }
        return;
      }
      const auto w = [&](int64_t n, int k) { return bits_of(static_cast<float>(weight(n, k))) >> 16; };
      for (uint32_t first = 0; first < columns.count; first += 16) {
        for (int term = 0; term < (p_.x_dtype == Dtype::kF32 ? 3 : 1); ++term) {
          const auto x = [&](int64_t m, int k) { return static_cast<uint32_t>(bf16_term(activation(m, k), term)); };
          bring_columns<16>(columns, first, x, w);
          multiply_halves<false>();
        }
      }
    }
  }

  // x = term 0 + term 1 + term 2 + what is below 2^-24 of it.
  INT8Q_DEVICE static uint16_t bf16_term(float x, int term) {
    uint16_t h = to_bf16(x);
    for (; term > 0; --term) {
      if (magnitude(x) >= kInfBits) return 0;
      x -= float_of(static_cast<uint32_t>(h) << 16);
      h = to_bf16(x);
    }
    return h;
  }

  INT8Q_DEVICE void add_elements(const ColumnList& columns) {
    const auto x = [&](int64_t m, int k) {
      const float value = activation(m, k);
      return !p_.element || is_outlier(magnitude(value), p_.limit) ? bits_of(value) : 0;
    };
    const auto w = [&](int64_t n, int k) { return bits_of(static_cast<float>(weight(n, k))); };
    for (uint32_t first = 0; first < columns.count; first += 8) {
      bring_columns<8>(columns, first, x, w);
      const uint32_t left = columns.count - first;
      for (uint32_t t = 0; t < (left < 8 ? left : 8); ++t) add_element(static_cast<int>(t));
    }
  }
  INT8Q_DEVICE void add_element(int t) {
    const auto at = [t](int row) { return swizzled(row, t / 4) + static_cast<uint32_t>(t % 4 * 4); };
    float w[kTilesN][2];
#pragma unroll
    for (int j = 0; j < kTilesN; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) w[j][i] = load_shared<float>(Tile::kM * Tile::kK + at(local_col(j, i)));
    }
#pragma unroll
    for (int i = 0; i < kTilesM; ++i) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float x = load_shared<float>(at(local_row(i, r * 2)));
        if (x == 0.0f) continue;
#pragma unroll
        for (int j = 0; j < kTilesN; ++j) {
          f_[i][j][r * 2] = fma(x, w[j][0], f_[i][j][r * 2]);
          f_[i][j][r * 2 + 1] = fma(x, w[j][1], f_[i][j][r * 2 + 1]);
        }
      }
    }
  }

  // ---- Results

  INT8Q_DEVICE int local_row(int tile, int i) const { return warp_row_ + tile * 16 + lane_index() / 4 + i / 2 * 8; }
  INT8Q_DEVICE int local_col(int tile, int i) const { return warp_col_ + tile * 8 + lane_index() % 4 * 2 + i % 2; }

  INT8Q_DEVICE void scale_rows() {
#pragma unroll
    for (int i = 0; i < kTilesM; ++i) {
#pragma unroll
      for (int c = 0; c < 4; c += 2) {
        const int64_t row = row_ + local_row(i, c);
        const float scale = row < p_.m ? load(p_.row_stats + row) * (1.0f / 127.0f) : 0.0f;
#pragma unroll
        for (int j = 0; j < kTilesN; ++j) {
          f_[i][j][c] = static_cast<float>(acc_[i][j][c]) * scale;
          f_[i][j][c + 1] = static_cast<float>(acc_[i][j][c + 1]) * scale;
        }
      }
    }
  }

  // Y goes through shared memory, so that a thread has eight neighbours to store: element (row, col) of the tile lies at column
  // col ^ 8 (row % 8), which spreads the eight rows of a fragment over the banks.
  INT8Q_DEVICE static uint32_t result_at(int row, int col) {
    return static_cast<uint32_t>((row * Tile::kN + (col ^ row % 8 * 8)) * 4);
  }

  template <class Element>
  INT8Q_DEVICE void exchange(const Element& element) const {
    block_barrier();  // all have read the stages
#pragma unroll
    for (int i = 0; i < kTilesM; ++i) {
#pragma unroll
      for (int j = 0; j < kTilesN; ++j) {
#pragma unroll
        for (int c = 0; c < 4; c += 2) {
          store_shared(result_at(local_row(i, c), local_col(j, c)), U32x2{element(i, j, c), element(i, j, c + 1)});
        }
      }
    }
    block_barrier();
  }

  // body(row, col, bits) of each eighth of a row of the tile, inside of Y or partly.
  template <class Body>
  INT8Q_DEVICE void for_each_result(const Body& body) const {
#pragma unroll 1
    for (int i = thread_index(); i < Tile::kM * Tile::kN / kChunk; i += Tile::kThreads) {
      const int row = i / (Tile::kN / kChunk), col = i % (Tile::kN / kChunk) * kChunk;
      if (row_ + row >= p_.m || col_ + col >= p_.n) continue;
      const U32x4 low = load_shared<U32x4>(result_at(row, col)), high = load_shared<U32x4>(result_at(row, col) + 16);
      const uint32_t bits[kChunk] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
      body(row_ + row, col_ + col, bits);
    }
  }

  INT8Q_DEVICE void store_accumulators() const {
    exchange([&](int i, int j, int c) { return static_cast<uint32_t>(acc_[i][j][c]); });
    for_each_result([&](int64_t row, int64_t col, const uint32_t(&bits)[kChunk]) {
      auto* y = reinterpret_cast<uint32_t*>(p_.y + row * p_.y_stride);
#pragma unroll
      for (int e = 0; e < kChunk; ++e) {
        if (col + e < p_.n) store(y + col + e, bits[e]);
      }
    });
  }

  INT8Q_DEVICE void store_floats() const {
    exchange([&](int i, int j, int c) { return bits_of(f_[i][j][c]); });
    for_each_result([&](int64_t row, int64_t col, const uint32_t(&bits)[kChunk]) {
      uint8_t* y = p_.y + row * p_.y_stride;
      float value[kChunk];
#pragma unroll
      for (int e = 0; e < kChunk; ++e) {
        const bool inside = col + e < p_.n;
        value[e] = float_of(bits[e]) * (inside ? load(p_.col_stats + col + e) * (1.0f / 127.0f) : 0.0f);
        if (inside && p_.bias != nullptr)
          value[e] += load_element(p_.bias_dtype, static_cast<const uint8_t*>(p_.bias), col + e);
        if (inside && p_.accumulate) value[e] += load_element(p_.y_dtype, y, col + e);
      }
      store_chunk(p_.y_dtype, y, col, p_.n, value);
    });
  }

  const Gemm& p_;
  int64_t row_, col_;
  int warp_row_, warp_col_;
  int32_t acc_[kTilesM][kTilesN][4] = {};
  float f_[kTilesM][kTilesN][4];
};

template <class Arch, class Tile, bool kAligned>
INT8Q_DEVICE void gemm(const Gemm& p) {
  GemmBlock<Arch, Tile, kAligned>(p).run();
}

}  // namespace int8q::gpu
