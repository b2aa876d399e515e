// SPDX-License-Identifier: Apache-2.0
//
// AVX2 + FMA + F16C: exact integer products by vpmaddwd. A group of four k's of B is a dword {b0 b1 b2 b3} a row:
//
//   even = vpsraw(vpsllw(b, 8), 8) = {b0, b2},  odd = vpsraw(b, 8) = {b1, b3}   as s16 pairs
//   acc += vpmaddwd({a0, a2}, even) + vpmaddwd({a1, a3}, odd)
//
// |a * b| <= 128 * 128, four of them 65,536: nothing saturates. gemm shifts B once for all rows, gemv once for a tile's.
//
// gemm 4x16: 4 rows x 2 ymm = 8 accumulators, 4 halves of B, 2 broadcasts, 1 product = 15 of 16 registers.
// dot 2x4: 2 x 4 accumulators, 4 of B, 1 of A, 1 product = 14.
// backward 6x16: 6 x 2 accumulators, 2 of w, 1 of g = 15.
#include "cpu/kernels.h"
#include "cpu/simd/backward.h"
#include "cpu/simd/dot.h"
#include "cpu/simd/gemm.h"
#include "cpu/simd/ops256.h"
#include "cpu/simd/table.h"

namespace int8q::cpu {
namespace {

using V = Vec256;

struct Pairs : Ymm {
  struct B {
    Vec even, odd;
  };
  static constexpr int kCodeBytes = 8;

  static B load_b(const int8_t* p) {
    const Vec b = load(p);
    return {_mm256_srai_epi16(_mm256_slli_epi16(b, 8), 8), _mm256_srai_epi16(b, 8)};
  }
  // Products and additions in an order that keeps all vector ports busy: 100% of the pair's peak on Zen 4, of which g++ 12's
  // own order leaves 75 to 90%.
  static constexpr bool kMacsOfPairs = true;
  static void mac_pair(Vec& acc0, Vec& acc1, const uint8_t* codes, const B& b0, const B& b1) {
    struct Dword {
      uint32_t bytes;
    };
    const auto* a = reinterpret_cast<const Dword __attribute__((may_alias))*>(codes);
    Vec c0 = acc0, c1 = acc1, x, y, product;  // of its own: g++ keeps in memory what assembly takes from an array
    asm("vpbroadcastd %[a_even], %[x]\n\t"
        "vpmaddwd %[even0], %[x], %[product]\n\t"
        "vpmaddwd %[even1], %[x], %[x]\n\t"
        "vpbroadcastd %[a_odd], %[y]\n\t"
        "vpaddd %[product], %[acc0], %[acc0]\n\t"
        "vpaddd %[x], %[acc1], %[acc1]\n\t"
        "vpmaddwd %[odd0], %[y], %[product]\n\t"
        "vpmaddwd %[odd1], %[y], %[y]\n\t"
        "vpaddd %[product], %[acc0], %[acc0]\n\t"
        "vpaddd %[y], %[acc1], %[acc1]"
        : [acc0] "+&x"(c0), [acc1] "+&x"(c1), [x] "=&x"(x), [y] "=&x"(y), [product] "=&x"(product)
        : [a_even] "m"(a[0]), [a_odd] "m"(a[1]), [even0] "x"(b0.even), [even1] "x"(b1.even), [odd0] "x"(b0.odd),
          [odd1] "x"(b1.odd));
    acc0 = c0;
    acc1 = c1;
  }
};

struct Widened : Ymm {
  static constexpr int kBytes = 16;
  static constexpr bool kBiased = false;
  static Vec bias() { return zero(); }
  static Vec load_a(const int8_t* p) { return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
  static Vec load_b(const int8_t* p) { return load_a(p); }
  static Vec tail_a(const int8_t* p, int64_t bytes) {
    return _mm256_cvtepi8_epi16(_mm256_castsi256_si128(V::load_bytes(p, bytes)));
  }
  static Vec tail_b(const int8_t* p, int64_t bytes) { return tail_a(p, bytes); }
  // Together: g++ 12 would first make more products than there are registers.
  static Vec mac(Vec acc, Vec a, Vec b) {
    Vec product;
    asm("vpmaddwd %[b], %[a], %[product]\n\tvpaddd %[product], %[acc], %[acc]"
        : [acc] "+x"(acc), [product] "=&x"(product)
        : [a] "x"(a), [b] "x"(b));
    return acc;
  }
};

void gemv(const GemmBlock& block) {
  if (block.rows == 1) return gemm<Pairs, 1, 4>(block);
  gemm<Pairs, 4, 1, Fetch::kL2>(block);
}

constexpr Products kProducts = {{"gemm_s16s8_4x16_avx2", gemm_widened<Pairs, 4, 1>},
                                {"gemv_s16s8_4x16_avx2", gemv},
                                {"dot_s8s8_2x4_avx2", dot<Widened, 2, 4>},
                                {"backward_f32_6x16_avx2", backward<FusedStep<V>, 6, 2>}};

constexpr Kernels kTable = INT8Q_KERNEL_TABLE("avx2", CodeLayout::kS16Pairs, ToPairs, "s16", kProducts);

}  // namespace

const Kernels& avx2_kernels() { return kTable; }

}  // namespace int8q::cpu
