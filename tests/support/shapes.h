// SPDX-License-Identifier: Apache-2.0
//
// The one list of shapes: empty, odd, around the tiles (rows 4, 5, 6, 8, 12, 16; columns 16 and 64; K 4, 16, 64, 512), around
// powers of two, primes, GEMV, and layers of real models.
#pragma once

#include <cstdint>
#include <vector>

#include "support/call.h"

namespace int8q::test {

struct Shape {
  int64_t m, n, k;
};

// Every value of the list for each of M, N, K, paired so that each meets small and large others.
inline std::vector<Shape> shapes() {
  const std::vector<int64_t> sizes = {0, 1, 3, 7, 15, 17, 31, 33, 63, 65, 127, 257};
  std::vector<Shape> list;
  const size_t count = sizes.size();
  for (size_t i = 0; i < count; ++i) {
    list.push_back({sizes[i], sizes[(i * 5 + 1) % count], sizes[(i * 7 + 3) % count]});
    list.push_back({sizes[(i * 7 + 5) % count], sizes[i], sizes[(i * 5 + 2) % count]});
    list.push_back({sizes[(i * 5 + 4) % count], sizes[(i * 7 + 1) % count], sizes[i]});
  }
  for (const int64_t m : {2, 4, 5, 6, 8, 9, 11, 12, 13, 16, 18, 24})
    list.push_back({m, 48 + m, 60 + m});                                                      // rows of the tiles
  for (const int64_t n : {16, 32, 47, 64, 79, 96, 128, 129}) list.push_back({5, n, 64});      // whole and cut panels
  for (const int64_t k : {4, 16, 64, 128, 511, 512, 513, 1025}) list.push_back({19, 33, k});  // blocks of K
  for (const int64_t m : {191, 192, 193, 385}) list.push_back({m, 17, 65});                   // blocks of M
  if (!small_grid()) {
    list.push_back({1, 384, 1536});   // MiniLM down
    list.push_back({22, 1536, 384});  // MiniLM up
    list.push_back({1, 960, 576});    // SmolLM2 qkv
    list.push_back({9, 576, 1536});   // SmolLM2 down
  }
  if (!small_grid()) return list;
  std::vector<Shape> few;
  for (size_t i = 0; i < list.size(); i += 5) few.push_back(list[i]);
  return few;
}

}  // namespace int8q::test
