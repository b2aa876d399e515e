// SPDX-License-Identifier: Apache-2.0
//
// Cells of a grid that cannot cross all of its dimensions (dtypes, strides, alignments, threads, ...): each dimension is
// drawn from a hash of its own. Dimensions that are taken from one counter move together, and whole planes never run.
// What ran is asserted: every pair of values of every two dimensions; on the small grid every value.
#pragma once

#include <gtest/gtest.h>

#include <array>
#include <initializer_list>
#include <set>
#include <vector>

#include "support/shapes.h"

namespace int8q::test {

class Draw {
 public:
  using Cell = std::vector<size_t>;  // the value of each dimension
  struct Dimension {
    const char* name;
    size_t values;
  };
  struct Pair {
    size_t dimension, value, other, other_value;
    bool operator<(const Pair& p) const { return key() < p.key(); }
    std::array<size_t, 4> key() const { return {dimension, value, other, other_value}; }
  };

  Draw(std::initializer_list<Dimension> dimensions) : dimensions_(dimensions) {}

  // The first dimensions are given, the others drawn.
  Cell cell(size_t shape, std::initializer_list<size_t> given) const {
    Cell drawn(given);
    uint64_t seed = shape;
    for (const size_t value : given) seed = mixed(seed * 64 + value);
    for (size_t d = drawn.size(); d < dimensions_.size(); ++d) {
      drawn.push_back(static_cast<size_t>(mixed(seed + (d << 32)) % dimensions_[d].values));
    }
    return drawn;
  }

  void ran(const Cell& cell) {
    for (size_t d = 0; d < cell.size(); ++d) {
      for (size_t e = d; e < cell.size(); ++e) ran_.insert({d, cell[d], e, cell[e]});
    }
  }

  void expect_covered(const std::set<Pair>& impossible = {}) const {
    for (size_t d = 0; d < dimensions_.size(); ++d) {
      for (size_t e = d; e < dimensions_.size(); ++e) {
        if (small_grid() && e > d) continue;
        for (size_t v = 0; v < dimensions_[d].values; ++v) {
          for (size_t w = 0; w < dimensions_[e].values; ++w) {
            if (d == e && v != w) continue;
            EXPECT_EQ(impossible.count({d, v, e, w}) == 0, ran_.count({d, v, e, w}) == 1)
                << dimensions_[d].name << " " << v << " with " << dimensions_[e].name << " " << w;
          }
        }
      }
    }
  }

 private:
  // splitmix64's finalizer: each bit of the result depends on each bit of n.
  static uint64_t mixed(uint64_t n) {
    n += 0x9e3779b97f4a7c15u;
    n = (n ^ (n >> 30)) * 0xbf58476d1ce4e5b9u;
    n = (n ^ (n >> 27)) * 0x94d049bb133111ebu;
    return n ^ (n >> 31);
  }

  std::vector<Dimension> dimensions_;
  std::set<Pair> ran_;
};

}  // namespace int8q::test
