// SPDX-License-Identifier: Apache-2.0
//
// A linear of random fp16 weights with a bias on the device, activations for it, and how many kernels a context has launched.
#pragma once

#include <cstdlib>

#include "cuda/gpu.h"

namespace int8q::test {

inline int64_t launches(int8q_context* context) {
  char text[1000];
  EXPECT_STATUS(INT8Q_OK, int8q_describe_context(context, text, sizeof text, nullptr));
  const char* at = std::strstr(text, "\"launches\": ");
  EXPECT_NE(at, nullptr) << text;
  return at == nullptr ? -1 : std::atoll(at + std::strlen("\"launches\": "));
}

struct LayerOnDevice {
  Grid weight, bias;
  DeviceGrid weight_there, bias_there;
  LinearPtr linear;

  static Grid filled(int32_t dtype, int64_t rows, int64_t cols, uint64_t seed, float scale) {
    Grid g(dtype, rows, cols);
    fill_normal(g, seed, scale);
    return g;
  }
  LayerOnDevice(int8q_context* context, int64_t n, int64_t k, int32_t mode = INT8Q_OUTLIERS_COLUMN, uint64_t seed = 1)
      : weight(filled(INT8Q_F16, n, k, seed, 0.1f)),
        bias(filled(INT8Q_F32, 1, n, seed + 1, 1.0f)),
        weight_there(weight),
        bias_there(bias) {
    int8q_linear_options options{};
    options.size = sizeof options;
    options.outlier_mode = mode;
    int8q_linear* raw = nullptr;
    EXPECT_STATUS(INT8Q_OK, int8q_create_linear(context, weight_there.view(), nullptr, bias_there.view(), &options, &raw));
    linear.reset(raw);
  }
};

inline Grid activations(int32_t dtype, int64_t m, int64_t k, uint64_t seed = 3) {
  Grid x(dtype, m, k);
  fill_activations(x, seed);
  return x;
}

}  // namespace int8q::test
