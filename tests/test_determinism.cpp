// SPDX-License-Identifier: Apache-2.0
//
// The same bits for any number of threads and at each run; in element mode a row does not depend on its batch.
#include <map>

#include "support/call.h"
#include "support/oracle.h"

namespace int8q::test {
namespace {

constexpr int64_t kN = 200, kK = 300;

TEST(Determinism, ThreadsAndRuns) {
  const int runs = small_grid() ? 3 : 100;
  for (const int64_t m : {1, 3, 50, 200}) {
    const Mat w = random_mat(INT8Q_F32, kN, kK, 1), x = random_input(INT8Q_BF16, m, kK, 2),
              dy = random_mat(INT8Q_F32, m, kN, 3), dy_bf16 = random_mat(INT8Q_BF16, m, kN, 4);
    std::vector<uint8_t> y_first, dx_first;
    std::map<bool, std::vector<uint8_t>> dx_bf16_first;  // by whether bf16 products are used
    for (const cpu::Isa* isa : runnable_isas()) {
      if (isa == runnable_isas().front() && m == 200 && !small_grid()) continue;  // generic: minutes for nothing new
      for (const int32_t threads : {1, 2, 3, 4}) {
        const ContextPtr context = make_context(threads, isa->name);
        const LinearPtr linear = make_linear(context.get(), w);
        const Mat y(INT8Q_BF16, m, kN), dx(INT8Q_F32, m, kK);
        for (int run = 0; run < (threads == 1 ? 2 : isa->name == std::string("generic") ? 5 : runs); ++run) {
          ASSERT_CALL(forward(context.get(), linear.get(), x, y));
          if (y_first.empty()) y_first = y.bytes();
          ASSERT_EQ(y.bytes(), y_first) << isa->name << " threads " << threads << " run " << run;
          if (run > 4) continue;
          ASSERT_CALL(backward(context.get(), linear.get(), dy, dx));
          if (dx_first.empty()) dx_first = dx.bytes();
          ASSERT_EQ(dx.bytes(), dx_first) << isa->name << " threads " << threads << " run " << run;
          ASSERT_CALL(backward(context.get(), linear.get(), dy_bf16, dx));
          auto& first = dx_bf16_first[isa->kernels().backward_bf16.run != nullptr];
          if (first.empty()) first = dx.bytes();
          ASSERT_EQ(dx.bytes(), first) << isa->name << " bf16, threads " << threads << " run " << run;
        }
      }
    }
  }
}

TEST(Determinism, ElementModeIsBatchInvariant) {
  for (const cpu::Isa* isa : runnable_isas()) {
    const ContextPtr context = make_context(2, isa->name);
    const LinearPtr linear = make_linear(context.get(), random_mat(INT8Q_F32, kN, kK, 1), nullptr, INT8Q_OUTLIERS_ELEMENT);
    const Mat mine = random_input(INT8Q_F32, 1, kK, 9);
    const Mat alone(INT8Q_F32, 1, kN);
    ASSERT_CALL(forward(context.get(), linear.get(), mine, alone));
    for (const int64_t m : {2, 7, 16, 17, 64, 200}) {
      for (const int64_t row : {int64_t{0}, m / 2, m - 1}) {
        Mat x = random_input(INT8Q_F32, m, kK, static_cast<uint64_t>(m * 10 + row));
        const Mat y(INT8Q_F32, m, kN);
        std::memcpy(x.as<float>() + row * kK, mine.bytes().data(), kK * sizeof(float));
        ASSERT_CALL(forward(context.get(), linear.get(), x, y));
        ASSERT_EQ(0, std::memcmp(y.bytes().data() + row * kN * 4, alone.bytes().data(), kN * 4))
            << isa->name << " M " << m << " row " << row;
      }
    }
  }
}

}  // namespace
}  // namespace int8q::test
