// SPDX-License-Identifier: Apache-2.0
//
// Results do not depend on what the host has set in its threads: flush-to-zero, denormals-are-zero, another rounding mode,
// unmasked exceptions. The caller gets its setting back, and so do a runner's threads.
#include <atomic>
#include <functional>
#include <limits>
#include <thread>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "support/call.h"
#include "support/oracle.h"

namespace int8q::test {
namespace {

using Bytes = std::vector<uint8_t>;

#if defined(__x86_64__)
constexpr uint64_t kDefault = 0x1f80;
constexpr uint64_t kSticky = 0x3f;  // exceptions so far: no setting
uint64_t get_control() { return _mm_getcsr(); }
void set_control(uint64_t control) { _mm_setcsr(static_cast<uint32_t>(control)); }
std::vector<uint64_t> settings() {
  std::vector<uint64_t> all;
  for (uint64_t rounding = 0; rounding < 4; ++rounding) {
    for (const uint64_t flush : {0x0000u, 0x0040u, 0x8000u, 0x8040u}) all.push_back(kDefault | rounding << 13 | flush);
  }
  all.push_back(kDefault | 0x3f);              // sticky flags of before
  all.push_back(kDefault & ~uint64_t{0x680});  // invalid, overflow and division by zero trap
  all.push_back((kDefault & ~uint64_t{0x680}) | 0xe040);
  return all;
}
#elif defined(__aarch64__)
constexpr uint64_t kDefault = 0;
constexpr uint64_t kSticky = 0;
uint64_t get_control() {
  uint64_t control;
  asm volatile("mrs %0, fpcr" : "=r"(control));
  return control;
}
void set_control(uint64_t control) { asm volatile("msr fpcr, %0" : : "r"(control)); }
std::vector<uint64_t> settings() {
  std::vector<uint64_t> all;
  for (uint64_t rounding = 0; rounding < 4; ++rounding) {
    for (const uint64_t flush : {uint64_t{0}, uint64_t{1} << 24}) all.push_back(rounding << 22 | flush);
  }
  return all;
}
#endif

// Arithmetic that the tests themselves do must not see the setting: it is in force around one call only.
int32_t under(uint64_t control, const std::function<int32_t()>& call) {
  const uint64_t before = get_control();
  set_control(control);
  const int32_t status = call();
  const uint64_t after = get_control();
  set_control(before);
  EXPECT_EQ(control & ~kSticky, after & ~kSticky) << "the caller's setting was not restored";
  return status;
}

void append(Bytes* bytes, const void* p, size_t count) {
  bytes->insert(bytes->end(), static_cast<const uint8_t*>(p), static_cast<const uint8_t*>(p) + count);
}
void append(Bytes* bytes, const Mat& m) { append(bytes, m.bytes().data(), m.bytes().size()); }

// Values down to the denormals of each dtype; ordinary rows, tiny rows, outliers, rounding ties.
Mat awkward(int32_t dtype, int64_t rows, int64_t cols, uint64_t seed) {
  Mat m(dtype, rows, cols);
  Random random(seed);
  const float tiny = dtype == INT8Q_F16 ? 0x1p-24f : 0x1p-133f;
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) {
      const auto step = static_cast<float>(random.below(255) - 127);
      m.set(i, j, i % 3 == 0 ? step * tiny : i % 3 == 1 ? (step + 0.5f) / 127.0f : random.uniform(-5.0f, 5.0f));
    }
  }
  if (rows > 2) m.set(2, 1 % cols, 11.0f);
  return m;
}

constexpr int64_t kM = 19, kN = 21, kK = 70;
constexpr int32_t kFloatTypes[] = {INT8Q_F32, INT8Q_F16, INT8Q_BF16};

// All operations on awkward values, each call under `control`.
Bytes run_all(int8q_context* c, uint64_t control) {
  Bytes bytes;
  const auto call = [&](const std::function<int32_t()>& body) { EXPECT_STATUS(INT8Q_OK, under(control, body)); };
  std::vector<float> stats(kM), col_stats(kN);
  for (int64_t n = 0; n < kN; ++n) col_stats[static_cast<size_t>(n)] = n % 2 == 0 ? 0x1.8p-130f : 0.7f;
  const Mat a = random_mat(INT8Q_S8, kM, kK, 1), b = random_mat(INT8Q_S8, kN, kK, 2), bias = awkward(INT8Q_F32, 1, kN, 3);
  for (const int32_t dtype : kFloatTypes) {
    const Mat x = awkward(dtype, kM, kK, 4), w = awkward(dtype, kN, kK, 5), q(INT8Q_S8, kM, kK),
              dy = awkward(dtype, kM, kN, 6);
    const Mat y = awkward(dtype, kM, kN, 7), yk(dtype, kM, kK), dx(dtype, kM, kK);
    int64_t cols[kK] = {}, count = 0, counts[kK] = {};
    call([&] { return int8q_quantize_rows(c, x.get(), 0, 0, q.get(), stats.data(), nullptr, cols, &count); });
    append(&bytes, q);
    append(&bytes, stats.data(), stats.size() * sizeof(float));
    append(&bytes, cols, sizeof cols);
    call([&] { return int8q_count_outliers(c, x.get(), 0.5f, counts); });
    append(&bytes, counts, sizeof counts);
    call([&] { return int8q_dequantize_rows(c, q.get(), stats.data(), yk.get()); });
    append(&bytes, yk);
    call([&] { return int8q_scaled_multiply(c, a.get(), stats.data(), b.get(), col_stats.data(), bias.get(), y.get()); });
    append(&bytes, y);
    call([&] {
      return int8q_mixed_scaled_multiply(c, x.get(), q.get(), stats.data(), b.get(), col_stats.data(), 0, 0, cols, count,
                                         bias.get(), y.get());
    });
    append(&bytes, y);
    for (const int32_t mode : {INT8Q_OUTLIERS_COLUMN, INT8Q_OUTLIERS_ELEMENT, INT8Q_OUTLIERS_ALL}) {
      const int64_t kept[] = {1, 5};
      int8q_linear_options options{};
      options.size = sizeof options;
      options.outlier_mode = mode;
      options.kept_cols = kept;
      options.kept_count = 2;
      int8q_linear* handle = nullptr;
      call([&] { return int8q_create_linear(c, w.get(), nullptr, bias.get(), &options, &handle); });
      const LinearPtr linear(handle);
      const Mat codes(INT8Q_S8, kN, kK), exported_bias(INT8Q_F32, 1, kN), kept_weights(INT8Q_F16, kN, 2);
      std::vector<float> exported_stats(kN);
      call([&] {
        return int8q_export_linear(c, handle, codes.get(), exported_stats.data(), exported_bias.get(), nullptr,
                                   kept_weights.get());
      });
      for (const Mat* m : {&codes, &exported_bias, &kept_weights}) append(&bytes, *m);
      append(&bytes, exported_stats.data(), exported_stats.size() * sizeof(float));
      call([&] { return forward(c, handle, x, y); });
      append(&bytes, y);
      call([&] { return forward(c, handle, x, y, INT8Q_ACCUMULATE); });
      append(&bytes, y);
      call([&] { return backward(c, handle, dy, dx); });
      append(&bytes, dx);
      const Workspace ws = make_workspace(c, handle, kM, INT8Q_FORWARD, 2);
      for (int32_t part = 0; part < 2; ++part) {
        call([&] { return int8q_quantize_part(c, handle, x.get(), ws.get(), ws.bytes(), part, 2); });
      }
      for (int32_t part = 0; part < 2; ++part) {
        call([&] { return int8q_forward_part(c, handle, x.get(), 0, y.get(), ws.get(), ws.bytes(), part, 2); });
      }
      append(&bytes, y);
    }
  }
  return bytes;
}

TEST(FloatEnvironment, TheCallersSettingChangesNothing) {
  for (const int threads : {1, 3}) {
    for (const cpu::Isa* isa : runnable_isas()) {
      const ContextPtr context = make_context(threads, isa->name);
      const Bytes right = run_all(context.get(), kDefault);
      for (const uint64_t control : settings()) {
        const Bytes got = run_all(context.get(), control);
        ASSERT_EQ(right.size(), got.size());
        for (size_t i = 0; i < right.size(); ++i) {
          ASSERT_EQ(right[i], got[i]) << isa->name << ": byte " << i << " under control word 0x" << std::hex << control
                                      << ", " << threads << " threads";
        }
      }
    }
  }
}

// The values above do notice: plain arithmetic under the same settings gives other bits.
TEST(FloatEnvironment, TheSettingsMatterToPlainArithmetic) {
  volatile float tiny = 0x1p-133f, three = 3.0f, one = 1.0f;
  const float right = tiny * three, third = one / three;
  int differ = 0;
  for (const uint64_t control : settings()) {
    set_control(control);
    volatile float product = tiny * three, quotient = one / three;
    set_control(kDefault);
    differ += product != right || quotient != third ? 1 : 0;
  }
  EXPECT_GE(differ, 4);
}

// Scalars that the boundary itself looks at: a denormal threshold is not 0, and a fraction of the rows is rounded to
// nearest, whatever the caller's setting.
TEST(FloatEnvironment, ScalarArgumentsAreReadUnderTheDefault) {
  const ContextPtr context = make_context(1);
  Mat x(INT8Q_F32, 1, 4);
  for (int j = 0; j < 4; ++j) x.set(0, j, j == 2 ? 1.0f : 0.0f);
  const Mat w = random_mat(INT8Q_F32, 2, 4, 1);
  const float denormal = 0x1p-140f;
  for (const uint64_t control : settings()) {
    SCOPED_TRACE("control word " + std::to_string(control));
    int64_t counts[4] = {};
    EXPECT_STATUS(INT8Q_OK, under(control, [&] { return int8q_count_outliers(context.get(), x.get(), denormal, counts); }));
    EXPECT_EQ(1, counts[2]) << "a denormal threshold was taken for 0, which selects 6.0";

    int8q_linear_options options{};
    options.size = sizeof options;
    options.threshold = denormal;
    int8q_linear* handle = nullptr;
    EXPECT_STATUS(INT8Q_OK, under(control, [&] {
                    return int8q_create_linear(context.get(), w.get(), nullptr, nullptr, &options, &handle);
                  }));
    const LinearPtr linear(handle);
    int8q_linear_info info{};
    info.size = sizeof info;
    ASSERT_CALL(int8q_describe_linear(handle, &info));
    EXPECT_TRUE(same_bits(denormal, info.threshold)) << info.threshold;

    for (int64_t rows = 1; rows <= 400; ++rows) {  // counts at the very fraction
      int64_t nearest[2] = {}, found[2] = {}, expected = 0, count = 0;
      const int64_t hits[2] = {(rows + 9) / 10, rows / 10};
      ASSERT_CALL(int8q_select_outlier_cols(hits, 2, rows, .1, nearest, &expected));
      EXPECT_STATUS(INT8Q_OK, under(control, [&] { return int8q_select_outlier_cols(hits, 2, rows, .1, found, &count); }));
      ASSERT_EQ(expected, count) << rows << " rows";
    }
    const float nan = std::numeric_limits<float>::quiet_NaN();
    EXPECT_STATUS(INT8Q_INVALID_ARGUMENT,
                  under(control, [&] { return int8q_count_outliers(context.get(), x.get(), nan, counts); }));
  }
}

// Threads of a caller's runner, each with a setting of its own, which it finds again after each task.
TEST(FloatEnvironment, RunnersThreadsKeepTheirSetting) {
  static std::atomic<int> wrong, tasks;
  wrong = 0;
  tasks = 0;
  const int8q_parallel_runner runner{sizeof runner, 3, nullptr, [](void*, int64_t count, int8q_task task, void* arg) {
                                       std::vector<std::thread> threads;
                                       for (int32_t id = 0; id < 3; ++id) {
                                         threads.emplace_back([=] {
                                           const std::vector<uint64_t> all = settings();
                                           for (int64_t i = id; i < count; i += 3) {
                                             const uint64_t control = all[static_cast<size_t>(tasks++) % all.size()];
                                             set_control(control);
                                             task(arg, i, id);
                                             if (get_control() != control) ++wrong;
                                             set_control(kDefault);
                                           }
                                         });
                                       }
                                       for (std::thread& thread : threads) thread.join();
                                       return 0;
                                     }};
  const ContextPtr serial = make_context(1), with_runner = make_context(0, nullptr, &runner);
  EXPECT_TRUE(run_all(serial.get(), kDefault) == run_all(with_runner.get(), kDefault));
  EXPECT_EQ(0, wrong.load());
  EXPECT_GT(tasks.load(), 3 * static_cast<int>(settings().size())) << "the runner was hardly asked";
}

}  // namespace
}  // namespace int8q::test
