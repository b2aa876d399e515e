// SPDX-License-Identifier: Apache-2.0
//
// Prints TAG KERNEL BYTES: the shared memory with which src/cuda launches each kernel, by the tag of its architecture, for rows
// of 28672 (the longest of the list of shapes) with outlier columns, without kept ones. cuda_kernels.py reads it.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <string>

#include "cuda/kernels/shapes.h"

namespace {

using namespace int8q::gpu;

constexpr int64_t kK = 28672;
constexpr int64_t kFusedBytes = 16 << 10;  // of codes, at most: src/cuda/layer.cpp

void print(int tag, const std::string& kernel, int bytes) { std::printf("%d %s %d\n", tag, kernel.c_str(), bytes); }

// Of any number of rows of which this kernel quantizes all.
int most_fused(int rows) {
  int most = 0;
  for (int64_t m = rows == 8 ? 1 : rows / 2 + 1; m <= rows; ++m)
    most = std::max(most, SkinnyShape::shared_bytes(rows, m, kFusedBytes / m / 16 * 16, true));
  return most;
}

template <Multiply kHow>
void print_float_products(int tag, const std::string& name) {
  print(tag, "backward_" + name, BackwardTile<kHow>::kSharedBytes);
  print(tag, "w8a16_" + name, W8a16LargeTile<kHow>::kSharedBytes);
  print(tag, "w8a16_small_" + name, W8a16SmallTile<kHow>::kSharedBytes);
  for (const int rows : {W8a16SkinnyShape::kFew, W8a16SkinnyShape::kMost})
    print(tag, "w8a16_skinny_" + name + "_" + std::to_string(rows), W8a16SkinnyShape::shared_bytes(rows));
}

template <class Tile>
void print_wgmma_of_halves(int tag) {
  for (const char* kernel : {"w8a16_wgmma_f16_", "w8a16_wgmma_bf16_", "backward_wgmma_f16_", "backward_wgmma_bf16_"})
    print(tag, kernel + std::to_string(Tile::kM), Tile::kSharedBytes);
}

template <class Arch>
void print_kernels(int tag) {
  print(tag, "gemm_s8", LargeTile<Arch>::shared_bytes(kK, true, false));
  print(tag, "gemm_small_s8", SmallTile<Arch>::shared_bytes(kK, true, false));
  print(tag, "finish_s8", SmallTile<Arch>::shared_bytes(kK, true, false));
  print(tag, "gemm_wgmma_s8_128", WgmmaTile<128>::shared_bytes(kK, true, false));
  print(tag, "gemm_wgmma_s8_256", WgmmaTile<256>::shared_bytes(kK, true, false));
  print_wgmma_of_halves<W8a16WgmmaTile<64, 64>>(tag);
  print_wgmma_of_halves<W8a16WgmmaTile<128, 128>>(tag);
  print_wgmma_of_halves<W8a16WgmmaTile<256, 128>>(tag);
  for (const char* dtype : {"f32", "f16", "bf16"})
    print(tag, std::string("quantize_rows_") + dtype, QuantizeRows::shared_bytes(kK));
  for (const int rows : {8, 16, 32, 64}) {
    print(tag, "skinny_s8_" + std::to_string(rows), SkinnyShape::shared_bytes(rows, rows, kK, false));
    print(tag, "skinny_fused_" + std::to_string(rows), most_fused(rows));
  }
  print_float_products<Multiply::kF16>(tag, "f16");
  print_float_products<Multiply::kBf16>(tag, "bf16");
  print_float_products<Multiply::kF32>(tag, "f32");
  print(tag, "finish_columns", FinishColumns::shared_bytes(kK));
  print(tag, "list_columns", ListColumns::shared_bytes(kK));
  print(tag, "count_outliers", CountOutliers::kSharedBytes);
  for (const char* kernel : {"copy_codes", "dequantize_rows", "dequantize_accumulators"}) print(tag, kernel, 0);
}

}  // namespace

int main() {
  print_kernels<Sm70>(70);
  print_kernels<Sm75>(75);
  print_kernels<Sm80>(80);
  print_kernels<Sm86>(86);
  print_kernels<Sm90>(90);
  print_kernels<Sm90a>(901);
  print_kernels<Sm120>(120);
  return 0;
}
