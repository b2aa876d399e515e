// SPDX-License-Identifier: Apache-2.0
//
// Checks of the kernels of one context through the C ABI: small shapes with tails in every unit, outputs compared with
// oracle.h bit for bit.
#pragma once

#include <array>
#include <initializer_list>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "int8q/int8q.hpp"
#include "oracle.h"

namespace tool {

class KernelChecks {
 public:
  struct Count {
    int64_t checked = 0, wrong = 0;
  };

  explicit KernelChecks(int8q::Context& context) : context_(context) {}

  void run();

  // By the operations of int8q_describe_context's kernels. An output counts for every kernel that took part in it.
  Count of(const std::string& operation) const;
  // Each output once.
  Count total() const { return total_; }

 private:
  // One forward check of a layer [kN, k] on m rows of dtype d.
  struct LinearCase {
    int d;
    int64_t m;
    int32_t mode;
    int64_t k = kK;
    float threshold = kThreshold;
    std::vector<int64_t> kept = {};
    bool blob = false;       // packed into memory of the caller's, and opened there
    bool quantized = false;  // weights given as codes and SCB
  };
  // Weights of a layer, what they must become, and its options.
  struct Weights {
    Weights(KernelChecks& checks, const LinearCase& c);
    Tensor w, bias;
    Quantized quantized;
    std::vector<int64_t> kept;
  };

  // kernel_checks.cpp: the stateless operations
  void quantize_rows(int d);
  void dequantize_rows(int d);
  void multiply(int64_t m, int64_t k);
  void dequantize_accumulators(int d);
  void scaled_multiply(int d, int64_t m, int32_t mode);
  // layer_checks.cpp: the linear layer
  void linear(const LinearCase& c);
  // `blob` is the layer's memory where the case asks for that.
  int8q::Linear layer(const LinearCase& c, Weights& weights, int8q::Workspace& blob);
  void exported(const LinearCase& c, const Weights& weights, const int8q::Linear& layer);
  void backward(int d);

  Tensor activations(int d, int64_t m, int64_t k);
  Tensor random(int32_t dtype, int64_t rows, int64_t cols, float scale);
  void count(std::initializer_list<std::string> operations, int64_t checked, int64_t wrong);
  static std::string op(const char* name, int d) { return name + std::string(kSuffix[d]); }

  static constexpr std::array<int32_t, 3> kFloats = {INT8Q_F32, INT8Q_F16, INT8Q_BF16};
  static constexpr std::array<const char*, 3> kSuffix = {"_f32", "_f16", "_bf16"};
  static constexpr float kThreshold = 6.0f;
  static constexpr int64_t kK = 131, kN = 67;  // tails in every unit: 4, 8, 16, 32, 64
  static constexpr int64_t kLongK = 523;       // more than one block of K, and than one chunk of outlier columns

  int8q::Context& context_;
  int8q::Workspace workspace_;
  std::mt19937 random_{20080};
  std::normal_distribution<float> normal_;
  std::map<std::string, Count> counts_;
  Count total_;
};

}  // namespace tool
