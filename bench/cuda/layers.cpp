// SPDX-License-Identifier: Apache-2.0
#include "layers.h"

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

namespace int8q::bench {
namespace {

constexpr int64_t kAlignment = 256;  // as of what cuMemAlloc gives
constexpr int64_t kOutliers = 7;

int64_t aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

int copies_of(int64_t bytes) { return static_cast<int>(settings().rotated_bytes / bytes + 1); }

std::function<const void*()> in_turn(const uint8_t* first, int64_t stride, int count) {
  return [=, next = 0]() mutable {
    const void* at = first + stride * next;
    next = next + 1 == count ? 0 : next + 1;
    return at;
  };
}

std::optional<Memory>& output_memory() {
  static auto& memory = *new std::optional<Memory>;
  return memory;
}

int64_t& most_rows() {
  static int64_t rows = 0;
  return rows;
}

}  // namespace

Context cuda_context() {
  int8q_context_options options{};
  options.backend = INT8Q_BACKEND_CUDA;
  options.stream = gpu().stream;
  return Context(options);
}

void reserve_output(int64_t bytes) { output_memory().emplace(bytes); }
void* output() { return output_memory()->at(); }

void set_most_rows(int64_t rows) { most_rows() = rows; }

Layers& Layers::of(Size size) {
  static auto& all = *new std::map<Size, std::unique_ptr<Layers>>;
  std::unique_ptr<Layers>& made = all[size];
  if (made == nullptr) made = std::make_unique<Layers>(size);
  return *made;
}

Layers::Layers(Size size)
    : size_(size),
      codes_stride_(aligned(size.n * size.k)),
      bf16_stride_(aligned(2 * size.n * size.k)),
      codes_copies_(copies_of(codes_stride_)),
      bf16_copies_(copies_of(bf16_stride_)),
      codes_(codes_copies_ * codes_stride_),
      bf16_(bf16_copies_ * bf16_stride_),
      stats_(4 * size.n),
      bias_(2 * size.n) {
  const std::vector<BFloat16> weight = to_bf16(normal(size.n * size.k, 2)), bias = to_bf16(normal(size.n, 3));
  bf16_.upload(weight.data(), 2 * size.n * size.k);
  bias_.upload(bias.data(), 2 * size.n);
  Context context = cuda_context();
  quantize_rows(context, Matrix(INT8Q_BF16, size.n, size.k, bf16_.at()), {.mode = INT8Q_OUTLIERS_OFF},
                Matrix(INT8Q_S8, size.n, size.k, codes_.at()), reinterpret_cast<float*>(stats_.at()));
  gpu().wait();
  bf16_.repeat(2 * size.n * size.k, bf16_stride_);
  codes_.repeat(size.n * size.k, codes_stride_);
}

std::function<const void*()> Layers::next_codes(bool rotated) const {
  return in_turn(codes_.at(), codes_stride_, rotated ? codes_copies_ : 1);
}

std::function<const void*()> Layers::next_bf16(bool rotated) const {
  return in_turn(bf16_.at(), bf16_stride_, rotated ? bf16_copies_ : 1);
}

std::function<const Linear*()> Layers::next_linear(int32_t outlier_mode, bool rotated) {
  std::vector<Linear>& made = linears_[outlier_mode];
  const size_t count = rotated ? static_cast<size_t>(codes_copies_) : 1;
  Context context = cuda_context();
  int8q_linear_options options{};
  options.outlier_mode = outlier_mode;
  options.flags = INT8Q_BORROW_WEIGHT;
  made.reserve(static_cast<size_t>(codes_copies_));  // rows hold pointers into it
  while (made.size() < count) {
    const auto* codes = reinterpret_cast<const int8_t*>(codes_.at(static_cast<int64_t>(made.size()) * codes_stride_));
    made.emplace_back(context, view(codes, size_.n, size_.k), col_stats(), bias(), options);
  }
  return [first = made.data(), count, next = size_t{0}]() mutable {
    const Linear* linear = first + next;
    next = next + 1 == count ? 0 : next + 1;
    return linear;
  };
}

const void* bf16_activations(int64_t k, int64_t outliers) {
  static auto& all = *new std::map<std::pair<int64_t, int64_t>, Memory>;
  const auto found = all.find({k, outliers});
  if (found != all.end()) return found->second.at();
  const std::vector<BFloat16> x = activations(most_rows(), k, outliers);
  const auto bytes = static_cast<int64_t>(x.size() * sizeof x[0]);
  Memory& memory = all.try_emplace({k, outliers}, bytes).first->second;
  memory.upload(x.data(), bytes);
  return memory.at();
}

Codes s8_activations(int64_t k) {
  static auto& all = *new std::map<int64_t, std::array<std::unique_ptr<Memory>, 2>>;
  auto& [codes, stats] = all[k];
  if (codes == nullptr) {
    codes = std::make_unique<Memory>(most_rows() * k);
    stats = std::make_unique<Memory>(4 * most_rows());
    Context context = cuda_context();
    quantize_rows(context, Matrix(INT8Q_BF16, most_rows(), k, bf16_activations(k, kOutliers)), {},
                  Matrix(INT8Q_S8, most_rows(), k, codes->at()), reinterpret_cast<float*>(stats->at()));
    gpu().wait();
  }
  return {reinterpret_cast<const int8_t*>(codes->at()), reinterpret_cast<const float*>(stats->at())};
}

const RotatedRows& RotatedRows::of(int64_t k) {
  static auto& all = *new std::map<int64_t, std::unique_ptr<RotatedRows>>;
  std::unique_ptr<RotatedRows>& made = all[k];
  if (made == nullptr) made = std::make_unique<RotatedRows>(k);
  return *made;
}

RotatedRows::RotatedRows(int64_t k)
    : k_(k), rows_(copies_of(2 * most_rows() * k) * most_rows()), x_(2 * rows_ * k), codes_(rows_ * k), stats_(4 * rows_) {
  const std::vector<BFloat16> x = activations(most_rows(), k, kOutliers);
  const int64_t bytes = 2 * most_rows() * k;
  x_.upload(x.data(), bytes);
  x_.repeat(bytes, bytes);
}

std::function<RotatedRows::Block()> RotatedRows::next(int64_t m) const {
  return [this, m, count = blocks(m), next = 0]() mutable {
    const int64_t row = m * next;
    next = next + 1 == count ? 0 : next + 1;
    return Block{x_.at(2 * row * k_), reinterpret_cast<int8_t*>(codes_.at(row * k_)),
                 reinterpret_cast<float*>(stats_.at(4 * row))};
  };
}

}  // namespace int8q::bench
