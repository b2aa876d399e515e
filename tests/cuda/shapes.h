// SPDX-License-Identifier: Apache-2.0
//
// Of the one list of shapes what a GPU's tests run: all of it on a GPU or for INT8Q_TEST_GRID=full, else some, of which the
// emulator, at some 50 ns a multiplication, is through in seconds.
#pragma once

#include <cstdlib>
#include <string>

#include "cuda/gpu.h"
#include "support/shapes.h"

namespace int8q::test {

inline bool full_grid() {
  const char* grid = std::getenv("INT8Q_TEST_GRID");
  return more_of_driver().stub_count == nullptr || (grid != nullptr && std::string(grid) == "full");
}

// M of more than 64, K of 512 and more, and few tiles: blocks share K on the stub as on any GPU.
inline const std::vector<Shape> kSplitShapes = {{66, 20, 1100}, {130, 60, 600}};

inline std::vector<Shape> device_shapes() {
  std::vector<Shape> all = shapes();
  if (full_grid()) {
    all.insert(all.end(), kSplitShapes.begin(), kSplitShapes.end());
    return all;
  }
  constexpr size_t kEvery = 5;
  constexpr int64_t kMostProducts = 400000;
  std::vector<Shape> few;
  for (size_t i = 0; i < all.size(); i += kEvery) {
    if (all[i].m * all[i].n * all[i].k < kMostProducts) few.push_back(all[i]);
  }
  few.insert(few.end(), kSplitShapes.begin(), kSplitShapes.end());
  few.insert(few.end(), {{257, 9, 700}, {66, 520, 40}});  // tiles that are as large as any
  return few;
}

}  // namespace int8q::test
