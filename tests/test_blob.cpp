// SPDX-License-Identifier: Apache-2.0
//
// Packed linears as blobs: round trips, other memory, files, and blobs that lie.
#define XXH_INLINE_ALL
#include <sys/mman.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <functional>
#include <limits>

#include "core/blob.h"
#include "core/linear.h"
#include "support/call.h"
#include "support/oracle.h"

namespace int8q::test {
namespace {

constexpr int64_t kN = 21, kK = 70;
const int64_t kKept[2] = {3, 69};

int8q_linear_options options_with_kept() {
  return {sizeof(int8q_linear_options), INT8Q_OUTLIERS_ELEMENT, 3.0f, 0, kKept, 2, nullptr};
}

// A packed blob in aligned memory.
struct Blob {
  Workspace memory;
  Mat weight = random_mat(INT8Q_F32, kN, kK, 1), bias = random_mat(INT8Q_F32, 1, kN, 2);
  ContextPtr context = make_context(2);

  Blob() {
    uint64_t bytes = 0;
    EXPECT_STATUS(INT8Q_OK, int8q_query_blob(kN, kK, 1, 2, &bytes));
    memory = Workspace(bytes);
    const int8q_linear_options options = options_with_kept();
    EXPECT_STATUS(INT8Q_OK,
                  int8q_pack_linear(context.get(), weight.get(), nullptr, bias.get(), &options, memory.get(), bytes));
  }
  uint8_t* bytes() const { return static_cast<uint8_t*>(memory.get()); }
  int32_t open(uint32_t flags = 0, uint64_t count = 0) const {
    int8q_linear* linear = nullptr;
    const int32_t status =
        int8q_open_linear(context.get(), memory.get(), count == 0 ? memory.bytes() : count, flags, &linear);
    if (status == INT8Q_OK) {
      EXPECT_STATUS(INT8Q_OK, int8q_destroy_linear(linear));
    }
    return status;
  }
};

std::vector<uint8_t> outputs(int8q_context* context, const int8q_linear* linear) {
  const Mat x = random_input(INT8Q_F16, 6, kK, 3), y(INT8Q_F32, 6, kN);
  EXPECT_STATUS(INT8Q_OK, forward(context, linear, x, y));
  return y.bytes();
}

TEST(Blob, SizeIsTheSumOfItsSections) {
  uint64_t bytes = 0;
  ASSERT_CALL(int8q_query_blob(4096, 4096, 1, 7, &bytes));
  EXPECT_EQ(bytes, 256u + 4096u * 4096u + 4096u * 12u + 64u + 7u * 4096u * 2u);
  ASSERT_CALL(int8q_query_blob(0, 0, 0, 0, &bytes));
  EXPECT_EQ(bytes, 256u);
  EXPECT_STATUS(INT8Q_SIZE_OVERFLOW, int8q_query_blob(1, 133145, 0, 0, &bytes));
  EXPECT_STATUS(INT8Q_SIZE_OVERFLOW, int8q_query_blob(int64_t{1} << 60, 4096, 0, 0, &bytes));
  EXPECT_STATUS(INT8Q_SIZE_OVERFLOW, int8q_query_blob(INT64_MAX, 1, 0, 0, &bytes));
  EXPECT_EQ(bytes, 256u);
}

TEST(Blob, CreatePackOpenAndGetAgreeOnEveryIsa) {
  const Blob blob;
  const int8q_linear_options options = options_with_kept();
  std::vector<uint8_t> first;
  for (const cpu::Isa* isa : runnable_isas()) {
    const ContextPtr context = make_context(2, isa->name);
    int8q_linear *created = nullptr, *opened = nullptr;
    ASSERT_CALL(int8q_create_linear(context.get(), blob.weight.get(), nullptr, blob.bias.get(), &options, &created));
    ASSERT_CALL(int8q_open_linear(context.get(), blob.memory.get(), blob.memory.bytes(), 0, &opened));
    const LinearPtr a(created), b(opened);
    const void* memory = nullptr;
    uint64_t bytes = 0;
    ASSERT_CALL(int8q_get_blob(created, &memory, &bytes));
    ASSERT_EQ(bytes, blob.memory.bytes());
    EXPECT_EQ(0, std::memcmp(memory, blob.memory.get(), bytes)) << isa->name << ": one layout for every ISA";
    if (first.empty()) first = outputs(context.get(), created);
    EXPECT_EQ(outputs(context.get(), created), first) << isa->name;
    EXPECT_EQ(outputs(context.get(), opened), first) << isa->name;
  }
}

TEST(Blob, DescribesAndExportsWithoutLoss) {
  const Blob blob;
  int8q_linear* raw = nullptr;
  ASSERT_CALL(int8q_open_linear(blob.context.get(), blob.memory.get(), blob.memory.bytes(), INT8Q_TRUST_CHECKSUM, &raw));
  const LinearPtr linear(raw);
  int8q_linear_info info{};
  info.size = sizeof info;
  ASSERT_CALL(int8q_describe_linear(raw, &info));
  EXPECT_EQ(info.outlier_mode, INT8Q_OUTLIERS_ELEMENT);
  EXPECT_EQ(info.threshold, 3.0f);
  EXPECT_EQ(info.has_bias, 1);
  EXPECT_EQ(info.out_features, kN);
  EXPECT_EQ(info.in_features, kK);
  EXPECT_EQ(info.kept_count, 2);
  EXPECT_EQ(info.blob_bytes, blob.memory.bytes());

  Grid weight(INT8Q_F32, kN, kK), codes(INT8Q_S8, kN, kK, 3, 1), kept(INT8Q_F16, kN, 2, 1, 1);
  for (int64_t i = 0; i < kN; ++i) {
    for (int64_t j = 0; j < kK; ++j)
      weight.set(i, j, reinterpret_cast<const float*>(blob.weight.bytes().data())[i * kK + j]);
  }
  const Quantized expected = quantize(weight, INT8Q_OUTLIERS_OFF, 0);
  std::vector<float> stats(static_cast<size_t>(kN)), bias(static_cast<size_t>(kN));
  const int8q_matrix bias_view = matrix(INT8Q_F32, 1, kN, bias.data());
  int64_t cols[2] = {};
  ASSERT_CALL(int8q_export_linear(blob.context.get(), raw, codes.view(), stats.data(), &bias_view, cols, kept.view()));
  EXPECT_EQ(stats, expected.stats);
  const auto* given_bias = reinterpret_cast<const float*>(blob.bias.bytes().data());
  for (size_t j = 0; j < bias.size(); ++j) EXPECT_TRUE(same_bits(given_bias[j], bias[j])) << j;
  EXPECT_EQ(cols[0], kKept[0]);
  EXPECT_EQ(cols[1], kKept[1]);
  for (int64_t i = 0; i < kN; ++i) {
    for (int64_t j = 0; j < kK; ++j) ASSERT_EQ(codes.integer(i, j), expected.codes[static_cast<size_t>(i * kK + j)]);
    for (int64_t t = 0; t < 2; ++t) ASSERT_EQ(kept.at(i, t), from_f16(to_f16(weight.at(i, kKept[t]))));
  }
  EXPECT_TRUE(codes.gaps_untouched());
  EXPECT_TRUE(kept.gaps_untouched());
}

// From codes and stats, which bitsandbytes' checkpoints hold, comes the same blob as from the weights.
TEST(Blob, FromCodesIsFromWeights) {
  const Blob blob;
  int8q_linear* raw = nullptr;
  ASSERT_CALL(int8q_open_linear(blob.context.get(), blob.memory.get(), blob.memory.bytes(), 0, &raw));
  const LinearPtr linear(raw);
  Mat codes(INT8Q_S8, kN, kK), kept(INT8Q_F16, kN, 2);
  std::vector<float> stats(static_cast<size_t>(kN));
  ASSERT_CALL(int8q_export_linear(blob.context.get(), raw, codes.get(), stats.data(), nullptr, nullptr, kept.get()));
  int8q_linear_options options = options_with_kept();
  options.kept_weights = kept.get();
  const Workspace again(blob.memory.bytes());
  ASSERT_CALL(int8q_pack_linear(blob.context.get(), codes.get(), stats.data(), blob.bias.get(), &options, again.get(),
                                again.bytes()));
  EXPECT_EQ(0, std::memcmp(again.get(), blob.memory.get(), again.bytes()));
}

// Panels as cpu/kernels.h draws them, with the sums of their rows; and back.
TEST(Blob, CodesOfAnySizeComeBack) {
  for (const cpu::Isa* isa : runnable_isas()) {
    const ContextPtr context = make_context(3, isa->name);
    for (const int64_t n : {1, 15, 16, 17, 50}) {
      for (const int64_t k : {1, 3, 63, 64, 255, 256, 257, 319, 1030}) {
        SCOPED_TRACE(::testing::Message() << isa->name << " " << n << " x " << k);
        const Mat codes = random_mat(INT8Q_S8, n, k, static_cast<uint64_t>(n * k));
        const std::vector<float> stats(static_cast<size_t>(n), 1.0f);
        int8q_linear* raw = nullptr;
        ASSERT_CALL(int8q_create_linear(context.get(), codes.get(), stats.data(), nullptr, nullptr, &raw));
        const LinearPtr linear(raw);
        const BlobSections& blob = raw->blob;
        for (int64_t i = 0; i < blob.n_padded(); ++i) {
          int32_t sum = 0;
          for (int64_t j = 0; j < blob.k_padded(); ++j) {
            const auto code =
                i < n && j < k ? static_cast<int8_t>(codes.bytes()[static_cast<size_t>(i * k + j)]) : int8_t{0};
            ASSERT_EQ(code, blob.panels[i / 16 * blob.panel_stride() + j / 4 * 64 + i % 16 * 4 + j % 4]) << i << ", " << j;
            sum += code;
          }
          ASSERT_EQ(sum, blob.col_sums[i]) << i;
        }
        Grid exported(INT8Q_S8, n, k, 5, 1);
        ASSERT_CALL(int8q_export_linear(context.get(), raw, exported.view(), nullptr, nullptr, nullptr, nullptr));
        for (int64_t e = 0; e < n * k; ++e) {
          ASSERT_EQ(static_cast<int8_t>(codes.bytes()[static_cast<size_t>(e)]), exported.integer(e / k, e % k)) << e;
        }
        EXPECT_TRUE(exported.gaps_untouched());
      }
    }
  }
}

TEST(Blob, LivesInAMappedFile) {
  const Blob blob;
  std::FILE* file = std::tmpfile();
  ASSERT_NE(file, nullptr);
  ASSERT_EQ(std::fwrite(blob.memory.get(), 1, blob.memory.bytes(), file), blob.memory.bytes());
  ASSERT_EQ(std::fflush(file), 0);
  void* mapped = mmap(nullptr, blob.memory.bytes(), PROT_READ, MAP_SHARED, fileno(file), 0);
  ASSERT_NE(mapped, MAP_FAILED);
  {
    int8q_linear *from_file = nullptr, *from_memory = nullptr;
    ASSERT_CALL(int8q_open_linear(blob.context.get(), mapped, blob.memory.bytes(), 0, &from_file));
    ASSERT_CALL(int8q_open_linear(blob.context.get(), blob.memory.get(), blob.memory.bytes(), 0, &from_memory));
    const LinearPtr a(from_file), b(from_memory);
    EXPECT_EQ(outputs(blob.context.get(), from_file), outputs(blob.context.get(), from_memory));
  }
  munmap(mapped, blob.memory.bytes());
  std::fclose(file);
}

// Every byte matters: any single change is refused, in the header also where the payload is trusted.
TEST(Blob, AnyChangedByteIsRefused) {
  const Blob blob;
  ASSERT_EQ(blob.open(), INT8Q_OK);
  for (uint64_t at = 0; at < blob.memory.bytes(); ++at) {
    for (const uint8_t change : {uint8_t{1}, uint8_t{0x80}, uint8_t{0xff}}) {
      blob.bytes()[at] ^= change;
      const int32_t status = blob.open();
      ASSERT_TRUE(status == INT8Q_CORRUPT || status == INT8Q_UNSUPPORTED)
          << "byte " << at << ": " << int8q_status_name(status);
      if (at < sizeof(BlobHeader)) {
        ASSERT_NE(blob.open(INT8Q_TRUST_CHECKSUM), INT8Q_OK) << "byte " << at;
      }
      blob.bytes()[at] ^= change;
    }
  }
  EXPECT_EQ(blob.open(), INT8Q_OK);
}

// Panels are hashed one by one and their hashes added: each knows its place.
TEST(Blob, PanelsInAnotherOrderAreRefused) {
  const Blob blob;
  const BlobSections sections = blob_sections(blob.memory.get());
  auto* panels = const_cast<int8_t*>(sections.panels);
  ASSERT_EQ(2, sections.panel_count());
  const auto swap_panels = [&] {
    std::swap_ranges(panels, panels + sections.panel_stride(), panels + sections.panel_stride());
  };
  swap_panels();
  EXPECT_STATUS(INT8Q_CORRUPT, blob.open());
  swap_panels();
  EXPECT_STATUS(INT8Q_OK, blob.open());
}

// Kept columns index memory: they are validated even where the checksum is trusted.
TEST(Blob, TrustedBlobsAreStillMemorySafe) {
  const Blob blob;
  const BlobSections sections = blob_sections(blob.memory.get());
  auto* cols = const_cast<int64_t*>(sections.kept_cols);
  for (const int64_t bad : {int64_t{-1}, kK, int64_t{3}, INT64_MAX, INT64_MIN}) {
    cols[1] = bad;
    EXPECT_STATUS(INT8Q_CORRUPT, blob.open(INT8Q_TRUST_CHECKSUM));
  }
  cols[1] = kKept[1];
  EXPECT_STATUS(INT8Q_OK, blob.open(INT8Q_TRUST_CHECKSUM));
  blob.bytes()[sizeof(BlobHeader)] ^= 1;  // a code: trusted
  EXPECT_STATUS(INT8Q_OK, blob.open(INT8Q_TRUST_CHECKSUM));
  EXPECT_STATUS(INT8Q_CORRUPT, blob.open());
}

// A trusted payload may hold anything: results are then wrong, and nothing worse (the sanitizers watch).
TEST(Blob, TrustedGarbageIsHarmless) {
  const Blob blob;
  const uint64_t payload = blob.memory.bytes() - sizeof(BlobHeader);
  const std::vector<uint8_t> before(blob.bytes(), blob.bytes() + blob.memory.bytes());
  const BlobSections sections = blob_sections(blob.memory.get());
  const auto* cols = reinterpret_cast<const uint8_t*>(sections.kept_cols);
  const Mat dy = random_mat(INT8Q_F32, 3, kN, 4), dx(INT8Q_F32, 3, kK), codes(INT8Q_S8, kN, kK);
  int opened = 0;
  Random random(7);
  for (const uint8_t fill : {0x00, 0x80, 0xff, 0x7f, 0xa5}) {
    for (uint64_t i = 0; i < payload; ++i) {
      uint8_t* byte = blob.bytes() + sizeof(BlobHeader) + i;
      if (byte < cols || byte >= cols + 16) *byte = fill == 0xa5 ? static_cast<uint8_t>(random.bits()) : fill;
    }
    for (const cpu::Isa* isa : runnable_isas()) {
      const ContextPtr context = make_context(2, isa->name);
      int8q_linear* raw = nullptr;
      ASSERT_CALL(int8q_open_linear(context.get(), blob.memory.get(), blob.memory.bytes(), INT8Q_TRUST_CHECKSUM, &raw));
      const LinearPtr linear(raw);
      EXPECT_EQ(6u * kN * 4, outputs(context.get(), raw).size());
      EXPECT_STATUS(INT8Q_OK, backward(context.get(), raw, dy, dx));
      EXPECT_STATUS(INT8Q_OK, int8q_export_linear(context.get(), raw, codes.get(), nullptr, nullptr, nullptr, nullptr));
      ++opened;
    }
  }
  EXPECT_EQ(static_cast<int>(5 * runnable_isas().size()), opened);
}

// A checksum only finds accidents: a header that lies on purpose carries the right one.
TEST(Blob, ForgedHeadersAreRefused) {
  const Blob blob;
  const BlobHeader honest = *reinterpret_cast<const BlobHeader*>(blob.bytes());
  const std::function<void(BlobHeader&)> lies[] = {
      [](BlobHeader& h) { h.n = -1; },
      [](BlobHeader& h) { h.n = kN + 1000; },
      [](BlobHeader& h) { h.n = INT64_MAX; },
      [](BlobHeader& h) { h.n = INT64_MAX - 15; },
      [](BlobHeader& h) { h.n = int64_t{1} << 58; },
      [](BlobHeader& h) { h.k = -1; },
      [](BlobHeader& h) { h.k = 0; },
      [](BlobHeader& h) { h.k = 133145; },
      [](BlobHeader& h) { h.k = INT64_MAX; },
      [](BlobHeader& h) { h.k = INT64_MIN; },
      [](BlobHeader& h) { h.kept_count = -1; },
      [](BlobHeader& h) { h.kept_count = kK + 1; },
      [](BlobHeader& h) { h.kept_count = INT64_MAX; },
      [](BlobHeader& h) { h.has_bias = 2; },
      [](BlobHeader& h) { h.has_bias = 0; },
      [](BlobHeader& h) { h.outlier_mode = 4; },
      [](BlobHeader& h) { h.outlier_mode = -1; },
      [](BlobHeader& h) { h.threshold = 0.0f; },
      [](BlobHeader& h) { h.threshold = -6.0f; },
      [](BlobHeader& h) { h.threshold = std::numeric_limits<float>::quiet_NaN(); },
      [](BlobHeader& h) { h.blob_bytes += 64; },
      [](BlobHeader& h) { h.blob_bytes = UINT64_MAX; },
      [](BlobHeader& h) { h.blob_bytes = 0; },
      [](BlobHeader& h) { h.layout = 2; },
      [](BlobHeader& h) { h.magic ^= 1; },
      [](BlobHeader& h) { h.reserved[100] = 1; },
  };
  for (size_t i = 0; i < std::size(lies); ++i) {
    BlobHeader header = honest;
    lies[i](header);
    header.header_checksum = XXH3_64bits(&header, offsetof(BlobHeader, header_checksum));
    std::memcpy(blob.bytes(), &header, sizeof header);
    for (const uint32_t flags : {uint32_t{0}, static_cast<uint32_t>(INT8Q_TRUST_CHECKSUM)}) {
      const int32_t status = blob.open(flags);
      EXPECT_TRUE(status == INT8Q_CORRUPT || status == INT8Q_UNSUPPORTED)
          << "lie " << i << ": " << int8q_status_name(status) << ", " << int8q_last_error();
    }
  }
  std::memcpy(blob.bytes(), &honest, sizeof honest);
  EXPECT_EQ(blob.open(), INT8Q_OK);
}

TEST(Blob, TruncatedMisalignedOrUnfinished) {
  const Blob blob;
  for (uint64_t count = 1; count < blob.memory.bytes(); count += count < 300 ? 1 : 97) {
    ASSERT_EQ(blob.open(0, count), INT8Q_CORRUPT) << count;
  }
  int8q_linear* linear = nullptr;
  EXPECT_STATUS(INT8Q_MISALIGNED,
                int8q_open_linear(blob.context.get(), blob.bytes() + 32, blob.memory.bytes() - 32, 0, &linear));
  // A pack that fails does not leave something that opens.
  Mat bad = blob.weight;
  bad.set(kN - 1, 0, std::numeric_limits<float>::infinity());
  const int8q_linear_options options = options_with_kept();
  EXPECT_STATUS(INT8Q_NOT_FINITE, int8q_pack_linear(blob.context.get(), bad.get(), nullptr, blob.bias.get(), &options,
                                                    blob.memory.get(), blob.memory.bytes()));
  EXPECT_STATUS(INT8Q_CORRUPT, blob.open());
}

}  // namespace
}  // namespace int8q::test
