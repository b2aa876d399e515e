// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/shard_writer.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <exception>

#include "core/dtype.h"
#include "cpu/quantize.h"

namespace int8q::checkpoint {
namespace {

// 8 MiB of weights, 4 of codes, 1 of stored rows and 256 KiB of stats: 13.25 MiB, and still 15 rows of the longest K
// (133,144 fp32 elements: 520 KiB) for the threads to share. Each thread reads, quantizes and writes rows of its own: 85% of
// the time are the system's copies from and to its cache.
constexpr int64_t kBlockBytes = 8 << 20;
constexpr int64_t kStripBytes = 1 << 20;
constexpr int64_t kLargestBlockRows = 1 << 16;
constexpr uint64_t kCopyBytes = static_cast<uint64_t>(kBlockBytes);

// Below this one thread has read it (10 us at 6 GB/s) before another one wakes.
constexpr uint64_t kSerialBytes = 64 << 10;

// block[j][i] = strip[i][j] for count x width elements; rows of the block are block_stride elements apart.
template <class Element>
void transpose(const uint8_t* strip, int64_t count, int64_t width, uint8_t* block, int64_t block_stride) {
  constexpr int64_t kTile = 32;  // 32 destination lines of 64 bytes stay in L1
  for (int64_t j0 = 0; j0 < width; j0 += kTile) {
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t j = j0; j < std::min(j0 + kTile, width); ++j) {
        std::memcpy(block + (j * block_stride + i) * static_cast<int64_t>(sizeof(Element)),
                    strip + (i * width + j) * static_cast<int64_t>(sizeof(Element)), sizeof(Element));
      }
    }
  }
}

// body(range) for each thread's range of `count` rows or bytes, or for all of them where little is to be read; throws what one
// of them threw.
template <class Body>
void share(Context& context, int64_t count, uint64_t bytes, const Body& body) {
  const int64_t parts = bytes < kSerialBytes ? 1 : context.pool.threads();
  std::exception_ptr failure;
  std::atomic_flag failed = ATOMIC_FLAG_INIT;
  context.pool.run(parts, [&](int64_t part) {
    try {
      const Range range = part_range(count, part, parts);
      if (range.begin < range.end) body(range);
    } catch (...) {
      if (!failed.test_and_set()) failure = std::current_exception();
    }
  });
  if (failure != nullptr) std::rethrow_exception(failure);
}

int8q_progress describe(int32_t phase, const PlannedShard& shard, const PlannedTensor& t) {
  int8q_progress progress{};
  progress.phase = phase;
  progress.file = shard.name.c_str();
  progress.tensor = t.in.name.c_str();
  progress.action = t.action;
  progress.dtype = t.in.dtype;
  progress.rows = t.n;
  progress.cols = t.k;
  return progress;
}

}  // namespace

void Progress::report(int8q_progress progress) const {
  if (sink_.report == nullptr) return;
  progress.size = sizeof progress;
  if (sink_.report(sink_.opaque, &progress) != 0) {
    fail(INT8Q_CANCELLED, "the progress callback asked to stop at \"%s\"; nothing is left behind",
         shown(progress.tensor != nullptr ? progress.tensor : progress.file).c_str());
  }
}

void Progress::planned(const PlannedShard& shard, const PlannedTensor& t) const {
  int8q_progress progress = describe(INT8Q_PHASE_PLAN, shard, t);
  progress.bytes_in = t.in.bytes();
  progress.bytes_out = t.bytes_out();
  report(progress);
}

void Progress::wrote(const PlannedShard& shard, const PlannedTensor& t, uint64_t bytes_in, uint64_t bytes_out) {
  int8q_progress progress = describe(INT8Q_PHASE_WRITE, shard, t);
  progress.bytes_in = done_in_ += bytes_in;
  progress.bytes_out = done_out_ += bytes_out;
  progress.total_in = total_in_;
  progress.total_out = total_out_;
  report(progress);
}

void Progress::finished(const std::string& file) const {
  int8q_progress progress{};
  progress.phase = INT8Q_PHASE_FINISH;
  progress.file = file.c_str();
  progress.bytes_in = progress.total_in = total_in_;
  progress.bytes_out = progress.total_out = total_out_;
  report(progress);
}

struct ShardWriter::Shard {
  const PlannedShard& plan;
  const InputFile& in;
  OutputFile& out;
  uint64_t out_data_begin;

  uint64_t in_offset(const PlannedTensor& t) const { return plan.in_data_begin + t.in.begin; }
  uint64_t out_offset(size_t index) const { return out_data_begin + plan.out[index].begin; }
};

ShardWriter::ShardWriter(Context& context, Progress& progress)
    : context_(context), progress_(progress), memory_(context.allocator) {
  const auto carve = [this](void* base) {
    Carver carver(base);
    weights_ = carver.take<uint8_t>(kBlockBytes, "checkpoint block");
    strip_ = carver.take<uint8_t>(kStripBytes, "checkpoint block");
    codes_ = carver.take<int8_t>(kBlockBytes / 2, "checkpoint block");
    stats_ = carver.take<float>(kLargestBlockRows, "checkpoint block");
    return static_cast<uint64_t>(carver.used());
  };
  carve(memory_.reserve(carve(nullptr)));
}

void ShardWriter::write(const PlannedShard& plan, const std::string& path) {
  const InputFile in(plan.in_path);
  if (in.bytes() != plan.in_bytes) {
    fail(INT8Q_CORRUPT, "%s: has %llu bytes now and had %llu before; do not write to it meanwhile",
         shown(plan.in_path).c_str(), static_cast<unsigned long long>(in.bytes()),
         static_cast<unsigned long long>(plan.in_bytes));
  }
  const std::string header = make_header(plan.out, plan.metadata);
  OutputFile out(path, header.size() + plan.out_data_bytes, in.mode() | 0200);
  out.write(header.data(), header.size(), 0);
  const Shard shard{plan, in, out, header.size()};
  for (const PlannedTensor& tensor : plan.tensors) {
    tensor.quantize() ? quantize(shard, tensor) : copy(shard, tensor);
  }
  out.finish();
}

void ShardWriter::copy(const Shard& shard, const PlannedTensor& t) {
  uint64_t done = 0;
  do {
    const uint64_t count = std::min(kCopyBytes, t.in.bytes() - done);
    share(context_, static_cast<int64_t>(count), count, [&](Range range) {
      const auto begin = static_cast<uint64_t>(range.begin), bytes = static_cast<uint64_t>(range.end - range.begin);
      shard.in.read_exactly(weights_ + begin, bytes, shard.in_offset(t) + done + begin);
      shard.out.write(weights_ + begin, bytes, shard.out_offset(t.out) + done + begin);
    });
    done += count;
    progress_.wrote(shard.plan, t, count, count);
  } while (done < t.in.bytes());
}

// Rows [begin, begin + count) of the weight [N,K] that is stored [K,N] to weights_: from some stored rows at a time the piece
// of `count` columns, then transposed into place.
void ShardWriter::read_transposed(const Shard& shard, const PlannedTensor& t, int64_t begin, int64_t count) {
  const int64_t element = dtype_bytes(t.in.dtype), piece = count * element;
  const int64_t rows =
      std::max<int64_t>(1, kStripBytes / piece);  // NOLINT(clang-analyzer-core.DivideZero): a block has rows
  for (int64_t i = 0; i < t.k; i += rows) {
    const int64_t here = std::min(rows, t.k - i);
    for (int64_t r = 0; r < here; ++r) {
      shard.in.read_exactly(strip_ + r * piece, static_cast<uint64_t>(piece),
                            shard.in_offset(t) + static_cast<uint64_t>(((i + r) * t.n + begin) * element));
    }
    (element == 4 ? transpose<uint32_t> : transpose<uint16_t>)(strip_, here, count, weights_ + i * element, t.k);
  }
}

// Rows [done, done + rows) of the tensor, and their codes to the file; stats_ are theirs.
void ShardWriter::quantize_block(const Shard& shard, const PlannedTensor& t, int64_t done, int64_t rows) {
  if (rows == 0) return;
  const int64_t row_bytes = t.k * dtype_bytes(t.in.dtype);
  if (t.transposed) read_transposed(shard, t, done, rows);
  share(context_, rows, static_cast<uint64_t>(rows * row_bytes), [&](Range range) {
    const auto bytes_of = [&](int64_t row, int64_t bytes) { return static_cast<uint64_t>(row * bytes); };
    const int64_t count = range.end - range.begin;
    if (!t.transposed) {
      shard.in.read_exactly(weights_ + range.begin * row_bytes, bytes_of(count, row_bytes),
                            shard.in_offset(t) + bytes_of(done + range.begin, row_bytes));
    }
    quantize_to_s8(*context_.kernels, {weights_, kernel_index(t.in.dtype), rows, t.k, row_bytes}, range, cpu::kNoOutliers,
                   codes_, t.k, stats_, nullptr);
    shard.out.write(codes_ + range.begin * t.k, bytes_of(count, t.k),
                    shard.out_offset(t.out) + bytes_of(done + range.begin, t.k));
  });
}

void ShardWriter::quantize(const Shard& shard, const PlannedTensor& t) {
  const int64_t row_bytes = t.k * dtype_bytes(t.in.dtype);
  const int64_t block_rows = std::clamp<int64_t>(kBlockBytes / std::max<int64_t>(1, row_bytes), 1, kLargestBlockRows);
  int64_t done = 0;
  do {
    const int64_t rows = std::min(block_rows, t.n - done);
    quantize_block(shard, t, done, rows);
    for (int64_t i = 0; i < rows; ++i) {
      if (!std::isnan(stats_[i])) continue;
      fail(INT8Q_NOT_FINITE, "%s: tensor \"%s\" has NaN or Inf in row %lld; expected finite weights (or exclude it)",
           shown(shard.plan.in_path).c_str(), shown(t.in.name).c_str(), static_cast<long long>(done + i));
    }
    const uint64_t first = static_cast<uint64_t>(done), count = static_cast<uint64_t>(rows);
    shard.out.write(stats_, count * sizeof(float), shard.out_offset(t.out + 1) + first * sizeof(float));
    done += rows;
    uint64_t written = count * (static_cast<uint64_t>(t.k) + sizeof(float));
    if (done == t.n) {
      constexpr uint8_t kRowMajor = 0;
      shard.out.write(&kRowMajor, 1, shard.out_offset(t.out + 2));
      ++written;
    }
    progress_.wrote(shard.plan, t, count * static_cast<uint64_t>(row_bytes), written);
  } while (done < t.n);
}

}  // namespace int8q::checkpoint
