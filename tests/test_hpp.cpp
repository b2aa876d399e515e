// SPDX-License-Identifier: Apache-2.0
//
// int8q.hpp: handles that free themselves and move, failures as exceptions with their status, and the same bits as the C
// functions.
#include "int8q/int8q.hpp"

#include <limits>
#include <thread>
#include <type_traits>

#include "support/call.h"
#include "support/safetensors_files.h"

namespace int8q::test {
namespace {

template <class Body>
int32_t status_of(Body&& body, std::string* message = nullptr) {
  try {
    body();
  } catch (const StatusError& error) {
    if (message != nullptr) *message = error.what();
    return error.status();
  }
  return INT8Q_OK;
}

// Counts what is given and given back.
struct Counter {
  int64_t live = 0;
  int8q_allocator c{sizeof(int8q_allocator), 0, this,
                    [](void* self, uint64_t bytes, uint64_t alignment) {
                      ++static_cast<Counter*>(self)->live;
                      return std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
                    },
                    [](void* self, void* memory, uint64_t) {
                      --static_cast<Counter*>(self)->live;
                      std::free(memory);
                    }};
  int8q::Context context() {
    int8q_context_options options{};
    options.threads = 1;
    options.allocator = &c;
    return int8q::Context(options);
  }
};

static_assert(!std::is_copy_constructible_v<int8q::Context> && !std::is_copy_assignable_v<int8q::Context>);
static_assert(!std::is_copy_constructible_v<int8q::Linear> && !std::is_copy_constructible_v<Safetensors>);
static_assert(std::is_nothrow_move_constructible_v<int8q::Context> && std::is_nothrow_move_assignable_v<int8q::Linear>);

TEST(Hpp, HandlesFreeThemselvesAndMove) {
  Counter counter;
  const Mat w = random_mat(INT8Q_F32, 4, 6, 1);
  {
    int8q::Context context = counter.context();
    ASSERT_TRUE(context);
    EXPECT_EQ(INT8Q_OK, context.status());
    EXPECT_EQ(1, counter.live);
    int8q::Linear linear(context, Matrix(w.c()));
    const int64_t one = counter.live;
    const int8q_linear* handle = linear.get();
    int8q::Linear moved(std::move(linear));
    EXPECT_EQ(handle, moved.get());
    EXPECT_FALSE(linear);  // NOLINT: the moved-from state is what is tested
    int8q::Linear other(context, Matrix(w.c()));
    EXPECT_GT(counter.live, one);
    other = std::move(moved);
    EXPECT_EQ(one, counter.live) << "what other had was not freed";
    EXPECT_EQ(handle, other.get());
    int8q::Linear& self = other;
    other = std::move(self);
    EXPECT_EQ(handle, other.get());
    int8q::Context moved_context(std::move(context));
    EXPECT_FALSE(context);  // NOLINT: likewise
    EXPECT_EQ(INT8Q_OK, moved_context.prepare());
    int8q_linear* released = int8q::Linear(moved_context, Matrix(w.c())).release();
    EXPECT_EQ(INT8Q_OK, int8q_destroy_linear(released));
  }
  EXPECT_EQ(0, counter.live);
}

TEST(Hpp, ForwardAndBackwardAreTheCFunctions) {
  const Mat w = random_mat(INT8Q_F32, 5, 12, 1), bias = random_mat(INT8Q_F32, 1, 5, 2),
            x = random_input(INT8Q_F32, 3, 12, 3);
  const ContextPtr c = make_context(2);
  const LinearPtr l = make_linear(c.get(), w, &bias);
  Mat y(INT8Q_F32, 3, 5), y_hpp(INT8Q_F32, 3, 5), dx(INT8Q_F32, 3, 12), dx_hpp(INT8Q_F32, 3, 12);
  ASSERT_CALL(forward(c.get(), l.get(), x, y));
  ASSERT_CALL(backward(c.get(), l.get(), y, dx));

  int8q::Context context(2);
  const int8q::Linear linear(context, Matrix(w.c()), Matrix(bias.c()));
  int8q::Workspace workspace;
  EXPECT_EQ(INT8Q_OK,
            linear.forward(context, view(Mat(x).as<const float>(), 3, 12), view(y_hpp.as<float>(), 3, 5), workspace));
  EXPECT_EQ(INT8Q_OK, linear.backward(context, y.c(), dx_hpp.c(), workspace));
  EXPECT_EQ(y.bytes(), y_hpp.bytes());
  EXPECT_EQ(dx.bytes(), dx_hpp.bytes());
  EXPECT_EQ(5, linear.info().out_features);
  EXPECT_EQ(12, linear.info().in_features);
  EXPECT_EQ(1, linear.info().has_bias);
  EXPECT_NE(std::string::npos, context.describe().find("\"isa\""));
  EXPECT_EQ('}', context.describe().back());

  const void* blob = nullptr;
  uint64_t bytes = 0;
  ASSERT_CALL(int8q_get_blob(linear.get(), &blob, &bytes));
  const int8q::Linear opened = int8q::Linear::open(context, blob, bytes);
  Mat again(INT8Q_F32, 3, 5);
  opened.forward(context, x.c(), again.c(), workspace);
  EXPECT_EQ(y.bytes(), again.bytes());
}

TEST(Hpp, ForwardManyIsForwardOfEach) {
  int8q::Context context(2);
  const Mat x = random_input(INT8Q_F32, 4, 16, 1);
  const int8q::Linear q(context, Matrix(random_mat(INT8Q_F32, 7, 16, 2).c())),
      k(context, Matrix(random_mat(INT8Q_F32, 20, 16, 3).c()));
  const Mat yq(INT8Q_F32, 4, 7), yk(INT8Q_F32, 4, 20), sq(INT8Q_F32, 4, 7), sk(INT8Q_F32, 4, 20);
  int8q::Workspace workspace;
  const int8q::Linear* linears[] = {&q, &k};
  const Matrix ys[] = {yq.c(), yk.c()};
  EXPECT_EQ(INT8Q_OK, forward_many(context, linears, 2, x.c(), ys, workspace));
  q.forward(context, x.c(), sq.c(), workspace);
  k.forward(context, x.c(), sk.c(), workspace);
  EXPECT_EQ(sq.bytes(), yq.bytes());
  EXPECT_EQ(sk.bytes(), yk.bytes());
}

TEST(Hpp, StatelessOperationsAreTheCFunctions) {
  constexpr int64_t kM = 4, kN = 6, kK = 20;
  const ContextPtr c = make_context(1);
  int8q::Context context(1);
  const Mat x = random_input(INT8Q_F32, kM, kK, 1), b = random_mat(INT8Q_S8, kN, kK, 2),
            bias = random_mat(INT8Q_F32, 1, kN, 3);
  const std::vector<float> col_stats(kN, 0.5f);
  // Each operation once by the C function and once by the wrapper, into outputs of their own.
  struct Results {
    Mat q{INT8Q_S8, kM, kK}, acc{INT8Q_S32, kM, kN}, y{INT8Q_F32, kM, kN}, scaled{INT8Q_F32, kM, kN},
        mixed{INT8Q_F32, kM, kN};
    Mat rows{INT8Q_F32, kM, kK};
    std::vector<float> stats = std::vector<float>(kM);
    std::vector<int64_t> cols = std::vector<int64_t>(kK);
    int64_t count = 0;
  } r, h;
  ASSERT_CALL(int8q_quantize_rows(c.get(), x.get(), 0, 5.0f, r.q.get(), r.stats.data(), nullptr, r.cols.data(), &r.count));
  ASSERT_CALL(int8q_multiply(c.get(), r.q.get(), b.get(), r.acc.get()));
  ASSERT_CALL(int8q_dequantize_accumulators(c.get(), r.acc.get(), r.stats.data(), col_stats.data(), bias.get(), r.y.get()));
  ASSERT_CALL(
      int8q_scaled_multiply(c.get(), r.q.get(), r.stats.data(), b.get(), col_stats.data(), nullptr, r.scaled.get()));
  ASSERT_CALL(int8q_mixed_scaled_multiply(c.get(), x.get(), r.q.get(), r.stats.data(), b.get(), col_stats.data(), 0, 5.0f,
                                          r.cols.data(), r.count, bias.get(), r.mixed.get()));
  ASSERT_CALL(int8q_dequantize_rows(c.get(), r.q.get(), r.stats.data(), r.rows.get()));

  const Outliers outliers{INT8Q_OUTLIERS_COLUMN, 5.0f};
  quantize_rows(context, x.c(), outliers, h.q.c(), h.stats.data(), nullptr, h.cols.data(), &h.count);
  multiply(context, h.q.c(), b.c(), h.acc.c());
  dequantize_accumulators(context, h.acc.c(), h.stats.data(), col_stats.data(), bias.c(), h.y.c());
  scaled_multiply(context, h.q.c(), h.stats.data(), b.c(), col_stats.data(), {}, h.scaled.c());
  mixed_scaled_multiply(context, x.c(), h.q.c(), h.stats.data(), b.c(), col_stats.data(), outliers, h.cols.data(), h.count,
                        bias.c(), h.mixed.c());
  dequantize_rows(context, h.q.c(), h.stats.data(), h.rows.c());
  EXPECT_EQ(r.count, h.count);
  EXPECT_GE(h.count, 2);
  EXPECT_EQ(r.stats, h.stats);
  EXPECT_EQ(r.q.bytes(), h.q.bytes());
  EXPECT_EQ(r.acc.bytes(), h.acc.bytes());
  EXPECT_EQ(r.y.bytes(), h.y.bytes());
  EXPECT_EQ(r.scaled.bytes(), h.scaled.bytes());
  EXPECT_EQ(r.mixed.bytes(), h.mixed.bytes());
  EXPECT_EQ(r.rows.bytes(), h.rows.bytes());
}

TEST(Hpp, BlobsPartsAndExport) {
  int8q::Context context(2);
  const Mat w = random_mat(INT8Q_F32, 5, 12, 1), x = random_input(INT8Q_F32, 3, 12, 2), y(INT8Q_F32, 3, 5),
            parted(INT8Q_F32, 3, 5);
  const int8q::Linear linear(context, Matrix(w.c()));
  const auto [blob, bytes] = linear.blob();
  EXPECT_EQ(int8q::Linear::blob_bytes(5, 12, false), bytes);
  const Workspace memory(bytes);
  EXPECT_EQ(INT8Q_OK, int8q::Linear::pack(context, w.c(), nullptr, {}, {}, memory.get(), bytes));
  const int8q::Linear opened = int8q::Linear::open(context, memory.get(), bytes);
  EXPECT_EQ(INT8Q_BUFFER_TOO_SMALL,
            status_of([&, n = bytes] { int8q::Linear::pack(context, w.c(), nullptr, {}, {}, memory.get(), n - 1); }));

  const Mat codes(INT8Q_S8, 5, 12), again(INT8Q_S8, 5, 12);
  std::vector<float> stats(5), stats_again(5);
  linear.export_to(context, codes.c(), stats.data());
  opened.export_to(context, again.c(), stats_again.data());
  EXPECT_EQ(codes.bytes(), again.bytes());
  EXPECT_EQ(stats, stats_again);

  int8q::Workspace workspace;
  linear.forward(context, x.c(), y.c(), workspace);
  workspace.reserve(linear.workspace_bytes(context, INT8Q_FORWARD, 3, 2));
  for (int32_t part = 0; part < 2; ++part) quantize_part(context, linear, x.c(), workspace, part, 2);
  for (int32_t part = 0; part < 2; ++part) forward_part(context, linear, x.c(), parted.c(), workspace, part, 2);
  EXPECT_EQ(y.bytes(), parted.bytes());
}

TEST(Hpp, CalibrationNamesColumnsThatExportGivesBack) {
  int8q::Context context(1);
  const Mat w = random_mat(INT8Q_F32, 5, 12, 1), bias = random_mat(INT8Q_F32, 1, 5, 2);
  Mat x = random_mat(INT8Q_F32, 4, 12, 3);
  for (int64_t i = 0; i < 3; ++i) x.set(i, 7, 8.0f);
  x.set(0, 2, -6.0f);
  std::vector<int64_t> counts(12), cols(12, -1);
  EXPECT_EQ(INT8Q_OK, count_outliers(context, x.c(), 0.0f, counts.data()));
  EXPECT_EQ(3, counts[7]);
  EXPECT_EQ(1, counts[2]);
  ASSERT_EQ(1, select_outlier_cols(counts.data(), 12, 4, 0.5, cols.data()));
  EXPECT_EQ(7, cols[0]);

  int8q_linear_options options{};
  options.kept_cols = cols.data();
  options.kept_count = 1;
  const int8q::Linear linear(context, w.c(), bias.c(), options);
  const Mat bias_again(INT8Q_F32, 1, 5), kept(INT8Q_F16, 5, 1);
  int64_t kept_col = -1;
  EXPECT_EQ(INT8Q_OK, linear.export_to(context, {}, nullptr, bias_again.c(), &kept_col, kept.c()));
  EXPECT_EQ(bias.bytes(), bias_again.bytes());
  EXPECT_EQ(7, kept_col);
  const auto weight = [&](int64_t n) { return load_element<0>(w.bytes().data(), n * 12 + 7); };
  const auto half = [&](int64_t n) { return load_element<1>(kept.bytes().data(), n); };
  for (int64_t n = 0; n < 5; ++n) EXPECT_NEAR(weight(n), half(n), std::abs(weight(n)) * 0x1p-11f);
}

TEST(Hpp, CheckpointsAndTheirProgress) {
  const TempFolder folder;
  const std::string in = folder / "in.safetensors", out = folder / "out.safetensors";
  write_bytes(in, make_safetensors({f32_tensor("fc.weight", {3, 8}, std::vector<float>(24, 0.5f))}));
  int8q::Context context(1);
  EXPECT_EQ(INT8Q_CANCELLED, status_of([&] {
              quantize_checkpoint(context, in.c_str(), out.c_str(), {}, [](const int8q_progress&) { return false; });
            }));
  EXPECT_THROW(quantize_checkpoint(context, in.c_str(), out.c_str(), {},
                                   [](const int8q_progress&) -> bool { throw std::out_of_range("the caller's own"); }),
               std::out_of_range);
  EXPECT_FALSE(std::filesystem::exists(out));
  int finished = 0;
  EXPECT_EQ(INT8Q_OK, quantize_checkpoint(context, in.c_str(), out.c_str(), {}, [&](const int8q_progress& p) {
              finished += p.phase == INT8Q_PHASE_FINISH;
              return true;
            }));
  EXPECT_EQ(1, finished);
  EXPECT_EQ(INT8Q_INVALID_ARGUMENT, status_of([&] { quantize_checkpoint(context, in.c_str(), out.c_str()); }))
      << "an existing output was replaced";
  const Safetensors file(out.c_str());
  EXPECT_EQ(3, file.size());
  int8q_tensor tensor;
  ASSERT_TRUE(file.find("fc.SCB", &tensor));
  EXPECT_EQ(INT8Q_F32, tensor.dtype);
  EXPECT_FALSE(file.find("fc.bias", &tensor));
}

TEST(Hpp, VersionAndDiagnosis) {
  EXPECT_STREQ(int8q_version_string(), version_string());
  EXPECT_EQ(INT8Q_ABI_LEVEL, abi_version());
  EXPECT_STREQ(int8q_abi_hash(INT8Q_ABI_LEVEL), abi_hash(INT8Q_ABI_LEVEL));
  EXPECT_EQ(nullptr, abi_hash(INT8Q_LEVEL(2, 0)));
  EXPECT_STREQ("INT8Q_BUSY", status_name(INT8Q_BUSY));
  const std::string json = diagnose();
  EXPECT_EQ('{', json.front());
  EXPECT_EQ('}', json.back());
}

TEST(Hpp, FailuresAreExceptionsWithTheStatusAndTheMessage) {
  std::string message;
  EXPECT_EQ(INT8Q_UNSUPPORTED, status_of([] { int8q::Context(1, "bogus"); }, &message));
  EXPECT_NE(std::string::npos, message.find("bogus")) << message;
  EXPECT_EQ(INT8Q_INVALID_ARGUMENT, status_of([] { int8q::Context(-1); }));
  int8q::Context context(1);
  Mat w = random_mat(INT8Q_F32, 4, 6, 1);
  int8q_linear_options options{};
  options.threshold = -1;
  EXPECT_EQ(INT8Q_INVALID_ARGUMENT, status_of([&] { int8q::Linear(context, Matrix(w.c()), {}, options); }, &message));
  EXPECT_NE(std::string::npos, message.find("threshold")) << message;
  const int8q::Linear linear(context, Matrix(w.c()));
  int8q::Workspace workspace;
  const Mat x(INT8Q_F32, 2, 5), y(INT8Q_F32, 2, 4);
  EXPECT_EQ(INT8Q_INVALID_ARGUMENT, status_of([&] { linear.forward(context, x.c(), y.c(), workspace); }, &message));
  EXPECT_NE(std::string::npos, message.find("x->cols")) << message;
  w.set(1, 1, std::numeric_limits<float>::infinity());
  EXPECT_EQ(INT8Q_NOT_FINITE, status_of([&] { int8q::Linear(context, Matrix(w.c())); }));
  EXPECT_EQ(INT8Q_INVALID_HANDLE, status_of([&] { int8q::Linear().info(); }));
  EXPECT_EQ(INT8Q_NOT_FOUND, status_of([] { Safetensors("/nowhere/model.safetensors"); }, &message));
  EXPECT_NE(std::string::npos, message.find("/nowhere/model.safetensors")) << message;
}

TEST(Hpp, TheLastErrorIsTheHeadersOrTheLibrarys) {
  int8q::Context context(1);
  int8q::Workspace workspace;
  const Mat w = random_mat(INT8Q_F32, 4, 6, 1), x(INT8Q_F32, 2, 6), y(INT8Q_F32, 2, 4);
  const int8q::Linear linear(context, Matrix(w.c()));
  const int8q::Linear* const one = &linear;
  const Matrix out(y.c());
  std::string message;
  for (const int32_t count : {-1, 65, 1 << 30}) {
    EXPECT_EQ(INT8Q_INVALID_ARGUMENT,
              status_of([&] { forward_many(context, &one, count, x.c(), &out, workspace); }, &message));
    EXPECT_EQ("count is " + std::to_string(count) + "; expected 0 to 64", message);
    EXPECT_EQ(message, v1::last_error());
  }
  EXPECT_EQ(INT8Q_OK, forward_many(context, &one, 1, x.c(), &out, workspace));
  EXPECT_EQ(message, v1::last_error()) << "success leaves it as it is";
  std::thread([] { EXPECT_STREQ("", v1::last_error()) << "another thread's"; }).join();
  EXPECT_EQ(INT8Q_UNSUPPORTED, status_of([] { int8q::Context(1, "bogus"); }, &message));
  EXPECT_NE(std::string::npos, message.find("bogus")) << message;
  EXPECT_EQ(message, v1::last_error());
}

TEST(Hpp, AnAbiErrorNamesBothLevelsAndTheLibrary) {
  static_cast<void>(int8q_negotiate(INT8Q_LEVEL(7, 3), nullptr));
  try {
    detail::check(INT8Q_ABI_MISMATCH);
    FAIL() << "nothing was thrown";
  } catch (const AbiError& error) {
    EXPECT_EQ(INT8Q_ABI_MISMATCH, error.status());
    EXPECT_EQ(INT8Q_TARGET_LEVEL, error.want());
    EXPECT_EQ(int8q_abi_version(), error.have());
    EXPECT_FALSE(error.path().empty());
    EXPECT_NE(nullptr, std::strstr(error.what(), "7.3")) << error.what();
  }
  EXPECT_EQ(INT8Q_OK, detail::check(INT8Q_OK));
}

}  // namespace
}  // namespace int8q::test
