// SPDX-License-Identifier: Apache-2.0
//
// The kernels of the gradient to the input, of every ISA, in fp32 and in bf16 where there are such, against plain loops.
#include "support/kernel_cases.h"

namespace int8q::test {
namespace {

// unpack and backward of one ISA, and what they multiply: words of g and w, a step of which is a dword.
struct Method {
  const char* isa;
  cpu::Kernel<cpu::UnpackPanel> unpack;
  cpu::Kernel<cpu::Backward> backward;
  bool bf16;

  int64_t per_step() const { return bf16 ? 2 : 1; }
  // Row n, column k of panels of 16 columns, `stride` bytes apart.
  float w(const uint8_t* panels, int64_t stride, int64_t n, int64_t k) const {
    return load(dtype(), panels + k / 16 * stride + n / per_step() * 64 + k % 16 * 4, n % per_step());
  }
  int dtype() const { return bf16 ? 2 : 0; }
  // bf16: of a pair of n the second one first, denormals zero throughout.
  float dot(const uint8_t* g, const uint8_t* panels, int64_t stride, int64_t n, int64_t k, float sum) const {
    if (!bf16) {
      for (int64_t t = 0; t < n; ++t) sum = std::fmaf(load(0, g, t), w(panels, stride, t, k), sum);
      return sum;
    }
    for (int64_t pair = 0; pair < n; pair += 2) {
      for (const int64_t t : {pair + 1, pair})
        sum =
            without_denormals(std::fmaf(without_denormals(load(2, g, t)), w(panels, stride, t, k), without_denormals(sum)));
    }
    return sum;
  }
};

std::vector<Method> methods() {
  std::vector<Method> list;
  for (const cpu::Isa* isa : runnable_isas()) {
    const cpu::Kernels& k = isa->kernels();
    list.push_back({isa->name, k.unpack, k.backward, false});
    if (k.backward_bf16.run != nullptr) list.push_back({isa->name, k.unpack_bf16, k.backward_bf16, true});
  }
  return list;
}

TEST(KernelsBackward, Unpack) {
  Cells cells("unpack");
  constexpr int64_t kPadded = 192;
  GuardedMemory in(kPadded * 16);
  for (const Method& method : methods()) {
    Random random(7);
    const int64_t lines = 16 / method.per_step();
    for (int64_t begin = 0; begin < kPadded; begin += 16) {
      for (int64_t count = 0; begin + count <= kPadded; count += 16) {
        for (const int64_t stride : {lines * 64, lines * 64 + 64}) {
          auto* panel = reinterpret_cast<int8_t*>(in.place_aligned(kPadded * 16));
          for (int64_t j = 0; j < kPadded * 16; ++j) panel[j] = provoking_code(random, true);
          Aligned<uint8_t> w(count / 16 * stride + 64);
          for (int64_t j = 0; j < w.count(); ++j) w[j] = 0xa5;
          method.unpack.run(panel, begin, count, w.get(), stride);
          for (int64_t n = 0; n < 16; ++n) {
            for (int64_t k = 0; k < count; ++k)
              ASSERT_EQ(panel_code(panel, 0, n, begin + k), method.w(w.get(), stride, n, k))
                  << method.unpack.name << " row " << n << " column " << begin + k;
          }
          for (int64_t j = 0; j < w.count(); ++j) {
            if (j / stride < count / 16 && j % stride < lines * 64) continue;
            ASSERT_EQ(0xa5, w[j]) << method.unpack.name << " wrote a gap";
          }
          cells.add();
        }
      }
    }
  }
  EXPECT_EQ(std::ssize(methods()) * (13 * 12 / 2 + 12) * 2, cells.count());
}

// Finite values, now and then a zero, a denormal, Inf or NaN. None so large that a product overflows where a sum does not.
float some_float(Random& random, int dtype) {
  const float smallest = dtype == 2 ? 0x1p-133f : 0x1p-149f;
  const float values[] = {
      0.0f, -0.0f, smallest, 0x1.8p-127f, std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()};
  return random.below(40) == 0 ? values[random.below(6)] : random.uniform(-2.0f, 2.0f);
}

struct Block {
  int64_t rows, n, k, next_panels;
  bool accumulate;
};

// One call: dX, and the next call's w.
void check_backward(const Method& method, const Block& b, Random& random) {
  const int64_t steps = (b.n + method.per_step() - 1) / method.per_step(), words = steps * method.per_step();
  const int64_t next_lines = b.next_panels * 16 / method.per_step();
  const int64_t g_stride = steps * 4 + random.below(2) * 64, dx_stride = b.k + random.below(2) * 16,
                w_stride = (std::max(steps, next_lines) + 1 + random.below(2)) * 64,
                next_stride = b.k * 16 + random.below(2) * 64;
  Aligned<uint8_t> g(b.rows * g_stride + 64), w(b.k / 16 * w_stride + 64), next_w(b.k / 16 * w_stride + 64);
  Aligned<int8_t> next(b.next_panels * next_stride + 64);
  Aligned<float> dx(b.rows * dx_stride);
  for (int64_t i = 0; i < b.rows; ++i) {
    for (int64_t n = 0; n < words; ++n)
      store(method.dtype(), g.get() + i * g_stride, n, n < b.n ? some_float(random, method.dtype()) : 0.0f);
  }
  for (int64_t j = 0; j < w.count() * 8 / (method.bf16 ? 16 : 32); ++j)
    store(method.dtype(), w.get(), j, provoking_code(random, true));
  for (int64_t j = 0; j < next.count(); ++j) next[j] = provoking_code(random, true);
  for (int64_t j = 0; j < next_w.count(); ++j) next_w[j] = 0xa5;
  std::vector<float> right(static_cast<size_t>(dx.count()));
  for (int64_t i = 0; i < dx.count(); ++i) {
    dx[i] = right[static_cast<size_t>(i)] = random.uniform(-9.0f, 9.0f);
    const int64_t row = i / dx_stride, k = i % dx_stride;
    if (k >= b.k) continue;
    right[static_cast<size_t>(i)] =
        method.dot(g.get() + row * g_stride, w.get(), w_stride, b.n, k, b.accumulate ? dx[i] : 0.0f);
  }
  method.backward.run({.rows = b.rows,
                       .n = b.n,
                       .k = b.k,
                       .g = g.get(),
                       .g_stride = g_stride,
                       .w = w.get(),
                       .w_stride = w_stride,
                       .next_count = b.next_panels,
                       .next = b.next_panels > 0 ? next.get() : nullptr,
                       .next_stride = next_stride,
                       .next_w = next_w.get(),
                       .dx = dx.get(),
                       .dx_stride = dx_stride,
                       .accumulate = b.accumulate});
  for (int64_t i = 0; i < dx.count(); ++i)
    ASSERT_TRUE(same_float(right[static_cast<size_t>(i)], dx[i]))
        << "row " << i / dx_stride << " column " << i % dx_stride << ": " << dx[i];
  for (int64_t n = 0; n < b.next_panels * 16; ++n) {
    for (int64_t k = 0; k < b.k; ++k)
      ASSERT_EQ(panel_code(next.get(), next_stride, n, k), method.w(next_w.get(), w_stride, n, k))
          << "next row " << n << " column " << k;
  }
  for (int64_t j = 0; j < next_w.count(); ++j) {
    if (j / w_stride < b.k / 16 && j % w_stride < next_lines * 64) continue;
    ASSERT_EQ(0xa5, next_w[j]) << "next_w's gap at " << j;
  }
}

TEST(KernelsBackward, Multiply) {
  Cells cells("backward");
  for (const Method& method : methods()) {
    Random random(15);
    for (int64_t rows = 1; rows <= 17; ++rows) {
      for (const int64_t n : {0, 1, 2, 5, 15, 16, 17, 31, 32, 33, 63, 64, 65}) {
        for (const int64_t k : {16, 32, 48, 64, 80}) {
          const Block block{rows, n, k, random.below(4), random.below(3) > 0};
          SCOPED_TRACE(::testing::Message() << method.backward.name << " rows " << rows << " n " << n << " k " << k
                                            << " next " << block.next_panels << (block.accumulate ? " accumulates" : ""));
          ASSERT_NO_FATAL_FAILURE(check_backward(method, block, random));
          cells.add();
        }
      }
    }
  }
  EXPECT_EQ(std::ssize(methods()) * 17 * 13 * 5, cells.count());
}

}  // namespace
}  // namespace int8q::test
