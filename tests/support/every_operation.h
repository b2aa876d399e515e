// SPDX-License-Identifier: Apache-2.0
//
// Every operation that uses threads, in one call: for tests of whose threads they are.
#pragma once

#include "support/call.h"

namespace int8q::test {

using Bytes = std::vector<uint8_t>;

inline constexpr int64_t kM = 37, kN = 130, kK = 1000;  // large enough that forward is parallel in both of its phases

struct Layer {
  Mat w = random_mat(INT8Q_F32, kN, kK, 1), w2 = random_mat(INT8Q_F32, 50, kK, 2), bias = random_mat(INT8Q_F32, 1, kN, 3);
  Mat x = random_input(INT8Q_F32, kM, kK, 4), dy = random_mat(INT8Q_F32, kM, kN, 5);
  Mat a = random_mat(INT8Q_S8, kM, 300, 6), b = random_mat(INT8Q_S8, kN, 300, 7);
};
inline const Layer& layer() {
  static const Layer all;
  return all;
}

// Every operation that uses threads, one after another; the first failure's status.
inline int32_t run_everything(int8q_context* c, Bytes* bytes) {
  const Layer& o = layer();
  const auto append = [&](const Mat& m) { bytes->insert(bytes->end(), m.bytes().begin(), m.bytes().end()); };
  const Mat q(INT8Q_S8, kM, kK), acc(INT8Q_S32, kM, kN), yk(INT8Q_F32, kM, kK), y(INT8Q_F32, kM, kN), dx(INT8Q_F32, kM, kK),
      codes(INT8Q_S8, kN, kK);
  std::vector<float> stats(kM);
  std::vector<int64_t> counts(kK);
  int32_t s;
  if ((s = int8q_quantize_rows(c, o.x.get(), 0, 0, q.get(), stats.data(), nullptr, nullptr, nullptr)) != 0) return s;
  if ((s = int8q_multiply(c, o.a.get(), o.b.get(), acc.get())) != 0) return s;
  if ((s = int8q_dequantize_rows(c, q.get(), stats.data(), yk.get())) != 0) return s;
  if ((s = int8q_count_outliers(c, o.x.get(), 2.5f, counts.data())) != 0) return s;
  int8q_linear* handle = nullptr;
  if ((s = int8q_create_linear(c, o.w.get(), nullptr, o.bias.get(), nullptr, &handle)) != 0) return s;
  const LinearPtr linear(handle);
  if ((s = forward(c, handle, o.x, y)) != 0) return s;
  if ((s = backward(c, handle, o.dy, dx)) != 0) return s;
  if ((s = int8q_export_linear(c, handle, codes.get(), nullptr, nullptr, nullptr, nullptr)) != 0) return s;
  for (const Mat* m : {&q, &acc, &yk, &y, &dx, &codes}) append(*m);
  for (const int64_t n : counts) bytes->push_back(static_cast<uint8_t>(n));
  return INT8Q_OK;
}

}  // namespace int8q::test
