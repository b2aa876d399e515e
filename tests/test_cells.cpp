// SPDX-License-Identifier: Apache-2.0
//
// What the grids of the other tests cover: the list of shapes holds what it says, and a grid that shrinks is seen here.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <set>

#include "support/call.h"
#include "support/oracle.h"
#include "support/shapes.h"

namespace int8q::test {
namespace {

using Pairs = std::set<std::pair<int64_t, int64_t>>;

struct Values {
  std::set<int64_t> m, n, k;
  Pairs mn, mk, nk;
};

Values values_of(const std::vector<Shape>& list) {
  Values v;
  for (const Shape& s : list) {
    v.m.insert(s.m);
    v.n.insert(s.n);
    v.k.insert(s.k);
    v.mn.insert({s.m, s.n});
    v.mk.insert({s.m, s.k});
    v.nk.insert({s.n, s.k});
  }
  return v;
}

class Cells : public ::testing::Test {
 protected:
  ~Cells() override { was_.empty() ? unsetenv(kGrid) : setenv(kGrid, was_.c_str(), 1); }
  static std::vector<Shape> full_grid() {
    unsetenv(kGrid);
    return shapes();
  }
  static std::vector<Shape> small() {
    setenv(kGrid, "small", 1);
    return shapes();
  }

 private:
  static constexpr const char* kGrid = "INT8Q_TEST_GRID";
  const std::string was_ = std::getenv(kGrid) == nullptr ? "" : std::getenv(kGrid);
};

TEST_F(Cells, TheShapesHoldWhatTheyClaim) {
  const Values v = values_of(full_grid());
  for (const int64_t a : kOddSizes) {
    for (const int64_t b : kOddSizes) {
      EXPECT_EQ(1u, v.mn.count({a, b})) << "M " << a << ", N " << b;
      EXPECT_EQ(1u, v.mk.count({a, b})) << "M " << a << ", K " << b;
      EXPECT_EQ(1u, v.nk.count({a, b})) << "N " << a << ", K " << b;
    }
  }
  const auto in_each = [&](int64_t size) {
    EXPECT_EQ(1u, v.m.count(size)) << "M " << size;
    EXPECT_EQ(1u, v.n.count(size)) << "N " << size;
    EXPECT_EQ(1u, v.k.count(size)) << "K " << size;
  };
  for (int64_t power = 4; power <= 1024; power *= 2) {
    for (int64_t size = power - 1; size <= power + 1; ++size) in_each(size);
  }
  for (const int64_t prime : kPrimes) in_each(prime);
  for (const int64_t tile : {4, 5, 6, 8, 12, 16}) {
    for (int64_t m = tile - 1; m <= tile + 1; ++m) EXPECT_EQ(1u, v.m.count(m)) << m;
  }
  for (const ModelLayer& layer : kModelLayers) {
    EXPECT_EQ(layer.tested ? 1u : 0u, v.nk.count({layer.n, layer.k})) << layer.model << " " << layer.layer;
  }
  EXPECT_EQ(1u, v.mn.count({1, 3072})) << "GEMV of a model's layer";
}

TEST_F(Cells, TheSmallGridIsMixedAndCheap) {
  const std::vector<Shape> list = small();
  std::vector<Shape> products;  // that compute something
  std::copy_if(list.begin(), list.end(), std::back_inserter(products),
               [](const Shape& s) { return s.m > 0 && s.n > 0 && s.k > 0; });
  const Values all = values_of(list), v = values_of(products);
  for (const int64_t size : kOddSizes) {
    const std::set<int64_t>&m = size == 0 ? all.m : v.m, &n = size == 0 ? all.n : v.n, &k = size == 0 ? all.k : v.k;
    EXPECT_EQ(1u, m.count(size)) << "M " << size;
    EXPECT_EQ(1u, n.count(size)) << "N " << size;
    EXPECT_EQ(1u, k.count(size)) << "K " << size;
  }
  // No size of one dimension comes with a single size of another all the time, as along a diagonal of the square.
  for (const int64_t k : kOddSizes) {
    const auto with_k = std::count_if(list.begin(), list.end(), [&](const Shape& s) { return s.k == k; });
    EXPECT_LE(with_k, static_cast<int64_t>(list.size()) / 4) << "K " << k;
  }
  EXPECT_GT(*v.m.rbegin(), 256);
  EXPECT_GT(*v.n.rbegin(), 64);
  EXPECT_GT(*v.k.rbegin(), 512);
  int64_t multiplications = 0;
  for (const Shape& s : list) multiplications += s.m * s.n * s.k;
  EXPECT_LT(multiplications, 2'000'000) << "sanitizers and emulators run this grid";
}

// The tests of the operations assert isas x shapes x their own factor; here are the numbers themselves.
TEST_F(Cells, NumberOfCells) {
  EXPECT_EQ(40u, small().size());
  const size_t list = full_grid().size(), isas = runnable_isas().size();
  EXPECT_EQ(299u, list);
  EXPECT_GE(isas, 1u);
  // Linear 3 modes x 3 dtypes; quantize the same; multiply 3 fills x 2 thread counts; scaled 3 modes; dequantize 3 dtypes x
  // 2 operations; backward 3 dtypes.
  constexpr size_t kCellsOfAShape = 9 + 9 + 6 + 3 + 6 + 3;
  std::printf("%zu cells of operations: %zu ISAs x %zu shapes x %zu\n", isas * list * kCellsOfAShape, isas, list,
              kCellsOfAShape);
}

}  // namespace
}  // namespace int8q::test
