// SPDX-License-Identifier: Apache-2.0
//
// Each kernel that works on one row, of every ISA, against a plain loop: every tail, misaligned bases, and guard pages
// right before and right behind the caller's memory.
#include <algorithm>
#include <set>

#include "support/kernel_cases.h"

namespace int8q::test {
namespace {

using cpu::CodeLayout;
using cpu::Kernels;

int64_t padded(int64_t k) { return (k + 63) / 64 * 64; }

// Code j of a row in the ISA's layout.
int code_at(CodeLayout layout, const uint8_t* codes, int64_t j) {
  if (layout == CodeLayout::kU8) return codes[j] - 128;
  constexpr int64_t kPlace[4] = {0, 2, 1, 3};
  int16_t code;
  std::memcpy(&code, codes + (j / 4 * 4 + kPlace[j % 4]) * 2, 2);
  return code;
}
int64_t code_bytes(CodeLayout layout, int64_t k) { return padded(k) * (layout == CodeLayout::kU8 ? 1 : 2); }

struct Scanned {
  uint32_t absmax = 0;
  std::vector<uint64_t> bits;
};

bool is_outlier(float x, uint32_t limit) {
  const uint32_t bits = std::bit_cast<uint32_t>(x) & 0x7fffffffu;
  return bits >= limit && bits <= cpu::kInfBits;
}

Scanned plain_scan(int dtype, const uint8_t* x, int64_t k, uint32_t limit) {
  Scanned s;
  s.bits.assign(static_cast<size_t>((k + 63) / 64), 0);
  for (int64_t j = 0; j < k; ++j) {
    const float v = load(dtype, x, j);
    const uint32_t bits = std::bit_cast<uint32_t>(v) & 0x7fffffffu;
    if (is_outlier(v, limit)) {
      s.bits[static_cast<size_t>(j / 64)] |= uint64_t{1} << (j % 64);
    } else {
      s.absmax = std::max(s.absmax, bits);
    }
  }
  return s;
}

int plain_code(float x, float absmax, uint32_t limit) {
  if (is_outlier(x, limit) || absmax == 0 || std::isnan(absmax)) return 0;
  return static_cast<int>(std::nearbyint(absmax < 0x1p-120f ? (x / absmax) * 127.0f : x * (127.0f * (1.0f / absmax))));
}

// 6; none; Inf alone; everything; between two values of fp16 and of bf16; above fp16's largest.
const uint32_t kLimits[] = {
    std::bit_cast<uint32_t>(kThreshold), cpu::kNoOutliers, cpu::kInfBits, 1u, std::bit_cast<uint32_t>(4.0001f),
    std::bit_cast<uint32_t>(70000.0f)};

// Calls body(kernels, dtype, k, x, limit) for rows of all kinds between guards.
template <class Body>
void for_each_input(const Body& body) {
  GuardedMemory memory(1000 * 4);
  for (const cpu::Isa* isa : runnable_isas()) {
    for (int dtype = 0; dtype < cpu::kDtypes; ++dtype) {
      Random random(static_cast<uint64_t>(dtype) + 17);
      for (const int64_t k : row_lengths()) {
        for (const Place place : kPlaces) {
          for (int kind = 0; kind < 4; ++kind) {  // plain; specials; specials and NaN; all tiny
            uint8_t* x = memory.place(k * kElementBytes[dtype], place);
            // Denormals, and absmax on both sides of 2^-120, below which 127 / absmax may overflow.
            const float unit = dtype == 1 ? 0x1p-24f : std::ldexp(1.0f, static_cast<int>(random.below(16)) - 133);
            for (int64_t j = 0; j < k; ++j) {
              const float tiny = static_cast<float>(random.below(201) - 100) * unit;
              store(dtype, x, j, kind == 3 ? tiny : provoking(random, dtype, kind == 0 ? 0 : 30, kind == 2));
            }
            for (const uint32_t limit : kLimits) {
              SCOPED_TRACE(::testing::Message()
                           << isa->name << " dtype " << dtype << " k " << k << " place " << static_cast<int>(place)
                           << " kind " << kind << " limit 0x" << std::hex << limit);
              body(isa->kernels(), dtype, k, x, limit);
              if (::testing::Test::HasFailure()) return;
            }
          }
        }
      }
    }
  }
}

int64_t length_count() { return std::ssize(row_lengths()); }
int64_t place_count() { return std::ssize(kPlaces); }
int64_t input_count() { return isa_count() * 3 * length_count() * place_count() * 4 * std::ssize(kLimits); }

TEST(KernelsRows, Scan) {
  Cells cells("scan");
  for_each_input([&](const Kernels& kernels, int dtype, int64_t k, const uint8_t* x, uint32_t limit) {
    const Scanned right = plain_scan(dtype, x, k, limit);
    std::vector<uint64_t> bits(right.bits.size() + 1, 0x8000000000000001u);  // what is there stays: bits are OR-ed in
    const uint32_t absmax = kernels.scan[dtype].run(x, k, limit, bits.data());
    if (right.absmax > cpu::kInfBits) {
      EXPECT_GT(absmax, cpu::kInfBits) << "a NaN";
    } else {
      EXPECT_EQ(right.absmax, absmax);
    }
    for (size_t w = 0; w < right.bits.size(); ++w) EXPECT_EQ(right.bits[w] | 0x8000000000000001u, bits[w]) << "word " << w;
    EXPECT_EQ(0x8000000000000001u, bits.back()) << "written past the last word";
    const uint32_t again = kernels.scan[dtype].run(x, k, limit, nullptr);
    EXPECT_TRUE(again == absmax) << "without column_bits";
    cells.add();
  });
  EXPECT_EQ(input_count(), cells.count());
}

TEST(KernelsRows, EncodeAndEncodeS8) {
  Cells cells("encode, encode_s8");
  GuardedMemory out(2 * 1024), out_s8(1024);
  for_each_input([&](const Kernels& kernels, int dtype, int64_t k, const uint8_t* x, uint32_t limit) {
    const uint32_t bits = plain_scan(dtype, x, k, limit).absmax;
    const float absmax = bits >= cpu::kInfBits ? std::numeric_limits<float>::quiet_NaN() : std::bit_cast<float>(bits);
    uint8_t* codes = out.place_aligned(code_bytes(kernels.layout, k));
    kernels.encode[dtype].run(x, k, padded(k), absmax, limit, codes);
    auto* s8 = reinterpret_cast<int8_t*>(out_s8.place(k, k % 2 == 0 ? Place::kAtEnd : Place::kOddBegin));
    kernels.encode_s8[dtype].run(x, k, padded(k), absmax, limit, s8);
    for (int64_t j = 0; j < padded(k); ++j) {
      const int right = j < k ? plain_code(load(dtype, x, j), absmax, limit) : 0;
      ASSERT_EQ(right, code_at(kernels.layout, codes, j))
          << kernels.encode[dtype].name << " at " << j << ", absmax " << absmax;
      if (j < k) {
        ASSERT_EQ(right, s8[j]) << kernels.encode_s8[dtype].name << " at " << j << ", absmax " << absmax;
      }
    }
    EXPECT_TRUE(out.intact());
    EXPECT_TRUE(out_s8.intact());
    cells.add();
  });
  EXPECT_EQ(input_count(), cells.count());
}

// Ties of the rounding: absmax 254 makes x * (127 / 254) end in .5 for every odd x.
TEST(KernelsRows, EncodeRoundsTiesToEven) {
  Cells cells("encode ties");
  for (const cpu::Isa* isa : runnable_isas()) {
    const Kernels& kernels = isa->kernels();
    for (int dtype = 0; dtype < cpu::kDtypes; ++dtype) {
      uint8_t x[4 * 509];
      int8_t codes[512] = {};
      for (int i = 0; i < 509; ++i) store(dtype, x, i, static_cast<float>(i - 254));
      kernels.encode_s8[dtype].run(x, 509, 512, 254.0f, cpu::kNoOutliers, codes);
      for (int i = 0; i < 509; ++i)
        ASSERT_EQ(std::nearbyint((i - 254) / 2.0), codes[i]) << kernels.encode_s8[dtype].name << " of " << i - 254;
      cells.add();
    }
  }
  EXPECT_EQ(isa_count() * 3, cells.count());
}

TEST(KernelsRows, Widen) {
  Cells cells("widen");
  GuardedMemory in(1000), out(2 * 1024);
  for (const cpu::Isa* isa : runnable_isas()) {
    const Kernels& kernels = isa->kernels();
    Random random(3);
    for (const int64_t k : row_lengths()) {
      for (const Place place : kPlaces) {
        auto* a = reinterpret_cast<int8_t*>(in.place(k, place));
        for (int64_t j = 0; j < k; ++j) a[j] = provoking_code(random, true);
        uint8_t* codes = out.place_aligned(code_bytes(kernels.layout, k));
        kernels.widen.run(a, k, padded(k), codes);
        for (int64_t j = 0; j < padded(k); ++j)
          ASSERT_EQ(j < k ? a[j] : 0, code_at(kernels.layout, codes, j)) << kernels.widen.name << " k " << k << " at " << j;
        ASSERT_TRUE(out.intact());
        cells.add();
      }
    }
  }
  EXPECT_EQ(isa_count() * length_count() * place_count(), cells.count());
}

TEST(KernelsRows, Pack) {
  Cells cells("pack");
  GuardedMemory in(16 * 1010), out(16 * 1024);
  for (const cpu::Isa* isa : runnable_isas()) {
    const Kernels& kernels = isa->kernels();
    Random random(4);
    for (const int64_t k : row_lengths()) {
      for (const int64_t rows : {0, 1, 2, 15, 16}) {
        for (const int64_t gap : {0, 7}) {
          const int64_t stride = k + gap;
          const Place place = some_place(random);
          auto* b = reinterpret_cast<int8_t*>(in.place(rows == 0 ? 0 : (rows - 1) * stride + k, place));
          for (int64_t i = 0; i < rows; ++i) {
            for (int64_t j = 0; j < k; ++j) b[i * stride + j] = provoking_code(random, true);
          }
          auto* panel = reinterpret_cast<int8_t*>(out.place_aligned(padded(k) * 16));
          alignas(64) int32_t sums[16];
          kernels.pack.run(b, stride, rows, k, padded(k), panel, sums);
          for (int64_t n = 0; n < 16; ++n) {
            int32_t sum = 0;
            for (int64_t j = 0; j < padded(k); ++j) {
              const int8_t right = n < rows && j < k ? b[n * stride + j] : int8_t{0};
              sum += right;
              ASSERT_EQ(right, panel[j / 4 * 64 + n * 4 + j % 4])
                  << kernels.pack.name << " rows " << rows << " k " << k << " at " << n << ", " << j;
            }
            ASSERT_EQ(sum, sums[n]) << kernels.pack.name;
          }
          ASSERT_TRUE(out.intact());
          cells.add();
        }
      }
    }
  }
  EXPECT_EQ(isa_count() * length_count() * 5 * 2, cells.count());
}

TEST(KernelsRows, Dequantize) {
  Cells cells("dequantize");
  GuardedMemory in(1000), out(4000);
  const std::vector<float> stats = {0.0f,
                                    1.0f,
                                    3.7e-3f,
                                    0x1p-140f,
                                    1e6f,
                                    std::numeric_limits<float>::max(),
                                    std::numeric_limits<float>::quiet_NaN(),
                                    std::numeric_limits<float>::infinity()};
  for (const cpu::Isa* isa : runnable_isas()) {
    const Kernels& kernels = isa->kernels();
    for (int dtype = 0; dtype < cpu::kDtypes; ++dtype) {
      Random random(5);
      for (const int64_t k : row_lengths()) {
        for (const Place place : kPlaces) {
          for (const float stat : stats) {
            auto* q = reinterpret_cast<int8_t*>(in.place(k, place));
            for (int64_t j = 0; j < k; ++j) q[j] = provoking_code(random, true);
            uint8_t* y = out.place(k * kElementBytes[dtype], place);
            kernels.dequantize[dtype].run(q, k, stat, y);
            for (int64_t j = 0; j < k; ++j) {
              uint8_t right[4];
              store(dtype, right, 0, (static_cast<float>(q[j]) * stat) * (1 / 127.0f));
              ASSERT_TRUE(same_float(load(dtype, right, 0), load(dtype, y, j)))
                  << kernels.dequantize[dtype].name << " k " << k << " at " << j << " of stat " << stat << ": "
                  << load(dtype, y, j);
            }
            ASSERT_TRUE(out.intact()) << kernels.dequantize[dtype].name << " k " << k;
            cells.add();
          }
        }
      }
    }
  }
  EXPECT_EQ(isa_count() * 3 * length_count() * place_count() * std::ssize(stats), cells.count());
}

TEST(KernelsRows, Scale) {
  Cells cells("scale");
  GuardedMemory in(4000), out(4096);
  for (const cpu::Isa* isa : runnable_isas()) {
    const Kernels& kernels = isa->kernels();
    for (int dtype = 0; dtype < cpu::kDtypes; ++dtype) {
      Random random(6);
      for (const int64_t n : row_lengths()) {
        for (const Place place : kPlaces) {
          uint8_t* dy = in.place(n * kElementBytes[dtype], place);
          std::vector<float> stats(static_cast<size_t>((n + 15) / 16 * 16 + 16));  // the blob's, padded to panels
          for (int64_t j = 0; j < n; ++j) {
            store(dtype, dy, j, provoking(random, dtype, 30, true));
            stats[static_cast<size_t>(j)] = random.below(5) == 0 ? 0x1p-135f : random.uniform(0.0f, 3.0f);
          }
          const bool bf16 = dtype == 2 && kernels.backward_bf16.run != nullptr;
          void* g = out.place_aligned(bf16 ? (n + 1) / 2 * 4 : n * 4);
          kernels.scale[dtype].run(dy, n, stats.data(), g);
          for (int64_t j = 0; j < n; ++j) {
            const float right = load(dtype, dy, j) * (stats[static_cast<size_t>(j)] * (1 / 127.0f));
            ASSERT_TRUE(bf16 ? same_float(from_bf16(to_bf16(without_denormals(right))), load(2, g, j))
                             : same_float(right, load(0, g, j)))
                << kernels.scale[dtype].name << " n " << n << " at " << j;
          }
          if (bf16 && n % 2 != 0) {
            ASSERT_EQ(0.0f, load(2, g, n)) << kernels.scale[dtype].name << " n " << n;
          }
          ASSERT_TRUE(out.intact());
          cells.add();
        }
      }
    }
  }
  EXPECT_EQ(isa_count() * 3 * length_count() * place_count(), cells.count());
}

TEST(KernelsRows, Store) {
  Cells cells("store");
  GuardedMemory in(4096), out(4000);
  for (const cpu::Isa* isa : runnable_isas()) {
    const Kernels& kernels = isa->kernels();
    for (int dtype = 0; dtype < cpu::kDtypes; ++dtype) {
      Random random(8);
      for (const int64_t k : row_lengths()) {
        for (const Place place : kPlaces) {
          for (const bool accumulate : {false, true}) {
            auto* v = reinterpret_cast<float*>(in.place_aligned(k * 4));
            uint8_t* y = out.place(k * kElementBytes[dtype], place);
            std::vector<uint8_t> right(static_cast<size_t>(k * 4 + 4));
            for (int64_t j = 0; j < k; ++j) {
              // Every third value is a tie between two of y's values, or next to one.
              const uint32_t tie =
                  static_cast<uint32_t>(0x3f800000 + random.below(1 << 22)) & (dtype == 1 ? ~0x1fffu : ~0xffffu);
              v[j] = j % 3 == 0 ? std::bit_cast<float>(tie | (dtype == 1 ? 0x1000u : 0x8000u))
                                : provoking(random, 0, 30, true);
              store(dtype, y, j, provoking(random, dtype, 10, true));
              store(dtype, right.data(), j, accumulate ? load(dtype, y, j) + v[j] : v[j]);
            }
            kernels.store[dtype].run(v, k, y, accumulate);
            for (int64_t j = 0; j < k; ++j) {
              ASSERT_TRUE(same_element(dtype, right.data(), y, j)) << kernels.store[dtype].name << " k " << k << " at " << j
                                                                   << " of " << v[j] << (accumulate ? " accumulated" : "");
            }
            ASSERT_TRUE(out.intact()) << kernels.store[dtype].name << " k " << k;
            cells.add();
          }
        }
      }
    }
  }
  EXPECT_EQ(isa_count() * 3 * length_count() * place_count() * 2, cells.count());
}

// Every operation of the table has its test, here, in test_kernels_blocks.cpp or in test_kernels_backward.cpp.
TEST(KernelsRows, EveryOperationIsTested) {
  const std::set<std::string> tested = {"scan",  "encode", "encode_s8", "widen",    "pack",     "gemm",
                                        "gemv",  "dot",    "columns",   "outliers", "epilogue", "dequantize",
                                        "scale", "unpack", "backward",  "store"};
  std::set<std::string> listed;
  cpu::for_each_kernel(
      cpu::generic_kernels(),
      [](void* arg, const char* operation, const char*) {
        std::string name = operation;
        for (const char* dtype : {"_f32", "_f16", "_bf16"}) {
          const size_t at = name.rfind(dtype);
          if (at != std::string::npos) name.resize(at);
        }
        static_cast<std::set<std::string>*>(arg)->insert(name);
      },
      &listed);
  EXPECT_EQ(tested, listed);
}

}  // namespace
}  // namespace int8q::test
