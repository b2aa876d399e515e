// SPDX-License-Identifier: Apache-2.0
//
// What tests of the C boundary need again and again: random matrices, handles that free themselves, one layer with its
// workspace, bit-for-bit comparison.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "cpu/kernels.h"
#include "int8q/int8q.h"
#include "support/shapes.h"

namespace int8q::test {

#define EXPECT_STATUS(expected, call)                                                                             \
  do {                                                                                                            \
    const int32_t status_ = (call);                                                                               \
    EXPECT_STREQ(int8q_status_name(expected), int8q_status_name(status_)) << #call << "\n" << int8q_last_error(); \
  } while (false)
#define ASSERT_CALL(call)                                                                        \
  do {                                                                                           \
    const int32_t status_ = (call);                                                              \
    ASSERT_STREQ("INT8Q_OK", int8q_status_name(status_)) << #call << "\n" << int8q_last_error(); \
  } while (false)

// Who cannot follow a forked child that starts threads of its own.
#if defined(__SANITIZE_THREAD__)
#define INT8Q_SKIP_FORK() GTEST_SKIP() << "ThreadSanitizer does not follow forks of threaded processes"
#else
#define INT8Q_SKIP_FORK() \
  if (std::getenv("INT8Q_TEST_QEMU") != nullptr) GTEST_SKIP() << "qemu-user aborts where a forked child starts threads"
#endif

// xorshift64*: the same numbers on every platform.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 1) {}
  uint64_t bits() {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return state_ * 0x2545f4914f6cdd1du;
  }
  int64_t below(int64_t n) { return static_cast<int64_t>((bits() >> 33) % static_cast<uint64_t>(n)); }
  float uniform(float low, float high) { return low + (high - low) * (static_cast<float>(bits() >> 40) * 0x1p-24f); }
  int8_t code() { return static_cast<int8_t>(below(255) - 127); }

 private:
  uint64_t state_;
};

inline int8q_matrix matrix(int32_t dtype, int64_t rows, int64_t cols, const void* data, int64_t row_stride = -1) {
  return {sizeof(int8q_matrix), dtype, rows, cols, row_stride < 0 ? cols : row_stride, const_cast<void*>(data)};
}

// A dense matrix that owns its elements.
class Mat {
 public:
  Mat(int32_t dtype, int64_t rows, int64_t cols)
      : bytes_(static_cast<size_t>(rows * cols * dtype_bytes(dtype)), 0xa5), c_(matrix(dtype, rows, cols, bytes_.data())) {}
  Mat(const Mat& other) : bytes_(other.bytes_), c_(other.c_) { c_.data = bytes_.data(); }
  Mat& operator=(const Mat&) = delete;

  const int8q_matrix* get() const { return &c_; }
  const int8q_matrix& c() const { return c_; }
  const std::vector<uint8_t>& bytes() const { return bytes_; }
  template <class T>
  T* as() {
    return reinterpret_cast<T*>(bytes_.data());
  }

  void set(int64_t i, int64_t j, float value) {
    const int64_t e = i * c_.cols + j;
    if (c_.dtype == INT8Q_S8) bytes_[static_cast<size_t>(e)] = static_cast<uint8_t>(static_cast<int8_t>(value));
    if (c_.dtype == INT8Q_S32) as<int32_t>()[e] = static_cast<int32_t>(value);
    if (c_.dtype == INT8Q_F32) store_element<0>(bytes_.data(), e, value);
    if (c_.dtype == INT8Q_F16) store_element<1>(bytes_.data(), e, value);
    if (c_.dtype == INT8Q_BF16) store_element<2>(bytes_.data(), e, value);
  }

 private:
  std::vector<uint8_t> bytes_;
  int8q_matrix c_;
};

inline Mat random_mat(int32_t dtype, int64_t rows, int64_t cols, uint64_t seed, float low = -3.0f, float high = 3.0f) {
  Mat m(dtype, rows, cols);
  Random random(seed);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) m.set(i, j, dtype == INT8Q_S8 ? random.code() : random.uniform(low, high));
  }
  return m;
}

// Activations with outliers in two columns, and in one more of the last row alone.
inline Mat random_input(int32_t dtype, int64_t rows, int64_t cols, uint64_t seed) {
  Mat m = random_mat(dtype, rows, cols, seed);
  for (int64_t i = 0; i < rows && cols > 0; ++i) {
    m.set(i, 1 % cols, i % 2 == 0 ? 40.0f : 0.5f);
    m.set(i, cols / 2, -17.0f);
  }
  if (rows > 1 && cols > 2) m.set(rows - 1, 2, 9.0f);
  return m;
}

// An object's bytes, padding included: what a call that may write nothing must leave.
template <class T>
std::vector<uint8_t> object_bytes(const T& object) {
  const auto* begin = reinterpret_cast<const uint8_t*>(&object);
  return {begin, begin + sizeof object};
}

struct Destroy {
  void operator()(int8q_context* context) const { EXPECT_EQ(INT8Q_OK, int8q_destroy_context(context)); }
  void operator()(int8q_linear* linear) const { EXPECT_EQ(INT8Q_OK, int8q_destroy_linear(linear)); }
};
using ContextPtr = std::unique_ptr<int8q_context, Destroy>;
using LinearPtr = std::unique_ptr<int8q_linear, Destroy>;

inline ContextPtr make_context(int32_t threads = 1, const char* isa = nullptr,
                               const int8q_parallel_runner* runner = nullptr, const int8q_allocator* allocator = nullptr) {
  int8q_context_options options{};
  options.size = sizeof options;
  options.threads = threads;
  options.isa = isa;
  options.runner = runner;
  options.allocator = allocator;
  int8q_context* context = nullptr;
  EXPECT_STATUS(INT8Q_OK, int8q_create_context(&options, &context));
  return ContextPtr(context);
}

inline LinearPtr make_linear(int8q_context* context, const Mat& weight, const Mat* bias = nullptr,
                             int32_t mode = INT8Q_OUTLIERS_COLUMN) {
  int8q_linear_options options{};
  options.size = sizeof options;
  options.outlier_mode = mode;
  int8q_linear* linear = nullptr;
  EXPECT_STATUS(INT8Q_OK,
                int8q_create_linear(context, weight.get(), nullptr, bias ? bias->get() : nullptr, &options, &linear));
  return LinearPtr(linear);
}

// 64-byte aligned memory.
class Workspace {
 public:
  Workspace() = default;
  explicit Workspace(uint64_t bytes) : bytes_(bytes), memory_(std::aligned_alloc(64, (bytes + 63) / 64 * 64)) {}
  void* get() const { return memory_.get(); }
  uint64_t bytes() const { return bytes_; }

 private:
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  uint64_t bytes_ = 0;
  std::unique_ptr<void, Free> memory_;
};

inline Workspace make_workspace(int8q_context* context, const int8q_linear* linear, int64_t rows,
                                int32_t operation = INT8Q_FORWARD, int32_t parts = 0) {
  uint64_t bytes = 0;
  EXPECT_STATUS(INT8Q_OK, int8q_query_workspace(context, linear, operation, rows, parts, &bytes));
  return Workspace(bytes);
}

inline int32_t forward(int8q_context* context, const int8q_linear* linear, const Mat& x, const Mat& y, uint32_t flags = 0) {
  const Workspace workspace = make_workspace(context, linear, x.c().rows);
  return int8q_forward(context, linear, x.get(), flags, y.get(), workspace.get(), workspace.bytes());
}

inline int32_t backward(int8q_context* context, const int8q_linear* linear, const Mat& dy, const Mat& dx,
                        uint32_t flags = 0) {
  const Workspace workspace = make_workspace(context, linear, dy.c().rows, INT8Q_BACKWARD);
  return int8q_backward(context, linear, dy.get(), flags, dx.get(), workspace.get(), workspace.bytes());
}

}  // namespace int8q::test
