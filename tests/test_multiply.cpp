// SPDX-License-Identifier: Apache-2.0
//
// int8q_multiply: s8 . s8 -> s32, exact, on every ISA, up to the K where 32 bits end.
#include <random>

#include "support/call.h"
#include "support/oracle.h"
#include "support/shapes.h"

namespace int8q::test {
namespace {

enum Fill { kRandom, kFull, kMinus128, kFills };

void fill_codes(Grid& a, uint64_t seed, Fill fill) {
  std::mt19937_64 random(seed);
  for (int64_t i = 0; i < a.rows(); ++i) {
    for (int64_t j = 0; j < a.cols(); ++j) {
      const auto bits = random();
      a.set_integer(i, j,
                    fill == kRandom ? static_cast<int8_t>(bits)
                    : fill == kFull ? ((bits & 1) != 0 ? 127 : -127)
                                    : -128);
    }
  }
}

std::vector<int8_t> row_of(const Grid& a, int64_t i) {
  std::vector<int8_t> row;
  for (int64_t j = 0; j < a.cols(); ++j) row.push_back(static_cast<int8_t>(a.integer(i, j)));
  return row;
}

std::vector<int32_t> product(const Grid& a, const Grid& b) {
  std::vector<int32_t> c;
  std::vector<std::vector<int8_t>> rows;
  for (int64_t n = 0; n < b.rows(); ++n) rows.push_back(row_of(b, n));
  for (int64_t i = 0; i < a.rows(); ++i) {
    const std::vector<int8_t> row = row_of(a, i);
    for (const auto& other : rows) c.push_back(dot(row.data(), other.data(), a.cols()));
  }
  return c;
}

void expect_product(Grid& a, Grid& b, int64_t gap) {
  const std::vector<int32_t> expected = product(a, b);
  for (const cpu::Isa* isa : runnable_isas()) {
    for (const int32_t threads : {1, 2}) {
      Grid c(INT8Q_S32, a.rows(), b.rows(), gap, gap);
      const ContextPtr context = make_context(threads, isa->name);
      ASSERT_CALL(int8q_multiply(context.get(), a.view(), b.view(), c.view()));
      for (int64_t i = 0; i < c.rows(); ++i) {
        for (int64_t j = 0; j < c.cols(); ++j) {
          ASSERT_EQ(c.integer(i, j), expected[static_cast<size_t>(i * c.cols() + j)]) << isa->name << " " << i << ", " << j;
        }
      }
      ASSERT_TRUE(c.gaps_untouched());
    }
  }
}

TEST(Multiply, EveryShapeExact) {
  const std::vector<Shape> list = shapes();
  size_t cells = 0;
  for (size_t s = 0; s < list.size(); ++s) {
    for (int fill = 0; fill < kFills; ++fill) {
      const auto gap = static_cast<int64_t>((s + static_cast<size_t>(fill)) % 3);
      Grid a(INT8Q_S8, list[s].m, list[s].k, gap, gap), b(INT8Q_S8, list[s].n, list[s].k, 2 - gap, gap);
      fill_codes(a, s, static_cast<Fill>(fill));
      fill_codes(b, s + 1000, static_cast<Fill>(fill));
      SCOPED_TRACE(::testing::Message() << "M " << list[s].m << " N " << list[s].n << " K " << list[s].k << " fill "
                                        << fill);
      expect_product(a, b, gap);
      if (HasFatalFailure()) return;
      cells += runnable_isas().size() * 2;
    }
  }
  std::printf("%zu cells: %zu ISAs x %zu shapes x 3 fills x 2 thread counts\n", cells, runnable_isas().size(), list.size());
  EXPECT_EQ(cells, runnable_isas().size() * list.size() * kFills * 2);
}

TEST(Multiply, LargestK) {
  for (const int64_t m : {1, 20}) {
    Grid a(INT8Q_S8, m, kLargestK), b(INT8Q_S8, 3, kLargestK);
    for (Grid* g : {&a, &b}) {
      for (int64_t i = 0; i < g->rows(); ++i) {
        for (int64_t j = 0; j < g->cols(); ++j) g->set_integer(i, j, 127);
      }
    }
    expect_product(a, b, 0);
    Grid c(INT8Q_S8, m, kLargestForeignK), d(INT8Q_S8, 3, kLargestForeignK);
    fill_codes(c, 1, kMinus128);
    fill_codes(d, 1, kMinus128);
    expect_product(c, d, 0);
  }
}

TEST(Multiply, LongerIsRefused) {
  const ContextPtr context = make_context();
  Grid c(INT8Q_S32, 1, 1);
  const std::vector<uint8_t> before = c.bytes();
  Grid a(INT8Q_S8, 1, 133145), b(INT8Q_S8, 1, 133145);
  EXPECT_STATUS(INT8Q_SIZE_OVERFLOW, int8q_multiply(context.get(), a.view(), b.view(), c.view()));
  EXPECT_NE(std::string(int8q_last_error()).find("133145"), std::string::npos) << int8q_last_error();
  Grid d(INT8Q_S8, 1, 131072), e(INT8Q_S8, 1, 131072);
  fill_codes(d, 1, kFull);
  fill_codes(e, 1, kFull);
  EXPECT_STATUS(INT8Q_OK, int8q_multiply(context.get(), d.view(), e.view(), c.view()));
  Grid untouched(c);
  e.set_integer(0, 131071, -128);
  EXPECT_STATUS(INT8Q_SIZE_OVERFLOW, int8q_multiply(context.get(), d.view(), e.view(), c.view()));
  EXPECT_NE(std::string(int8q_last_error()).find("-128"), std::string::npos) << int8q_last_error();
  EXPECT_EQ(c.bytes(), untouched.bytes());
  EXPECT_NE(before, untouched.bytes());
}

}  // namespace
}  // namespace int8q::test
