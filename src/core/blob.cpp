// SPDX-License-Identifier: Apache-2.0
#include "core/blob.h"

#include <cmath>
#include <cstddef>
#include <cstring>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "core/memory.h"

namespace int8q {
namespace {

struct Layout {
  BlobSections sections;
  int64_t bytes;
};

Layout lay_out(void* blob, int64_t n, int64_t k, bool has_bias, int64_t kept_count) {
  const int64_t n_padded = round_up(checked_add(n, 15, "out_features") - 15, 16);
  const int64_t k_padded = round_up(checked_add(k, 63, "in_features") - 63, 64);
  Carver carver(blob);
  Layout layout{};
  layout.sections.header = carver.take<BlobHeader>(1, "blob");
  layout.sections.panels = carver.take<int8_t>(checked_mul(n_padded, k_padded, "blob"), "blob");
  layout.sections.col_sums = carver.take<int32_t>(n_padded, "blob");
  layout.sections.col_stats = carver.take<float>(n_padded, "blob");
  if (has_bias) layout.sections.bias = carver.take<float>(n_padded, "blob");
  layout.sections.kept_cols = carver.take<int64_t>(kept_count, "blob");
  layout.sections.kept_weights = carver.take<uint16_t>(checked_mul(kept_count, n_padded, "blob"), "blob");
  layout.bytes = carver.used();
  return layout;
}

uint64_t header_checksum(const BlobHeader& header) { return XXH3_64bits(&header, offsetof(BlobHeader, header_checksum)); }

// Of what lies behind the panels.
uint64_t rest_checksum(const BlobSections& sections) {
  const int8_t* rest = sections.panels + sections.n_padded() * sections.k_padded();
  const auto* end = reinterpret_cast<const int8_t*>(sections.header) + sections.header->blob_bytes;
  return XXH3_64bits_withSeed(rest, static_cast<size_t>(end - rest), static_cast<uint64_t>(sections.panel_count()));
}

uint64_t payload_checksum(const BlobSections& sections) {
  uint64_t sum = rest_checksum(sections);
  for (int64_t p = 0; p < sections.panel_count(); ++p) {
    sum += panel_checksum(sections, p, sections.panels + p * sections.panel_stride());
  }
  return sum;
}

[[noreturn]] void corrupt(const char* what, long long value, const char* expected) {
  fail(INT8Q_CORRUPT, "blob: %s is %lld; expected %s; pack the weights again", what, value, expected);
}

void validate_header(const BlobHeader& header, uint64_t bytes) {
  if (header.magic != BlobHeader::kMagic) {
    corrupt("magic", static_cast<long long>(header.magic), "that of an int8q blob (int8q_pack_linear ends by writing it)");
  }
  if (header.layout != BlobHeader::kLayout) {
    fail(INT8Q_UNSUPPORTED,
         "blob: layout is %u; this library knows layout %u; pack the weights again or load a newer library", header.layout,
         BlobHeader::kLayout);
  }
  if (header.header_checksum != header_checksum(header)) {
    corrupt("header checksum", static_cast<long long>(header.header_checksum), "the checksum of the header");
  }
  for (const uint8_t byte : header.reserved) {
    if (byte != 0) corrupt("a reserved byte", byte, "0");
  }
  // A row has 8 bytes of sums and stats at least: with this no product of sizes below can overflow.
  if (header.n < 0 || static_cast<uint64_t>(header.n) > bytes / 8) {
    corrupt("out_features", header.n, "0 to what the bytes passed can hold");
  }
  if (header.k < 0 || header.k > kMaxK) corrupt("in_features", header.k, "0 to 133144");
  if (header.kept_count < 0 || header.kept_count > header.k) corrupt("kept_count", header.kept_count, "0 to in_features");
  if (header.has_bias != 0 && header.has_bias != 1) corrupt("has_bias", header.has_bias, "0 or 1");
  if (header.outlier_mode < INT8Q_OUTLIERS_COLUMN || header.outlier_mode > INT8Q_OUTLIERS_ALL) {
    corrupt("outlier_mode", header.outlier_mode, "an INT8Q_OUTLIERS_* value");
  }
  if (!(header.threshold > 0.0f)) corrupt("threshold", static_cast<long long>(header.threshold), "a number > 0");
  const int64_t expected = blob_bytes(header.n, header.k, header.has_bias != 0, header.kept_count);
  if (header.blob_bytes != static_cast<uint64_t>(expected)) {
    corrupt("blob_bytes", static_cast<long long>(header.blob_bytes), "the sum of the sections");
  }
  if (bytes < header.blob_bytes) {
    corrupt("blob_bytes", static_cast<long long>(header.blob_bytes), "at most the bytes passed: the blob is truncated");
  }
}

}  // namespace

int64_t blob_bytes(int64_t n, int64_t k, bool has_bias, int64_t kept_count) {
  if (k > kMaxK) {
    fail(INT8Q_SIZE_OVERFLOW, "in_features is %lld; the s32 product is exact up to %lld; split the layer along K",
         static_cast<long long>(k), static_cast<long long>(kMaxK));
  }
  return lay_out(nullptr, n, k, has_bias, kept_count).bytes;
}

BlobSections blob_sections(const void* blob) {
  const auto* header = static_cast<const BlobHeader*>(blob);
  return lay_out(const_cast<void*>(blob), header->n, header->k, header->has_bias != 0, header->kept_count).sections;
}

uint64_t panel_checksum(const BlobSections& sections, int64_t panel, const int8_t* codes) {
  return XXH3_64bits_withSeed(codes, static_cast<size_t>(sections.panel_stride()), static_cast<uint64_t>(panel));
}

void seal_blob(void* blob, uint64_t panels_checksum) {
  auto* header = static_cast<BlobHeader*>(blob);
  header->payload_checksum = panels_checksum + rest_checksum(blob_sections(blob));
  header->magic = BlobHeader::kMagic;
  header->header_checksum = header_checksum(*header);
}

BlobSections validate_blob(const void* blob, uint64_t bytes, bool trust_checksum) {
  if (reinterpret_cast<uintptr_t>(blob) % kAlignment != 0) {
    fail(INT8Q_MISALIGNED, "blob is at %p; expected a 64-byte aligned address", blob);
  }
  if (bytes < sizeof(BlobHeader)) {
    corrupt("blob_bytes", static_cast<long long>(bytes), "at least the header's 256");
  }
  const auto& header = *static_cast<const BlobHeader*>(blob);
  validate_header(header, bytes);
  const BlobSections sections = blob_sections(blob);
  if (!trust_checksum && header.payload_checksum != payload_checksum(sections)) {
    corrupt("payload checksum", static_cast<long long>(header.payload_checksum), "the checksum of the sections");
  }
  for (int64_t t = 0; t < header.kept_count; ++t) {
    const int64_t before = t == 0 ? -1 : sections.kept_cols[t - 1];
    if (sections.kept_cols[t] <= before || sections.kept_cols[t] >= header.k) {
      corrupt("a kept column", sections.kept_cols[t], "ascending columns below in_features");
    }
  }
  return sections;
}

}  // namespace int8q
