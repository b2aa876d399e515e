// SPDX-License-Identifier: Apache-2.0
//
// Which lane holds which element, by CuTe's layouts: ptx.h of the kernels and that of the emulator could err alike.
//
//   MMA_Traits   ALayout, BLayout, CLayout: (lane, value) -> row + rows * column; values as they lie in the registers
//   Copy_Traits  SrcLayout: (lane, bit of the row that it addresses) -> bit; DstLayout: (lane, bit of its registers) -> bit
//
// Operands are integers, so that each product is exact in every order of its sum.
#include <gtest/gtest.h>

#include <cute/atom/copy_traits_sm75.hpp>
#include <cute/atom/mma_traits_sm75.hpp>
#include <cute/atom/mma_traits_sm80.hpp>
#include <vector>

#include "cuda/kernels/ptx.h"
#include "support/call.h"

namespace int8q::gpu {
namespace {

using emulation::launch;

// An instruction of one call: its first registers of a, b and c, and the row and k where its tile begins.
struct Instruction {
  int a, b, c, row, k;
};

// The call's matrices, x[16][depth] . w[8][depth]^T + y[16][8], and its registers.
struct Call {
  static constexpr int kRows = 16, kCols = 8;

  explicit Call(int depth_) : depth(depth_), x(static_cast<size_t>(kRows * depth)), w(static_cast<size_t>(kCols * depth)) {
    test::Random random(static_cast<uint64_t>(depth));
    for (int& element : x) element = static_cast<int>(random.below(256)) - 128;
    for (int& element : w) element = static_cast<int>(random.below(256)) - 128;
    for (auto& row : y) {
      for (int& element : row) element = static_cast<int>(random.below(2001)) - 1000;
    }
  }

  int product(int row, int col) const {
    int sum = y[row][col];
    for (int k = 0; k < depth; ++k) sum += x_at(row, k) * w_at(col, k);
    return sum;
  }
  int x_at(int row, int k) const { return x[static_cast<size_t>(row * depth + k)]; }
  int w_at(int col, int k) const { return w[static_cast<size_t>(col * depth + k)]; }

  int depth;
  std::vector<int> x, w;
  int y[kRows][kCols];
  uint32_t a[kWarp][4] = {}, b[kWarp][2] = {};
};

// each(lane, value, row, column) of a fragment with so many rows.
template <class Layout, int kRows, class Each>
void for_elements(const Each& each) {
  static_assert(decltype(cute::size<0>(Layout{}))::value == kWarp);
  for (int lane = 0; lane < kWarp; ++lane) {
    for (int value = 0; value < decltype(cute::size<1>(Layout{}))::value; ++value) {
      const int place = Layout{}(lane, value);
      each(lane, value, place % kRows, place / kRows);
    }
  }
}

template <class Element>
void put(uint32_t* registers, int value, Element element) {
  std::memcpy(reinterpret_cast<uint8_t*>(registers) + value * static_cast<int>(sizeof(Element)), &element, sizeof(Element));
}

// Each of the `instructions` is Traits'; `encode` makes an element of an int, `multiply` is ptx.h's.
template <class Traits, class Sum, class Encode, class Multiply>
void expect_products(const std::vector<Instruction>& instructions, const Encode& encode, const Multiply& multiply) {
  constexpr int kM = decltype(cute::size<0>(typename Traits::Shape_MNK{}))::value;
  constexpr int kN = decltype(cute::size<1>(typename Traits::Shape_MNK{}))::value;
  constexpr int kK = decltype(cute::size<2>(typename Traits::Shape_MNK{}))::value;
  static_assert(kN == Call::kCols);
  static_assert(sizeof(typename Traits::ValTypeA) == sizeof(encode(0)) && sizeof(typename Traits::ValTypeC) == sizeof(Sum));

  Call call(static_cast<int>(instructions.size()) * kM * kK / Call::kRows);
  Sum c[kWarp][4];
  for (const Instruction& i : instructions) {
    for_elements<typename Traits::ALayout, kM>([&](int lane, int value, int row, int k) {
      put(&call.a[lane][i.a], value, encode(call.x_at(i.row + row, i.k + k)));
    });
    for_elements<typename Traits::BLayout, kN>(
        [&](int lane, int value, int col, int k) { put(&call.b[lane][i.b], value, encode(call.w_at(col, i.k + k))); });
    for_elements<typename Traits::CLayout, kM>(
        [&](int lane, int value, int row, int col) { c[lane][i.c + value] = static_cast<Sum>(call.y[i.row + row][col]); });
  }
  launch({}, [&] { multiply(c[lane_index()], call.a[lane_index()], call.b[lane_index()]); });
  for (const Instruction& i : instructions) {
    for_elements<typename Traits::CLayout, kM>([&](int lane, int value, int row, int col) {
      EXPECT_EQ(c[lane][i.c + value], static_cast<Sum>(call.product(i.row + row, col)))
          << "lane " << lane << ", c[" << i.c + value << "], row " << i.row + row << ", column " << col;
    });
  }
}

int8_t to_s8(int i) { return static_cast<int8_t>(i); }
uint16_t to_f16(int i) { return f32_to_f16(static_cast<float>(i)); }
uint16_t to_bf16(int i) { return f32_to_bf16(static_cast<float>(i)); }

TEST(Fragments, S8) {
  expect_products<cute::MMA_Traits<cute::SM80_16x8x32_S32S8S8S32_TN>, int32_t>(
      {{}}, to_s8, [](auto& c, const auto& a, const auto& b) { ptx::mma_s8<Sm80>(c, a, b); });
}

TEST(Fragments, S8BySm75) {
  expect_products<cute::MMA_Traits<cute::SM75_8x8x16_S32S8S8S32_TN>, int32_t>(
      {{0, 0, 0, 0, 0}, {1, 0, 2, 8, 0}, {2, 1, 0, 0, 16}, {3, 1, 2, 8, 16}}, to_s8,
      [](auto& c, const auto& a, const auto& b) { ptx::mma_s8<Sm75>(c, a, b); });
}

TEST(Fragments, F16) {
  expect_products<cute::MMA_Traits<cute::SM80_16x8x16_F32F16F16F32_TN>, float>(
      {{}}, to_f16, [](auto& c, const auto& a, const auto& b) { ptx::mma_f16<Sm80>(c, a, b); });
}

TEST(Fragments, F16BySm75) {
  expect_products<cute::MMA_Traits<cute::SM75_16x8x8_F32F16F16F32_TN>, float>(
      {{0, 0, 0, 0, 0}, {2, 1, 0, 0, 8}}, to_f16,
      [](auto& c, const auto& a, const auto& b) { ptx::mma_f16<Sm75>(c, a, b); });
}

TEST(Fragments, Bf16) {
  expect_products<cute::MMA_Traits<cute::SM80_16x8x16_F32BF16BF16F32_TN>, float>(
      {{}}, to_bf16, [](auto& c, const auto& a, const auto& b) { ptx::mma_bf16(c, a, b); });
}

// Bit i of words in memory.
uint32_t bit(const uint32_t* words, int i) { return words[i / 32] >> i % 32 & 1; }

// Each lane gets the bits that Traits say, wherever the rows lie.
template <class Traits, class Load>
void expect_matrices(const Load& load) {
  using Src = typename Traits::SrcLayout;
  using Dst = typename Traits::DstLayout;
  constexpr int kBits = 128;  // of a row, and of a lane's registers
  static_assert(decltype(cute::size<1>(Src{}))::value == kBits && decltype(cute::size<1>(Dst{}))::value == kBits);
  test::Random random(1);
  uint32_t rows[kWarp][4], r[kWarp][4];
  uint32_t bits[kWarp * kBits];
  for (int lane = 0; lane < kWarp; ++lane) {
    for (uint32_t& word : rows[lane]) word = static_cast<uint32_t>(random.bits() >> 32);
    for (int i = 0; i < kBits; ++i) bits[Src{}(lane, i)] = bit(rows[lane], i);
  }
  launch({.shared_bytes = kWarp * kBits / 8}, [&] {
    const int lane = lane_index();
    const auto at = static_cast<uint32_t>((lane * 5 + 3) % kWarp * kBits / 8);
    store_shared(at, U32x4{rows[lane][0], rows[lane][1], rows[lane][2], rows[lane][3]});
    warp_barrier();
    load(at, r[lane]);
  });
  for (int lane = 0; lane < kWarp; ++lane) {
    uint32_t expected[4] = {};
    for (int i = 0; i < kBits; ++i) expected[i / 32] |= bits[Dst{}(lane, i)] << i % 32;
    for (int i = 0; i < 4; ++i) EXPECT_EQ(r[lane][i], expected[i]) << "lane " << lane << ", r[" << i << "]";
  }
}

TEST(Fragments, Ldmatrix) {
  expect_matrices<cute::Copy_Traits<cute::SM75_U32x4_LDSM_N>>([](uint32_t at, auto& r) { ptx::ldmatrix(at, r); });
}

TEST(Fragments, LdmatrixTrans) {
  expect_matrices<cute::Copy_Traits<cute::SM75_U16x8_LDSM_T>>([](uint32_t at, auto& r) { ptx::ldmatrix_trans(at, r); });
}

}  // namespace
}  // namespace int8q::gpu
