// SPDX-License-Identifier: Apache-2.0
//
// Each kernel that works on a block, of every ISA, against plain loops: sizes around the register tiles, strides larger than
// needed whose gaps stay untouched, wrapping accumulators, guard pages around the caller's memory.
#include <algorithm>

#include "support/kernel_cases.h"

namespace int8q::test {
namespace {

using cpu::CodeLayout;
using cpu::Kernels;

// Code j of a row as the product multiplies it: with u8 codes 128 more than the code.
int factor_at(CodeLayout layout, const uint8_t* codes, int64_t j) {
  if (layout == CodeLayout::kU8) return codes[j];
  constexpr int64_t kPlace[4] = {0, 2, 1, 3};
  int16_t code;
  std::memcpy(&code, codes + (j / 4 * 4 + kPlace[j % 4]) * 2, 2);
  return code;
}
void put_code(CodeLayout layout, uint8_t* codes, int64_t j, int8_t code) {
  if (layout == CodeLayout::kU8) {
    codes[j] = static_cast<uint8_t>(code + 128);
    return;
  }
  constexpr int64_t kPlace[4] = {0, 2, 1, 3};
  const int16_t wide = code;
  std::memcpy(codes + (j / 4 * 4 + kPlace[j % 4]) * 2, &wide, 2);
}

struct GemmSize {
  int64_t rows, panels, groups, gap_lines, acc_gap;
  int extremes;  // 0 random codes, 1 all 127 and -128, 2 alternating signs
  bool accumulate;
};

// One call of a gemm or gemv kernel. Codes and panels end at a guard, as they might at the end of a workspace or a blob.
void check_gemm(const Kernels& kernels, const cpu::Kernel<cpu::Gemm>& kernel, const GemmSize& size, Random& random) {
  const int64_t k = size.groups * 4, row_bytes = k * (kernels.layout == CodeLayout::kU8 ? 1 : 2);
  const int64_t code_stride = row_bytes + size.gap_lines * 64, panel_stride = k * 16 + size.gap_lines * 64;
  GuardedMemory code_memory((size.rows - 1) * code_stride + row_bytes),
      panel_memory((size.panels - 1) * panel_stride + k * 16);
  uint8_t* codes = code_memory.place_aligned((size.rows - 1) * code_stride + row_bytes);
  auto* panels = reinterpret_cast<int8_t*>(panel_memory.place_aligned((size.panels - 1) * panel_stride + k * 16));
  const auto value = [&](int64_t i) {
    return size.extremes == 0 ? provoking_code(random, true)
                              : static_cast<int8_t>(size.extremes == 1 || i % 2 == 0 ? 127 : -128);
  };
  for (int64_t i = 0; i < size.rows; ++i) {
    for (int64_t j = 0; j < k; ++j) put_code(kernels.layout, codes + i * code_stride, j, value(j));
  }
  for (int64_t p = 0; p < size.panels; ++p) {
    for (int64_t j = 0; j < k * 16; ++j) panels[p * panel_stride + j] = size.extremes == 1 ? int8_t{-128} : value(j);
  }
  const int64_t cols = size.panels * 16, acc_stride = cols + size.acc_gap;
  Aligned<int32_t> acc(size.rows * acc_stride);
  std::vector<int32_t> right(static_cast<size_t>(acc.count()));
  for (int64_t i = 0; i < acc.count(); ++i) {
    acc[i] = right[static_cast<size_t>(i)] = i % 3 == 0   ? INT32_MAX - 5
                                             : i % 3 == 1 ? INT32_MIN + 5
                                                          : static_cast<int32_t>(random.bits());
  }
  std::vector<int32_t> start(static_cast<size_t>(cols));
  for (int32_t& s : start) s = static_cast<int32_t>(random.bits());
  for (int64_t i = 0; i < size.rows; ++i) {
    for (int64_t n = 0; n < cols; ++n) {
      auto sum = static_cast<uint32_t>(start[static_cast<size_t>(n)]);
      if (size.accumulate) sum += static_cast<uint32_t>(right[static_cast<size_t>(i * acc_stride + n)]);
      for (int64_t j = 0; j < k; ++j)
        sum += static_cast<uint32_t>(factor_at(kernels.layout, codes + i * code_stride, j) *
                                     panel_code(panels, panel_stride, n, j));
      right[static_cast<size_t>(i * acc_stride + n)] = static_cast<int32_t>(sum);
    }
  }
  kernel.run({codes, code_stride, size.rows, panels, panel_stride, size.panels, size.groups, start.data(), size.accumulate,
              size.accumulate ? panels : nullptr, acc.get(), acc_stride});
  for (int64_t i = 0; i < acc.count(); ++i) {
    ASSERT_EQ(right[static_cast<size_t>(i)], acc[i])
        << kernel.name << " rows " << size.rows << " panels " << size.panels << " groups " << size.groups << " extremes "
        << size.extremes << " at row " << i / acc_stride << " column " << i % acc_stride;
  }
}

TEST(KernelsBlocks, GemmAndGemv) {
  Cells cells("gemm, gemv");
  for (const cpu::Isa* isa : runnable_isas()) {
    const Kernels& kernels = isa->kernels();
    Random random(11);
    for (int64_t rows = 1; rows <= 17; rows += small_grid() ? 4 : 1) {
      for (int64_t panels = 1; panels <= 9; ++panels) {
        for (const int64_t groups : {1, 16, 45}) {
          const GemmSize size{rows,
                              panels,
                              groups,
                              random.below(3),
                              random.below(2) * 16,
                              static_cast<int>(random.below(3)),
                              random.below(2) == 1};
          ASSERT_NO_FATAL_FAILURE(check_gemm(kernels, kernels.gemm, size, random));
          cells.add();
          if (rows > cpu::kGemvRows) continue;
          ASSERT_NO_FATAL_FAILURE(check_gemm(kernels, kernels.gemv, size, random));
          cells.add();
        }
      }
    }
    for (const int64_t rows : {31, 64, 97}) {  // several register tiles of rows, and a deep K for gemv
      ASSERT_NO_FATAL_FAILURE(check_gemm(kernels, kernels.gemm, {rows, 4, 144, 1, 0, 0, rows == 64}, random));
      ASSERT_NO_FATAL_FAILURE(check_gemm(kernels, kernels.gemv, {rows % 16 + 1, 3, 1024, 1, 0, 1, rows == 64}, random));
      cells.add();
      cells.add();
    }
  }
  const int64_t per_isa = small_grid() ? (5 + 4) * 27 + 6 : (17 + 16) * 27 + 6;
  EXPECT_EQ(isa_count() * per_isa, cells.count());
}

TEST(KernelsBlocks, GemmWithoutGroupsIsTheStart) {
  Cells cells("gemm without groups");
  for (const cpu::Isa* isa : runnable_isas()) {
    for (const auto* kernel : {&isa->kernels().gemm, &isa->kernels().gemv}) {
      for (const bool accumulate : {false, true}) {
        Aligned<int32_t> acc(16 * 64), start(64);
        Aligned<uint8_t> codes(64);
        Aligned<int8_t> panels(64);
        for (int64_t i = 0; i < acc.count(); ++i) acc[i] = static_cast<int32_t>(i);
        for (int64_t n = 0; n < 64; ++n) start[n] = static_cast<int32_t>(1000 * n);
        kernel->run({codes.get(), 64, 16, panels.get(), 64, 4, 0, start.get(), accumulate, nullptr, acc.get(), 64});
        for (int64_t i = 0; i < acc.count(); ++i) ASSERT_EQ(i % 64 * 1000 + (accumulate ? i : 0), acc[i]) << kernel->name;
        cells.add();
      }
    }
  }
  EXPECT_EQ(isa_count() * 4, cells.count());
}

TEST(KernelsBlocks, Dot) {
  Cells cells("dot");
  GuardedMemory a_memory(17 * 1010), b_memory(65 * 1010);
  for (const cpu::Isa* isa : runnable_isas()) {
    const Kernels& kernels = isa->kernels();
    Random random(12);
    for (const int64_t k : row_lengths()) {
      for (const int64_t rows : {1, 2, 3, 4, 5, 7, 8}) {
        for (const int64_t cols : {1, 3, 4, 17, 64}) {
          if (k > 300 && cols > 17) continue;
          const int64_t a_stride = k + random.below(3) * 5, b_stride = k + random.below(3) * 7,
                        c_stride = 64 + random.below(2) * 16;
          auto* a = reinterpret_cast<int8_t*>(a_memory.place((rows - 1) * a_stride + k, some_place(random)));
          auto* b = reinterpret_cast<int8_t*>(b_memory.place((cols - 1) * b_stride + k, some_place(random)));
          const bool extremes = random.below(3) == 0;
          for (int64_t i = 0; i < (rows - 1) * a_stride + k; ++i)
            a[i] = extremes ? int8_t{-128} : provoking_code(random, true);
          for (int64_t i = 0; i < (cols - 1) * b_stride + k; ++i)
            b[i] = extremes ? int8_t{-128} : provoking_code(random, true);
          Aligned<int32_t> c(rows * c_stride);
          for (int64_t i = 0; i < c.count(); ++i) c[i] = 0x5a5a5a5a;
          kernels.dot.run({a, a_stride, rows, b, b_stride, cols, k, c.get(), c_stride});
          for (int64_t i = 0; i < rows; ++i) {
            for (int64_t n = 0; n < cols; ++n) {
              int32_t sum = 0;
              for (int64_t j = 0; j < k; ++j) sum += a[i * a_stride + j] * b[n * b_stride + j];
              ASSERT_EQ(sum, c[i * c_stride + n])
                  << kernels.dot.name << " rows " << rows << " cols " << cols << " k " << k << " at " << i << ", " << n;
            }
            for (int64_t n = cols; n < c_stride; ++n)
              ASSERT_EQ(0x5a5a5a5a, c[i * c_stride + n]) << kernels.dot.name << " wrote the gap";
          }
          cells.add();
        }
      }
    }
  }
  const std::vector<int64_t> lengths = row_lengths();
  const int64_t deep = std::count_if(lengths.begin(), lengths.end(), [](int64_t k) { return k > 300; });
  EXPECT_EQ(isa_count() * 7 * (5 * std::ssize(lengths) - deep), cells.count());
}

// Half-precision bits of finite numbers and, now and then, of a denormal.
uint16_t some_half(Random& random) {
  return static_cast<uint16_t>(random.below(8) == 0 ? random.below(0x400) : random.below(0x7c00) | random.below(2) << 15);
}

// Ascending columns below `depth`, some of them neighbours.
std::vector<int32_t> some_columns(int64_t count, int64_t depth, Random& random) {
  std::vector<int32_t> cols;
  for (int64_t t = 0, c = 0; t < count; ++t) {
    c += t == 0 ? random.below(depth - count + 1) : 1 + (random.below(4) == 0 && c + 1 + count - t < depth ? 1 : 0);
    cols.push_back(static_cast<int32_t>(std::min(c, depth - count + t)));
    c = cols.back();
  }
  return cols;
}

TEST(KernelsBlocks, Columns) {
  Cells cells("columns");
  constexpr int64_t kDepth = 256;
  GuardedMemory panel_memory(kDepth * 16), small_memory(kDepth * 16);
  auto* panel = reinterpret_cast<int8_t*>(panel_memory.place_aligned(kDepth * 16));
  for (const cpu::Isa* isa : runnable_isas()) {
    Random random(14);
    for (int64_t i = 0; i < kDepth * 16; ++i) panel[i] = provoking_code(random, true);
    for (const int64_t count : {0, 1, 2, 3, 4, 5, 8, 31, 64, 255, 256}) {
      const std::vector<int32_t> cols = some_columns(count, kDepth, random);
      const int64_t padded = (count + 3) / 4 * 4;
      auto* small = reinterpret_cast<int8_t*>(small_memory.place_aligned(padded * 16));
      std::fill_n(small, padded * 16, int8_t{77});
      Aligned<int32_t> sums(16);
      isa->kernels().columns.run(panel, cols.data(), count, small, sums.get());
      for (int64_t n = 0; n < 16; ++n) {
        int32_t sum = 0;
        for (int64_t t = 0; t < padded; ++t) {
          const int8_t code = t < count ? panel_code(panel, 0, n, cols[static_cast<size_t>(t)]) : int8_t{0};
          ASSERT_EQ(code, panel_code(small, 0, n, t))
              << isa->name << ", " << count << " columns, row " << n << ", column " << t;
          sum += code;
        }
        ASSERT_EQ(sum, sums[n]) << isa->name << ", " << count << " columns, row " << n;
      }
      cells.add();
    }
  }
  EXPECT_EQ(isa_count() * 11, cells.count());
}

void check_outliers(const Kernels& kernels, int64_t rows, int64_t panels, int64_t count, bool skip_zero, bool start,
                    Random& random) {
  constexpr int64_t kStride = 256;  // floats of a gathered row
  const int64_t cols_n = panels * 16, out_stride = 64 * ((cols_n + 63) / 64);
  const int64_t panel_stride = (count + 3) / 4 * 64;
  GuardedMemory panel_memory(panels * panel_stride);
  auto* b = reinterpret_cast<int8_t*>(panel_memory.place_aligned(panels * panel_stride));
  for (int64_t i = 0; i < panels * panel_stride; ++i) b[i] = provoking_code(random, true);
  Aligned<float> col_stats(cols_n), x(rows * kStride), out(rows * out_stride);
  std::vector<std::vector<uint16_t>> kept_columns;
  std::vector<const uint16_t*> kept(static_cast<size_t>(count), nullptr);
  for (int64_t n = 0; n < cols_n; ++n) col_stats[n] = random.below(6) == 0 ? 0x1p-130f : random.uniform(0.0f, 2.0f);
  kept_columns.reserve(static_cast<size_t>(count));
  for (int64_t t = 0; t < count; ++t) {
    if (random.below(3) != 0) continue;
    auto& column = kept_columns.emplace_back(static_cast<size_t>(cols_n));
    for (uint16_t& h : column) h = some_half(random);
    kept[static_cast<size_t>(t)] = column.data();
  }
  for (int64_t i = 0; i < rows * kStride; ++i) {
    x[i] = random.below(3) == 0 ? (random.below(2) == 0 ? 0.0f : -0.0f) : provoking(random, 0, 10, i % 7 == 0);
  }
  std::vector<float> right(static_cast<size_t>(out.count()));
  for (size_t i = 0; i < right.size(); ++i) {
    out[static_cast<int64_t>(i)] = right[i] = i % 4 == 0 ? -0.0f : random.uniform(-50.0f, 50.0f);
  }
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t n = 0; n < cols_n; ++n) {
      float& sum = right[static_cast<size_t>(i * out_stride + n)];
      if (start && count > 0) sum = 0.0f;
      for (int64_t t = 0; t < count; ++t) {
        const float v = x[i * kStride + t];
        if (skip_zero && v == 0.0f) continue;
        const uint16_t* column = kept[static_cast<size_t>(t)];
        const float w = column != nullptr
                            ? from_f16(column[n])
                            : (static_cast<float>(panel_code(b, panel_stride, n, t)) * col_stats[n]) * (1 / 127.0f);
        sum = std::fmaf(v, w, sum);
      }
    }
  }
  kernels.outliers.run({rows, b, panel_stride, panels, col_stats.get(), count, x.get(), kStride, kept.data(), start,
                        skip_zero, out.get(), out_stride});
  for (size_t i = 0; i < right.size(); ++i) {
    ASSERT_TRUE(same_float(right[i], out[static_cast<int64_t>(i)]))
        << kernels.outliers.name << " out at " << i << ": " << out[static_cast<int64_t>(i)] << ", expected " << right[i];
  }
}

TEST(KernelsBlocks, Outliers) {
  Cells cells("outliers");
  for (const cpu::Isa* isa : runnable_isas()) {
    Random random(13);
    for (const int64_t rows : {1, 2, 3, 4, 5, 6, 7, 17}) {
      for (const int64_t panels : {1, 2, 3, 4}) {
        for (const int64_t count : {0, 1, 2, 3, 5, 16, 33, 64, 95, 256}) {
          for (const bool skip_zero : {false, true}) {
            for (const bool start : {false, true}) {
              SCOPED_TRACE(::testing::Message() << rows << " rows, " << panels << " panels, " << count
                                                << " columns, skip_zero " << skip_zero << ", start " << start);
              ASSERT_NO_FATAL_FAILURE(check_outliers(isa->kernels(), rows, panels, count, skip_zero, start, random));
              cells.add();
            }
          }
        }
      }
    }
  }
  EXPECT_EQ(isa_count() * 8 * 4 * 10 * 4, cells.count());
}

TEST(KernelsBlocks, Epilogue) {
  Cells cells("epilogue");
  constexpr int64_t kStride = 64;
  GuardedMemory memory(9 * (64 * 4 + 20));
  for (const cpu::Isa* isa : runnable_isas()) {
    const Kernels& kernels = isa->kernels();
    for (int dtype = 0; dtype < cpu::kDtypes; ++dtype) {
      Random random(14);
      for (int64_t cols = 1; cols <= 64; cols += small_grid() ? 5 : 1) {
        for (const int64_t rows : {1, 2, 5, 9}) {
          for (int variant = 0; variant < 8; ++variant) {
            const bool with_out = (variant & 1) != 0, with_bias = (variant & 2) != 0, accumulate = (variant & 4) != 0;
            const int64_t row_bytes = cols * kElementBytes[dtype], y_stride = row_bytes + random.below(3) * 5;
            uint8_t* y = memory.place((rows - 1) * y_stride + row_bytes, some_place(random));
            Aligned<int32_t> acc(rows * kStride);
            Aligned<float> out(rows * kStride), row_stats(rows), col_stats(kStride), bias(kStride);
            for (int64_t i = 0; i < rows * kStride; ++i) {
              acc[i] = random.below(4) == 0 ? static_cast<int32_t>(random.bits())
                                            : static_cast<int32_t>(random.below(200001) - 100000);
              out[i] = random.below(20) == 0 ? provoking(random, 0, 100, true) : random.uniform(-90.0f, 90.0f);
            }
            for (int64_t i = 0; i < rows; ++i)
              row_stats[i] = random.below(12) == 0  ? std::numeric_limits<float>::quiet_NaN()
                             : random.below(6) == 0 ? 0x1p-70f
                                                    : random.uniform(0.0f, 6.0f);
            for (int64_t n = 0; n < kStride; ++n) {
              col_stats[n] = random.below(6) == 0 ? 0x1p-75f : random.uniform(0.0f, 2.0f);
              bias[n] = random.below(6) == 0 ? 0x1p-140f : random.uniform(-4.0f, 4.0f);
            }
            std::vector<uint8_t> right(static_cast<size_t>(rows * y_stride + 4), 0xa5);
            for (int64_t i = 0; i < rows; ++i) {
              for (int64_t n = 0; n < cols; ++n) {
                store(dtype, y + i * y_stride, n, random.uniform(-100.0f, 100.0f));
                const float scale = (row_stats[i] * col_stats[n]) * (1 / 16129.0f);
                float v =
                    std::fmaf(static_cast<float>(acc[i * kStride + n]), scale, with_out ? out[i * kStride + n] : 0.0f);
                if (with_bias) v += bias[n];
                if (accumulate) v += load(dtype, y + i * y_stride, n);
                store(dtype, right.data() + i * y_stride, n, v);
              }
            }
            kernels.epilogue[dtype].run({rows, cols, acc.get(), with_out ? out.get() : nullptr, kStride, row_stats.get(),
                                         col_stats.get(), with_bias ? bias.get() : nullptr, y, y_stride, accumulate});
            for (int64_t i = 0; i < rows; ++i) {
              for (int64_t n = 0; n < cols; ++n) {
                ASSERT_TRUE(same_element(dtype, right.data() + i * y_stride, y + i * y_stride, n))
                    << kernels.epilogue[dtype].name << " rows " << rows << " cols " << cols << " variant " << variant
                    << " at " << i << ", " << n << ": " << load(dtype, y + i * y_stride, n) << ", expected "
                    << load(dtype, right.data() + i * y_stride, n);
              }
              for (int64_t g = row_bytes; i + 1 < rows && g < y_stride; ++g)
                ASSERT_EQ(0xa5, y[i * y_stride + g]) << kernels.epilogue[dtype].name << " wrote the gap";
            }
            ASSERT_TRUE(memory.intact()) << kernels.epilogue[dtype].name << " rows " << rows << " cols " << cols;
            cells.add();
          }
        }
      }
    }
  }
  EXPECT_EQ(isa_count() * 3 * (small_grid() ? 13 : 64) * 4 * 8, cells.count());
}

}  // namespace
}  // namespace int8q::test
