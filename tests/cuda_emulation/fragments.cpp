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
#include <cute/atom/mma_traits_sm90_gmma.hpp>
#include <vector>

#include "cuda/kernels/ptx_sm90.h"
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

// ---- sm_90a

using WgmmaTraits = cute::MMA_Traits<cute::SM90::GMMA::MMA_64x256x32_S32S8S8_SS_TN>;
using SwizzledRows = cute::SM90::GMMA::Layout_K_SW128_Atom<int8_t>;  // eight of 128 bytes

int place_of(int row, int k) { return row / 8 * 1024 + static_cast<int>(SwizzledRows{}(row % 8, k)); }

// A warpgroup's product of 32 bytes at each place of rows of 128, whose operands lie, and whose sums are, where CuTe has them.
TEST(Fragments, Wgmma) {
  constexpr int kM = 64, kN = 256, kDepth = 32, kRow = 128, kThreads = 128;
  static_assert(decltype(cute::size<0>(WgmmaTraits::CLayout{}))::value == kThreads);
  test::Random random(1);
  std::vector<int8_t> x(kM * kRow), w(kN * kRow), shared((kM + kN) * kRow);
  for (int8_t& code : x) code = static_cast<int8_t>(random.below(256));
  for (int8_t& code : w) code = static_cast<int8_t>(random.below(256));
  for (int k = 0; k < kRow; ++k) {
    for (int row = 0; row < kM; ++row)
      shared[static_cast<size_t>(place_of(row, k))] = x[static_cast<size_t>(row * kRow + k)];
    for (int row = 0; row < kN; ++row)
      shared[static_cast<size_t>(kM * kRow + place_of(row, k))] = w[static_cast<size_t>(row * kRow + k)];
  }
  for (int first = 0; first < kRow; first += kDepth) {
    static int32_t c[kThreads][32][4];
    std::memset(c, 0, sizeof c);
    launch({.threads = kThreads, .shared_bytes = (kM + kN) * kRow}, [&] {
      for (size_t i = static_cast<size_t>(thread_index()) * 4; i < shared.size(); i += kThreads * 4) {
        uint32_t four;
        std::memcpy(&four, &shared[i], 4);
        store_shared(static_cast<uint32_t>(i), four);
      }
      ptx::proxy_fence();
      block_barrier();
      ptx::fence_products();
      ptx::multiply_tile(c[thread_index()], static_cast<uint32_t>(first), static_cast<uint32_t>(kM * kRow + first));
      ptx::commit_products();
      ptx::wait_products<0>();
    });
    for (int thread = 0; thread < kThreads; ++thread) {
      for (int value = 0; value < decltype(cute::size<1>(WgmmaTraits::CLayout{}))::value; ++value) {
        const int place = WgmmaTraits::CLayout{}(thread, value), row = place % kM, col = place / kM;
        int sum = 0;
        for (int k = first; k < first + kDepth; ++k)
          sum += x[static_cast<size_t>(row * kRow + k)] * w[static_cast<size_t>(col * kRow + k)];
        ASSERT_EQ(c[thread][value / 4][value % 4], sum) << "thread " << thread << ", value " << value;
      }
    }
  }
}

// A product of halves, whose left fragments and sums are where CuTe has them, at each 16 of rows of 64.
template <class Traits, bool kF16>
void expect_product_of_halves() {
  constexpr int kM = 64, kTiles = decltype(cute::size<1>(typename Traits::Shape_MNK{}))::value / 8, kN = kTiles * 8;
  constexpr int kDepth = 16, kRow = 64, kThreads = 128;
  const auto bits = [](int value) {
    return kF16 ? f32_to_f16(static_cast<float>(value)) : f32_to_bf16(static_cast<float>(value));
  };
  test::Random random(3);
  std::vector<int> x(kM * kDepth), w(kN * kRow);
  for (int& value : x) value = static_cast<int>(random.below(256)) - 128;
  for (int& value : w) value = static_cast<int>(random.below(256)) - 128;
  std::vector<uint16_t> shared(kN * kRow);
  for (int row = 0; row < kN; ++row) {
    for (int k = 0; k < kRow; ++k)
      shared[static_cast<size_t>(place_of(row, k * 2) / 2)] = bits(w[static_cast<size_t>(row * kRow + k)]);
  }
  static uint32_t a[kThreads][4];
  std::memset(a, 0, sizeof a);
  for (int thread = 0; thread < kThreads; ++thread) {
    for (int value = 0; value < decltype(cute::size<1>(typename Traits::ALayout{}))::value; ++value) {
      const int place = typename Traits::ALayout{}(thread, value), row = place % kM, k = place / kM;
      a[thread][value / 2] |= static_cast<uint32_t>(bits(x[static_cast<size_t>(row * kDepth + k)])) << value % 2 * 16;
    }
  }
  for (int first = 0; first < kRow; first += kDepth) {
    static float c[kThreads][kTiles][4];
    std::memset(c, 0, sizeof c);
    launch({.threads = kThreads, .shared_bytes = kN * kRow * 2}, [&] {
      for (size_t i = static_cast<size_t>(thread_index()) * 2; i < shared.size(); i += kThreads * 2) {
        uint32_t two;
        std::memcpy(&two, &shared[i], 4);
        store_shared(static_cast<uint32_t>(i * 2), two);
      }
      ptx::proxy_fence();
      block_barrier();
      ptx::fence_products();
      ptx::multiply_tile<kF16>(c[thread_index()], a[thread_index()], static_cast<uint32_t>(first * 2));
      ptx::commit_products();
      ptx::wait_products<0>();
    });
    for (int thread = 0; thread < kThreads; ++thread) {
      for (int value = 0; value < decltype(cute::size<1>(typename Traits::CLayout{}))::value; ++value) {
        const int place = typename Traits::CLayout{}(thread, value), row = place % kM, col = place / kM;
        int sum = 0;
        for (int k = 0; k < kDepth; ++k)
          sum += x[static_cast<size_t>(row * kDepth + k)] * w[static_cast<size_t>(col * kRow + first + k)];
        ASSERT_EQ(c[thread][value / 4][value % 4], static_cast<float>(sum)) << "thread " << thread << ", value " << value;
      }
    }
  }
}

TEST(Fragments, WgmmaOfHalves) {
  using namespace cute::SM90::GMMA;
  constexpr auto kK = Major::K;
  expect_product_of_halves<cute::MMA_Traits<MMA_64x64x16_F32F16F16_RS<kK, kK>>, true>();
  expect_product_of_halves<cute::MMA_Traits<MMA_64x128x16_F32BF16BF16_RS<kK, kK>>, false>();
  expect_product_of_halves<cute::MMA_Traits<MMA_64x256x16_F32BF16BF16_RS<kK, kK>>, false>();
}

TEST(Fragments, DescriptorOfWgmma) {
  for (const uint32_t address : {0u, 1024u, 48 * 1024u + 96u, 227 * 1024u - 1024u}) {
    const cute::GmmaDescriptor descriptor(ptx::rows_of_128_bytes(address));
    EXPECT_EQ(static_cast<uint32_t>(descriptor.bitfield.start_address_) << 4, address);
    EXPECT_EQ(descriptor.bitfield.leading_byte_offset_, 1);
    EXPECT_EQ(descriptor.bitfield.stride_byte_offset_ << 4, 1024);
    EXPECT_EQ(descriptor.bitfield.base_offset_, 0);
    EXPECT_EQ(descriptor.bitfield.layout_type_, static_cast<uint8_t>(cute::SM90::GMMA::LayoutType::B128));
  }
}

// The copy engine lays rows of 128 bytes as wgmma reads them, and of 64 as CuTe swizzles these.
template <int kRow, class Place>
void expect_copy(const Place& place) {
  constexpr int kRows = 16;
  std::vector<int8_t> values(kRows * kRow);
  test::Random random(2);
  for (int8_t& value : values) value = static_cast<int8_t>(random.below(256));
  const emulation::Buffer<int8_t> x(values, "x");
  TensorMap map;
  ASSERT_EQ(emulation::encode_tensor_map(&map, x.device(), {kRow, kRows}, kRow, {kRow, kRows}), 0);
  uint32_t came[kRows * kRow / 4];
  launch({.shared_bytes = kRows * kRow + 8}, [&] {
    const uint32_t barrier = kRows * kRow;
    if (lane_index() == 0) {
      ptx::init_barrier(barrier, 1);
      ptx::proxy_fence();
      ptx::arrive_and_expect(barrier, kRows * kRow);
      ptx::copy_tile(0, map, 0, 0, barrier);
    }
    warp_barrier();
    ptx::wait_barrier(barrier, 0);
    for (int i = lane_index(); i < kRows * kRow / 4; i += kWarp)
      came[i] = load_shared<uint32_t>(static_cast<uint32_t>(i) * 4);
  });
  for (int row = 0; row < kRows; ++row) {
    for (int k = 0; k < kRow; ++k) {
      int8_t byte;
      std::memcpy(&byte, reinterpret_cast<const uint8_t*>(came) + place(row, k), 1);
      ASSERT_EQ(byte, values[static_cast<size_t>(row * kRow + k)]) << row << ", " << k;
    }
  }
}

TEST(Fragments, CopiesOfTiles) {
  expect_copy<128>(place_of);
  using Rows = cute::SM90::GMMA::Layout_K_SW64_Atom<int8_t>;  // eight of 64 bytes
  expect_copy<64>([](int row, int k) { return row / 8 * 512 + static_cast<int>(Rows{}(row % 8, k)); });
}

}  // namespace
}  // namespace int8q::gpu
