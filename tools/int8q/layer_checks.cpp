// SPDX-License-Identifier: Apache-2.0
//
// The checks of the linear layer: creation, export, blob, forward, backward.
#include <cmath>

#include "kernel_checks.h"

namespace tool {

KernelChecks::Weights::Weights(KernelChecks& checks, const LinearCase& c)
    : w(checks.random(kFloats[static_cast<size_t>(c.d)], kN, c.k, 0.1f)),
      bias(checks.random(kFloats[static_cast<size_t>((c.d + 1) % 3)], 1, kN, 1.0f)),
      quantized(quantize(w, INT8Q_OUTLIERS_OFF, 0)),
      kept(c.kept) {}

int8q::Linear KernelChecks::layer(const LinearCase& c, Weights& weights, int8q::Workspace& blob) {
  int8q_linear_options options{};
  options.outlier_mode = c.mode;
  options.threshold = c.threshold;
  options.kept_cols = c.kept.data();
  options.kept_count = static_cast<int64_t>(c.kept.size());
  if (c.quantized) {
    const int8q::MatrixView<const int8_t> codes = int8q::view(weights.quantized.codes.data(), kN, c.k);
    return {context_, codes, weights.quantized.stats.data(), weights.bias.view(), options};
  }
  if (!c.blob) return {context_, weights.w.view(), weights.bias.view(), options};
  const uint64_t bytes = int8q::Linear::blob_bytes(kN, c.k, true, options.kept_count);
  void* memory = blob.reserve(bytes);
  int8q::Linear::pack(context_, weights.w.view(), nullptr, weights.bias.view(), options, memory, bytes);
  return int8q::Linear::open(context_, memory, bytes);
}

// What went in comes out again.
void KernelChecks::exported(const LinearCase& c, const Weights& weights, const int8q::Linear& layer) {
  const auto kept_count = static_cast<int64_t>(c.kept.size());
  Tensor codes(INT8Q_S8, kN, c.k), bias(INT8Q_F32, 1, kN), kept_weights(INT8Q_F16, kN, kept_count);
  std::vector<float> stats(static_cast<size_t>(kN));
  std::vector<int64_t> kept(c.kept.size());
  layer.export_to(context_, codes.view(), stats.data(), bias.view(), kept.data(), kept_weights.view());
  int64_t wrong = kept != c.kept ? 1 : 0;
  for (size_t i = 0; i < codes.bytes.size(); ++i)
    wrong += static_cast<int8_t>(codes.bytes[i]) != weights.quantized.codes[i];
  for (int64_t j = 0; j < kN; ++j) {
    wrong += !same(stats[static_cast<size_t>(j)], weights.quantized.stats[static_cast<size_t>(j)]);
    wrong += !same(bias.at(0, j), weights.bias.at(0, j));
    for (int64_t t = 0; t < kept_count; ++t)
      wrong += !same(kept_weights, j, t, weights.w.at(j, c.kept[static_cast<size_t>(t)]));
  }
  const int64_t checked = kN * (c.k + 2 + kept_count) + 1;
  if (c.quantized) {
    count({"pack"}, checked, wrong);
  } else {
    count({op("scan", c.d), op("encode_s8", c.d), "pack"}, checked, wrong);
  }
}

void KernelChecks::linear(const LinearCase& c) {
  Weights weights(*this, c);
  Tensor x = activations(c.d, c.m, c.k);
  int8q::Workspace blob;
  const int8q::Linear tested = layer(c, weights, blob);
  exported(c, weights, tested);
  const Quantized qx = quantize(x, c.mode, c.threshold);
  const std::vector<float> expected =
      LinearOracle{x, qx, weights.w, weights.quantized, &weights.bias, weights.kept, c.mode, c.threshold}.values();
  for (int e = 0; e < 3; ++e) {
    for (const uint32_t flags : {0, int{INT8Q_ACCUMULATE}}) {
      Tensor y = random(kFloats[static_cast<size_t>(e)], c.m, kN, 1.0f);
      const Tensor before = y;
      tested.forward(context_, x.view(), y.view(), workspace_, flags);
      int64_t wrong = 0;
      for (int64_t i = 0; i < c.m * kN; ++i) {
        const float value = expected[static_cast<size_t>(i)];
        wrong += !same(y, i / kN, i % kN, flags != 0 ? before.at(i / kN, i % kN) + value : value);
      }
      count({op("scan", c.d), op("encode", c.d), "pack", c.m <= 16 ? "gemv" : "gemm", op("epilogue", e)}, c.m * kN, wrong);
      if (!qx.cols.empty() && c.mode != INT8Q_OUTLIERS_OFF) {
        for (const char* kernel : {"columns", "outliers"}) {
          counts_[kernel].checked += c.m * kN;
          counts_[kernel].wrong += wrong;
        }
      }
    }
  }
}

// dX in ascending n, one fmaf chain an element; by bf16 products, which the context may have for bf16 dY, g is rounded to bf16
// and of each pair of n the second comes first. No value here is a denormal.
void KernelChecks::backward(int d) {
  constexpr int64_t kM = 7;
  const LinearCase c{.d = 0, .m = kM, .mode = INT8Q_OUTLIERS_COLUMN};
  Weights weights(*this, c);
  int8q::Workspace blob;
  const int8q::Linear tested = layer(c, weights, blob);
  Tensor dy = random(kFloats[static_cast<size_t>(d)], kM, kN, 1.0f);
  const bool bf16 =
      kFloats[static_cast<size_t>(d)] == INT8Q_BF16 && context_.describe().find("\"backward_bf16\"") != std::string::npos;
  std::vector<float> expected;
  for (int64_t i = 0; i < kM; ++i) {
    for (int64_t k = 0; k < kK; ++k) {
      float sum = 0.0f;
      for (int64_t t = 0; t < kN; ++t) {
        const int64_t n = bf16 && (t ^ 1) < kN ? t ^ 1 : t;
        const float g = dy.at(i, n) * (weights.quantized.stats[static_cast<size_t>(n)] * (1.0f / 127.0f));
        sum = std::fmaf(bf16 ? round_to_bf16(g) : g, weights.quantized.codes[static_cast<size_t>(n * kK + k)], sum);
      }
      expected.push_back(sum);
    }
  }
  const std::string unpack = bf16 ? "unpack_bf16" : "unpack", multiply = bf16 ? "backward_bf16" : "backward";
  for (int e = 0; e < 3; ++e) {
    for (const uint32_t flags : {0, int{INT8Q_ACCUMULATE}}) {
      Tensor dx = random(kFloats[static_cast<size_t>(e)], kM, kK, 1.0f);
      const Tensor before = dx;
      tested.backward(context_, dy.view(), dx.view(), workspace_, flags);
      int64_t wrong = 0;
      for (int64_t i = 0; i < kM * kK; ++i) {
        const float value = expected[static_cast<size_t>(i)];
        wrong += !same(dx, i / kK, i % kK, flags != 0 ? before.at(i / kK, i % kK) + value : value);
      }
      count({op("scale", d), unpack, multiply, op("store", e)}, kM * kK, wrong);
    }
  }
}

}  // namespace tool
