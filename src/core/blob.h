// SPDX-License-Identifier: Apache-2.0
//
// A packed linear as one block of bytes, in the library's memory, the caller's, or a mapped file. Little-endian.
//
//   header        256 bytes
//   panels        s8  [N_padded * K_padded]   cpu/kernels.h draws the layout; N to 16, K to 64
//   col_sums      s32 [N_padded]              sum of each row's codes: the start of u8 kernels' accumulators
//   col_stats     f32 [N_padded]              absmax; 0 in padding
//   bias          f32 [N_padded]              if has_bias
//   kept_cols     s64 [kept_count]            ascending
//   kept_weights  f16 [kept_count][N_padded]  the kept columns, one after another
//
// Each section starts at a multiple of 64 bytes. The offsets follow from the sizes, so a header cannot lie about them.
#pragma once

#include <cstdint>

#include "core/math.h"
#include "int8q/int8q.h"

namespace int8q {

inline constexpr int64_t kMaxK = 133144;         // floor((2^31 - 1) / 127^2): our own codes cannot overflow s32
inline constexpr int64_t kMaxKForeign = 131071;  // floor((2^31 - 1) / 128^2): foreign codes may hold -128

struct BlobHeader {
  static constexpr uint64_t kMagic = 0x3130573871386e69u;  // "in8q8W01"
  static constexpr uint32_t kLayout = 1;                   // panels of 16 rows, groups of 4, K padded to 64

  uint64_t magic;
  uint32_t layout;
  int32_t outlier_mode;
  int64_t n;
  int64_t k;
  int64_t kept_count;
  float threshold;
  int32_t has_bias;
  uint64_t blob_bytes;
  uint64_t
      payload_checksum;   // modulo 2^64 the sum of panel_checksum and of XXH3-64, seeded N_padded / 16, of what is behind
  uint8_t reserved[184];  // zero
  uint64_t header_checksum;  // XXH3-64 of the bytes before it
};
static_assert(sizeof(BlobHeader) == 256, "the payload starts at a multiple of 64");

// Where the sections of a blob lie.
struct BlobSections {
  const BlobHeader* header;
  const int8_t* panels;
  const int32_t* col_sums;
  const float* col_stats;
  const float* bias;  // NULL without one
  const int64_t* kept_cols;
  const uint16_t* kept_weights;

  int64_t n_padded() const { return round_up(header->n, 16); }
  int64_t k_padded() const { return round_up(header->k, 64); }
  int64_t panel_stride() const { return k_padded() * 16; }
  int64_t panel_count() const { return n_padded() / 16; }
};

// SIZE_OVERFLOW where the product of sizes does not fit, or k passes kMaxK.
int64_t blob_bytes(int64_t n, int64_t k, bool has_bias, int64_t kept_count);

// The sections of a blob whose header is filled in.
BlobSections blob_sections(const void* blob);

// XXH3-64, seeded with its index, of a panel whose bytes lie at `codes`: a sum of these does not depend on who computed which,
// so each thread takes a panel's while it has it in its cache.
uint64_t panel_checksum(const BlobSections& sections, int64_t panel, const int8_t* codes);

// Sets the checksums, of which panels_checksum is the sum over the panels, and the magic: from here on the blob opens.
void seal_blob(void* blob, uint64_t panels_checksum);

// Checks everything that memory safety and the format depend on, and the payload's checksum unless trusted. CORRUPT,
// MISALIGNED or UNSUPPORTED otherwise.
BlobSections validate_blob(const void* blob, uint64_t bytes, bool trust_checksum);

}  // namespace int8q
