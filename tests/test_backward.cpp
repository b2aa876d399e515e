// SPDX-License-Identifier: Apache-2.0
//
// The gradient to the input, bit for bit on every ISA, and within its derived bound of the exact product.
#include <cmath>

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
      Grid first = before;
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
        if (i > 0) {
          ASSERT_EQ(dx.bytes(), first.bytes());
          continue;
        }
        first = Grid(dx);
        ASSERT_TRUE(dx.gaps_untouched());
        for (int64_t row = 0; row < m; ++row) {
          for (int64_t col = 0; col < k; ++col) {
            float value = backward(dy, qw, row, col);
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

// |error| <= gamma(N + 2) * sum |g q|: two roundings in g, N in the chain (docs/numerics.md).
TEST(Backward, WithinTheBoundOfDouble) {
  constexpr int64_t kM = 9, kN = 300, kK = 100;
  Grid w(INT8Q_F32, kN, kK), dy(INT8Q_F32, kM, kN), dx(INT8Q_F32, kM, kK);
  fill_normal(w, 1, 0.1f);
  fill_normal(dy, 2, 1.0f);
  const Quantized qw = quantize(w, INT8Q_OUTLIERS_OFF, 0);
  const ContextPtr context = make_context(2);
  int8q_linear* raw = nullptr;
  ASSERT_CALL(int8q_create_linear(context.get(), w.view(), nullptr, nullptr, nullptr, &raw));
  const LinearPtr linear(raw);
  const Workspace workspace = make_workspace(context.get(), raw, kM, INT8Q_BACKWARD);
  ASSERT_CALL(int8q_backward(context.get(), raw, dy.view(), 0, dx.view(), workspace.get(), workspace.bytes()));
  const double u = 0x1p-24, steps = static_cast<double>(kN) + 3, gamma = steps * u / (1 - steps * u);
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
      ASSERT_LE(std::fabs(static_cast<double>(dx.at(i, k)) - sum), gamma * size) << i << ", " << k;
    }
  }
}

}  // namespace
}  // namespace int8q::test
