// SPDX-License-Identifier: Apache-2.0
//
// Vector-wise quantization of rows of activations (arXiv 2208.07339, section 3.1), as quantize_rows on the CPU, bit for bit:
//
//   row_stats[i] = max |x[i][k]| over the row's inliers; NaN where one is NaN or Inf
//   codes[i][k]  = rint(x[i][k] * (127 * (1 / stat))), for stat < 2^-120 rint((x[i][k] / stat) * 127)
//                  0 for outliers, in a row whose stat is 0 or NaN, and for k from K on
//   outlier      limit <= bits(|x|) <= bits(Inf)
//
// Codes of inliers in outlier columns are there; the product takes them out again.
//
// A block of kThreads takes every block_count()-th row and reads it twice, the second time from L1: a row of K=14336 is 28 KiB.
// absmax is the unsigned maximum of the bits of |x|, whose order is the floats' with NaN on top; fmax would drop NaN.
//
// Shared memory: the bitmap of columns, then a word a warp for maxima.
#pragma once

#include "cuda/kernels/elements.h"
#include "cuda/kernels/outlier_columns.h"

namespace int8q::gpu {

struct RowScale {
  float stat, factor;
  bool plain;  // not tiny, 0 or NaN: codes are x * factor, rounded

  INT8Q_DEVICE explicit RowScale(uint32_t absmax)
      : stat(absmax < kInfBits ? float_of(absmax) : float_of(0x7fc00000u)),
        factor(stat > 0.0f ? 127.0f * divide(1.0f, stat) : 0.0f),
        plain(stat >= 0x1p-120f) {}
  INT8Q_DEVICE int32_t other_code(float x) const { return stat > 0.0f ? round_to_int(divide(x, stat) * 127.0f) : 0; }
};

struct ChunkScan {
  uint32_t absmax;    // of the inliers
  uint32_t outliers;  // a bit an element
};
INT8Q_DEVICE ChunkScan scan_chunk(const float (&v)[kChunk], uint32_t limit) {
  ChunkScan scan{0, 0};
#pragma unroll
  for (int e = 0; e < kChunk; ++e) {
    const uint32_t bits = magnitude(v[e]);
    const bool outlier = is_outlier(bits, limit);
    scan.outliers |= static_cast<uint32_t>(outlier) << e;
    scan.absmax = !outlier && bits > scan.absmax ? bits : scan.absmax;
  }
  return scan;
}

// The lowest bytes of four words.
INT8Q_DEVICE uint32_t lowest_bytes(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  return byte_permute(byte_permute(a, b, 0x0040), byte_permute(c, d, 0x0040), 0x5410);
}

// Beside 1.5 * 2^23 a float has no bits below 1, so that the sum is rounded half to even and ends in the code: a
// conversion takes four times an addition's time.
INT8Q_DEVICE U32x2 encode_chunk(const float (&v)[kChunk], const RowScale& scale, uint32_t limit) {
  uint32_t codes[kChunk];
  if (scale.plain) {
#pragma unroll
    for (int e = 0; e < kChunk; ++e)
      codes[e] = bits_of((is_outlier(magnitude(v[e]), limit) ? 0.0f : v[e]) * scale.factor + 0x1.8p23f);
  } else {
#pragma unroll
    for (int e = 0; e < kChunk; ++e)
      codes[e] = is_outlier(magnitude(v[e]), limit) ? 0u : static_cast<uint32_t>(scale.other_code(v[e]));
  }
  return {lowest_bytes(codes[0], codes[1], codes[2], codes[3]), lowest_bytes(codes[4], codes[5], codes[6], codes[7])};
}

INT8Q_DEVICE uint32_t warp_maximum(uint32_t value) {
#pragma unroll
  for (int mask = kWarp / 2; mask > 0; mask /= 2) {
    const uint32_t other = shuffle_xor(value, mask);
    value = other > value ? other : value;
  }
  return value;
}

// The largest `value` of the block, for all of its threads; `at` has a word a warp. Two barriers.
template <int kThreads>
INT8Q_DEVICE uint32_t block_maximum(uint32_t value, uint32_t at) {
  value = warp_maximum(value);
  if (lane_index() == 0) store_shared(at + static_cast<uint32_t>(warp_index()) * 4, value);
  block_barrier();
#pragma unroll
  for (uint32_t w = 0; w < kThreads / kWarp; ++w) {
    const uint32_t other = load_shared<uint32_t>(at + w * 4);
    value = other > value ? other : value;
  }
  block_barrier();
  return value;
}

// A thread's next chunks of a row, elements [i, i + 8) for i = first, first + step, ...: those that are whole, if rows are aligned.
template <class T, int kAhead>
struct ChunksAhead {
  uint32_t bits[kAhead][kChunkWords<T>] = {};
  bool loaded = false;

  template <bool kAligned>
  INT8Q_DEVICE void load(const T* row, int64_t first, int64_t step, int64_t k) {
    loaded = true;
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      if (kAligned && first + a * step + kChunk <= k) load_words(row + first + a * step, bits[a]);
    }
  }
};

// body(i, v) of a thread's chunks of a row of k elements, for i below `padded`; elements from k on are 0. `chunks`: the first of
// them, if it is loaded.
template <bool kAligned, int kAhead, class T, class Body>
INT8Q_DEVICE void for_each_chunk(Dtype dtype, const T* row, int64_t first, int64_t step, int64_t k, int64_t padded,
                                 ChunksAhead<T, kAhead>& chunks, const Body& body) {
#pragma unroll 1
  for (int64_t i = first; i < padded; i += kAhead * step) {
    if (!chunks.loaded) chunks.template load<kAligned>(row, i, step, k);
    chunks.loaded = false;
#pragma unroll 1
    for (int t = 0; t < kAhead; ++t) {
      const int64_t at = i + t * step;
      if (at >= padded) break;
      float v[kChunk];
      if (kAligned && at + kChunk <= k) {
        floats_of<T>(dtype, chunks.bits[0], v);
      } else {
        load_chunk(dtype, row, at, k, false, v);
      }
      body(at, v);
#pragma unroll
      for (int a = 0; a + 1 < kAhead; ++a) {  // so that the body is there once
#pragma unroll
        for (int w = 0; w < kChunkWords<T>; ++w) chunks.bits[a][w] = chunks.bits[a + 1][w];
      }
    }
  }
}
template <bool kAligned, int kAhead, class T, class Body>
INT8Q_DEVICE void for_each_chunk(Dtype dtype, const T* row, int64_t first, int64_t step, int64_t k, int64_t padded,
                                 const Body& body) {
  ChunksAhead<T, kAhead> chunks;
  for_each_chunk<kAligned>(dtype, row, first, step, k, padded, chunks, body);
}

// absmax of the inliers among them; mark(i, bits) hears of the outliers.
template <bool kAligned, int kAhead, class T, class Mark>
INT8Q_DEVICE uint32_t scan_row(Dtype dtype, const T* row, int64_t first, int64_t step, int64_t k, uint32_t limit,
                               ChunksAhead<T, kAhead>& chunks, const Mark& mark) {
  uint32_t absmax = 0;
  for_each_chunk<kAligned>(dtype, row, first, step, k, k, chunks, [&](int64_t i, const float(&v)[kChunk]) {
    const ChunkScan scan = scan_chunk(v, limit);
    absmax = scan.absmax > absmax ? scan.absmax : absmax;
    if (scan.outliers != 0) mark(i, scan.outliers);
  });
  return absmax;
}

template <Dtype D, bool kAligned>
INT8Q_DEVICE void quantize_rows(const QuantizeRows& p) {
  constexpr int kThreads = QuantizeRows::kThreads;
  constexpr int kAhead = D == Dtype::kF32 ? 2 : 4;  // 64 bytes a thread
  const int words = bitmap_words(p.k);
  const uint32_t bitmap = 0, maxima = static_cast<uint32_t>(words) * 4;
  clear_bitmap(bitmap, words, kThreads);
  if (block_index() == 0) {
    for (int i = thread_index(); i < p.counter_count; i += kThreads) store(p.counters + i, 0u);
  }
  block_barrier();
  for (int64_t row = block_index(); row < p.rows; row += block_count()) {
    const auto* x = reinterpret_cast<const BitsOf<D>*>(p.x + row * p.x_stride);
    int8_t* codes = p.codes + row * p.codes_stride;
    const int64_t first = thread_index() * kChunk, step = kThreads * kChunk;
    ChunksAhead<BitsOf<D>, kAhead> chunks;
    const uint32_t absmax = scan_row<kAligned>(D, x, first, step, p.k, p.limit, chunks,
                                               [&](int64_t k, uint32_t outliers) { mark_columns(bitmap, k, outliers); });
    const RowScale scale(block_maximum<kThreads>(absmax, maxima));
    for_each_chunk<kAligned, 1>(D, x, first, step, p.k, p.padded, [&](int64_t k, const float(&v)[kChunk]) {
      store(reinterpret_cast<U32x2*>(codes + k), encode_chunk(v, scale, p.limit));
    });
    if (thread_index() == 0) store(&p.row_stats[row], scale.stat);
  }
  if (p.found == nullptr) return;
  store_found(bitmap, words, p.found + block_index(), p.bitmaps + static_cast<int64_t>(block_index()) * words);
}

}  // namespace int8q::gpu
