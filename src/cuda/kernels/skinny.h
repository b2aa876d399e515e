// SPDX-License-Identifier: Apache-2.0
//
// LLM.int8() for few rows of activations, M <= 64: W is read once, at the speed of memory.
//
//   acc = codes . W^T                            s32, exact
//   acc -= codes . W^T of the outlier columns    s32, exact; column scope
//   f   = float(acc) * (row_stats / 127)
//   f   = fma(x, w, f)                           outlier columns in ascending order; element scope: of outlier elements alone
//   y   = f * (col_stats / 127) + bias           rounded once; kept columns as gemm.h's
//
// With element scope that is gemm.h's expression: a row does not depend on how many there are.
//
// Sixteen rows of W are an MMA's rows, eight rows of activations its columns. Lane (g, q) takes 16 bytes of rows g and g + 8 of W
// at k = 64 j + 16 q (weight_stream.h), and of each eight activations row g at the same k: those are operands of two MMAs, whose k
// is permuted, alike for both. Warps' sums meet in shared memory, one barrier for 16 rows: each other 16 have sums of their own.
// Before sm_75 a lane multiplies the same bytes by dp4a, for M <= 16.
//
// kFused: x is quantized by each block into its shared memory, M * K <= 16 KiB; else quantize_rows did it, and codes come
// through L1.
//
// Outlier columns are taken kColumns = 32 at a time, lane l of each warp the l-th of them: what activations have there is brought
// once a block, where there are no more, and W's 16 codes of each are asked for before the product (kEarly: 16 rows ahead) and
// stored beside it. A thread then has a result to itself, or four: it subtracts by 8 dp4a and adds by 32 fma, all from shared
// memory.
//
// Shared memory: sums [2][M up to eights][16], the list of columns, maxima a warp, row_stats, outlier columns (160 bytes a row,
// twice 512 of W: 11 KiB at M = 64), and the codes of kFused, M rows of an odd number of 64 bytes, so that two rows lie in all 32
// banks.
#pragma once

#include "cuda/kernels/kept_columns.h"
#include "cuda/kernels/ptx.h"
#include "cuda/kernels/quantize_rows.h"
#include "cuda/kernels/weight_stream.h"

namespace int8q::gpu {

template <class Arch, int kEights, bool kFused, bool kAligned>
class SkinnyBlock {
  using Shape = SkinnyShape;
  static constexpr int kRows = kEights * 8, kThreads = Shape::kThreads, kColumns = Shape::kColumns;
  static constexpr int kWRowsOfAWarp = Shape::kRowsOfW / Shape::kWarps;
  static constexpr int kResults = (kRows * Shape::kRowsOfW + kThreads - 1) / kThreads;  // of a thread
  // Steps of W ahead: sums of 64 rows leave registers for two, without tensor cores those of 8 for two and of 16 for one, which is
  // 16 KiB an SM, where 900 GB/s of V100 for .7 us are 8. A warp has one step of what 64 rows quantize here, K < 512. Bytes one by
  // one are slow in any case.
  static constexpr int kMostAhead = kHasInt8Mma<Arch> ? (kEights < 8 ? 4 : kFused ? 1 : 2) : kEights == 1 ? 2 : 1;
  static constexpr int kAhead = kAligned ? kMostAhead : (kMostAhead + 1) / 2;
  // The first loads are on their way while activations are prepared, those of the next 16 rows while results are finished: more
  // rows have no registers for it.
  static constexpr bool kEarly = kAligned && (kEights == 1 || (kEights == 2 && kHasInt8Mma<Arch>));
  // Of four outlier columns; 64 rows have no registers for more than one.
  static constexpr int kGroupsAtOnce = kEights == 8 ? 1 : 4;
  static_assert(kHasInt8Mma<Arch> || kEights <= 2);
  static_assert(kAligned || !kFused, "bytes one by one are slow enough for a launch more");

 public:
  INT8Q_DEVICE explicit SkinnyBlock(const Gemm& p)
      : p_(p),
        columns_(Shape::columns_at(kRows), Shape::columns_at(kRows) + bitmap_bytes(p.k), p.k),
        stats_(static_cast<uint32_t>(Shape::stats_at(kRows, p.k))),
        group_(static_cast<uint32_t>(Shape::group_at(kRows, p.k))),
        codes_(static_cast<uint32_t>(Shape::codes_at(kRows, p.k))),
        code_stride_(static_cast<uint32_t>(Shape::code_stride(p.k))),
        m_(static_cast<int>(p.m)),
        k_(static_cast<int>(p.k)),
        w_(p) {}

  INT8Q_DEVICE void run() {
    const int64_t first_col = block_index() * int64_t{Shape::kRowsOfW};
    if (kEarly && !kFused) w_.begin(first_col);
    for (int i = thread_index(); i < 2 * kRows * Shape::kRowsOfW; i += kThreads)
      store_shared<int32_t>(static_cast<uint32_t>(i) * 4, 0);
    columns_.clear(kThreads);
    if constexpr (kFused) {
      quantize(first_col);
    } else {
      for (int m = thread_index(); m < m_ && !p_.accumulators; m += kThreads)
        store_shared(stats_ + static_cast<uint32_t>(m) * 4, load(p_.row_stats + m));
      if (p_.found != nullptr) columns_.merge(p_.found, p_.bitmaps, p_.found_blocks, kThreads);
    }
    columns_.close();
    uint32_t codes[kWRowsOfAWarp];
    if (one_group()) {
      bring_columns(0);
      if (kEarly) load_column_codes(first_col, codes);
    }
    const int64_t stride = static_cast<int64_t>(block_count()) * Shape::kRowsOfW;
    for (int64_t col = first_col; col < p_.n; col += stride, other_ = !other_) {
      float scale = 0.0f, bias = 0.0f;
      const int64_t n = col + thread_index() % Shape::kRowsOfW;
      if (kEarly) load_column(n, scale, bias);
      multiply(col, col + stride, codes);
      block_barrier();
      finish(col, scale, bias);  // each thread clears the sums that it reads: they are the next 16 rows but one's
    }
  }

 private:
  // ---- Codes

  INT8Q_DEVICE void quantize(int64_t first_col) {
    p_.x_dtype == Dtype::kF32 ? quantize<uint32_t>(first_col) : quantize<uint16_t>(first_col);
  }

  // A warp takes a row, whose second reading comes from L1; where there are fewer rows than warps, all of them share what there
  // is in one turn, and learn of each other's maxima behind the only barrier. kEarly: W is asked for behind the first of X, which
  // would wait for it.
  template <class X>
  INT8Q_DEVICE void quantize(int64_t first_col) {
    constexpr int kChunksAhead = kEights == 8 ? 1 : sizeof(X) == 4 ? 2 : 4;  // 64 bytes a lane; of K < 512 one of two
    const auto maximum_at = [this](int warp) { return static_cast<uint32_t>(Shape::maxima_at(kRows, p_.k) + warp * 4); };
    int sharers = Shape::kWarps;
    while (sharers > 1 && m_ * sharers > Shape::kWarps) sharers /= 2;
    const int part = warp_index() % sharers;
    const int64_t first = (part * kWarp + lane_index()) * kChunk, step = sharers * kWarp * kChunk;
#pragma unroll 1
    for (int turn = 0; turn < m_; turn += Shape::kWarps / sharers) {
      const int row = turn + warp_index() / sharers;
      const auto* x = reinterpret_cast<const X*>(p_.x + row * p_.x_stride);
      ChunksAhead<X, kChunksAhead> chunks;
      if (row < m_) chunks.template load<true>(x, first, step, p_.k);
      if (kEarly && turn == 0) w_.begin(first_col);
      uint32_t absmax = 0;
      if (row < m_) {
        absmax = warp_maximum(scan_row<true>(p_.x_dtype, x, first, step, p_.k, p_.limit, chunks,
                                             [&](int64_t k, uint32_t outliers) { columns_.mark(k, outliers); }));
      }
      if (sharers > 1) {
        if (lane_index() == 0) store_shared(maximum_at(warp_index()), absmax);
        block_barrier();
        for (int w = warp_index() - part; w < warp_index() - part + sharers; ++w) {
          const uint32_t other = load_shared<uint32_t>(maximum_at(w));
          absmax = other > absmax ? other : absmax;
        }
      }
      if (row >= m_) continue;
      const RowScale scale(absmax);
      for_each_chunk<true, kChunksAhead>(
          p_.x_dtype, x, first, step, p_.k, code_stride_, [&](int64_t k, const float(&v)[kChunk]) {
            store_shared(code_at(row, static_cast<uint32_t>(k)), encode_chunk(v, scale, p_.limit));
          });
      if (lane_index() == 0 && part == 0) store_shared(stats_ + static_cast<uint32_t>(row) * 4, scale.stat);
    }
  }
  INT8Q_DEVICE uint32_t code_at(int row, uint32_t k) const {
    return codes_ + static_cast<uint32_t>(row) * code_stride_ + k;
  }

  // 16 codes of an activation. Behind M and K there are zeros.
  INT8Q_DEVICE U32x4 activations(int row, int k) const {
    if (row >= m_ || k >= k_) return {0, 0, 0, 0};
    if constexpr (kFused) return load_shared<U32x4>(code_at(row, static_cast<uint32_t>(k)));
    return load(reinterpret_cast<const U32x4*>(p_.codes + row * p_.codes_stride + k));
  }
  INT8Q_DEVICE int32_t code(int row, int k) const {
    if constexpr (kFused) return load_shared<int8_t>(code_at(row, static_cast<uint32_t>(k)));
    return load(p_.codes + row * p_.codes_stride + k);
  }

  // ---- The product of 16 rows of W

  // C fragments of the tensor cores, or sums of a lane: of rows g and g + 8 of W with eight activations.
  static constexpr int kPerEight = kHasInt8Mma<Arch> ? 4 : 16;

  // codes: of W's outlier columns, which are stored, then for kEarly those of next_col.
  INT8Q_DEVICE void multiply(int64_t col, int64_t next_col, uint32_t (&codes)[kWRowsOfAWarp]) {
    int32_t acc[kEights][kPerEight] = {};
    if (!kEarly) {
      w_.begin(col);
      if (one_group()) load_column_codes(col, codes);
    }
    w_.run(
        col, next_col, [&](const U32x4& low, const U32x4& high, int k) { multiply_step(low, high, k, acc); },
        [&] {
          if (!one_group()) return;
          store_column_codes(codes);
          if (kEarly) load_column_codes(next_col, codes);
        });
    add_sums(acc);
  }

  INT8Q_DEVICE void multiply_step(const U32x4& low, const U32x4& high, int k, int32_t (&acc)[kEights][kPerEight]) const {
    if constexpr (kHasInt8Mma<Arch>) {
      const uint32_t first[4] = {low.x, high.x, low.y, high.y}, second[4] = {low.z, high.z, low.w, high.w};
#pragma unroll
      for (int t = 0; t < kEights; ++t) {
        const U32x4 x = activations(t * 8 + lane_index() / 4, k);
        ptx::mma_s8<Arch>(acc[t], first, {x.x, x.y});
        ptx::mma_s8<Arch>(acc[t], second, {x.z, x.w});
      }
    } else {
#pragma unroll
      for (int m = 0; m < kRows; ++m) {
        if (!kAligned && m % 8 == 0) warp_barrier();  // x of more rows would be asked for at once: there are no registers
        const U32x4 x = activations(m, k);
        int32_t& a = acc[m / 8][m % 8 * 2];
        int32_t& b = acc[m / 8][m % 8 * 2 + 1];
        a = dot4(x.w, low.w, dot4(x.z, low.z, dot4(x.y, low.y, dot4(x.x, low.x, a))));
        b = dot4(x.w, high.w, dot4(x.z, high.z, dot4(x.y, high.y, dot4(x.x, high.x, b))));
      }
    }
  }

  INT8Q_DEVICE void add_sums(const int32_t (&acc)[kEights][kPerEight]) const {
    const int g = lane_index() / 4, q = lane_index() % 4;
#pragma unroll
    for (int t = 0; t < kEights; ++t) {
#pragma unroll
      for (int i = 0; i < kPerEight; ++i) {
        const int m = kHasInt8Mma<Arch> ? t * 8 + q * 2 + i % 2 : t * 8 + i / 2;
        const int n = kHasInt8Mma<Arch> ? g + i / 2 * 8 : g + i % 2 * 8;
        if (m < m_) atomic_add_shared(sum_at(m, n), acc[t][i]);
      }
    }
  }
  INT8Q_DEVICE uint32_t sum_at(int m, int n) const {
    return static_cast<uint32_t>(((other_ * kRows + m) * Shape::kRowsOfW + n) * 4);
  }

  // ---- Outlier columns

  INT8Q_DEVICE uint32_t x_of(int m) const { return group_ + static_cast<uint32_t>(m * kColumns * 4); }
  INT8Q_DEVICE uint32_t codes_of(int m) const { return x_of(kRows) + static_cast<uint32_t>(m * kColumns); }
  INT8Q_DEVICE uint32_t w_of(int n) const {
    return codes_of(kRows) + static_cast<uint32_t>((other_ * Shape::kRowsOfW + n) * kColumns);
  }

  // Whether what activations have there stays in shared memory.
  INT8Q_DEVICE bool one_group() const { return columns_.count <= kColumns; }

  // What activations have in columns [first, first + kColumns) of the list; 0 beyond it.
  INT8Q_DEVICE void bring_columns(uint32_t first) {
    const uint32_t rank = first + static_cast<uint32_t>(lane_index());
    column_ = rank < columns_.count ? columns_.column(rank) : -1;
    const bool subtracts = column_ >= 0 && p_.scope == OutlierScope::kColumns;
    const bool adds = column_ >= 0 && !p_.accumulators && !is_kept(p_, column_);
#pragma unroll 1
    for (int m = warp_index(); m < m_; m += Shape::kWarps) {
      const auto lane = static_cast<uint32_t>(lane_index());
      const auto q = static_cast<int8_t>(subtracts ? code(m, column_) : 0);
      const float x = adds ? outlier_of(p_, m, column_) : 0.0f;
      store_shared(codes_of(m) + lane, q);
      store_shared(x_of(m) + lane * 4, x);
    }
  }

  // W's codes there, of rows [col, col + 16): a row a warp and load.
  INT8Q_DEVICE void load_column_codes(int64_t col, uint32_t (&codes)[kWRowsOfAWarp]) const {
#pragma unroll
    for (int r = 0; r < kWRowsOfAWarp; ++r) {
      const int64_t n = col + warp_index() + r * Shape::kWarps;
      const bool there = column_ >= 0 && n < p_.n;
      codes[r] = there ? load(reinterpret_cast<const uint8_t*>(p_.w + n * p_.w_stride + column_)) : 0u;
    }
  }
  INT8Q_DEVICE void store_column_codes(const uint32_t (&codes)[kWRowsOfAWarp]) const {
#pragma unroll
    for (int r = 0; r < kWRowsOfAWarp; ++r) {
      store_shared(w_of(warp_index() + r * Shape::kWarps) + static_cast<uint32_t>(lane_index()),
                   static_cast<uint8_t>(codes[r]));
    }
  }

  // body(count) with each kColumns of the list in shared memory, or so many as there are, in ascending order.
  template <class Body>
  INT8Q_DEVICE void for_each_group(int64_t col, const Body& body) {
    for (uint32_t first = 0; first < columns_.count; first += kColumns) {
      if (columns_.count > kColumns) {
        uint32_t codes[kWRowsOfAWarp];
        block_barrier();  // all are done with those before
        bring_columns(first);
        load_column_codes(col, codes);
        store_column_codes(codes);
        block_barrier();
      }
      const uint32_t left = columns_.count - first;
      body(left < kColumns ? left : kColumns);
    }
  }

  INT8Q_DEVICE int32_t sum_of_columns(int m, int n, uint32_t count) const {
    int32_t sum = 0;
#pragma unroll kGroupsAtOnce
    for (uint32_t t = 0; t < count; t += 4)
      sum = dot4(load_shared<uint32_t>(codes_of(m) + t), load_shared<uint32_t>(w_of(n) + t), sum);
    return sum;
  }
  INT8Q_DEVICE float add_columns(int m, int n, uint32_t count, float f) const {
#pragma unroll kGroupsAtOnce
    for (uint32_t t = 0; t < count; t += 4) {
      const U32x4 four = load_shared<U32x4>(x_of(m) + t * 4);
      const uint32_t w = load_shared<uint32_t>(w_of(n) + t), bits[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float x = float_of(bits[e]);
        f = x == 0.0f ? f : fma(x, static_cast<float>(static_cast<int8_t>(w >> e * 8)), f);
      }
    }
    return f;
  }

  // ---- Results

  // What column n of Y is multiplied by, and its bias.
  INT8Q_DEVICE void load_column(int64_t n, float& scale, float& bias) const {
    if (p_.accumulators || n >= p_.n) return;
    scale = load(p_.col_stats + n);
    if (p_.bias != nullptr) bias = load_element(p_.bias_dtype, static_cast<const uint8_t*>(p_.bias), n);
  }

  INT8Q_DEVICE void finish(int64_t col, float scale, float bias) {
    const int n = thread_index() % Shape::kRowsOfW;
    const auto row = [](int r) { return (thread_index() + r * kThreads) / Shape::kRowsOfW; };
    int32_t acc[kResults];
    float f[kResults];
#pragma unroll
    for (int r = 0; r < kResults; ++r) {
      acc[r] = row(r) < m_ ? load_shared<int32_t>(sum_at(row(r), n)) : 0;
      if (row(r) < m_) store_shared<int32_t>(sum_at(row(r), n), 0);
    }
    const auto subtract = [&](uint32_t count) {
#pragma unroll
      for (int r = 0; r < kResults; ++r) {
        if (row(r) < m_) acc[r] -= sum_of_columns(row(r), n, count);
      }
    };
    if (p_.scope == OutlierScope::kColumns) for_each_group(col, subtract);
    if (p_.accumulators) {
#pragma unroll
      for (int r = 0; r < kResults; ++r) {
        auto* y = reinterpret_cast<int32_t*>(p_.y + row(r) * p_.y_stride) + col;
        if (row(r) < m_ && col + n < p_.n) store(y + n, acc[r]);
      }
      return;
    }
#pragma unroll
    for (int r = 0; r < kResults; ++r) {
      const uint32_t stat = stats_ + static_cast<uint32_t>(row(r)) * 4;
      f[r] = row(r) < m_ ? static_cast<float>(acc[r]) * (load_shared<float>(stat) * (1.0f / 127.0f)) : 0.0f;
    }
    for_each_group(col, [&](uint32_t count) {
#pragma unroll
      for (int r = 0; r < kResults; ++r) {
        if (row(r) < m_) f[r] = add_columns(row(r), n, count, f[r]);
      }
    });
    if (!kEarly) load_column(col + n, scale, bias);
#pragma unroll
    for (int r = 0; r < kResults; ++r) {
      if (row(r) < m_ && col + n < p_.n) store_result(row(r), col + n, f[r], scale, bias);
    }
  }

  INT8Q_DEVICE void store_result(int m, int64_t n, float f, float scale, float bias) const {
    uint8_t* y = p_.y + m * p_.y_stride;
    float value = f * (scale * (1.0f / 127.0f));
    value = add_kept_columns(p_, columns_.bitmap, m, n, value);
    if (p_.bias != nullptr) value += bias;
    if (p_.accumulate) value += load_element(p_.y_dtype, y, n);
    store_element(p_.y_dtype, y, n, value);
  }

  const Gemm& p_;
  ColumnList columns_;
  const uint32_t stats_, group_, codes_, code_stride_;
  const int m_, k_;
  WeightStream<kAhead, kAligned, kEarly> w_;
  int column_ = -1;     // this lane's, of those in shared memory; -1 beyond them
  bool other_ = false;  // which of the two places 16 rows' sums and codes of outlier columns have
};

template <class Arch, int kEights, bool kFused, bool kAligned>
INT8Q_DEVICE void skinny(const Gemm& p) {
  SkinnyBlock<Arch, kEights, kFused, kAligned>(p).run();
}

}  // namespace int8q::gpu
