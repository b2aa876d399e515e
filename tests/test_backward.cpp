// SPDX-License-Identifier: Apache-2.0
//
// The gradient to the input: bit for bit in fp32 on every ISA and by bf16 products where they are used, and within its derived
// bounds of the exact product.
#include <algorithm>
#include <cmath>
#include <map>

#include "support/call.h"
#include "support/draw.h"
#include "support/oracle.h"
#include "support/shapes.h"

namespace int8q::test {
namespace {

TEST(Backward, EveryShapeDtype) {
  const std::vector<Shape> list = shapes();
  const auto isas = runnable_isas();
  Draw draw = {{"in", 3},        {"out", 3},    {"accumulate", 2}, {"dy gap", 3},
               {"dy offset", 4}, {"dx gap", 3}, {"dx offset", 4},  {"threads", 3}};
  enum : size_t { kIn, kOut, kAccumulate, kDyGap, kDyOffset, kDxGap, kDxOffset, kThreads };
  size_t cells = 0;
  for (size_t s = 0; s < list.size(); ++s) {
    const auto [m, n, k] = list[s];
    for (size_t t = 0; t < 3; ++t) {
      const Draw::Cell d = draw.cell(s, {t});
      if (m > 0 && n > 0 && k > 0) draw.ran(d);
      const int32_t in = kFloatDtypes[t], out = kFloatDtypes[d[kOut]];
      const bool accumulate = d[kAccumulate] == 1;
      Grid w(INT8Q_F32, n, k), dy(in, m, n, static_cast<int64_t>(d[kDyGap]), static_cast<int64_t>(d[kDyOffset]));
      Grid before(out, m, k, static_cast<int64_t>(d[kDxGap]), static_cast<int64_t>(d[kDxOffset]));
      fill_normal(w, s, 0.1f);
      fill_normal(dy, s + 1, 1.0f);
      fill_normal(before, s + 2, 1.0f);
      const Quantized qw = quantize(w, INT8Q_OUTLIERS_OFF, 0);
      std::map<bool, Grid> first;  // by whether bf16 products are used
      for (size_t i = 0; i < isas.size(); ++i) {
        SCOPED_TRACE(::testing::Message() << isas[i]->name << " M " << m << " N " << n << " K " << k << " in " << in
                                          << " out " << out);
        const ContextPtr context = make_context(static_cast<int32_t>(1 + (d[kThreads] + i) % 3), isas[i]->name);
        int8q_linear* raw = nullptr;
        ASSERT_CALL(int8q_create_linear(context.get(), w.view(), nullptr, nullptr, nullptr, &raw));
        const LinearPtr linear(raw);
        const Workspace workspace = make_workspace(context.get(), raw, m, INT8Q_BACKWARD);
        Grid dx = before;
        ASSERT_CALL(int8q_backward(context.get(), raw, dy.view(), accumulate ? INT8Q_ACCUMULATE : 0, dx.view(),
                                   workspace.get(), workspace.bytes()));
        ++cells;
        const bool bf16 = in == INT8Q_BF16 && isas[i]->kernels().backward_bf16.run != nullptr;
        const auto [same_method, is_first] = first.try_emplace(bf16, dx);
        if (!is_first) {
          ASSERT_EQ(dx.bytes(), same_method->second.bytes());
          continue;
        }
        ASSERT_TRUE(dx.gaps_untouched());
        for (int64_t row = 0; row < m; ++row) {
          for (int64_t col = 0; col < k; ++col) {
            float value = bf16 ? backward_bf16(dy, qw, row, col) : backward(dy, qw, row, col);
            if (accumulate) value = before.at(row, col) + value;
            ASSERT_TRUE(same_bits(dx.at(row, col), rounded_to(out, value)))
                << row << ", " << col << ": " << dx.at(row, col);
          }
        }
      }
    }
  }
  std::printf("%zu cells: %zu ISAs x %zu shapes x 3 dtypes\n", cells, isas.size(), list.size());
  EXPECT_EQ(cells, isas.size() * list.size() * 3);
  draw.expect_covered();
}

// Shapes large enough to be shared, of which one side is empty.
TEST(Backward, NoColumnsOrNoRowsOfW) {
  const ContextPtr context = make_context(2);
  {
    const Mat w(INT8Q_F32, 4096, 0), dy = random_mat(INT8Q_F32, 257, 4096, 1), dx(INT8Q_F32, 257, 0);
    const LinearPtr linear = make_linear(context.get(), w);
    const Workspace workspace = make_workspace(context.get(), linear.get(), 257, INT8Q_BACKWARD);
    ASSERT_CALL(int8q_backward(context.get(), linear.get(), dy.get(), 0, dx.get(), workspace.get(), workspace.bytes()));
  }
  const Mat w(INT8Q_F32, 0, 4096), dy(INT8Q_F32, 257, 0), dx = random_mat(INT8Q_F32, 257, 4096, 2);
  const LinearPtr linear = make_linear(context.get(), w);
  const Workspace workspace = make_workspace(context.get(), linear.get(), 257, INT8Q_BACKWARD);
  ASSERT_CALL(int8q_backward(context.get(), linear.get(), dy.get(), 0, dx.get(), workspace.get(), workspace.bytes()));
  EXPECT_TRUE(std::ranges::all_of(dx.bytes(), [](uint8_t byte) { return byte == 0; }));
}

// A linear of w, and dX of dY by it.
void run_backward(const char* isa, Grid& w, Grid& dy, Grid& dx) {
  const ContextPtr context = make_context(2, isa);
  int8q_linear* raw = nullptr;
  ASSERT_CALL(int8q_create_linear(context.get(), w.view(), nullptr, nullptr, nullptr, &raw));
  const LinearPtr linear(raw);
  const Workspace workspace = make_workspace(context.get(), raw, dy.rows(), INT8Q_BACKWARD);
  ASSERT_CALL(int8q_backward(context.get(), raw, dy.view(), 0, dx.view(), workspace.get(), workspace.bytes()));
}

// |error| <= gamma(N + 3) * sum |g q|: three roundings in g, N in the chain; by bf16 products one of bf16's precision more and
// what is lost in denormals (docs/numerics.md).
TEST(Backward, WithinTheBoundOfDouble) {
  constexpr int64_t kM = 9, kN = 301, kK = 100;
  for (const cpu::Isa* isa : runnable_isas()) {
    for (const int32_t dtype : kFloatDtypes) {
      SCOPED_TRACE(::testing::Message() << isa->name << " dtype " << dtype);
      Grid w(INT8Q_F32, kN, kK), dy(dtype, kM, kN), dx(INT8Q_F32, kM, kK);
      fill_normal(w, 1, 0.1f);
      fill_normal(dy, 2, 1.0f);
      const Quantized qw = quantize(w, INT8Q_OUTLIERS_OFF, 0);
      ASSERT_NO_FATAL_FAILURE(run_backward(isa->name, w, dy, dx));
      const bool bf16 = dtype == INT8Q_BF16 && isa->kernels().backward_bf16.run != nullptr;
      const double u = 0x1p-24, steps = static_cast<double>(kN) + 3, gamma = steps * u / (1 - steps * u);
      const double relative = bf16 ? (1 + gamma) * (1 + 0x1p-8) - 1 : gamma;
      const double lost = bf16 ? static_cast<double>(kN) * 129 * 0x1p-126 : 0;
      for (int64_t i = 0; i < kM; ++i) {
        for (int64_t k = 0; k < kK; ++k) {
          double sum = 0, size = 0;
          for (int64_t n = 0; n < kN; ++n) {
            const auto at = static_cast<size_t>(n);
            const double term = static_cast<double>(dy.at(i, n)) * static_cast<double>(qw.stats[at]) / 127.0 *
                                qw.codes[at * static_cast<size_t>(kK) + static_cast<size_t>(k)];
            sum += term;
            size += std::fabs(term);
          }
          ASSERT_LE(std::fabs(static_cast<double>(dx.at(i, k)) - sum), relative * size + lost) << i << ", " << k;
        }
      }
    }
  }
}

// Small integers are exact in every order and precision: stats of 127 make g = dY.
TEST(Backward, ExactWhereEverySumIs) {
  constexpr int64_t kM = 37, kN = 1031, kK = 70;
  for (const cpu::Isa* isa : runnable_isas()) {
    for (const int32_t dtype : kFloatDtypes) {
      SCOPED_TRACE(::testing::Message() << isa->name << " dtype " << dtype);
      Random random(5);
      Grid w(INT8Q_F32, kN, kK), dy(dtype, kM, kN), dx(INT8Q_F32, kM, kK);
      for (int64_t n = 0; n < kN; ++n) {
        for (int64_t k = 0; k < kK; ++k) w.set(n, k, k == n % kK ? 127.0f : static_cast<float>(random.code()));
        for (int64_t i = 0; i < kM; ++i) dy.set(i, n, static_cast<float>(random.below(17) - 8));
      }
      ASSERT_NO_FATAL_FAILURE(run_backward(isa->name, w, dy, dx));
      for (int64_t i = 0; i < kM; ++i) {
        for (int64_t k = 0; k < kK; ++k) {
          float sum = 0;  // below 2^24
          for (int64_t n = 0; n < kN; ++n) sum += dy.at(i, n) * w.at(n, k);
          ASSERT_EQ(sum, dx.at(i, k)) << i << ", " << k;
        }
      }
    }
  }
}

// More rows than a block, more n than a block of either method, on several threads, beside the same rows alone.
TEST(Backward, ARowDependsOnNoOther) {
  constexpr int64_t kM = 300, kN = 530, kK = 130;
  for (const cpu::Isa* isa : runnable_isas()) {
    for (const int32_t dtype : kFloatDtypes) {
      const ContextPtr one = make_context(1, isa->name), three = make_context(3, isa->name);
      const LinearPtr linear = make_linear(one.get(), random_mat(INT8Q_F32, kN, kK, 1));
      const Mat dy = random_mat(dtype, kM, kN, 2), dx(INT8Q_F32, kM, kK), alone(INT8Q_F32, 1, kK);
      ASSERT_CALL(backward(three.get(), linear.get(), dy, dx));
      for (const int64_t row : {0, 1, 149, 150, 298, 299}) {
        Mat mine(dtype, 1, kN);
        std::memcpy(mine.as<uint8_t>(), dy.bytes().data() + static_cast<int64_t>(mine.bytes().size()) * row,
                    mine.bytes().size());
        ASSERT_CALL(backward(one.get(), linear.get(), mine, alone));
        ASSERT_EQ(0, std::memcmp(alone.bytes().data(), dx.bytes().data() + row * kK * 4, kK * 4))
            << isa->name << " dtype " << dtype << " row " << row;
      }
    }
  }
}

}  // namespace
}  // namespace int8q::test
