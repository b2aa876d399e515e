// SPDX-License-Identifier: Apache-2.0
//
// A BERT sentence encoder (all-MiniLM-L6-v2: 6 layers, 384 wide, 12 heads) with one code for everything but the linears,
// which are fp32 by Eigen or LLM.int8() by int8q.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <Eigen/Core>

#include "int8q/int8q.hpp"
#include "threads.h"

namespace minilm {

using RowMatrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Sentence = std::vector<int32_t>;  // token ids

// One or several linears of the same input (q, k, v).
class Linears {
 public:
  virtual ~Linears() = default;
  // ys[i] [T, N_i] = x [T, K] . W_i^T + b_i.
  virtual void forward(const RowMatrix& x, std::vector<RowMatrix>& ys) = 0;
};

enum class Engine { kFp32, kInt8 };

class Bert {
 public:
  // A Hugging Face folder: model.safetensors in F32, or as `int8q quantize` writes it.
  Bert(const std::string& folder, Engine engine, Threads& threads);

  // L2-normalized mean-pooled embeddings, a row a sentence. The sentences' tokens share one [T, 384] matrix.
  RowMatrix embed(const std::vector<Sentence>& sentences);

  // Bytes in the checkpoint of the linears' weights, their stats included.
  uint64_t linear_bytes() const { return linear_bytes_; }

 private:
  struct Norm {
    Eigen::RowVectorXf weight, bias;
  };
  struct Layer {
    std::unique_ptr<Linears> qkv, attention_out, up, down;
    Norm attention_norm, output_norm;
  };

  Norm load_norm(const std::string& name) const;
  std::unique_ptr<Linears> load_linears(const std::vector<std::string>& names, Engine engine);
  void normalize(RowMatrix& x, const Norm& norm) const;
  void attend(const std::vector<RowMatrix>& qkv, const std::vector<int>& starts, RowMatrix& out) const;

  int8q::Safetensors file_;
  Threads& threads_;
  int8q::Context context_;
  int8q::Workspace workspace_;
  uint64_t linear_bytes_ = 0;
  Eigen::Map<const RowMatrix> words_{nullptr, 0, 0}, positions_{nullptr, 0, 0}, types_{nullptr, 0, 0};
  Norm embedding_norm_;
  std::vector<Layer> layers_;
};

}  // namespace minilm
