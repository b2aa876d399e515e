// SPDX-License-Identifier: Apache-2.0
//
// The checks of the linear layer: creation, export, blob, forward, backward.
#include <cmath>

#include "command.h"
#include "kernel_checks.h"

namespace tool {
namespace {

void* aligned(std::vector<uint8_t>& memory, uint64_t bytes) {
  memory.resize(bytes + 64);
  return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64);
}

}  // namespace

KernelChecks::Weights::Weights(KernelChecks& checks, const LinearCase& c)
    : w(checks.random(kFloats[static_cast<size_t>(c.d)], kN, c.k, 0.1f)),
      bias(checks.random(kFloats[static_cast<size_t>((c.d + 1) % 3)], 1, kN, 1.0f)),
      quantized(quantize(w, INT8Q_OUTLIERS_OFF, 0)),
      kept(c.kept) {}

struct KernelChecks::Layer {
  Layer(int8q_context* context, const LinearCase& c, Weights& weights) {
    Tensor codes(INT8Q_S8, kN, c.k);
    codes.bytes.assign(weights.quantized.codes.begin(), weights.quantized.codes.end());
    const int8q_matrix w = c.quantized ? codes.view() : weights.w.view(), bias = weights.bias.view();
    const float* scb = c.quantized ? weights.quantized.stats.data() : nullptr;
    const auto kept_count = static_cast<int64_t>(c.kept.size());
    const int8q_linear_options options{sizeof options, c.mode, c.threshold, 0, c.kept.data(), kept_count, nullptr};
    if (!c.blob) {
      check(int8q_create_linear(context, &w, scb, &bias, &options, &handle));
      return;
    }
    uint64_t bytes = 0;
    check(int8q_query_blob(kN, c.k, 1, kept_count, &bytes));
    void* memory = aligned(blob, bytes);
    check(int8q_pack_linear(context, &w, scb, &bias, &options, memory, bytes));
    check(int8q_open_linear(context, memory, bytes, 0, &handle));
  }
  ~Layer() { int8q_destroy_linear(handle); }
  Layer(const Layer&) = delete;
  Layer& operator=(const Layer&) = delete;

  std::vector<uint8_t> blob;
  int8q_linear* handle = nullptr;
};

// What went in comes out again.
void KernelChecks::exported(const LinearCase& c, const Weights& weights, const Layer& layer) {
  const auto kept_count = static_cast<int64_t>(c.kept.size());
  Tensor codes(INT8Q_S8, kN, c.k), bias(INT8Q_F32, 1, kN), kept_weights(INT8Q_F16, kN, kept_count);
  std::vector<float> stats(static_cast<size_t>(kN));
  std::vector<int64_t> kept(c.kept.size());
  const int8q_matrix q = codes.view(), b = bias.view(), k = kept_weights.view();
  check(int8q_export_linear(context_, layer.handle, &q, stats.data(), &b, kept_count > 0 ? kept.data() : nullptr,
                            kept_count > 0 ? &k : nullptr));
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

void* KernelChecks::workspace(const Layer& layer, int32_t operation, int64_t rows, uint64_t& bytes) {
  check(int8q_query_workspace(context_, layer.handle, operation, rows, 0, &bytes));
  return aligned(memory_, bytes);
}

void KernelChecks::linear(const LinearCase& c) {
  Weights weights(*this, c);
  Tensor x = activations(c.d, c.m, c.k);
  const Layer layer(context_, c, weights);
  exported(c, weights, layer);
  const Quantized qx = quantize(x, c.mode, c.threshold);
  const std::vector<float> expected =
      LinearOracle{x, qx, weights.w, weights.quantized, &weights.bias, weights.kept, c.mode, c.threshold}.values();
  for (int e = 0; e < 3; ++e) {
    for (const uint32_t flags : {0, int{INT8Q_ACCUMULATE}}) {
      Tensor y = random(kFloats[static_cast<size_t>(e)], c.m, kN, 1.0f);
      const Tensor before = y;
      const int8q_matrix in = x.view(), out = y.view();
      uint64_t bytes;
      void* memory = workspace(layer, INT8Q_FORWARD, c.m, bytes);
      check(int8q_forward(context_, layer.handle, &in, flags, &out, memory, bytes));
      int64_t wrong = 0;
      for (int64_t i = 0; i < c.m * kN; ++i) {
        const float value = expected[static_cast<size_t>(i)];
        wrong += !same(y, i / kN, i % kN, flags != 0 ? before.at(i / kN, i % kN) + value : value);
      }
      count({op("scan", c.d), op("encode", c.d), "pack", c.m <= 16 ? "gemv" : "gemm", op("epilogue", e)}, c.m * kN, wrong);
      if (!qx.cols.empty() && c.mode != INT8Q_OUTLIERS_OFF) {
        counts_["outliers"].checked += c.m * kN;
        counts_["outliers"].wrong += wrong;
      }
    }
  }
}

// dX in ascending n, one fmaf chain an element.
void KernelChecks::backward(int d) {
  constexpr int64_t kM = 7;
  const LinearCase c{.d = 0, .m = kM, .mode = INT8Q_OUTLIERS_COLUMN};
  Weights weights(*this, c);
  const Layer layer(context_, c, weights);
  Tensor dy = random(kFloats[static_cast<size_t>(d)], kM, kN, 1.0f);
  std::vector<float> expected;
  for (int64_t i = 0; i < kM; ++i) {
    for (int64_t k = 0; k < kK; ++k) {
      float sum = 0.0f;
      for (int64_t n = 0; n < kN; ++n) {
        const float g = dy.at(i, n) * (weights.quantized.stats[static_cast<size_t>(n)] * (1.0f / 127.0f));
        sum = std::fmaf(g, weights.quantized.codes[static_cast<size_t>(n * kK + k)], sum);
      }
      expected.push_back(sum);
    }
  }
  for (int e = 0; e < 3; ++e) {
    for (const uint32_t flags : {0, int{INT8Q_ACCUMULATE}}) {
      Tensor dx = random(kFloats[static_cast<size_t>(e)], kM, kK, 1.0f);
      const Tensor before = dx;
      const int8q_matrix in = dy.view(), out = dx.view();
      uint64_t bytes;
      void* memory = workspace(layer, INT8Q_BACKWARD, kM, bytes);
      check(int8q_backward(context_, layer.handle, &in, flags, &out, memory, bytes));
      int64_t wrong = 0;
      for (int64_t i = 0; i < kM * kK; ++i) {
        const float value = expected[static_cast<size_t>(i)];
        wrong += !same(dx, i / kK, i % kK, flags != 0 ? before.at(i / kK, i % kK) + value : value);
      }
      count({op("scale", d), "unpack", "backward", op("store", e)}, kM * kK, wrong);
    }
  }
}

}  // namespace tool
