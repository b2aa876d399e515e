// SPDX-License-Identifier: Apache-2.0
#include "bert.h"

#include <cmath>
#include <cstring>
#include <stdexcept>

#include <unsupported/Eigen/SpecialFunctions>

namespace minilm {
namespace {

constexpr int kHeads = 12;
constexpr int kLayers = 6;
constexpr float kNormEpsilon = 1e-12f;

int8q_tensor find(const int8q::Safetensors& file, const std::string& name, int32_t dtype, int64_t rank) {
  int8q_tensor tensor;
  if (!file.find(name.c_str(), &tensor)) throw std::runtime_error("the checkpoint has no tensor " + name);
  if (tensor.dtype != dtype || tensor.rank != rank)
    throw std::runtime_error(name + " has another dtype or rank than expected");
  return tensor;
}

Eigen::Map<const RowMatrix> find_matrix(const int8q::Safetensors& file, const std::string& name) {
  const int8q_tensor t = find(file, name, INT8Q_F32, 2);
  return {static_cast<const float*>(t.data), t.shape[0], t.shape[1]};
}

Eigen::RowVectorXf find_vector(const int8q::Safetensors& file, const std::string& name) {
  const int8q_tensor t = find(file, name, INT8Q_F32, 1);
  return Eigen::Map<const Eigen::RowVectorXf>(static_cast<const float*>(t.data), t.shape[0]);
}

// Eigen's GEMM, compiled for this machine; the columns of all the linears are one product, split over the threads.
class EigenLinears : public Linears {
 public:
  EigenLinears(const int8q::Safetensors& file, const std::vector<std::string>& names, Threads& threads, uint64_t& bytes)
      : threads_(threads) {
    for (const std::string& name : names) {
      weights_.emplace_back(find_matrix(file, name + ".weight").transpose());
      biases_.emplace_back(find_vector(file, name + ".bias"));
      bytes += static_cast<uint64_t>(weights_.back().size()) * sizeof(float);
    }
  }

  void forward(const RowMatrix& x, std::vector<RowMatrix>& ys) override {
    ys.resize(weights_.size());
    for (size_t i = 0; i < ys.size(); ++i) ys[i].resize(x.rows(), weights_[i].cols());
    const int64_t parts = threads_.count();
    threads_.run(parts, [&](int64_t part, int) {
      for (size_t i = 0; i < ys.size(); ++i) {
        const int64_t n = weights_[i].cols(), begin = n * part / parts, count = n * (part + 1) / parts - begin;
        auto y = ys[i].middleCols(begin, count);
        y.noalias() = x * weights_[i].middleCols(begin, count);
        y.rowwise() += biases_[i].segment(begin, count);
      }
    });
  }

 private:
  std::vector<RowMatrix> weights_;  // [K, N]: Eigen packs these faster at each call than [N, K]
  std::vector<Eigen::RowVectorXf> biases_;
  Threads& threads_;
};

// LLM.int8() by int8q: x is quantized once for all the linears.
class Int8Linears : public Linears {
 public:
  Int8Linears(const int8q::Safetensors& file, const std::vector<std::string>& names, int8q::Context& context,
              int8q::Workspace& workspace, uint64_t& bytes)
      : context_(context), workspace_(workspace) {
    for (const std::string& name : names) {
      const int8q_tensor w = find(file, name + ".weight", INT8Q_S8, 2), scb = find(file, name + ".SCB", INT8Q_F32, 1);
      const Eigen::RowVectorXf bias = find_vector(file, name + ".bias");
      std::vector<float> stats(static_cast<size_t>(scb.shape[0]));
      std::memcpy(stats.data(), scb.data, scb.bytes);
      linears_.emplace_back(context, int8q::view(static_cast<const int8_t*>(w.data), w.shape[0], w.shape[1]), stats.data(),
                            int8q::view(bias.data(), 1, bias.size()));
      bytes += w.bytes + scb.bytes + find(file, name + ".weight_format", INT8Q_U8, 0).bytes;
    }
  }

  void forward(const RowMatrix& x, std::vector<RowMatrix>& ys) override {
    ys.resize(linears_.size());
    std::vector<const int8q::Linear*> linears;
    std::vector<int8q::Matrix> outs;
    for (size_t i = 0; i < ys.size(); ++i) {
      ys[i].resize(x.rows(), linears_[i].info().out_features);
      linears.push_back(&linears_[i]);
      outs.emplace_back(int8q::view(ys[i].data(), ys[i].rows(), ys[i].cols()));
    }
    int8q::forward_many(context_, linears.data(), static_cast<int32_t>(linears.size()),
                        int8q::view(x.data(), x.rows(), x.cols()), outs.data(), workspace_);
  }

 private:
  int8q::Context& context_;
  int8q::Workspace& workspace_;
  std::vector<int8q::Linear> linears_;
};

int8q::Context make_context(Threads& threads) {
  const int8q_parallel_runner runner = threads.runner();
  int8q_context_options options{};
  options.runner = &runner;
  return int8q::Context(options);
}

}  // namespace

Bert::Bert(const std::string& folder, Engine engine, Threads& threads)
    : file_((folder + "/model.safetensors").c_str()), threads_(threads), context_(make_context(threads)) {
  new (&words_) Eigen::Map<const RowMatrix>(find_matrix(file_, "embeddings.word_embeddings.weight"));
  new (&positions_) Eigen::Map<const RowMatrix>(find_matrix(file_, "embeddings.position_embeddings.weight"));
  new (&types_) Eigen::Map<const RowMatrix>(find_matrix(file_, "embeddings.token_type_embeddings.weight"));
  embedding_norm_ = load_norm("embeddings.LayerNorm");
  for (int i = 0; i < kLayers; ++i) {
    const std::string layer = "encoder.layer." + std::to_string(i) + ".", self = layer + "attention.self.";
    layers_.push_back({load_linears({self + "query", self + "key", self + "value"}, engine),
                       load_linears({layer + "attention.output.dense"}, engine),
                       load_linears({layer + "intermediate.dense"}, engine), load_linears({layer + "output.dense"}, engine),
                       load_norm(layer + "attention.output.LayerNorm"), load_norm(layer + "output.LayerNorm")});
  }
}

Bert::Norm Bert::load_norm(const std::string& name) const {
  return {find_vector(file_, name + ".weight"), find_vector(file_, name + ".bias")};
}

std::unique_ptr<Linears> Bert::load_linears(const std::vector<std::string>& names, Engine engine) {
  if (engine == Engine::kFp32) return std::make_unique<EigenLinears>(file_, names, threads_, linear_bytes_);
  return std::make_unique<Int8Linears>(file_, names, context_, workspace_, linear_bytes_);
}

void Bert::normalize(RowMatrix& x, const Norm& norm) const {
  threads_.run(threads_.count(), [&](int64_t part, int) {
    for (int64_t i = x.rows() * part / threads_.count(); i < x.rows() * (part + 1) / threads_.count(); ++i) {
      auto row = x.row(i);
      row.array() -= row.mean();
      const float scale = 1.0f / std::sqrt(row.squaredNorm() / static_cast<float>(x.cols()) + kNormEpsilon);
      row = (row.array() * scale * norm.weight.array() + norm.bias.array()).matrix();
    }
  });
}

// softmax(q . k^T / sqrt(d)) . v within each sentence; a task is one head of one sentence.
void Bert::attend(const std::vector<RowMatrix>& qkv, const std::vector<int>& starts, RowMatrix& out) const {
  const int64_t width = qkv[0].cols() / kHeads, sentences = static_cast<int64_t>(starts.size()) - 1;
  const float scale = 1.0f / std::sqrt(static_cast<float>(width));
  threads_.run(sentences * kHeads, [&](int64_t task, int) {
    const auto sentence = static_cast<size_t>(task / kHeads);
    const int64_t start = starts[sentence], count = starts[sentence + 1] - start, col = task % kHeads * width;
    RowMatrix scores = qkv[0].block(start, col, count, width) * qkv[1].block(start, col, count, width).transpose() * scale;
    for (int64_t i = 0; i < count; ++i) {
      auto row = scores.row(i).array();
      row = (row - row.maxCoeff()).exp();
      row /= row.sum();
    }
    out.block(start, col, count, width).noalias() = scores * qkv[2].block(start, col, count, width);
  });
}

RowMatrix Bert::embed(const std::vector<Sentence>& sentences) {
  std::vector<int> starts = {0};
  for (const Sentence& s : sentences) starts.push_back(starts.back() + static_cast<int>(s.size()));
  RowMatrix x(starts.back(), words_.cols());
  for (size_t s = 0; s < sentences.size(); ++s) {
    for (size_t t = 0; t < sentences[s].size(); ++t) {
      const auto position = static_cast<Eigen::Index>(t);
      x.row(starts[s] + position) = words_.row(sentences[s][t]) + positions_.row(position) + types_.row(0);
    }
  }
  normalize(x, embedding_norm_);
  RowMatrix context(x.rows(), x.cols());
  std::vector<RowMatrix> ys;
  for (Layer& layer : layers_) {
    layer.qkv->forward(x, ys);
    attend(ys, starts, context);
    layer.attention_out->forward(context, ys);
    x += ys[0];
    normalize(x, layer.attention_norm);
    layer.up->forward(x, ys);
    RowMatrix& h = ys[0];
    threads_.run(threads_.count(), [&](int64_t part, int) {
      const int64_t begin = h.rows() * part / threads_.count(), count = h.rows() * (part + 1) / threads_.count() - begin;
      auto rows = h.middleRows(begin, count).array();
      rows *= 0.5f * (1.0f + (rows * 0.70710678f).erf());  // gelu
    });
    const RowMatrix hidden = std::move(ys[0]);
    layer.down->forward(hidden, ys);
    x += ys[0];
    normalize(x, layer.output_norm);
  }
  RowMatrix embeddings(static_cast<Eigen::Index>(sentences.size()), x.cols());
  for (size_t s = 0; s < sentences.size(); ++s) {
    const auto i = static_cast<Eigen::Index>(s);
    embeddings.row(i) = x.middleRows(starts[s], starts[s + 1] - starts[s]).colwise().mean().normalized();
  }
  return embeddings;
}

}  // namespace minilm
