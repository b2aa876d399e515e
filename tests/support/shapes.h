// SPDX-License-Identifier: Apache-2.0
//
// The one list of shapes, for tests and benchmarks: empty, odd, around the tiles, around powers of two, primes, GEMV, the
// largest K, and layers of real models. What it claims is asserted by test_cells.cpp.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace int8q::test {

// Sanitizers and emulators run the same cases over smaller grids.
inline bool small_grid() {
  const char* grid = std::getenv("INT8Q_TEST_GRID");
  return grid != nullptr && std::strcmp(grid, "small") == 0;
}

struct Shape {
  int64_t m, n, k;
};

// K above which s32 overflows: with codes in [-127, 127], and with -128 among them.
inline constexpr int64_t kLargestK = 133144, kLargestForeignK = 131071;

inline const std::vector<int64_t> kOddSizes = {0, 1, 3, 7, 15, 17, 31, 33, 63, 65, 127, 257};
inline const std::vector<int64_t> kPrimes = {2,  5,  11, 13, 19, 23,  29,  37,  41,  43,  47,
                                             53, 59, 61, 67, 97, 101, 131, 191, 251, 509, 521};

// A layer of a real model, K -> N.
struct ModelLayer {
  const char* model;
  const char* layer;
  int64_t k, n;
  bool tested;  // else for benchmarks only: the oracle would need minutes
};
inline constexpr ModelLayer kModelLayers[] = {
    {"MiniLM-L6", "qkv, o", 384, 384, true},         {"MiniLM-L6", "up", 384, 1536, true},
    {"MiniLM-L6", "down", 1536, 384, true},          {"SmolLM2-135M", "qkv", 576, 960, true},
    {"SmolLM2-135M", "o", 576, 576, true},           {"SmolLM2-135M", "gate, up", 576, 3072, true},
    {"SmolLM2-135M", "down", 1536, 576, true},       {"Llama-3.2-1B", "qkv", 2048, 3072, false},
    {"Llama-3.2-1B", "o", 2048, 2048, false},        {"Llama-3.2-1B", "gate, up", 2048, 16384, false},
    {"Llama-3.2-1B", "down", 8192, 2048, false},     {"Llama-2-7B", "qkv", 4096, 12288, false},
    {"Llama-2-7B", "o", 4096, 4096, false},          {"Llama-2-7B", "gate, up", 4096, 22016, false},
    {"Llama-2-7B", "down", 11008, 4096, false},      {"Llama-3-8B", "qkv", 4096, 6144, false},
    {"Llama-3-8B", "gate, up", 4096, 28672, false},  {"Llama-3-8B", "down", 14336, 4096, false},
    {"Llama-2-70B", "qkv", 8192, 10240, false},      {"Llama-2-70B", "o", 8192, 8192, false},
    {"Llama-2-70B", "gate, up", 8192, 57344, false}, {"Llama-2-70B", "down", 28672, 8192, false}};

// All of them but the largest K, whose tests choose their own contents.
inline std::vector<Shape> shapes() {
  std::vector<Shape> list;
  // Every pair of odd sizes in (M, N), (M, K) and (N, K): a Latin square.
  const size_t count = kOddSizes.size();
  for (size_t i = 0; i < count; ++i) {
    for (size_t j = 0; j < count; ++j) list.push_back({kOddSizes[i], kOddSizes[j], kOddSizes[(i + j) % count]});
  }
  // Rows around the register tiles (4, 5, 6, 8, 12, 16), blocks of rows, panels, blocks of K.
  for (int64_t m = 2; m <= 18; ++m) list.push_back({m, 48 + m, 60 + m});
  for (const int64_t m : {191, 192, 193, 385}) list.push_back({m, 17, 65});
  for (const int64_t n : {16, 32, 47, 48, 64, 79, 80, 96, 129}) list.push_back({5, n, 64});
  for (const int64_t k : {4, 16, 64, 128, 511, 512, 513, 1025, 1536}) list.push_back({19, 33, k});
  for (int64_t power = 4; power <= 1024; power *= 2) {
    for (const int64_t size : {power - 1, power, power + 1}) {
      list.push_back({size, 5, 9});
      list.push_back({3, size, 21});
      list.push_back({2, 18, size});
    }
  }
  const size_t primes = kPrimes.size();
  for (size_t i = 0; i < primes; ++i) list.push_back({kPrimes[i], kPrimes[i * 5 % primes], kPrimes[(i * 7 + 3) % primes]});
  for (const ModelLayer& layer : kModelLayers) {
    if (!layer.tested) continue;
    list.push_back({1, layer.n, layer.k});
    if (layer.n * layer.k < 900000) list.push_back({9, layer.n, layer.k});
  }
  if (!small_grid()) return list;
  // Every 7th, which has no factor in common with the square's 12 columns and 11 or 13 steps along its diagonals: the odd
  // sizes stay mixed. Then M past a block of rows, K past a block of K, N past a panel.
  std::vector<Shape> few;
  for (size_t i = 4; i < list.size(); i += 7) {
    if (list[i].m * list[i].n * list[i].k < 300000) few.push_back(list[i]);
  }
  few.insert(few.end(), {{385, 17, 65}, {19, 33, 513}, {5, 129, 64}});
  return few;
}

}  // namespace int8q::test
