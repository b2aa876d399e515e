// SPDX-License-Identifier: Apache-2.0
//
// What stands behind the sum of a tile of the int8 product, wherever that came from:
//
//   acc -= codes . W^T of the outlier columns    s32, exact: as if those columns had never been in the sum. gemm.h passes over them,
//                                                where there is room for their bitmap
//   f   = float(acc) * (row_stats / 127)
//   f  += x . W^T of the outlier columns         fp32 sums; x fp16 or bf16 as it is, fp32 as three bf16 terms
//   y   = f * (col_stats / 127) + bias           rounded once
//
// Outlier columns that are kept in fp16 are added behind the column's scale, one by one: y += x . kept.
//
// With element scope the columns stay in acc, and outlier elements are added one by one in ascending order of columns, so
// that a row does not depend on the others; so are columns where there is no bf16 product, before sm_80.
//
// A warp has kWarpM x kWarpN of the tile as fragments of 16 x 8. Those of s32 and fp32 have one layout, so acc becomes f in
// the same registers.
//
// Layout of a stage in shared memory: kM rows of A, then kN rows of B, of 64 bytes, whose four chunks of 16 are swizzled:
// chunk c of row r lies at c ^ (r / 2 % 4).
// Outlier columns are brought as a stage whose rows begin with 32 bytes of them: 32 codes, 16 halves or 8 floats.
#pragma once

#include "cuda/kernels/elements.h"
#include "cuda/kernels/kept_columns.h"
#include "cuda/kernels/ptx.h"
#include "cuda/kernels/results.h"
#include "cuda/kernels/shapes.h"

namespace int8q::gpu {

// kElements: for element scope, too. In a warp of 16 x 256 it takes more registers than there are.
template <class Arch, class Tile, bool kElements = true>
class GemmEpilogue {
 protected:
  static constexpr int kTilesM = Tile::kWarpM / 16, kTilesN = Tile::kWarpN / 8;
  static constexpr int kTilesAtOnce = 8;  // rows of tiles that follow each other, for W in L2

  INT8Q_DEVICE GemmEpilogue(const Gemm& p, int tile) : p_(p), tile_(tile) {
    const int64_t tiles_m = (p.m + Tile::kM - 1) / Tile::kM, tiles_n = (p.n + Tile::kN - 1) / Tile::kN;
    const int64_t group = tile_ / (kTilesAtOnce * tiles_n), in_group = tile_ % (kTilesAtOnce * tiles_n);
    const int64_t left = tiles_m - group * kTilesAtOnce, rows = left < kTilesAtOnce ? left : kTilesAtOnce;
    row_ = (group * kTilesAtOnce + in_group % rows) * Tile::kM;
    col_ = in_group / rows * Tile::kN;
  }

  // The warp's part of the tile.
  INT8Q_DEVICE static int warp_row() { return warp_index() % (Tile::kM / Tile::kWarpM) * Tile::kWarpM; }
  INT8Q_DEVICE static int warp_col() { return warp_index() / (Tile::kM / Tile::kWarpM) * Tile::kWarpN; }

  // ---- The list of outlier columns

  INT8Q_DEVICE bool keeps() const { return p_.kept_count > 0; }
  INT8Q_DEVICE ColumnList column_list() const {
    return {Tile::bitmap_at(p_.k, keeps()), Tile::rank_at(p_.k, keeps()), p_.k};
  }
  INT8Q_DEVICE void mark_found(const ColumnList& columns, int threads) const {
    columns.clear(threads);
    columns.merge(p_.found, p_.bitmaps, p_.found_blocks, threads);
  }
  INT8Q_DEVICE bool finds_first() const { return p_.found != nullptr && Tile::finds_first(p_.k, keeps()); }
  // By all threads, before the product; no barrier at its end.
  INT8Q_DEVICE void find_first(int threads) const {
    if (finds_first()) mark_found(column_list(), threads);
  }
  // Whether the product passes over outlier columns: their codes are taken as 0.
  INT8Q_DEVICE bool passes_over() const { return finds_first() && p_.scope == OutlierScope::kColumns; }

  // What the product has done for outlier columns: nothing; passed over them, where there is room to say which; or had a list made
  // of them and the first gathered.
  enum class Columns { kNone, kPassedOver, kGathered };

  // How many outlier columns there are, and how many of the first lie as a stage at kGatheredAt: 32 codes, those of A negative, and
  // 16 halves of each row.
  struct Gathered {
    uint32_t count = 0, there = 0;
  };

  // What stands behind acc_, by all threads.
  template <Columns kDone>
  INT8Q_DEVICE void finish(const Gathered& gathered = {}) {
    constexpr bool kGathered = kDone == Columns::kGathered;
    if (p_.found == nullptr) {
      if (p_.accumulators) return store_accumulators();
      scale_rows();
    } else {
      ColumnList columns = column_list();
      if constexpr (!kGathered) {
        block_barrier();  // all have read the last stages
        if (kDone == Columns::kNone || !finds_first()) mark_found(columns, Tile::kThreads);
      }
      if (!kGathered || gathered.count > gathered.there) columns.close();
      if (p_.scope == OutlierScope::kColumns && !(kDone == Columns::kPassedOver && passes_over())) {
        if (kGathered && gathered.there > 0) multiply_s8(Tile::kGatheredAt, 0);
        subtract_columns(columns, gathered.there);
      }
      if (p_.accumulators) return store_accumulators();
      scale_rows();  // here and above: one call between two tests of p_.found would spill
      if constexpr (kGathered) {
        if (gathered.there > 0) {
          constexpr uint32_t kStage = Tile::kGatheredAt;
          p_.x_dtype == Dtype::kF16 ? multiply_halves<true>(kStage, 1) : multiply_halves<false>(kStage, 1);
        }
      }
      add_columns(columns, gathered.there);
    }
    store_floats();
  }

  // ---- Products of 32 bytes of each row of a stage

  INT8Q_DEVICE void load_fragments(uint32_t stage, int half, uint32_t (&a)[kTilesM][4], uint32_t (&b)[kTilesN][2]) const {
    const int matrix = lane_index() / 8, row = lane_index() % 8;
#pragma unroll
    for (int i = 0; i < kTilesM; ++i) {
      ptx::ldmatrix(stage + swizzled(warp_row() + i * 16 + matrix % 2 * 8 + row, half * 2 + matrix / 2), a[i]);
    }
#pragma unroll
    for (int j = 0; j < kTilesN; j += 2) {
      uint32_t two[4];
      ptx::ldmatrix(stage + swizzled(Tile::kM + warp_col() + j * 8 + matrix / 2 * 8 + row, half * 2 + matrix % 2), two);
      b[j][0] = two[0], b[j][1] = two[1], b[j + 1][0] = two[2], b[j + 1][1] = two[3];
    }
  }

  // `over`: a bit a column, those that are passed over.
  template <bool kPassesOver = false>
  INT8Q_DEVICE void multiply_s8(uint32_t stage, int half, uint32_t over = 0) {
    if constexpr (kHasInt8Mma<Arch>) {
      uint32_t a[kTilesM][4], b[kTilesN][2];
      load_fragments(stage, half, a, b);
      if constexpr (kPassesOver) {
        const uint32_t low = other_bytes(over >> lane_index() % 4 * 4),
                       high = other_bytes(over >> 16 >> lane_index() % 4 * 4);
#pragma unroll
        for (int i = 0; i < kTilesM; ++i) a[i][0] &= low, a[i][1] &= low, a[i][2] &= high, a[i][3] &= high;
      }
#pragma unroll
      for (int i = 0; i < kTilesM; ++i) {
#pragma unroll
        for (int j = 0; j < kTilesN; ++j) ptx::mma_s8<Arch>(acc_[i][j], a[i], b[j]);
      }
    } else {
      multiply_by_dp4a<kPassesOver>(stage, half * 2, over);
      multiply_by_dp4a<kPassesOver>(stage, half * 2 + 1, over >> 16);
    }
  }

  // 16 bytes of each row, with accumulators where the tensor cores would have them: 16 * kTilesM * kTilesN dp4a for
  // 2 * (kTilesM + kTilesN) loads.
  template <bool kPassesOver>
  INT8Q_DEVICE void multiply_by_dp4a(uint32_t stage, int chunk, uint32_t over) {
    U32x4 a[kTilesM][2];
#pragma unroll
    for (int i = 0; i < kTilesM; ++i) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        a[i][r] = load_shared<U32x4>(stage + swizzled(local_row(i, r * 2), chunk));
        if constexpr (kPassesOver) {
          a[i][r].x &= other_bytes(over), a[i][r].y &= other_bytes(over >> 4);
          a[i][r].z &= other_bytes(over >> 8), a[i][r].w &= other_bytes(over >> 12);
        }
      }
    }
#pragma unroll
    for (int j = 0; j < kTilesN; ++j) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const U32x4 w = load_shared<U32x4>(stage + swizzled(Tile::kM + local_col(j, c), chunk));
#pragma unroll
        for (int i = 0; i < kTilesM; ++i) {
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            int32_t& acc = acc_[i][j][r * 2 + c];
            acc = dot4(a[i][r].x, w.x, acc);
            acc = dot4(a[i][r].y, w.y, acc);
            acc = dot4(a[i][r].z, w.z, acc);
            acc = dot4(a[i][r].w, w.w, acc);
          }
        }
      }
    }
  }

  template <bool kF16>
  INT8Q_DEVICE void multiply_halves(uint32_t stage, int half) {
    uint32_t a[kTilesM][4], b[kTilesN][2];
    load_fragments(stage, half, a, b);
#pragma unroll
    for (int i = 0; i < kTilesM; ++i) {
#pragma unroll
      for (int j = 0; j < kTilesN; ++j) {
        if constexpr (kF16) {
          ptx::mma_f16<Arch>(f_[i][j], a[i], b[j]);
        } else {
          ptx::mma_bf16(f_[i][j], a[i], b[j]);
        }
      }
    }
  }

  // ---- Outlier columns

  // Brings columns [first, first + kCount) of the list to the first 32 bytes of stage 0's rows, 0 beyond it: what a(bits) and
  // w(bits) make of the elements of row m of A, from a_row(m) on, and of W. Ends in a barrier.
  template <int kCount, class ARow, class A, class W>
  INT8Q_DEVICE void bring_columns(const ColumnList& columns, uint32_t first, const ARow& a_row, const A& a,
                                  const W& w) const {
    constexpr int kPerWord = kCount / 8, kBits = 32 / kPerWord, kPerChunk = kCount / 2;
    constexpr int kAtOnce = kPerChunk < 8 ? kPerChunk : 8;  // loads, for which there are registers
    constexpr bool kCodes = kCount == 32;  // kept columns leave their product; their floats are added at the end
    const auto column_at = [&](int t) { return columns.end() + static_cast<uint32_t>(t) * 4; };
    if (thread_index() < kCount) {
      const uint32_t r = first + static_cast<uint32_t>(thread_index());
      const int column = r < columns.count ? columns.column(r) : -1;
      store_shared(column_at(thread_index()), !kCodes && column >= 0 && is_kept(p_, column) ? -1 : column);
    }
    block_barrier();  // and all have read what was in the stage
#pragma unroll 1
    for (int i = thread_index(); i < (Tile::kM + Tile::kN) * 2; i += Tile::kThreads) {
      const int row = i / 2, chunk = i % 2;
      const int64_t m = row_ + row, n = col_ + row - Tile::kM;
      uint32_t words[4] = {0, 0, 0, 0};
#pragma unroll
      for (int part = 0; part < kPerChunk; part += kAtOnce) {
        int column[kAtOnce];
        uint32_t v[kAtOnce] = {};
#pragma unroll
        for (int e = 0; e < kAtOnce; ++e) column[e] = load_shared<int>(column_at(chunk * kPerChunk + part + e));
        if (row < Tile::kM) {
          if (m < p_.m) gather(a_row(m), column, v);
        } else {
          if (n < p_.n) gather(reinterpret_cast<const uint8_t*>(p_.w + n * p_.w_stride), column, v);
        }
#pragma unroll
        for (int e = 0; e < kAtOnce; ++e) {
          words[(part + e) / kPerWord] |= (row < Tile::kM ? a(v[e]) : w(v[e])) << (part + e) % kPerWord * kBits;
        }
      }
      store_shared(swizzled(row, chunk), U32x4{words[0], words[1], words[2], words[3]});
    }
    block_barrier();
  }

  template <class T>
  INT8Q_DEVICE auto rows_of_x() const {
    return [this](int64_t m) { return reinterpret_cast<const T*>(p_.x + m * p_.x_stride); };
  }
  INT8Q_DEVICE static float code_of(uint32_t bits) { return static_cast<float>(static_cast<int8_t>(bits)); }

  INT8Q_DEVICE bool elements() const { return p_.scope == OutlierScope::kElements; }

  // Those from `begin` on.
  INT8Q_DEVICE void subtract_columns(const ColumnList& columns, uint32_t begin) {
    const auto codes = [this](int64_t m) { return reinterpret_cast<const uint8_t*>(p_.codes + m * p_.codes_stride); };
    const auto minus = [](uint32_t code) { return (0 - code) & 0xffu; };
    const auto same = [](uint32_t code) { return code; };
#pragma unroll 1
    for (uint32_t first = begin; first < columns.count; first += 32) {
      bring_columns<32>(columns, first, codes, minus, same);
      multiply_s8(0, 0);
    }
  }

  INT8Q_DEVICE void add_columns(const ColumnList& columns, uint32_t begin) {
    if constexpr (kElements) {
      if (elements() || Arch::kVersion < 80) {
        return p_.x_dtype == Dtype::kF32 ? add_elements<uint32_t>(columns) : add_elements<uint16_t>(columns);
      }
    }
    if constexpr (Arch::kVersion >= 80) {
      p_.x_dtype == Dtype::kF32 ? add_terms<uint32_t>(columns, begin) : add_terms<uint16_t>(columns, begin);
    }
  }

  // fp16 and bf16 as they are, fp32 as three bf16 terms. X: an element's bits.
  template <class X>
  INT8Q_DEVICE void add_terms(const ColumnList& columns, uint32_t begin) {
    constexpr bool kF32 = sizeof(X) == 4;
    const bool f16 = !kF32 && p_.x_dtype == Dtype::kF16;
    const auto w = [f16](uint32_t code) {
      return f16 ? static_cast<uint32_t>(float_to_half(code_of(code))) : bits_of(code_of(code)) >> 16;
    };
#pragma unroll 1
    for (uint32_t first = begin; first < columns.count; first += 16) {
#pragma unroll 1
      for (int term = 0; term < (kF32 ? 3 : 1); ++term) {
        const auto x = [term](uint32_t bits) { return kF32 ? bf16_term(float_of(bits), term) : bits; };
        bring_columns<16>(columns, first, rows_of_x<X>(), x, w);
        f16 ? multiply_halves<true>(0, 0) : multiply_halves<false>(0, 0);
      }
    }
  }

  template <class X>
  INT8Q_DEVICE void add_elements(const ColumnList& columns) {
    const auto x = [this](uint32_t bits) {
      const float value = float_of_bits<X>(p_.x_dtype, bits);
      return elements() && !is_outlier(magnitude(value), p_.limit) ? 0 : bits_of(value);
    };
    const auto w = [](uint32_t code) { return bits_of(code_of(code)); };
    for (uint32_t first = 0; first < columns.count; first += 8) {
      bring_columns<8>(columns, first, rows_of_x<X>(), x, w);
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
      for (int i = 0; i < 2; ++i) w[j][i] = load_shared<float>(at(Tile::kM + local_col(j, i)));
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

  INT8Q_DEVICE int local_row(int tile, int i) const { return warp_row() + tile * 16 + lane_index() / 4 + i / 2 * 8; }
  INT8Q_DEVICE int local_col(int tile, int i) const { return warp_col() + tile * 8 + lane_index() % 4 * 2 + i % 2; }

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

  // begin(col)(row, bits) of eight elements of Y, as Results has them; element(i, j, c) gives the bits of this thread's.
  template <bool kApart, class Element, class Begin>
  INT8Q_DEVICE void exchange(const Element& element, const Begin& begin) const {
    const auto write = [&](int first) {
#pragma unroll
      for (int i = 0; i < kTilesM; ++i) {
        if (local_row(i, 0) / Tile::kRowsAtOnce * Tile::kRowsAtOnce != first) continue;
#pragma unroll
        for (int j = 0; j < kTilesN; ++j) {
#pragma unroll
          for (int c = 0; c < 4; c += 2) {
            store_shared(Results<Tile>::at(local_row(i, c), local_col(0, 0), j * 8),
                         U32x2{element(i, j, c), element(i, j, c + 1)});
          }
        }
      }
    };
    Results<Tile>::template exchange<kApart>(p_.m - row_, p_.n - col_, write, [&](int col) { return begin(col_ + col); });
  }

  INT8Q_DEVICE void store_accumulators() const {
    const auto bits_of_sum = [&](int i, int j, int c) { return static_cast<uint32_t>(acc_[i][j][c]); };
    exchange<true>(bits_of_sum, [&](int64_t col) {
      return [this, col](int row, const uint32_t(&bits)[kChunk]) {
        auto* y = reinterpret_cast<uint32_t*>(p_.y + (row_ + row) * p_.y_stride);
        const uint32_t low[] = {bits[0], bits[1], bits[2], bits[3]}, high[] = {bits[4], bits[5], bits[6], bits[7]};
        store_bits(y, col, p_.n, low);
        store_bits(y, col + Tile::kN / 2, p_.n, high);
      };
    });
  }

  INT8Q_DEVICE void store_floats() const {
    const bool keeps_found = p_.found != nullptr && keeps();
    const auto bitmap = static_cast<uint32_t>(Tile::bitmap_at(p_.k, true));
    const auto bits_of_float = [&](int i, int j, int c) { return bits_of(f_[i][j][c]); };
    exchange<false>(bits_of_float, [&](int64_t col) {
      return [this, keeps_found, bitmap, columns = ResultColumns(p_, col)](int row, const uint32_t(&bits)[kChunk]) {
        columns.store(p_, row_ + row, bits, keeps_found, bitmap);
      };
    });
  }

  const Gemm& p_;
  const int tile_;
  int64_t row_, col_;
  int32_t acc_[kTilesM][kTilesN][4] = {};

 private:
  float f_[kTilesM][kTilesN][4];
};

}  // namespace int8q::gpu
