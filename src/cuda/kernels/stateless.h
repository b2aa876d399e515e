// SPDX-License-Identifier: Apache-2.0
//
// What the stateless operations need beside quantize_rows and the products. Bound by memory, or small.
#pragma once

#include "cuda/kernels/elements.h"
#include "cuda/kernels/outlier_columns.h"

namespace int8q::gpu {

// Any number of blocks: each makes the list; the first stores it, and all zero codes.
INT8Q_DEVICE void finish_columns(const FinishColumns& p) {
  ColumnList columns(0, bitmap_bytes(p.k), p.k);
  columns.clear(FinishColumns::kThreads);
  columns.merge(p.found, p.bitmaps, p.found_blocks, FinishColumns::kThreads);
  columns.close();
  if (block_index() == 0) {
    if (p.count != nullptr && thread_index() == 0) store(p.count, static_cast<int64_t>(columns.count));
    if (p.mask != nullptr) {
      for (int64_t k = thread_index(); k < p.k; k += FinishColumns::kThreads) {
        const uint32_t word = load_shared<uint32_t>(columns.bitmap + static_cast<uint32_t>(k / 32) * 4);
        store(p.mask + k, static_cast<uint8_t>(word >> k % 32 & 1));
      }
    }
    if (p.cols != nullptr) {
      for (uint32_t t = static_cast<uint32_t>(thread_index()); t < columns.count; t += FinishColumns::kThreads)
        store(p.cols + t, static_cast<int64_t>(columns.column(t)));
    }
  }
  if (p.codes == nullptr) return;
  for (int64_t row = block_index(); row < p.rows; row += block_count()) {
    for (uint32_t t = static_cast<uint32_t>(thread_index()); t < columns.count; t += FinishColumns::kThreads)
      store(p.codes + row * p.codes_stride + columns.column(t), static_cast<int8_t>(0));
  }
}

// One block.
INT8Q_DEVICE void list_columns(const ListColumns& p) {
  const int words = bitmap_words(p.k);
  clear_bitmap(0, words, ListColumns::kThreads);
  block_barrier();
  for (int64_t t = thread_index(); t < p.count; t += ListColumns::kThreads) {
    const int64_t column = load(p.cols + t);
    if (column >= 0 && column < p.k) mark_columns(0, column, 1);
  }
  block_barrier();
  store_found(0, words, p.found, p.bitmap);
}

// A thread takes 16 neighbours of a row.
INT8Q_DEVICE void copy_codes(const CopyCodes& p) {
  const int64_t chunks = (p.to_cols + kCodeChunk - 1) / kCodeChunk,
                step = static_cast<int64_t>(block_count()) * CopyCodes::kThreads;
  for (int64_t i = static_cast<int64_t>(block_index()) * CopyCodes::kThreads + thread_index(); i < p.rows * chunks;
       i += step) {
    const int64_t row = i / chunks, col = i % chunks * kCodeChunk;
    const int8_t* from = p.from + row * p.from_stride + col;
    int8_t* to = p.to + row * p.to_stride + col;
    const int valid = valid_codes(p.cols - col);
    const bool whole = valid == kCodeChunk && reinterpret_cast<uint64_t>(from) % kCodeChunk == 0;
    const U32x4 codes = whole ? load(reinterpret_cast<const U32x4*>(from)) : load_codes(from, valid);
    if (col + kCodeChunk <= p.to_cols && reinterpret_cast<uint64_t>(to) % kCodeChunk == 0) {
      store(reinterpret_cast<U32x4*>(to), codes);
      continue;
    }
    const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
#pragma unroll
    for (int e = 0; e < kCodeChunk; ++e) {
      if (col + e < p.to_cols) store(to + e, static_cast<int8_t>(words[e / 4] >> e % 4 * 8));
    }
  }
}

// A thread takes eight neighbours of a row.
template <bool kCodes>
INT8Q_DEVICE void dequantize(const Dequantize& p) {
  const int64_t chunks = (p.cols + kChunk - 1) / kChunk, step = static_cast<int64_t>(block_count()) * Dequantize::kThreads;
  for (int64_t i = static_cast<int64_t>(block_index()) * Dequantize::kThreads + thread_index(); i < p.rows * chunks;
       i += step) {
    const int64_t row = i / chunks, col = i % chunks * kChunk;
    const float stat = load(p.row_stats + row);
    float v[kChunk];
    if constexpr (kCodes) {
      const auto* codes = reinterpret_cast<const uint8_t*>(p.codes + row * p.stride);
      uint32_t words[kChunk / 4];
      load_bits(codes, col, p.cols, reinterpret_cast<uint64_t>(codes + col) % kChunk == 0, words);
#pragma unroll
      for (int e = 0; e < kChunk; ++e)
        v[e] = static_cast<float>(static_cast<int8_t>(bits_at<uint8_t>(words, e))) * stat * (1.0f / 127.0f);
    } else {
      const auto* sums =
          reinterpret_cast<const uint32_t*>(reinterpret_cast<const uint8_t*>(p.accumulators) + row * p.stride);
      uint32_t words[kChunk];
      load_bits(sums, col, p.cols, reinterpret_cast<uint64_t>(sums + col) % 16 == 0, words);
      load_chunk(Dtype::kF32, reinterpret_cast<const uint8_t*>(p.col_stats), col, p.cols, v);
#pragma unroll
      for (int e = 0; e < kChunk; ++e)
        v[e] = static_cast<float>(static_cast<int32_t>(words[e])) * (stat * v[e] * (1.0f / 16129.0f));
      if (p.bias != nullptr) add_chunk(p.bias_dtype, static_cast<const uint8_t*>(p.bias), col, p.cols, v);
    }
    store_chunk(p.y_dtype, p.y + row * p.y_stride, col, p.cols, v);
  }
}

// A lane takes eight neighbours of a row, a warp every so many-th row of kColumns: each byte of X is read once, 16 at a time. Warps meet
// in shared memory, blocks by an atomic a column.
INT8Q_DEVICE void count_outliers(const CountOutliers& p) {
  constexpr int kWarps = CountOutliers::kThreads / kWarp, kColumns = CountOutliers::kColumns;
  static_assert(kColumns == kWarp * kChunk && kColumns == CountOutliers::kThreads);
  const int64_t groups = (p.k + kColumns - 1) / kColumns, first = block_index() % groups * kColumns;
  const int64_t k = first + lane_index() * kChunk, step = block_count() / groups * kWarps;
  const auto place = [](int column) { return static_cast<uint32_t>(column) * 4; };
  store_shared<int32_t>(place(thread_index()), 0);
  block_barrier();
  int32_t counts[kChunk] = {};
  for (int64_t row = block_index() / groups * kWarps + warp_index(); row < p.rows; row += step) {
    const uint8_t* x = p.x + row * p.x_stride;
    float v[kChunk];
    load_chunk(p.x_dtype, x, k, p.k, v);
#pragma unroll
    for (int e = 0; e < kChunk; ++e) counts[e] += is_outlier(magnitude(v[e]), p.limit) ? 1 : 0;
  }
#pragma unroll
  for (int e = 0; e < kChunk; ++e) {
    if (counts[e] != 0) atomic_add_shared(place(lane_index() * kChunk + e), counts[e]);
  }
  block_barrier();
  const int32_t count = load_shared<int32_t>(place(thread_index()));
  if (count != 0) atomic_add(p.counts + first + thread_index(), count);
}

}  // namespace int8q::gpu
