// SPDX-License-Identifier: Apache-2.0
//
// Rows of more than 2^31 columns: indices are 64 bits wide. Inputs are mapped zeros that take no memory, codes 2 GiB.
#include <sys/mman.h>

#include "support/call.h"

namespace int8q::test {
namespace {

TEST(Huge, AnOutlierColumnAbove31Bits) {
  constexpr int64_t kK = (int64_t{1} << 31) + 100, kCol = kK - 3;
  const auto map = [](int64_t bytes) {
    void* memory = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    EXPECT_NE(MAP_FAILED, memory);
    return memory;
  };
  auto* x = static_cast<uint16_t*>(map(kK * 2));
  auto* q = static_cast<int8_t*>(map(kK));
  auto* cols = static_cast<int64_t*>(map(kK * 8));
  x[kCol] = 0x4120;      // 10
  x[kCol - 1] = 0x4040;  // 3
  const ContextPtr context = make_context(2);
  const int8q_matrix in = matrix(INT8Q_BF16, 1, kK, x), out = matrix(INT8Q_S8, 1, kK, q);
  float stat = 0.0f;
  int64_t count = 0;
  ASSERT_CALL(int8q_quantize_rows(context.get(), &in, INT8Q_OUTLIERS_COLUMN, 6.0f, &out, &stat, nullptr, cols, &count));
  ASSERT_EQ(1, count);
  EXPECT_EQ(kCol, cols[0]);
  EXPECT_EQ(3.0f, stat);
  EXPECT_EQ(0, q[kCol]);
  EXPECT_EQ(127, q[kCol - 1]);
  munmap(x, static_cast<size_t>(kK * 2));
  munmap(q, static_cast<size_t>(kK));
  munmap(cols, static_cast<size_t>(kK * 8));
}

}  // namespace
}  // namespace int8q::test
