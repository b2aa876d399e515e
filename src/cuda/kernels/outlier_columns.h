// SPDX-License-Identifier: Apache-2.0
//
// Which columns hold an outlier, from the blocks that quantize to the blocks that multiply, without atomics on global memory
// and without a pass between:
//
//   quantize   each block marks columns in a bitmap in shared memory, and stores its count, the first kListed of them and the
//              bitmap, which is read where a block has more
//   multiply   each block marks what all of those found in a bitmap of its own, and reads it in ascending order
//
// A bitmap has a bit a column, column c in bit c % 32 of word c / 32.
#pragma once

#include "cuda/kernels/elements.h"

namespace int8q::gpu {

// The bitmap at `bitmap`, zeroed by these threads, of which this is the thread-th. No barrier.
INT8Q_DEVICE void clear_bitmap(uint32_t bitmap, int words, int threads, int thread = thread_index()) {
  for (int w = thread; w < words; w += threads) store_shared<uint32_t>(bitmap + static_cast<uint32_t>(w) * 4, 0);
}

// Marks columns [column, column + 32) by their bits; column % 32 + the highest bit < 32.
INT8Q_DEVICE void mark_columns(uint32_t bitmap, int64_t column, uint32_t bits) {
  atomic_or_shared(bitmap + static_cast<uint32_t>(column / 32) * 4, bits << column % 32);
}

INT8Q_DEVICE bool holds_column(uint32_t bitmap, int64_t column) {
  return (load_shared<uint32_t>(bitmap + static_cast<uint32_t>(column / 32) * 4) >> column % 32 & 1) != 0;
}

// Sum of `value` over the lanes up to this one.
INT8Q_DEVICE uint32_t inclusive_sum(uint32_t value) {
#pragma unroll
  for (int by = 1; by < kWarp; by *= 2) {
    const uint32_t below = shuffle_up(value, by);
    if (lane_index() >= by) value += below;
  }
  return value;
}

// body(w, bits, columns before them) of each word of a bitmap, by a whole warp, whose lanes have neighbours, an odd number of them
// for the banks; returns how many columns there are.
template <class Body>
INT8Q_DEVICE uint32_t for_each_word(uint32_t bitmap, int words, const Body& body) {
  const auto word = [bitmap](int w) { return load_shared<uint32_t>(bitmap + static_cast<uint32_t>(w) * 4); };
  const int share = (words + kWarp - 1) / kWarp | 1, first = lane_index() * share;
  const int last = first + share < words ? first + share : words;
  uint32_t mine = 0;
#pragma unroll 4
  for (int w = first; w < last; ++w) mine += static_cast<uint32_t>(count_bits(word(w)));
  const uint32_t sum = inclusive_sum(mine);
  uint32_t before = sum - mine;
#pragma unroll 4
  for (int w = first; w < last; ++w) {
    const uint32_t bits = word(w);
    body(w, bits, before);
    before += static_cast<uint32_t>(count_bits(bits));
  }
  return shuffle(sum, kWarp - 1);
}

// Stores what the block marked: by the first warp, behind a barrier. whole: [words] of global memory for the bitmap.
INT8Q_DEVICE void store_found(uint32_t bitmap, int words, FoundColumns* found, uint32_t* whole) {
  if (warp_index() != 0) return;
  const uint32_t count = for_each_word(bitmap, words, [found](int w, uint32_t bits, uint32_t rank) {
    for (; bits != 0 && rank < kListed; bits &= bits - 1)
      store(&found->first[rank++], static_cast<uint32_t>(w * 32 + lowest_bit(bits)));
  });
  if (lane_index() == 0) store(&found->count, count);
  if (lane_index() < kListed && static_cast<uint32_t>(lane_index()) >= count) store(&found->first[lane_index()], 0u);
  for (int w = lane_index(); w < words; w += kWarp)
    store(&whole[w], load_shared<uint32_t>(bitmap + static_cast<uint32_t>(w) * 4));
}

// Of four columns, whose bits are the lowest: the bytes that are none.
INT8Q_DEVICE uint32_t other_bytes(uint32_t bits) { return ~(((bits & 0xf) * 0x00204081 & 0x01010101) * 0xff); }

// Elements of a row in these columns, which ascend; 0 where one is -1. Neighbours come at once, others without waiting for each
// other.
template <class T, int kCount>
INT8Q_DEVICE void gather(const T* row, const int (&columns)[kCount], uint32_t (&v)[kCount]) {
  constexpr int kWords = kCount * sizeof(T) / 4;
  const T* first = row + (columns[0] < 0 ? 0 : columns[0]);
  const bool neighbours = columns[0] >= 0 && columns[kCount - 1] - columns[0] == kCount - 1;
  if (neighbours && reinterpret_cast<uint64_t>(first) % (kWords < 4 ? kWords * 4 : 16) == 0) {
    uint32_t words[kWords];
    load_words(first, words);
#pragma unroll
    for (int e = 0; e < kCount; ++e) v[e] = bits_at<T>(words, e);
  } else {
#pragma unroll
    for (int e = 0; e < kCount; ++e) v[e] = load(columns[e] < 0 ? first : row + columns[e]);
  }
#pragma unroll
  for (int e = 0; e < kCount; ++e) v[e] = columns[e] < 0 ? 0 : v[e];
}

// Columns in ascending order, from a bitmap. Shared memory: bitmap_bytes and rank_bytes, the bitmap at a multiple of 16.
struct ColumnList {
  uint32_t bitmap, rank;  // rank: columns before each word
  int words;
  uint32_t count = 0;

  INT8Q_DEVICE ColumnList(int bitmap_at, int rank_at, int64_t k)
      : bitmap(static_cast<uint32_t>(bitmap_at)), rank(static_cast<uint32_t>(rank_at)), words(bitmap_words(k)) {}

  // An empty bitmap, by the whole block; ends in a barrier.
  INT8Q_DEVICE void clear(int threads) const {
    clear(threads, thread_index());
    block_barrier();
  }
  // By these threads, of which this is the thread-th; no barrier.
  INT8Q_DEVICE void clear(int threads, int thread) const { clear_bitmap(bitmap, words + 1, threads, thread); }

  INT8Q_DEVICE void mark(int64_t column, uint32_t bits) const { mark_columns(bitmap, column, bits); }

  // Marks what any block found, by the whole block.
  INT8Q_DEVICE void merge(const FoundColumns* found, const uint32_t* bitmaps, int blocks, int threads) const {
    merge(found, bitmaps, blocks, threads, thread_index(), [] { block_barrier(); });
  }
  // By so many threads, of which this is the thread-th, and which barrier() brings together. Blocks find the same columns: where the
  // lane below has one, too, that lane marks it, for marks of one word go one by one.
  template <class Barrier>
  INT8Q_DEVICE void merge(const FoundColumns* found, const uint32_t* bitmaps, int blocks, int threads, int thread,
                          const Barrier& barrier) const {
    for (int first = 0; first < blocks; first += threads) {
      const int b = first + thread;
      uint32_t parts[1 + kListed] = {};
      if (b < blocks) load_words(&found[b], parts);  // at once, of which few are needed
      const bool whole = parts[0] > kListed;
      if (whole) atomic_or_shared(any_whole(), 1);
#pragma unroll
      for (uint32_t t = 0; t < kListed; ++t) {
        const uint32_t mine = t < parts[0] && !whole ? parts[1 + t] + 1 : 0, below = shuffle_up(mine, 1);
        if (mine != 0 && (lane_index() == 0 || mine != below)) mark(mine - 1, 1);
      }
    }
    barrier();
    if (load_shared<uint32_t>(any_whole()) == 0) return;
    // Threads share 16 bytes of a bitmap, so that none has many bitmaps to read; loads do not wait for each other.
    const int quads = words / 4, shares = threads > quads ? threads / quads : 1;
    for (int i = thread; i < quads * shares; i += threads) {
      const int quad = i % quads;
      uint32_t bits[4] = {0, 0, 0, 0};
#pragma unroll 4
      for (int b = i / quads; b < blocks; b += shares) {
        const U32x4 four = load(reinterpret_cast<const U32x4*>(bitmaps + static_cast<int64_t>(b) * words) + quad);
        bits[0] |= four.x, bits[1] |= four.y, bits[2] |= four.z, bits[3] |= four.w;
      }
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        if (bits[w] != 0) atomic_or_shared(bitmap + static_cast<uint32_t>(quad * 4 + w) * 4, bits[w]);
      }
    }
  }

  // Counts what is marked, by the whole block; begins and ends in a barrier.
  INT8Q_DEVICE void close() {
    block_barrier();
    if (warp_index() == 0) find_ranks();
    block_barrier();
    count = load_shared<uint32_t>(total());
  }

  // Where the ranks end in shared memory.
  INT8Q_DEVICE uint32_t end() const { return total() + 4; }

  // The column of rank r < count: the r-th set bit.
  INT8Q_DEVICE int column(uint32_t r) const {
    int low = 0;
    for (int high = words; high - low > 1;) {
      const int middle = (low + high) / 2;
      (load_shared<uint32_t>(rank + static_cast<uint32_t>(middle) * 4) <= r ? low : high) = middle;
    }
    uint32_t bits = load_shared<uint32_t>(bitmap + static_cast<uint32_t>(low) * 4);
    for (uint32_t skip = r - load_shared<uint32_t>(rank + static_cast<uint32_t>(low) * 4); skip > 0; --skip)
      bits &= bits - 1;
    return low * 32 + lowest_bit(bits);
  }

 private:
  INT8Q_DEVICE uint32_t total() const { return rank + static_cast<uint32_t>(words) * 4; }
  INT8Q_DEVICE uint32_t any_whole() const { return bitmap + static_cast<uint32_t>(words) * 4; }

  INT8Q_DEVICE void find_ranks() const {
    const uint32_t all = for_each_word(bitmap, words, [this](int w, uint32_t, uint32_t before) {
      store_shared(rank + static_cast<uint32_t>(w) * 4, before);
    });
    if (lane_index() == 0) store_shared(total(), all);
  }
};

}  // namespace int8q::gpu
