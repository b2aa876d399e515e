// SPDX-License-Identifier: Apache-2.0
//
// Structs of callers built for another level: each struct that the library takes is refused when it is smaller than level
// 1.0's, or larger with something in the part that this library does not know; accepted when that part is zero. Structs
// that it fills are never written beyond the caller's size.
#include <cstdio>
#include <functional>

#include <unistd.h>

#include "support/call.h"

namespace int8q::test {
namespace {

constexpr size_t kTail = 64;  // what a later level might add

template <class T>
struct Later {
  T known;
  uint8_t tail[kTail];
};

// call(struct) must return OK for a valid struct and not read it afterwards.
template <class T>
void check_sizes(const char* name, const T& valid, const std::function<int32_t(const T*)>& call) {
  SCOPED_TRACE(name);
  Later<T> later{valid, {}};
  const auto with_size = [&](uint32_t size) {
    later.known.size = size;
    return call(&later.known);
  };
  const auto refused = [&](uint32_t size) {
    EXPECT_STATUS(INT8Q_ABI_MISMATCH, with_size(size));
    const std::string message = int8q_last_error();
    EXPECT_NE(std::string::npos, message.find(name)) << message;
    EXPECT_NE(std::string::npos, message.find(std::to_string(size))) << message;
  };
  EXPECT_STATUS(INT8Q_OK, with_size(sizeof(T)));
  for (const uint32_t size : {0u, 1u, 4u, static_cast<uint32_t>(sizeof(T) - 1)}) refused(size);
  for (const uint32_t size : {0xffffffffu, 0x80000000u, 1u << 20}) refused(size);  // unset or overwritten: not followed
  for (const size_t extra : {size_t{1}, size_t{8}, kTail}) {
    const auto size = static_cast<uint32_t>(sizeof(T) + extra);
    EXPECT_STATUS(INT8Q_OK, with_size(size));
    for (const size_t at : {size_t{0}, extra - 1}) {
      later.tail[at] = 1;
      refused(size);
      later.tail[at] = 0;
    }
  }
  later.tail[8] = 1;  // past the caller's size: not the library's business
  EXPECT_STATUS(INT8Q_OK, with_size(sizeof(T) + 8));
}

int32_t run_serially(void*, int64_t count, int8q_task task, void* arg) {
  for (int64_t i = 0; i < count; ++i) task(arg, i, 0);
  return 0;
}

int32_t make_and_destroy(const int8q_context_options* options) {
  int8q_context* context = nullptr;
  const int32_t status = int8q_create_context(options, &context);
  if (status == INT8Q_OK) {
    EXPECT_EQ(INT8Q_OK, int8q_destroy_context(context));
  }
  return status;
}

TEST(AbiStructs, ContextOptionsRunnerAndAllocator) {
  int8q_context_options options{};
  options.size = sizeof options;
  options.threads = 1;
  check_sizes<int8q_context_options>("options", options, make_and_destroy);

  const int8q_parallel_runner runner{sizeof runner, 1, nullptr, run_serially};
  check_sizes<int8q_parallel_runner>("options->runner", runner, [&](const int8q_parallel_runner* r) {
    int8q_context_options with_runner = options;
    with_runner.runner = r;
    return make_and_destroy(&with_runner);
  });

  const int8q_allocator allocator{sizeof allocator, 0, nullptr,
                                  [](void*, uint64_t bytes, uint64_t alignment) {
                                    return std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
                                  },
                                  [](void*, void* memory, uint64_t) { std::free(memory); }};
  check_sizes<int8q_allocator>("options->allocator", allocator, [&](const int8q_allocator* a) {
    int8q_context_options with_allocator = options;
    with_allocator.allocator = a;
    return make_and_destroy(&with_allocator);
  });
}

TEST(AbiStructs, LinearOptions) {
  const ContextPtr context = make_context();
  const Mat w = random_mat(INT8Q_F32, 3, 5, 1);
  int8q_linear_options options{};
  options.size = sizeof options;
  check_sizes<int8q_linear_options>("options", options, [&](const int8q_linear_options* o) {
    int8q_linear* linear = nullptr;
    const int32_t status = int8q_create_linear(context.get(), w.get(), nullptr, nullptr, o, &linear);
    if (status == INT8Q_OK) {
      EXPECT_EQ(INT8Q_OK, int8q_destroy_linear(linear));
    }
    return status;
  });
}

// Every matrix argument of every function goes through the same check; each is tried, so that none is forgotten.
TEST(AbiStructs, Matrices) {
  const ContextPtr context = make_context();
  int8q_context* c = context.get();
  const Mat w = random_mat(INT8Q_F32, 3, 5, 1), bias = random_mat(INT8Q_F32, 1, 3, 2), x = random_mat(INT8Q_F32, 2, 5, 3);
  const LinearPtr linear = make_linear(c, w, &bias);
  const Mat a = random_mat(INT8Q_S8, 2, 5, 4), b = random_mat(INT8Q_S8, 3, 5, 5), acc = random_mat(INT8Q_S32, 2, 3, 6);
  const Mat y(INT8Q_F32, 2, 3), q(INT8Q_S8, 2, 5), yk(INT8Q_F32, 2, 5), dy = random_mat(INT8Q_F32, 2, 3, 7),
                                                                        codes(INT8Q_S8, 3, 5);
  const Workspace ws(1 << 20);
  const float rows[2] = {1, 2}, cols[3] = {1, 2, 3};
  float stats[3];
  int64_t counts[5] = {};
  using M = const int8q_matrix*;
  struct Argument {
    const char* name;
    M valid;
    std::function<int32_t(M)> call;
  };
  const Argument arguments[] = {
      {"x", x.get(), [&](M m) { return int8q_quantize_rows(c, m, 0, 0, q.get(), stats, nullptr, nullptr, nullptr); }},
      {"q", q.get(), [&](M m) { return int8q_quantize_rows(c, x.get(), 0, 0, m, stats, nullptr, nullptr, nullptr); }},
      {"a", a.get(), [&](M m) { return int8q_multiply(c, m, b.get(), acc.get()); }},
      {"b", b.get(), [&](M m) { return int8q_multiply(c, a.get(), m, acc.get()); }},
      {"c", acc.get(), [&](M m) { return int8q_multiply(c, a.get(), b.get(), m); }},
      {"acc", acc.get(), [&](M m) { return int8q_dequantize_accumulators(c, m, rows, cols, nullptr, y.get()); }},
      {"bias", bias.get(), [&](M m) { return int8q_dequantize_accumulators(c, acc.get(), rows, cols, m, y.get()); }},
      {"y", y.get(), [&](M m) { return int8q_dequantize_accumulators(c, acc.get(), rows, cols, nullptr, m); }},
      {"a", a.get(), [&](M m) { return int8q_scaled_multiply(c, m, rows, b.get(), cols, nullptr, y.get()); }},
      {"bias", bias.get(), [&](M m) { return int8q_scaled_multiply(c, a.get(), rows, b.get(), cols, m, y.get()); }},
      {"x", x.get(),
       [&](M m) {
         return int8q_mixed_scaled_multiply(c, m, a.get(), rows, b.get(), cols, 0, 0, nullptr, 0, nullptr, y.get());
       }},
      {"q", a.get(), [&](M m) { return int8q_dequantize_rows(c, m, rows, yk.get()); }},
      {"y", yk.get(), [&](M m) { return int8q_dequantize_rows(c, a.get(), rows, m); }},
      {"x", x.get(), [&](M m) { return int8q_count_outliers(c, m, 0, counts); }},
      {"weight", w.get(), [&](M m) { return int8q_pack_linear(c, m, nullptr, bias.get(), nullptr, ws.get(), ws.bytes()); }},
      {"bias", bias.get(), [&](M m) { return int8q_pack_linear(c, w.get(), nullptr, m, nullptr, ws.get(), ws.bytes()); }},
      {"codes", codes.get(),
       [&](M m) { return int8q_export_linear(c, linear.get(), m, nullptr, nullptr, nullptr, nullptr); }},
      {"bias", bias.get(),
       [&](M m) { return int8q_export_linear(c, linear.get(), nullptr, nullptr, m, nullptr, nullptr); }},
      {"x", x.get(), [&](M m) { return int8q_forward(c, linear.get(), m, 0, y.get(), ws.get(), ws.bytes()); }},
      {"y", y.get(), [&](M m) { return int8q_forward(c, linear.get(), x.get(), 0, m, ws.get(), ws.bytes()); }},
      {"x", x.get(), [&](M m) { return int8q_quantize_part(c, linear.get(), m, ws.get(), ws.bytes(), 0, 1); }},
      {"y", y.get(), [&](M m) { return int8q_forward_part(c, linear.get(), x.get(), 0, m, ws.get(), ws.bytes(), 0, 1); }},
      {"dy", dy.get(), [&](M m) { return int8q_backward(c, linear.get(), m, 0, yk.get(), ws.get(), ws.bytes()); }},
      {"dx", yk.get(), [&](M m) { return int8q_backward(c, linear.get(), dy.get(), 0, m, ws.get(), ws.bytes()); }},
  };
  for (const Argument& argument : arguments) check_sizes<int8q_matrix>(argument.name, *argument.valid, argument.call);
}

TEST(AbiStructs, CheckpointOptions) {
  const std::string path = ::testing::TempDir() + "int8q_test_abi_structs_" + std::to_string(getpid()) + ".safetensors";
  const std::string json = R"({"l.weight":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}})";
  const uint64_t length = json.size();
  std::FILE* file = std::fopen(path.c_str(), "wb");
  ASSERT_NE(nullptr, file);
  std::fwrite(&length, 8, 1, file);
  std::fwrite(json.data(), 1, length, file);
  std::fwrite("\0\0\200\77\0\0\0\100\0\0\200\77\0\0\0\100", 1, 16, file);
  std::fclose(file);
  const ContextPtr context = make_context();
  int8q_checkpoint_options options{};
  options.size = sizeof options;
  options.dry_run = 1;
  check_sizes<int8q_checkpoint_options>("options", options, [&](const int8q_checkpoint_options* o) {
    return int8q_quantize_checkpoint(context.get(), path.c_str(), nullptr, o, nullptr, nullptr);
  });

  int8q_safetensors* tensors = nullptr;
  ASSERT_CALL(int8q_open_safetensors(path.c_str(), &tensors));
  std::remove(path.c_str());
  for (const bool by_name : {false, true}) {
    const auto get = [&](int8q_tensor* t) {
      return by_name ? int8q_find_tensor(tensors, "l.weight", t) : int8q_get_tensor(tensors, 0, t);
    };
    Later<int8q_tensor> later;
    std::memset(&later, 0xee, sizeof later);
    later.known.size = sizeof later;
    EXPECT_STATUS(INT8Q_OK, (std::memset(later.tail, 0, kTail), get(&later.known)));
    EXPECT_EQ(sizeof later, later.known.size) << "the size is the caller's";
    EXPECT_STREQ("l.weight", later.known.name);
    EXPECT_EQ(16u, later.known.bytes);
    for (const uint8_t byte : later.tail) EXPECT_EQ(0, byte);
    for (const uint32_t size : {0u, 4u, static_cast<uint32_t>(sizeof(int8q_tensor) - 1)}) {
      std::memset(&later, 0xee, sizeof later);
      later.known.size = size;
      Later<int8q_tensor> before;
      std::memcpy(&before, &later, sizeof later);
      EXPECT_STATUS(INT8Q_ABI_MISMATCH, get(&later.known));
      EXPECT_EQ(0, std::memcmp(&before, &later, sizeof later));
    }
    std::memset(&later, 0xee, sizeof later);
    later.known.size = sizeof later.known;
    EXPECT_STATUS(INT8Q_OK, get(&later.known));
    for (const uint8_t byte : later.tail) EXPECT_EQ(0xee, byte) << "written past the caller's struct";
  }
  EXPECT_EQ(INT8Q_OK, int8q_close_safetensors(tensors));
}

TEST(AbiStructs, LinearInfo) {
  const ContextPtr context = make_context();
  const LinearPtr linear = make_linear(context.get(), random_mat(INT8Q_F32, 3, 5, 1));
  Later<int8q_linear_info> later;
  for (const uint32_t size : {0u, 4u, static_cast<uint32_t>(sizeof(int8q_linear_info) - 1)}) {
    std::memset(&later, 0xee, sizeof later);
    later.known.size = size;
    const std::vector<uint8_t> before = object_bytes(later);
    EXPECT_STATUS(INT8Q_ABI_MISMATCH, int8q_describe_linear(linear.get(), &later.known));
    EXPECT_EQ(before, object_bytes(later));
  }
  for (const size_t extra : {size_t{0}, size_t{8}, kTail}) {
    std::memset(&later, 0, sizeof later);
    std::memset(later.tail + extra, 0xee, kTail - extra);
    later.known.size = static_cast<uint32_t>(sizeof later.known + extra);
    ASSERT_CALL(int8q_describe_linear(linear.get(), &later.known));
    EXPECT_EQ(sizeof later.known + extra, later.known.size) << "the size is the caller's";
    EXPECT_EQ(3, later.known.out_features);
    EXPECT_EQ(5, later.known.in_features);
    EXPECT_EQ(0, later.known.has_bias);
    EXPECT_EQ(6.0f, later.known.threshold);
    for (size_t i = 0; i < kTail; ++i) EXPECT_EQ(i < extra ? 0 : 0xee, later.tail[i]) << "byte " << i << " of the tail";
  }
}

}  // namespace
}  // namespace int8q::test
