// SPDX-License-Identifier: Apache-2.0
//
// Outputs that share bytes with inputs are refused before anything is written; views that interleave are not overlap.
#include "support/call.h"
#include "support/oracle.h"

namespace int8q::test {
namespace {

// Calls f() and expects OVERLAP and no change of `memory`.
template <class F>
void expect_overlap(std::vector<uint8_t>& memory, const F& call) {
  const std::vector<uint8_t> before(memory.begin(), memory.end());
  EXPECT_STATUS(INT8Q_OVERLAP, call());
  EXPECT_EQ(memory, before);
}

TEST(Overlap, OutputsOnInputs) {
  const ContextPtr context = make_context(2);
  constexpr int64_t kM = 4, kK = 32;
  std::vector<uint8_t> memory(8192, 3);
  const auto at = [&](size_t offset) { return memory.data() + offset; };
  const int8q_matrix x = matrix(INT8Q_F32, kM, kK, at(0)), codes = matrix(INT8Q_S8, kM, kK, at(1024));
  auto* stats = reinterpret_cast<float*>(at(2048));
  auto* cols = reinterpret_cast<int64_t*>(at(3072));
  auto* count = reinterpret_cast<int64_t*>(at(4096));
  const auto quantize_to = [&](const int8q_matrix& q, float* row_stats, uint8_t* mask, int64_t* out_cols,
                               int64_t* out_count) {
    return int8q_quantize_rows(context.get(), &x, 0, 6.0f, &q, row_stats, mask, out_cols, out_count);
  };
  const int8q_matrix on_x = matrix(INT8Q_S8, kM, kK, at(511));
  expect_overlap(memory, [&] { return quantize_to(on_x, stats, nullptr, nullptr, nullptr); });
  expect_overlap(memory, [&] { return quantize_to(codes, reinterpret_cast<float*>(at(1148)), nullptr, nullptr, nullptr); });
  expect_overlap(memory, [&] { return quantize_to(codes, stats, at(2056), nullptr, nullptr); });
  expect_overlap(memory, [&] { return quantize_to(codes, stats, nullptr, cols, cols + 31); });
  expect_overlap(memory, [&] { return quantize_to(codes, stats, at(500), cols, count); });

  const int8q_matrix b = matrix(INT8Q_S8, 8, kK, at(5000)), c = matrix(INT8Q_S32, kM, 8, at(5255)),
                     y = matrix(INT8Q_F32, kM, 8, at(1151));
  expect_overlap(memory, [&] { return int8q_multiply(context.get(), &codes, &b, &c); });
  const int8q_matrix free_y = matrix(INT8Q_F32, kM, 8, at(6000));
  expect_overlap(memory, [&] { return int8q_scaled_multiply(context.get(), &codes, stats, &b, stats, nullptr, &y); });
  const int8q_matrix bias = matrix(INT8Q_F32, 1, 8, at(6012));
  expect_overlap(memory, [&] { return int8q_scaled_multiply(context.get(), &codes, stats, &b, stats, &bias, &free_y); });
  const int8q_matrix on_activations = matrix(INT8Q_F32, kM, 8, at(100));
  expect_overlap(memory, [&] {
    return int8q_mixed_scaled_multiply(context.get(), &x, &codes, stats, &b, stats, 0, 6.0f, nullptr, 0, nullptr,
                                       &on_activations);
  });
  const int8q_matrix acc = matrix(INT8Q_S32, kM, 8, at(6100));
  expect_overlap(memory,
                 [&] { return int8q_dequantize_accumulators(context.get(), &acc, stats, stats, nullptr, &free_y); });
  const int8q_matrix wide = matrix(INT8Q_F32, kM, kK, at(1120));
  expect_overlap(memory, [&] { return int8q_dequantize_rows(context.get(), &codes, stats, &wide); });
  expect_overlap(memory,
                 [&] { return int8q_count_outliers(context.get(), &x, 6.0f, reinterpret_cast<int64_t*>(at(256))); });
}

TEST(Overlap, ForwardAndBackward) {
  const ContextPtr context = make_context(2);
  constexpr int64_t kM = 3, kN = 32;
  const LinearPtr linear = make_linear(context.get(), random_mat(INT8Q_F32, kN, kN, 1));
  for (const int32_t operation : {INT8Q_FORWARD, INT8Q_BACKWARD}) {
    const auto run = operation == INT8Q_FORWARD ? int8q_forward : int8q_backward;
    uint64_t bytes = 0;
    ASSERT_CALL(int8q_query_workspace(context.get(), linear.get(), operation, kM, 0, &bytes));
    std::vector<uint8_t> memory(bytes + 4096, 1);
    uint8_t* base = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64;
    uint8_t* data = base + (bytes + 63) / 64 * 64;
    const int8q_matrix x = matrix(INT8Q_F32, kM, kN, data), y = matrix(INT8Q_F32, kM, kN, data + 1024);
    const int8q_matrix tail = matrix(INT8Q_F32, kM, kN, data + 380), inside = matrix(INT8Q_F32, kM, kN, base + 16);
    expect_overlap(memory, [&] { return run(context.get(), linear.get(), &x, 0, &x, base, bytes); });
    expect_overlap(memory, [&] { return run(context.get(), linear.get(), &x, 0, &tail, base, bytes); });
    expect_overlap(memory, [&] { return run(context.get(), linear.get(), &x, 0, &inside, base, bytes); });
    expect_overlap(memory, [&] { return run(context.get(), linear.get(), &inside, 0, &y, base, bytes); });
    const void* blob = nullptr;
    uint64_t blob_bytes = 0;
    ASSERT_CALL(int8q_get_blob(linear.get(), &blob, &blob_bytes));
    const int8q_matrix on_weights = matrix(INT8Q_F32, kM, kN, static_cast<const uint8_t*>(blob) + 300);
    expect_overlap(memory, [&] { return run(context.get(), linear.get(), &x, 0, &on_weights, base, bytes); });
    EXPECT_STATUS(INT8Q_OK, run(context.get(), linear.get(), &x, 0, &y, base, bytes));
  }
  const int8q_linear* twice[] = {linear.get(), linear.get()};
  const Mat x = random_mat(INT8Q_F32, kM, kN, 1), y(INT8Q_F32, kM, kN);
  const int8q_matrix* ys[] = {y.get(), y.get()};
  const Workspace workspace = make_workspace(context.get(), linear.get(), kM);
  EXPECT_STATUS(INT8Q_OVERLAP,
                int8q_forward_many(context.get(), twice, 2, x.get(), 0, ys, workspace.get(), workspace.bytes()));
  // The first output on the second linear's weights.
  const LinearPtr second = make_linear(context.get(), random_mat(INT8Q_F32, kN, kN, 2));
  const void* blob = nullptr;
  uint64_t blob_bytes = 0;
  ASSERT_CALL(int8q_get_blob(second.get(), &blob, &blob_bytes));
  const std::vector<uint8_t> before(static_cast<const uint8_t*>(blob), static_cast<const uint8_t*>(blob) + blob_bytes);
  const int8q_linear* both[] = {linear.get(), second.get()};
  const int8q_matrix on_weights = matrix(INT8Q_F32, kM, kN, static_cast<const uint8_t*>(blob) + 256);
  const int8q_matrix* outputs[] = {&on_weights, y.get()};
  EXPECT_STATUS(INT8Q_OVERLAP,
                int8q_forward_many(context.get(), both, 2, x.get(), 0, outputs, workspace.get(), workspace.bytes()));
  EXPECT_EQ(0, std::memcmp(before.data(), blob, blob_bytes));
}

// The blob on each of the five inputs of packing.
TEST(Overlap, Pack) {
  const ContextPtr context = make_context(2);
  constexpr int64_t kN = 18, kK = 40;
  uint64_t blob_bytes = 0;
  ASSERT_CALL(int8q_query_blob(kN, kK, 1, 3, &blob_bytes));
  const Workspace blob(blob_bytes), apart(8192);
  const auto pack = [&](int inside) {
    std::memset(apart.get(), 0, 8192);
    std::memset(blob.get(), 0, blob_bytes);
    const auto at = [&](int input, int64_t offset) {
      return inside == input ? static_cast<uint8_t*>(blob.get()) + 256 : static_cast<uint8_t*>(apart.get()) + offset;
    };
    auto* kept = reinterpret_cast<int64_t*>(at(3, 3072));
    for (int64_t t = 0; t < 3; ++t) kept[t] = t * 5;
    const int8q_matrix codes = matrix(INT8Q_S8, kN, kK, at(0, 0)), bias = matrix(INT8Q_F32, 1, kN, at(2, 2048)),
                       halves = matrix(INT8Q_F16, kN, 3, at(4, 4096));
    const int8q_linear_options options{sizeof options, 0, 0, 0, kept, 3, &halves};
    const std::vector<uint8_t> before(static_cast<uint8_t*>(blob.get()), static_cast<uint8_t*>(blob.get()) + blob_bytes);
    const int32_t status = int8q_pack_linear(context.get(), &codes, reinterpret_cast<float*>(at(1, 1024)), &bias, &options,
                                             blob.get(), blob_bytes);
    EXPECT_EQ(inside < 0, 0 != std::memcmp(before.data(), blob.get(), blob_bytes)) << "input " << inside;
    return status;
  };
  EXPECT_STATUS(INT8Q_OK, pack(-1));
  for (int input = 0; input < 5; ++input) EXPECT_STATUS(INT8Q_OVERLAP, pack(input));
}

// Any two outputs of an export, and any with the blob itself.
TEST(Overlap, Export) {
  const ContextPtr context = make_context(2);
  constexpr int64_t kN = 18, kK = 40;
  const Mat w = random_mat(INT8Q_F32, kN, kK, 1), bias = random_mat(INT8Q_F32, 1, kN, 2);
  const int64_t kept[] = {2, 7, 30};
  const int8q_linear_options options{sizeof options, 0, 0, 0, kept, 3, nullptr};
  int8q_linear* raw = nullptr;
  ASSERT_CALL(int8q_create_linear(context.get(), w.get(), nullptr, bias.get(), &options, &raw));
  const LinearPtr linear(raw);
  const void* blob = nullptr;
  uint64_t blob_bytes = 0;
  ASSERT_CALL(int8q_get_blob(raw, &blob, &blob_bytes));
  std::vector<uint64_t> room(1024, 0x0505050505050505u);  // 8-byte aligned
  auto* base = reinterpret_cast<uint8_t*>(room.data());
  const auto export_to = [&](uint8_t* const(&at)[5]) {
    const int8q_matrix codes = matrix(INT8Q_S8, kN, kK, at[0]), biases = matrix(INT8Q_F32, 1, kN, at[2]),
                       halves = matrix(INT8Q_F16, kN, 3, at[4]);
    return int8q_export_linear(context.get(), raw, &codes, reinterpret_cast<float*>(at[1]), &biases,
                               reinterpret_cast<int64_t*>(at[3]), &halves);
  };
  const int64_t bytes[5] = {kN * kK, kN * 4, kN * 4, 3 * 8, kN * 3 * 2};
  int refused = 0;
  for (size_t a = 0; a < 5; ++a) {
    for (size_t b = 0; b <= 5; ++b) {  // 5: the blob
      if (a == b) continue;
      uint8_t* at[5] = {base, base + 1024, base + 2048, base + 3072, base + 4096};
      at[a] = b == 5 ? static_cast<uint8_t*>(const_cast<void*>(blob)) + 512 : at[b] + (bytes[b] - 1) / 8 * 8;
      const std::vector<uint64_t> before(room.begin(), room.end());
      EXPECT_STATUS(INT8Q_OVERLAP, export_to(at));
      EXPECT_EQ(before, room) << "outputs " << a << " and " << b;
      ++refused;
    }
  }
  EXPECT_EQ(25, refused);
  uint8_t* apart[5] = {base, base + 1024, base + 2048, base + 3072, base + 4096};
  EXPECT_STATUS(INT8Q_OK, export_to(apart));
}

// x and y as columns of one buffer, both ways round.
TEST(Overlap, InterleavedViewsAreApart) {
  const ContextPtr context = make_context(2);
  constexpr int64_t kM = 5, kN = 20, kK = 12, kWidth = kN + kK + 1;
  const LinearPtr linear = make_linear(context.get(), random_mat(INT8Q_F32, kN, kK, 1));
  const Workspace workspace = make_workspace(context.get(), linear.get(), kM);
  const Mat x = random_input(INT8Q_F32, kM, kK, 2), y(INT8Q_F32, kM, kN);
  ASSERT_CALL(forward(context.get(), linear.get(), x, y));
  for (const bool x_first : {true, false}) {
    std::vector<float> buffer(static_cast<size_t>(kM * kWidth), 9.0f);
    float* in = buffer.data() + (x_first ? 0 : kN + 1);
    float* out = buffer.data() + (x_first ? kK + 1 : 0);
    for (int64_t i = 0; i < kM; ++i) std::memcpy(in + i * kWidth, x.bytes().data() + i * kK * 4, kK * 4);
    const int8q_matrix x_view = matrix(INT8Q_F32, kM, kK, in, kWidth), y_view = matrix(INT8Q_F32, kM, kN, out, kWidth);
    ASSERT_CALL(int8q_forward(context.get(), linear.get(), &x_view, 0, &y_view, workspace.get(), workspace.bytes()));
    const auto* expected = reinterpret_cast<const float*>(y.bytes().data());
    for (int64_t i = 0; i < kM; ++i) {
      for (int64_t j = 0; j < kN; ++j) ASSERT_TRUE(same_bits(expected[i * kN + j], out[i * kWidth + j])) << i << ", " << j;
    }
    // One column closer, and they share elements.
    const int8q_matrix shifted = matrix(INT8Q_F32, kM, kN, x_first ? out - 2 : out + 2, kWidth);
    EXPECT_STATUS(INT8Q_OVERLAP,
                  int8q_forward(context.get(), linear.get(), &x_view, 0, &shifted, workspace.get(), workspace.bytes()));
  }
}

}  // namespace
}  // namespace int8q::test
