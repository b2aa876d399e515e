// SPDX-License-Identifier: Apache-2.0
//
// Every status of the header provoked through the C functions: the status, the argument's name in int8q_last_error(), and
// outputs that stay as they were. Long because it is one table: a single test must see every status.
#include <functional>
#include <iterator>
#include <limits>
#include <new>
#include <set>
#include <stdexcept>
#include <thread>

#include <unistd.h>

#include "support/call.h"

namespace int8q::test {
namespace {

constexpr int64_t kHuge = int64_t{1} << 62;
constexpr int64_t kM = 3, kN = 5, kK = 7;
const float kNan = std::numeric_limits<float>::quiet_NaN();

// Memory that is never given back while the object lives, so that a handle that was destroyed can be looked at.
struct Arena {
  std::vector<void*> blocks;
  int8q_allocator c{sizeof(int8q_allocator), 0, this, allocate, [](void*, void*, uint64_t) {}};
  static void* allocate(void* self, uint64_t bytes, uint64_t alignment) {
    void* memory = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
    static_cast<Arena*>(self)->blocks.push_back(memory);
    return memory;
  }
  ~Arena() {
    for (void* block : blocks) std::free(block);
  }
};

uint64_t blob_bytes_of(const int8q_linear* linear) {
  const void* blob;
  uint64_t bytes = 0;
  EXPECT_STATUS(INT8Q_OK, int8q_get_blob(linear, &blob, &bytes));
  return bytes;
}

int8q_matrix with(int8q_matrix m, void (*change)(int8q_matrix&)) {
  change(m);
  return m;
}

// The arguments of all calls, all valid, and the outputs in one block that must not change when a call fails.
struct Calls {
  struct Outputs {
    alignas(64) uint8_t y[1024], dx[1024], q[256], mask[64];
    alignas(64) float stats[16];
    int64_t cols[16], count, counts[16];
    int32_t acc[64];
    int8q_linear* linear;
    int8q_context* context;
    int8q_safetensors* file;
    int8q_linear_info info;
    int8q_tensor tensor;
    uint64_t bytes;
    const void* blob;
    char text[64];
  } out;
  std::vector<uint8_t> before;

  ContextPtr context = make_context(2);
  Mat w = random_mat(INT8Q_F32, kN, kK, 1), x = random_input(INT8Q_F32, kM, kK, 2), bias = random_mat(INT8Q_F32, 1, kN, 3);
  Mat a = random_mat(INT8Q_S8, kM, kK, 4), b = random_mat(INT8Q_S8, kN, kK, 5), acc = random_mat(INT8Q_S32, kM, kN, 6);
  Mat dy = random_mat(INT8Q_F32, kM, kN, 7);
  LinearPtr linear = make_linear(context.get(), w, &bias), off = make_linear(context.get(), w, &bias, INT8Q_OUTLIERS_OFF);
  LinearPtr no_bias = make_linear(context.get(), w);
  std::vector<float> row_stats = std::vector<float>(kM, 1.5f), col_stats = std::vector<float>(kN, 0.5f);
  std::vector<int64_t> cols = {1, 3}, counts_in = std::vector<int64_t>(kK, 1);
  Workspace workspace = Workspace(1 << 20), blob = Workspace(1 << 16);
  Workspace packed = Workspace(1 << 20);  // holds opened's blob
  LinearPtr opened = open_packed();

  int8q_matrix y = matrix(INT8Q_F32, kM, kN, out.y), dx = matrix(INT8Q_F32, kM, kK, out.dx),
               q = matrix(INT8Q_S8, kM, kK, out.q);
  int8q_matrix c = matrix(INT8Q_S32, kM, kN, out.acc), yk = matrix(INT8Q_F32, kM, kK, out.dx);

  Calls() { reset(); }
  void reset() {
    std::memset(&out, 0xa5, sizeof out);
    out.info.size = sizeof out.info;
    out.tensor.size = sizeof out.tensor;
    before = object_bytes(out);
  }
  bool untouched() const { return object_bytes(out) == before; }

  int32_t quantize(const int8q_matrix* in, int32_t mode = 0, float threshold = 0, const int8q_matrix* codes = nullptr) {
    return int8q_quantize_rows(context.get(), in, mode, threshold, codes ? codes : &q, out.stats, out.mask, out.cols,
                               &out.count);
  }
  int32_t forward(const int8q_matrix* in, const int8q_matrix* to, uint32_t flags = 0) {
    return int8q_forward(context.get(), linear.get(), in, flags, to, workspace.get(), workspace.bytes());
  }
  LinearPtr open_packed() {
    int8q_linear* handle = nullptr;
    EXPECT_STATUS(INT8Q_OK,
                  int8q_pack_linear(context.get(), w.get(), nullptr, nullptr, nullptr, packed.get(), packed.bytes()));
    EXPECT_STATUS(INT8Q_OK, int8q_open_linear(context.get(), packed.get(), packed.bytes(), 0, &handle));
    return LinearPtr(handle);
  }
  LinearPtr linear_with(int64_t k, float threshold) {
    const Mat weight = random_mat(INT8Q_F32, kN, k, 8);
    int8q_linear_options options{};
    options.size = sizeof options;
    options.threshold = threshold;
    int8q_linear* handle = nullptr;
    EXPECT_STATUS(INT8Q_OK, int8q_create_linear(context.get(), weight.get(), nullptr, nullptr, &options, &handle));
    return LinearPtr(handle);
  }
  uint64_t needed(int32_t operation, int32_t parts = 0) {
    return make_workspace(context.get(), linear.get(), kM, operation, parts).bytes();
  }
  int32_t forward_in(uint64_t bytes) {
    return int8q_forward(context.get(), linear.get(), x.get(), 0, &y, workspace.get(), bytes);
  }
  int32_t forward_two(const int8q_linear* second, const int8q_matrix* y2, uint64_t bytes) {
    const int8q_linear* linears[] = {linear.get(), second};
    const int8q_matrix* ys[] = {&y, y2};
    return int8q_forward_many(context.get(), linears, 2, x.get(), 0, ys, workspace.get(), bytes);
  }
  int32_t backward_in(uint64_t bytes) {
    return int8q_backward(context.get(), linear.get(), dy.get(), 0, &dx, workspace.get(), bytes);
  }
  int32_t quantize_part(int32_t part, int32_t parts, uint64_t bytes) {
    return int8q_quantize_part(context.get(), linear.get(), x.get(), workspace.get(), bytes, part, parts);
  }
  int32_t forward_part(int32_t part, int32_t parts, uint64_t bytes) {
    return int8q_forward_part(context.get(), linear.get(), x.get(), 0, &y, workspace.get(), bytes, part, parts);
  }
  int32_t create_keeping(std::vector<int64_t> columns, const int8q_matrix* weight, const float* stats = nullptr,
                         const int8q_matrix* kept_weights = nullptr) {
    int8q_linear_options options{};
    options.size = sizeof options;
    options.kept_cols = columns.data();
    options.kept_count = static_cast<int64_t>(columns.size());
    options.kept_weights = kept_weights;
    return create(weight, &options, stats);
  }
  int32_t create(const int8q_matrix* weight, const int8q_linear_options* options = nullptr, const float* stats = nullptr) {
    return int8q_create_linear(context.get(), weight, stats, nullptr, options, &out.linear);
  }
  int32_t create_with(void (*change)(int8q_linear_options&)) {
    int8q_linear_options options{};
    options.size = sizeof options;
    change(options);
    return create(w.get(), &options);
  }
  int32_t context_with(void (*change)(int8q_context_options&)) {
    int8q_context_options options{};
    options.size = sizeof options;
    change(options);
    return int8q_create_context(&options, &out.context);
  }
  int32_t scaled(const float* rows, const float* columns, const int8q_matrix* add, const int8q_matrix* to) {
    return int8q_scaled_multiply(context.get(), a.get(), rows, b.get(), columns, add, to);
  }
  int32_t dequantize(const float* rows, const float* columns, const int8q_matrix* add, const int8q_matrix* to) {
    return int8q_dequantize_accumulators(context.get(), acc.get(), rows, columns, add, to);
  }
  int32_t mixed_onto(const float* rows, const float* columns, const int64_t* outliers, const int8q_matrix* add,
                     const int8q_matrix* to) {
    return int8q_mixed_scaled_multiply(context.get(), x.get(), a.get(), rows, b.get(), columns, 0, 0, outliers, 2, add, to);
  }
  const float* rs() const { return row_stats.data(); }
  const float* cs() const { return col_stats.data(); }
  const float* stats_in_y() const { return reinterpret_cast<const float*>(out.y); }
  int32_t mixed(int32_t mode, float threshold, const int64_t* columns, int64_t count) {
    return int8q_mixed_scaled_multiply(context.get(), x.get(), a.get(), row_stats.data(), b.get(), col_stats.data(), mode,
                                       threshold, columns, count, nullptr, &y);
  }
};

struct Case {
  int32_t status;
  const char* named;  // must be in the message
  int32_t (*call)(Calls&);
};

#define CASE(status, named, ...)                                                            \
  Case {                                                                                    \
    INT8Q_##status, named, []([[maybe_unused]] Calls& t) -> int32_t { return __VA_ARGS__; } \
  }

const int8q_matrix* keep(int8q_matrix m) {
  thread_local int8q_matrix kept[4];
  thread_local int next = 0;
  next = (next + 1) % 4;
  kept[next] = m;
  return &kept[next];
}

#define CHANGED(m, statement) keep(with(m, [](int8q_matrix& v) { statement; }))

const std::vector<Case>& matrix_cases() {
  static const std::vector<Case> cases = {
      CASE(INVALID_ARGUMENT, "x is NULL", t.quantize(nullptr)),
      CASE(INVALID_ARGUMENT, "q",
           int8q_quantize_rows(t.context.get(), t.x.get(), 0, 0, nullptr, t.out.stats, nullptr, nullptr, nullptr)),
      CASE(INVALID_ARGUMENT, "row_stats",
           int8q_quantize_rows(t.context.get(), t.x.get(), 0, 0, &t.q, nullptr, nullptr, nullptr, nullptr)),
      CASE(INVALID_ARGUMENT, "outlier_count",
           int8q_quantize_rows(t.context.get(), t.x.get(), 0, 0, &t.q, t.out.stats, nullptr, t.out.cols, nullptr)),
      CASE(INVALID_ARGUMENT, "x->rows", t.quantize(CHANGED(t.x.c(), v.rows = -1))),
      CASE(INVALID_ARGUMENT, "x->cols", t.quantize(CHANGED(t.x.c(), v.cols = -5))),
      CASE(INVALID_ARGUMENT, "x->row_stride", t.quantize(CHANGED(t.x.c(), v.row_stride = kK - 1))),
      CASE(INVALID_ARGUMENT, "x->row_stride", t.quantize(CHANGED(t.x.c(), v.row_stride = -kK))),
      CASE(INVALID_ARGUMENT, "x->data", t.quantize(CHANGED(t.x.c(), v.data = nullptr))),
      CASE(INVALID_ARGUMENT, "x->data",
           t.quantize(CHANGED(t.x.c(), (v.rows = 1, v.data = nullptr)), 0, 0, CHANGED(t.q, v.rows = 1))),
      CASE(INVALID_ARGUMENT, "q->rows", t.quantize(t.x.get(), 0, 0, CHANGED(t.q, v.rows = kM + 1))),
      CASE(INVALID_ARGUMENT, "q->cols", t.quantize(t.x.get(), 0, 0, CHANGED(t.q, v.cols = kK - 1))),
      CASE(INVALID_DTYPE, "q->dtype", t.quantize(t.x.get(), 0, 0, CHANGED(t.q, v.dtype = INT8Q_U8))),
      CASE(INVALID_DTYPE, "x->dtype", t.quantize(CHANGED(t.x.c(), v.dtype = INT8Q_S8))),
      CASE(INVALID_DTYPE, "x->dtype", t.quantize(CHANGED(t.x.c(), v.dtype = INT8Q_F64))),
      CASE(INVALID_DTYPE, "x->dtype", t.quantize(CHANGED(t.x.c(), v.dtype = 0))),
      CASE(INVALID_DTYPE, "x->dtype", t.quantize(CHANGED(t.x.c(), v.dtype = -7))),
      CASE(INVALID_DTYPE, "x->dtype", t.quantize(CHANGED(t.x.c(), v.dtype = 1 << 30))),
      CASE(ABI_MISMATCH, "x->size", t.quantize(CHANGED(t.x.c(), v.size = 8))),
      CASE(SIZE_OVERFLOW, "x", t.quantize(CHANGED(t.x.c(), v.rows = kHuge), 0, 0, CHANGED(t.q, v.rows = kHuge))),
      CASE(SIZE_OVERFLOW, "x", t.quantize(CHANGED(t.x.c(), v.row_stride = kHuge))),
      CASE(SIZE_OVERFLOW, "x", t.quantize(CHANGED(t.x.c(), (v.rows = kHuge, v.cols = kHuge, v.row_stride = kHuge)))),
      CASE(SIZE_OVERFLOW, "x", t.quantize(CHANGED(t.x.c(), (v.rows = 1, v.cols = std::numeric_limits<int64_t>::max())))),
      // 2^62 - 2^31 elements, whose bytes alone overflow.
      CASE(SIZE_OVERFLOW, "x",
           t.quantize(CHANGED(t.x.c(), (v.rows = (kHuge >> 31) - 1, v.cols = kHuge >> 31, v.row_stride = v.cols)))),
      // No element at all, and a stat for each of 2^62 rows.
      CASE(SIZE_OVERFLOW, "x",
           t.quantize(CHANGED(t.x.c(), (v.rows = kHuge, v.cols = 0)), 0, 0, CHANGED(t.q, (v.rows = kHuge, v.cols = 0)))),
      CASE(INVALID_ARGUMENT, "outlier_mode", t.quantize(t.x.get(), 4)),
      CASE(INVALID_ARGUMENT, "outlier_mode", t.quantize(t.x.get(), -1)),
      CASE(INVALID_ARGUMENT, "threshold", t.quantize(t.x.get(), 0, kNan)),
      CASE(INVALID_ARGUMENT, "threshold", t.quantize(t.x.get(), 0, -6.0f)),
      CASE(INVALID_ARGUMENT, "threshold", t.quantize(t.x.get(), 2, -std::numeric_limits<float>::infinity())),
      CASE(MISALIGNED, "row_stats",
           int8q_quantize_rows(t.context.get(), t.x.get(), 0, 0, &t.q, reinterpret_cast<float*>(t.out.y + 1), nullptr,
                               nullptr, nullptr)),
      CASE(MISALIGNED, "outlier_cols",
           int8q_quantize_rows(t.context.get(), t.x.get(), 0, 0, &t.q, t.out.stats, nullptr,
                               reinterpret_cast<int64_t*>(t.out.y + 4), &t.out.count)),
      CASE(OVERLAP, "q", t.quantize(t.x.get(), 0, 0, keep(matrix(INT8Q_S8, kM, kK, t.x.as<int8_t>())))),
      CASE(OVERLAP, "q", t.quantize(t.x.get(), 0, 0, keep(matrix(INT8Q_S8, kM, kK, t.out.stats)))),
      CASE(OVERLAP, "row_stats",
           int8q_quantize_rows(t.context.get(), t.x.get(), 0, 0, &t.q, t.out.stats, reinterpret_cast<uint8_t*>(t.out.stats),
                               nullptr, nullptr)),
      CASE(OVERLAP, "outlier_count at",
           int8q_quantize_rows(t.context.get(), keep(matrix(INT8Q_F32, kM, kK, t.out.y)), 0, 0, &t.q, t.out.stats, nullptr,
                               nullptr, reinterpret_cast<int64_t*>(t.out.y + 16))),
      CASE(OVERLAP, "outlier_cols at",
           int8q_quantize_rows(t.context.get(), keep(matrix(INT8Q_F32, kM, kK, t.out.y)), 0, 0, &t.q, t.out.stats, nullptr,
                               reinterpret_cast<int64_t*>(t.out.y + 16), &t.out.count)),
      CASE(OVERLAP, "outlier_mask at",
           int8q_quantize_rows(t.context.get(), keep(matrix(INT8Q_F32, kM, kK, t.out.y)), 0, 0, &t.q, t.out.stats,
                               t.out.y + 3, nullptr, nullptr)),
  };
  return cases;
}

const std::vector<Case>& stateless_cases() {
  static const std::vector<Case> cases = {
      CASE(INVALID_HANDLE, "context", int8q_multiply(nullptr, t.a.get(), t.b.get(), &t.c)),
      CASE(INVALID_ARGUMENT, "a is NULL", int8q_multiply(t.context.get(), nullptr, t.b.get(), &t.c)),
      CASE(INVALID_ARGUMENT, "b is NULL", int8q_multiply(t.context.get(), t.a.get(), nullptr, &t.c)),
      CASE(INVALID_ARGUMENT, "c is NULL", int8q_multiply(t.context.get(), t.a.get(), t.b.get(), nullptr)),
      CASE(INVALID_ARGUMENT, "b->cols",
           int8q_multiply(t.context.get(), t.a.get(), CHANGED(t.b.c(), v.cols = kK - 1), &t.c)),
      CASE(INVALID_ARGUMENT, "c->cols",
           int8q_multiply(t.context.get(), t.a.get(), t.b.get(), CHANGED(t.c, (v.cols = kN + 1, v.row_stride = kN + 1)))),
      CASE(INVALID_DTYPE, "a->dtype",
           int8q_multiply(t.context.get(), CHANGED(t.a.c(), v.dtype = INT8Q_U8), t.b.get(), &t.c)),
      CASE(INVALID_DTYPE, "c->dtype",
           int8q_multiply(t.context.get(), t.a.get(), t.b.get(), CHANGED(t.c, v.dtype = INT8Q_F32))),
      CASE(OVERLAP, "c",
           int8q_multiply(t.context.get(), keep(matrix(INT8Q_S8, 1, kK, t.out.acc)), t.b.get(),
                          keep(matrix(INT8Q_S32, 1, kN, t.out.acc)))),
      CASE(INVALID_ARGUMENT, "row_stats",
           int8q_scaled_multiply(t.context.get(), t.a.get(), nullptr, t.b.get(), t.col_stats.data(), nullptr, &t.y)),
      CASE(INVALID_ARGUMENT, "col_stats",
           int8q_scaled_multiply(t.context.get(), t.a.get(), t.row_stats.data(), t.b.get(), nullptr, nullptr, &t.y)),
      CASE(INVALID_ARGUMENT, "bias->cols",
           int8q_scaled_multiply(t.context.get(), t.a.get(), t.row_stats.data(), t.b.get(), t.col_stats.data(),
                                 CHANGED(t.bias.c(), v.cols = 2), &t.y)),
      CASE(INVALID_ARGUMENT, "bias->rows",
           int8q_scaled_multiply(t.context.get(), t.a.get(), t.row_stats.data(), t.b.get(), t.col_stats.data(),
                                 CHANGED(t.bias.c(), v.rows = 2), &t.y)),
      CASE(INVALID_DTYPE, "bias->dtype",
           int8q_scaled_multiply(t.context.get(), t.a.get(), t.row_stats.data(), t.b.get(), t.col_stats.data(),
                                 CHANGED(t.bias.c(), v.dtype = INT8Q_S32), &t.y)),
      CASE(OVERLAP, "overlaps row_stats", t.scaled(t.stats_in_y(), t.cs(), nullptr, &t.y)),
      CASE(OVERLAP, "overlaps col_stats", t.scaled(t.rs(), t.stats_in_y(), nullptr, &t.y)),
      CASE(OVERLAP, "overlaps bias", t.scaled(t.rs(), t.cs(), keep(matrix(INT8Q_F32, 1, kN, t.out.y)), &t.y)),
      CASE(OVERLAP, "overlaps row_stats", t.dequantize(t.stats_in_y(), t.cs(), nullptr, &t.y)),
      CASE(OVERLAP, "overlaps col_stats", t.dequantize(t.rs(), t.stats_in_y(), nullptr, &t.y)),
      CASE(OVERLAP, "overlaps bias", t.dequantize(t.rs(), t.cs(), keep(matrix(INT8Q_F32, 1, kN, t.out.y)), &t.y)),
      CASE(OVERLAP, "overlaps row_stats", t.mixed_onto(t.stats_in_y(), t.cs(), t.cols.data(), nullptr, &t.y)),
      CASE(OVERLAP, "overlaps col_stats", t.mixed_onto(t.rs(), t.stats_in_y(), t.cols.data(), nullptr, &t.y)),
      CASE(OVERLAP, "overlaps outlier_cols",
           (t.cols.resize(16),
            t.mixed_onto(t.rs(), t.cs(), t.cols.data(), nullptr, keep(matrix(INT8Q_F32, kM, kN, t.cols.data()))))),
      CASE(OVERLAP, "overlaps bias",
           t.mixed_onto(t.rs(), t.cs(), t.cols.data(), keep(matrix(INT8Q_F32, 1, kN, t.out.y)), &t.y)),
      CASE(OVERLAP, "overlaps x",
           int8q_mixed_scaled_multiply(t.context.get(), keep(matrix(INT8Q_F32, kM, kK, t.out.y)), t.a.get(), t.rs(),
                                       t.b.get(), t.cs(), 0, 0, nullptr, 0, nullptr, &t.y)),
      CASE(OVERLAP, "overlaps stats",
           int8q_dequantize_rows(t.context.get(), t.a.get(), t.stats_in_y(), keep(matrix(INT8Q_F32, kM, kK, t.out.y)))),
      CASE(
          INVALID_DTYPE, "acc->dtype",
          int8q_dequantize_accumulators(t.context.get(), t.a.get(), t.row_stats.data(), t.col_stats.data(), nullptr, &t.y)),
      CASE(INVALID_ARGUMENT, "acc is NULL",
           int8q_dequantize_accumulators(t.context.get(), nullptr, t.row_stats.data(), t.col_stats.data(), nullptr, &t.y)),
      CASE(INVALID_DTYPE, "y->dtype",
           int8q_dequantize_accumulators(t.context.get(), t.acc.get(), t.row_stats.data(), t.col_stats.data(), nullptr,
                                         CHANGED(t.y, v.dtype = INT8Q_S32))),
      CASE(INVALID_ARGUMENT, "outlier_mode", t.mixed(INT8Q_OUTLIERS_OFF, 0, t.cols.data(), 2)),
      CASE(INVALID_ARGUMENT, "outlier_mode", t.mixed(17, 0, t.cols.data(), 2)),
      CASE(INVALID_ARGUMENT, "threshold", t.mixed(0, kNan, t.cols.data(), 2)),
      CASE(INVALID_ARGUMENT, "outlier_cols", t.mixed(0, 0, nullptr, 2)),
      CASE(INVALID_ARGUMENT, "outlier_count", t.mixed(0, 0, t.cols.data(), -1)),
      CASE(INVALID_ARGUMENT, "outlier_count", t.mixed(0, 0, t.cols.data(), kK + 1)),
      CASE(INVALID_ARGUMENT, "outlier_cols[1]", (t.cols = {3, 3}, t.mixed(0, 0, t.cols.data(), 2))),
      CASE(INVALID_ARGUMENT, "outlier_cols[1]", (t.cols = {3, 1}, t.mixed(0, 0, t.cols.data(), 2))),
      CASE(INVALID_ARGUMENT, "outlier_cols[0]", (t.cols = {-1, 1}, t.mixed(0, 0, t.cols.data(), 2))),
      CASE(INVALID_ARGUMENT, "outlier_cols[1]", (t.cols = {1, kK}, t.mixed(0, 0, t.cols.data(), 2))),
      CASE(MISALIGNED, "outlier_cols",
           t.mixed(0, 0, reinterpret_cast<int64_t*>(reinterpret_cast<char*>(t.cols.data()) + 4), 1)),
      CASE(SIZE_OVERFLOW, "q",
           int8q_dequantize_rows(t.context.get(), CHANGED(t.a.c(), (v.rows = kHuge, v.cols = 0)), t.rs(),
                                 CHANGED(t.yk, (v.rows = kHuge, v.cols = 0)))),
      CASE(SIZE_OVERFLOW, "x",
           int8q_count_outliers(t.context.get(), CHANGED(t.x.c(), (v.rows = kHuge, v.cols = 0)), 0, t.out.counts)),
      CASE(INVALID_ARGUMENT, "stats", int8q_dequantize_rows(t.context.get(), t.a.get(), nullptr, &t.yk)),
      CASE(INVALID_DTYPE, "q->dtype", int8q_dequantize_rows(t.context.get(), t.x.get(), t.row_stats.data(), &t.yk)),
      CASE(INVALID_ARGUMENT, "counts", int8q_count_outliers(t.context.get(), t.x.get(), 0, nullptr)),
      CASE(INVALID_ARGUMENT, "threshold", int8q_count_outliers(t.context.get(), t.x.get(), -1, t.out.counts)),
      CASE(INVALID_ARGUMENT, "rows", int8q_select_outlier_cols(t.counts_in.data(), kK, 0, .06, t.out.cols, &t.out.count)),
      CASE(INVALID_ARGUMENT, "cols", int8q_select_outlier_cols(t.counts_in.data(), -1, 5, .06, t.out.cols, &t.out.count)),
      CASE(INVALID_ARGUMENT, "min_fraction",
           int8q_select_outlier_cols(t.counts_in.data(), kK, 5, 1.5, t.out.cols, &t.out.count)),
      CASE(INVALID_ARGUMENT, "min_fraction",
           int8q_select_outlier_cols(t.counts_in.data(), kK, 5, static_cast<double>(kNan), t.out.cols, &t.out.count)),
      CASE(INVALID_ARGUMENT, "counts", int8q_select_outlier_cols(nullptr, kK, 5, .06, t.out.cols, &t.out.count)),
      CASE(INVALID_ARGUMENT, "outlier_count",
           int8q_select_outlier_cols(t.counts_in.data(), kK, 5, .06, t.out.cols, nullptr)),
      CASE(SIZE_OVERFLOW, "a->cols",
           int8q_multiply(t.context.get(), keep(matrix(INT8Q_S8, 0, 133145, nullptr)),
                          keep(matrix(INT8Q_S8, 0, 133145, nullptr)), keep(matrix(INT8Q_S32, 0, 0, nullptr)))),
  };
  return cases;
}

const std::vector<Case>& linear_cases() {
  static const std::vector<Case> cases = {
      CASE(INVALID_ARGUMENT, "weight is NULL", t.create(nullptr)),
      CASE(INVALID_DTYPE, "weight->dtype", t.create(CHANGED(t.w.c(), v.dtype = INT8Q_F8_E4M3))),
      CASE(INVALID_ARGUMENT, "col_stats", t.create(t.b.get())),
      CASE(INVALID_ARGUMENT, "col_stats", t.create(t.w.get(), nullptr, t.col_stats.data())),
      CASE(INVALID_ARGUMENT, "linear is NULL",
           int8q_create_linear(t.context.get(), t.w.get(), nullptr, nullptr, nullptr, nullptr)),
      CASE(INVALID_ARGUMENT, "options->flags is 4", t.create_with([](auto& o) { o.flags = 4; })),
      CASE(INVALID_ARGUMENT, "only CUDA's borrow", t.create_with([](auto& o) { o.flags = INT8Q_BORROW_WEIGHT; })),
      CASE(INVALID_ARGUMENT, "only CUDA's borrow", t.create_with([](auto& o) { o.flags = INT8Q_BORROW_BIAS; })),
      CASE(INVALID_ARGUMENT, "outlier_mode", t.create_with([](auto& o) { o.outlier_mode = 9; })),
      CASE(INVALID_ARGUMENT, "threshold", t.create_with([](auto& o) { o.threshold = kNan; })),
      CASE(INVALID_ARGUMENT, "threshold", t.create_with([](auto& o) { o.threshold = -1; })),
      CASE(INVALID_ARGUMENT, "options->kept_count", t.create_with([](auto& o) { o.kept_count = -1; })),
      CASE(INVALID_ARGUMENT, "options->kept_count", t.create_with([](auto& o) { o.kept_count = kHuge; })),
      CASE(INVALID_ARGUMENT, "options->kept_cols", t.create_with([](auto& o) { o.kept_count = 2; })),
      CASE(INVALID_ARGUMENT, "options->kept_cols[1]", t.create_keeping({1, kK}, t.w.get())),
      CASE(INVALID_ARGUMENT, "options->kept_cols[0]", t.create_keeping({-1, 2}, t.w.get())),
      CASE(INVALID_ARGUMENT, "options->kept_cols[1]", t.create_keeping({3, 3}, t.w.get())),
      CASE(INVALID_ARGUMENT, "options->kept_cols[2]", t.create_keeping({1, 4, 2}, t.w.get())),
      CASE(INVALID_ARGUMENT, "options->kept_weights", t.create_keeping({1, 4}, t.b.get(), t.cs())),
      CASE(INVALID_ARGUMENT, "options->kept_weights->cols",
           t.create_keeping({1, 4}, t.b.get(), t.cs(), keep(matrix(INT8Q_F16, kN, 3, t.workspace.get())))),
      CASE(ABI_MISMATCH, "options->size", t.create_with([](auto& o) { o.size = 4; })),
      CASE(NOT_FINITE, "row 2", (t.w.set(2, 3, kNan), t.create(t.w.get()))),
      CASE(NOT_FINITE, "row 4", (t.w.set(4, 6, std::numeric_limits<float>::infinity()), t.create(t.w.get()))),
      CASE(NOT_FINITE, "col_stats[1]", (t.col_stats[1] = -1, t.create(t.b.get(), nullptr, t.col_stats.data()))),
      CASE(NOT_FINITE, "bias[3]",
           (t.bias.set(0, 3, kNan),
            int8q_create_linear(t.context.get(), t.w.get(), nullptr, t.bias.get(), nullptr, &t.out.linear))),
      CASE(SIZE_OVERFLOW, "K", t.create(keep(matrix(INT8Q_S8, 0, 133145, nullptr)))),
      CASE(SIZE_OVERFLOW, "", int8q_query_blob(kHuge, 64, 0, 0, &t.out.bytes)),
      CASE(SIZE_OVERFLOW, "", int8q_query_blob(64, 133145, 0, 0, &t.out.bytes)),
      CASE(INVALID_ARGUMENT, "out_features", int8q_query_blob(-1, 64, 0, 0, &t.out.bytes)),
      CASE(INVALID_ARGUMENT, "in_features", int8q_query_blob(1, -64, 0, 0, &t.out.bytes)),
      CASE(INVALID_ARGUMENT, "has_bias", int8q_query_blob(1, 64, 2, 0, &t.out.bytes)),
      CASE(INVALID_ARGUMENT, "kept_count", int8q_query_blob(1, 64, 0, 65, &t.out.bytes)),
      CASE(INVALID_ARGUMENT, "bytes", int8q_query_blob(1, 64, 0, 0, nullptr)),
      CASE(BUFFER_TOO_SMALL, "blob_bytes",
           int8q_pack_linear(t.context.get(), t.w.get(), nullptr, nullptr, nullptr, t.blob.get(), 63)),
      CASE(MISALIGNED, "blob",
           int8q_pack_linear(t.context.get(), t.w.get(), nullptr, nullptr, nullptr, static_cast<char*>(t.blob.get()) + 4,
                             4096)),
      CASE(INVALID_ARGUMENT, "blob is NULL",
           int8q_pack_linear(t.context.get(), t.w.get(), nullptr, nullptr, nullptr, nullptr, 4096)),
      CASE(OVERLAP, "blob",
           int8q_pack_linear(t.context.get(), keep(matrix(INT8Q_F32, kN, kK, static_cast<char*>(t.blob.get()) + 300)),
                             nullptr, nullptr, nullptr, t.blob.get(), t.blob.bytes())),
      CASE(CORRUPT, "",
           (std::memset(t.blob.get(), 0, 4096), int8q_open_linear(t.context.get(), t.blob.get(), 4096, 0, &t.out.linear))),
      CASE(CORRUPT, "truncated",
           int8q_open_linear(t.context.get(), t.packed.get(), blob_bytes_of(t.opened.get()) - 1, 0, &t.out.linear)),
      CASE(INVALID_ARGUMENT, "flags", int8q_open_linear(t.context.get(), t.blob.get(), 4096, 2, &t.out.linear)),
      CASE(MISALIGNED, "blob",
           int8q_open_linear(t.context.get(), static_cast<char*>(t.blob.get()) + 1, 4000, 0, &t.out.linear)),
      CASE(INVALID_HANDLE, "linear", int8q_get_blob(nullptr, &t.out.blob, &t.out.bytes)),
      CASE(INVALID_ARGUMENT, "blob", int8q_get_blob(t.linear.get(), nullptr, &t.out.bytes)),
      CASE(INVALID_ARGUMENT, "bytes", int8q_get_blob(t.linear.get(), &t.out.blob, nullptr)),
      CASE(INVALID_ARGUMENT, "info is NULL", int8q_describe_linear(t.linear.get(), nullptr)),
      CASE(INVALID_HANDLE, "linear", int8q_describe_linear(nullptr, &t.out.info)),
      CASE(INVALID_HANDLE, "linear", int8q_destroy_linear(nullptr)),
      CASE(INVALID_HANDLE, "context", int8q_destroy_context(nullptr)),
      CASE(INVALID_HANDLE, "context", int8q_prepare_context(nullptr)),
      CASE(INVALID_HANDLE, "context", int8q_set_stream(nullptr, nullptr)),
      CASE(INVALID_HANDLE, "linear", int8q_describe_linear(reinterpret_cast<int8q_linear*>(t.context.get()), &t.out.info)),
      CASE(INVALID_HANDLE, "context", int8q_prepare_context(reinterpret_cast<int8q_context*>(t.linear.get()))),
      CASE(INVALID_HANDLE, "context",
           int8q_prepare_context(reinterpret_cast<int8q_context*>(reinterpret_cast<char*>(t.context.get()) + 1))),
      CASE(INVALID_ARGUMENT, "bias",
           int8q_export_linear(t.context.get(), t.no_bias.get(), nullptr, nullptr, keep(matrix(INT8Q_F32, 1, kN, t.out.y)),
                               nullptr, nullptr)),
      CASE(INVALID_ARGUMENT, "codes->rows",
           int8q_export_linear(t.context.get(), t.linear.get(), &t.q, nullptr, nullptr, nullptr, nullptr)),
      CASE(OVERLAP, "codes",
           int8q_export_linear(t.context.get(), t.linear.get(), keep(matrix(INT8Q_S8, kN, kK, t.out.y)),
                               reinterpret_cast<float*>(t.out.y), nullptr, nullptr, nullptr)),
  };
  return cases;
}

const std::vector<Case>& forward_cases() {
  static const std::vector<Case> cases = {
      CASE(INVALID_HANDLE, "context",
           int8q_forward(nullptr, t.linear.get(), t.x.get(), 0, &t.y, t.workspace.get(), t.workspace.bytes())),
      CASE(INVALID_HANDLE, "linear",
           int8q_forward(t.context.get(), nullptr, t.x.get(), 0, &t.y, t.workspace.get(), t.workspace.bytes())),
      CASE(INVALID_ARGUMENT, "x is NULL", t.forward(nullptr, &t.y)),
      CASE(INVALID_ARGUMENT, "y is NULL", t.forward(t.x.get(), nullptr)),
      CASE(INVALID_ARGUMENT, "flags", t.forward(t.x.get(), &t.y, 2)),
      CASE(INVALID_ARGUMENT, "x->cols", t.forward(CHANGED(t.x.c(), v.cols = kK - 1), &t.y)),
      CASE(INVALID_ARGUMENT, "x->rows", t.forward(CHANGED(t.x.c(), v.rows = -1), &t.y)),
      CASE(SIZE_OVERFLOW, "", t.forward(CHANGED(t.x.c(), v.rows = kHuge), CHANGED(t.y, v.rows = kHuge))),
      CASE(INVALID_ARGUMENT, "y->rows", t.forward(t.x.get(), CHANGED(t.y, v.rows = 2))),
      CASE(INVALID_DTYPE, "y->dtype", t.forward(t.x.get(), CHANGED(t.y, v.dtype = INT8Q_S32))),
      CASE(OVERLAP, "y", t.forward(t.x.get(), keep(matrix(INT8Q_F32, kM, kN, t.x.as<float>())))),
      CASE(OVERLAP, "", t.forward(t.x.get(), keep(matrix(INT8Q_F32, kM, kN, t.workspace.get())))),
      CASE(INVALID_ARGUMENT, "workspace is NULL",
           int8q_forward(t.context.get(), t.linear.get(), t.x.get(), 0, &t.y, nullptr, 1 << 20)),
      CASE(MISALIGNED, "workspace",
           int8q_forward(t.context.get(), t.linear.get(), t.x.get(), 0, &t.y, static_cast<char*>(t.workspace.get()) + 32,
                         1 << 19)),
      CASE(BUFFER_TOO_SMALL, "workspace_bytes",
           int8q_forward(t.context.get(), t.linear.get(), t.x.get(), 0, &t.y, t.workspace.get(), 64)),
      CASE(BUFFER_TOO_SMALL, "workspace_bytes",
           int8q_backward(t.context.get(), t.linear.get(), t.dy.get(), 0, &t.dx, t.workspace.get(), 0)),
      CASE(INVALID_ARGUMENT, "dy is NULL",
           int8q_backward(t.context.get(), t.linear.get(), nullptr, 0, &t.dx, t.workspace.get(), t.workspace.bytes())),
      CASE(INVALID_ARGUMENT, "dx->cols",
           int8q_backward(t.context.get(), t.linear.get(), t.dy.get(), 0, CHANGED(t.dx, v.cols = 2), t.workspace.get(),
                          t.workspace.bytes())),
      CASE(INVALID_ARGUMENT, "flags",
           int8q_backward(t.context.get(), t.linear.get(), t.dy.get(), 6, &t.dx, t.workspace.get(), t.workspace.bytes())),
      CASE(OVERLAP, "dx",
           int8q_backward(t.context.get(), t.linear.get(), keep(matrix(INT8Q_F32, kM, kN, t.out.dx)), 0, &t.dx,
                          t.workspace.get(), t.workspace.bytes())),
      CASE(INVALID_ARGUMENT, "rows",
           int8q_query_workspace(t.context.get(), t.linear.get(), INT8Q_FORWARD, -1, 0, &t.out.bytes)),
      CASE(INVALID_ARGUMENT, "parts",
           int8q_query_workspace(t.context.get(), t.linear.get(), INT8Q_FORWARD, 1, -1, &t.out.bytes)),
      CASE(INVALID_ARGUMENT, "operation", int8q_query_workspace(t.context.get(), t.linear.get(), 3, 1, 0, &t.out.bytes)),
      CASE(INVALID_ARGUMENT, "bytes", int8q_query_workspace(t.context.get(), t.linear.get(), INT8Q_FORWARD, 1, 0, nullptr)),
      CASE(SIZE_OVERFLOW, "",
           int8q_query_workspace(t.context.get(), t.linear.get(), INT8Q_FORWARD, kHuge, 0, &t.out.bytes)),
      CASE(INVALID_ARGUMENT, "parts",
           int8q_query_workspace(t.context.get(), t.linear.get(), INT8Q_FORWARD, 1, 1025, &t.out.bytes)),
      CASE(INVALID_ARGUMENT, "part is 2", t.quantize_part(2, 2, t.workspace.bytes())),
      CASE(INVALID_ARGUMENT, "part is -1", t.quantize_part(-1, 2, t.workspace.bytes())),
      CASE(INVALID_ARGUMENT, "parts is 1025", t.quantize_part(0, 1025, t.workspace.bytes())),
      CASE(INVALID_ARGUMENT, "part is 3", t.forward_part(3, 3, t.workspace.bytes())),
      CASE(INVALID_ARGUMENT, "part is -1", t.forward_part(-1, 2, t.workspace.bytes())),
      CASE(INVALID_ARGUMENT, "parts is 0", t.forward_part(0, 0, t.workspace.bytes())),
      CASE(INVALID_ARGUMENT, "parts is 1025", t.forward_part(0, 1025, t.workspace.bytes())),
      CASE(BUFFER_TOO_SMALL, "workspace_bytes", t.forward_in(t.needed(INT8Q_FORWARD) - 1)),
      CASE(BUFFER_TOO_SMALL, "workspace_bytes",
           t.forward_two(t.no_bias.get(), keep(matrix(INT8Q_F32, kM, kN, t.out.dx)), t.needed(INT8Q_FORWARD) - 1)),
      CASE(BUFFER_TOO_SMALL, "workspace_bytes", t.backward_in(t.needed(INT8Q_BACKWARD) - 1)),
      CASE(BUFFER_TOO_SMALL, "workspace_bytes", t.quantize_part(0, 5, t.needed(INT8Q_FORWARD, 5) - 1)),
      CASE(BUFFER_TOO_SMALL, "workspace_bytes", t.forward_part(0, 5, t.needed(INT8Q_FORWARD, 5) - 1)),
      CASE(OVERLAP, "overlaps x",
           int8q_forward(t.context.get(), t.linear.get(), keep(matrix(INT8Q_F32, kM, kK, t.workspace.get())), 0, &t.y,
                         t.workspace.get(), t.workspace.bytes())),
      CASE(OVERLAP, "workspace at",
           int8q_forward(t.context.get(), t.opened.get(), t.x.get(), 0, &t.y, t.packed.get(), t.packed.bytes())),
      CASE(OVERLAP, "y at",
           int8q_forward(t.context.get(), t.opened.get(), t.x.get(), 0, keep(matrix(INT8Q_F32, kM, kN, t.packed.get())),
                         t.workspace.get(), t.workspace.bytes())),
      CASE(OVERLAP, "overlaps x",
           int8q_quantize_part(t.context.get(), t.linear.get(), keep(matrix(INT8Q_F32, kM, kK, t.workspace.get())),
                               t.workspace.get(), t.workspace.bytes(), 0, 2)),
      CASE(OVERLAP, "overlaps the linear's weights",
           int8q_quantize_part(t.context.get(), t.opened.get(), t.x.get(), t.packed.get(), t.packed.bytes(), 0, 2)),
      CASE(OVERLAP, "overlaps dy",
           int8q_backward(t.context.get(), t.linear.get(), keep(matrix(INT8Q_F32, kM, kN, t.workspace.get())), 0, &t.dx,
                          t.workspace.get(), t.workspace.bytes())),
      CASE(OVERLAP, "workspace at",
           int8q_backward(t.context.get(), t.opened.get(), t.dy.get(), 0, &t.dx, t.packed.get(), t.packed.bytes())),
      CASE(OVERLAP, "overlaps workspace",
           int8q_backward(t.context.get(), t.linear.get(), t.dy.get(), 0,
                          keep(matrix(INT8Q_F32, kM, kK, t.workspace.get())), t.workspace.get(), t.workspace.bytes())),
      CASE(OVERLAP, "dx at",
           int8q_backward(t.context.get(), t.opened.get(), t.dy.get(), 0, keep(matrix(INT8Q_F32, kM, kK, t.packed.get())),
                          t.workspace.get(), t.workspace.bytes())),
      CASE(INVALID_ARGUMENT, "linears[1]",
           t.forward_two(t.off.get(), keep(matrix(INT8Q_F32, kM, kN, t.out.dx)), t.workspace.bytes())),
      CASE(INVALID_ARGUMENT, "linears[1]",
           t.forward_two(t.linear_with(kK, 5.0f).get(), keep(matrix(INT8Q_F32, kM, kN, t.out.dx)), t.workspace.bytes())),
      CASE(
          INVALID_ARGUMENT, "linears[1]",
          t.forward_two(t.linear_with(kK + 1, 6.0f).get(), keep(matrix(INT8Q_F32, kM, kN, t.out.dx)), t.workspace.bytes())),
      CASE(OVERLAP, "ys", t.forward_two(t.no_bias.get(), &t.y, t.workspace.bytes())),
      // The first output lies in the second layer's blob.
      CASE(OVERLAP, "overlaps the linear's weights",
           [&] {
             t.y.data = t.packed.get();
             return t.forward_two(t.opened.get(), keep(matrix(INT8Q_F32, kM, kN, t.out.dx)), t.workspace.bytes());
           }()),
      CASE(INVALID_HANDLE, "linear",
           t.forward_two(nullptr, keep(matrix(INT8Q_F32, kM, kN, t.out.dx)), t.workspace.bytes())),
      CASE(INVALID_ARGUMENT, "linears",
           int8q_forward_many(t.context.get(), nullptr, 1, t.x.get(), 0, nullptr, t.workspace.get(), t.workspace.bytes())),
      CASE(INVALID_ARGUMENT, "count is 65",
           [&] {
             const std::vector<const int8q_linear*> linears(65, t.linear.get());
             const std::vector<const int8q_matrix*> ys(65, &t.y);
             return int8q_forward_many(t.context.get(), linears.data(), 65, t.x.get(), 0, ys.data(), t.workspace.get(),
                                       t.workspace.bytes());
           }()),
      CASE(INVALID_ARGUMENT, "count is -1",
           int8q_forward_many(t.context.get(), nullptr, -1, t.x.get(), 0, nullptr, t.workspace.get(), t.workspace.bytes())),
  };
  return cases;
}

int32_t throwing_run(void*, int64_t, int8q_task, void*) { throw std::runtime_error("from the runner"); }
int32_t failing_run(void*, int64_t, int8q_task, void*) { return 1; }

// int8q_quantize_rows of enough rows that a runner is asked.
int32_t quantize_with_runner(int32_t (*run)(void*, int64_t, int8q_task, void*)) {
  const int8q_parallel_runner runner{sizeof runner, 2, nullptr, run};
  const ContextPtr context = make_context(0, nullptr, &runner);
  const Mat x = random_input(INT8Q_F32, 8, 64, 1), q(INT8Q_S8, 8, 64);
  float stats[8];
  return int8q_quantize_rows(context.get(), x.get(), 0, 0, q.get(), stats, nullptr, nullptr, nullptr);
}

// A stateless operation from inside a task of another one on the same context.
int32_t quantize_nested() {
  struct Nested {
    int8q_context* context = nullptr;
    int32_t status = INT8Q_OK;
  } nested;
  const int8q_parallel_runner runner{
      sizeof runner, 2, &nested, [](void* opaque, int64_t count, int8q_task task, void* arg) {
        auto* self = static_cast<Nested*>(opaque);
        const Mat x = random_input(INT8Q_F32, 1, 8, 1), q(INT8Q_S8, 1, 8);
        float stat = 0.25f;
        self->status = int8q_quantize_rows(self->context, x.get(), 0, 0, q.get(), &stat, nullptr, nullptr, nullptr);
        EXPECT_EQ(0.25f, stat);
        for (int64_t i = 0; i < count; ++i) task(arg, i, 0);
        return 0;
      }};
  const ContextPtr context = make_context(0, nullptr, &runner);
  nested.context = context.get();
  const Mat x = random_input(INT8Q_F32, 8, 64, 1), q(INT8Q_S8, 8, 64);
  float stats[8];
  EXPECT_STATUS(INT8Q_OK, int8q_quantize_rows(context.get(), x.get(), 0, 0, q.get(), stats, nullptr, nullptr, nullptr));
  return nested.status;
}

// A minimal safetensors file with one F32 tensor `l.weight` [2,2].
std::string write_checkpoint(const std::string& path) {
  const std::string json = R"({"l.weight":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}})";
  const uint64_t length = json.size();
  const float values[4] = {1, 2, 3, 4};
  std::FILE* file = std::fopen(path.c_str(), "wb");
  EXPECT_NE(nullptr, file) << path;
  std::fwrite(&length, 8, 1, file);
  std::fwrite(json.data(), 1, length, file);
  std::fwrite(values, 4, 4, file);
  std::fclose(file);
  return path;
}

std::string temporary(const char* name) {
  return ::testing::TempDir() + "int8q_test_status_" + std::to_string(getpid()) + "_" + name;
}

int32_t cancelled(Calls& t) {
  const std::string in = write_checkpoint(temporary("in.safetensors")), out = temporary("out.safetensors");
  const int32_t status = int8q_quantize_checkpoint(
      t.context.get(), in.c_str(), out.c_str(), nullptr, [](void*, const int8q_progress*) -> int32_t { return 1; },
      nullptr);
  EXPECT_NE(0, access(out.c_str(), F_OK)) << "something was left behind at " << out;
  std::remove(in.c_str());
  return status;
}

int32_t corrupt_file(Calls& t) {
  const std::string path = temporary("corrupt.safetensors");
  std::FILE* file = std::fopen(path.c_str(), "wb");
  std::fwrite("\xff\xff\xff\xff\xff\xff\xff\x7f{}", 1, 10, file);
  std::fclose(file);
  const int32_t status = int8q_open_safetensors(path.c_str(), &t.out.file);
  std::remove(path.c_str());
  return status;
}

const std::vector<Case>& context_cases() {
  static const std::vector<Case> cases = {
      CASE(INVALID_ARGUMENT, "context is NULL", int8q_create_context(nullptr, nullptr)),
      CASE(INVALID_ARGUMENT, "options->device", t.context_with([](auto& o) { o.device = 1; })),
      CASE(INVALID_ARGUMENT, "options->device", t.context_with([](auto& o) { o.device = -1; })),
      CASE(INVALID_ARGUMENT, "options->stream", t.context_with([](auto& o) { o.stream = &o; })),
      CASE(INVALID_ARGUMENT, "options->threads", t.context_with([](auto& o) {
        o.backend = INT8Q_BACKEND_CUDA;
        o.threads = 2;
      })),
      CASE(INVALID_ARGUMENT, "options->isa", t.context_with([](auto& o) {
        o.backend = INT8Q_BACKEND_CUDA;
        o.isa = "avx2";
      })),
      CASE(INVALID_ARGUMENT, "CUDA", int8q_set_stream(t.context.get(), nullptr)),
      CASE(INVALID_ARGUMENT, "options->threads", t.context_with([](auto& o) { o.threads = -1; })),
      CASE(INVALID_ARGUMENT, "options->threads", t.context_with([](auto& o) { o.threads = 1025; })),
      CASE(ABI_MISMATCH, "options->size", t.context_with([](auto& o) { o.size = 0; })),
      CASE(UNSUPPORTED, "options->backend", t.context_with([](auto& o) { o.backend = 3; })),
      CASE(NO_DEVICE, "GPU", t.context_with([](auto& o) {
        o.backend = INT8Q_BACKEND_CUDA;
        o.device = 1000;  // of which no machine has so many
      })),
      CASE(UNSUPPORTED, "options->isa", t.context_with([](auto& o) { o.isa = "avx1024"; })),
      CASE(UNSUPPORTED, "options->isa", t.context_with([](auto& o) { o.isa = ""; })),
      CASE(INVALID_ARGUMENT, "runner->run", t.context_with([](auto& o) {
        static const int8q_parallel_runner r{sizeof r, 1, nullptr, nullptr};
        o.runner = &r;
      })),
      CASE(INVALID_ARGUMENT, "runner->max_threads", t.context_with([](auto& o) {
        static const int8q_parallel_runner r{sizeof r, 0, nullptr, failing_run};
        o.runner = &r;
      })),
      CASE(INVALID_ARGUMENT, "allocator->reserved", t.context_with([](auto& o) {
        static Arena a;
        static const int8q_allocator c{sizeof c, 1, &a, Arena::allocate, a.c.deallocate};
        o.allocator = &c;
      })),
      CASE(INVALID_ARGUMENT, "allocator->allocate", t.context_with([](auto& o) {
        static Arena a;
        static const int8q_allocator c{sizeof c, 0, &a, nullptr, a.c.deallocate};
        o.allocator = &c;
      })),
      CASE(INVALID_ARGUMENT, "allocator->deallocate", t.context_with([](auto& o) {
        static Arena a;
        static const int8q_allocator c{sizeof c, 0, &a, Arena::allocate, nullptr};
        o.allocator = &c;
      })),
      CASE(OUT_OF_MEMORY, "allocating", t.context_with([](auto& o) {
        static const int8q_allocator c{sizeof c, 0, nullptr, [](void*, uint64_t, uint64_t) -> void* { return nullptr; },
                                       [](void*, void*, uint64_t) {}};
        o.allocator = &c;
      })),
      CASE(INVALID_HANDLE, "context", int8q_describe_context(nullptr, t.out.text, sizeof t.out.text, nullptr)),
      CASE(BUFFER_TOO_SMALL, "capacity", int8q_describe_context(t.context.get(), t.out.text, 3, nullptr)),
      CASE(BUFFER_TOO_SMALL, "capacity", int8q_describe_context(t.context.get(), nullptr, 0, nullptr)),
      CASE(INVALID_ARGUMENT, "buffer", int8q_describe_context(t.context.get(), nullptr, 1 << 20, nullptr)),
      CASE(BUFFER_TOO_SMALL, "capacity", int8q_diagnose_json(t.out.text, sizeof t.out.text, nullptr)),
      CASE(ABI_MISMATCH, "want", int8q_negotiate(INT8Q_LEVEL(2, 0), nullptr)),
      CASE(ABI_MISMATCH, "want", int8q_negotiate(INT8Q_LEVEL(0, 9), nullptr)),
      CASE(ABI_MISMATCH, "want", int8q_negotiate(INT8Q_LEVEL(1, INT8Q_ABI_MINOR + 1), nullptr)),
      CASE(ABI_MISMATCH, "want", int8q_negotiate(0xffffffffu, nullptr)),
      CASE(INVALID_ARGUMENT, "path", int8q_open_safetensors(nullptr, &t.out.file)),
      CASE(INVALID_ARGUMENT, "file", int8q_open_safetensors("/nowhere", nullptr)),
      CASE(NOT_FOUND, "nowhere.safetensors", int8q_open_safetensors("/nowhere.safetensors", &t.out.file)),
      CASE(IO, "/", int8q_open_safetensors("/", &t.out.file)),
      CASE(CORRUPT, "header", corrupt_file(t)),
      CASE(INVALID_HANDLE, "file", int8q_count_tensors(nullptr, &t.out.count)),
      CASE(INVALID_HANDLE, "file", int8q_get_tensor(nullptr, 0, &t.out.tensor)),
      CASE(INVALID_HANDLE, "file", int8q_find_tensor(nullptr, "w", &t.out.tensor)),
      CASE(INVALID_HANDLE, "file", int8q_close_safetensors(nullptr)),
      CASE(CANCELLED, "", cancelled(t)),
      CASE(NOT_FOUND, "",
           int8q_quantize_checkpoint(t.context.get(), "/nowhere.safetensors", "/nowhere/out", nullptr, nullptr, nullptr)),
      CASE(BUSY, "context", quantize_nested()),
      CASE(RUNNER_FAILED, "runner->run returned 1", quantize_with_runner(failing_run)),
      CASE(INTERNAL, "exception", quantize_with_runner(throwing_run)),
  };
  return cases;
}

// Runs the cases, each on fresh arguments, and adds the statuses that were returned to *seen.
void run_cases(const char* group, const std::vector<Case>& cases, std::set<int32_t>* seen) {
  for (size_t i = 0; i < cases.size(); ++i) {
    SCOPED_TRACE(std::string(group) + " case " + std::to_string(i) + ", naming \"" + cases[i].named + "\"");
    auto calls = std::make_unique<Calls>();
    static_cast<void>(int8q_negotiate(INT8Q_LEVEL(9, 9), nullptr));
    const std::string stale = int8q_last_error();
    const int32_t status = cases[i].call(*calls);
    const std::string message = int8q_last_error();
    EXPECT_STREQ(int8q_status_name(cases[i].status), int8q_status_name(status)) << message;
    EXPECT_NE(stale, message) << "the message is another call's";
    EXPECT_NE(std::string::npos, message.find(cases[i].named)) << message;
    EXPECT_TRUE(calls->untouched()) << "outputs were written";
    seen->insert(status);
  }
}

TEST(Status, EachIsReturnedNamesItsArgumentAndLeavesOutputs) {
  std::set<int32_t> seen;
  run_cases("matrix", matrix_cases(), &seen);
  run_cases("stateless", stateless_cases(), &seen);
  run_cases("linear", linear_cases(), &seen);
  run_cases("forward", forward_cases(), &seen);
  run_cases("context", context_cases(), &seen);
  for (int32_t status = INT8Q_INVALID_ARGUMENT; status <= INT8Q_INTERNAL; ++status) {
    EXPECT_EQ(1u, seen.count(status)) << int8q_status_name(status) << " was never returned";
  }
  // DEVICE_FAILED needs a device: tests/cuda.
  EXPECT_STREQ("INT8Q_UNKNOWN_STATUS", int8q_status_name(INT8Q_DEVICE_FAILED + 1)) << "a new status needs cases here";
}

// Every function that takes a handle, with NULL, with memory that never was one, and with a handle of the other kind.
TEST(Status, EveryHandleArgumentIsChecked) {
  Calls t;
  using C = int8q_context*;
  using L = int8q_linear*;
  const auto* a = t.a.get();
  const auto *b = t.b.get(), *x = t.x.get();
  void* ws = t.workspace.get();
  const uint64_t bytes = t.workspace.bytes();
  const float *rows = t.row_stats.data(), *cols = t.col_stats.data();
  const std::function<int32_t(C)> with_context[] = {
      [&](C c) { return int8q_destroy_context(c); },
      [&](C c) { return int8q_prepare_context(c); },
      [&](C c) { return int8q_describe_context(c, t.out.text, 64, nullptr); },
      [&](C c) { return int8q_quantize_rows(c, x, 0, 0, &t.q, t.out.stats, nullptr, nullptr, nullptr); },
      [&](C c) { return int8q_multiply(c, a, b, &t.c); },
      [&](C c) { return int8q_dequantize_accumulators(c, t.acc.get(), rows, cols, nullptr, &t.y); },
      [&](C c) { return int8q_scaled_multiply(c, a, rows, b, cols, nullptr, &t.y); },
      [&](C c) { return int8q_mixed_scaled_multiply(c, x, a, rows, b, cols, 0, 0, nullptr, 0, nullptr, &t.y); },
      [&](C c) { return int8q_dequantize_rows(c, a, rows, &t.yk); },
      [&](C c) { return int8q_count_outliers(c, x, 0, t.out.counts); },
      [&](C c) { return int8q_create_linear(c, t.w.get(), nullptr, nullptr, nullptr, &t.out.linear); },
      [&](C c) { return int8q_pack_linear(c, t.w.get(), nullptr, nullptr, nullptr, t.blob.get(), t.blob.bytes()); },
      [&](C c) { return int8q_open_linear(c, t.blob.get(), t.blob.bytes(), 0, &t.out.linear); },
      [&](C c) { return int8q_export_linear(c, t.linear.get(), nullptr, t.out.stats, nullptr, nullptr, nullptr); },
      [&](C c) { return int8q_query_workspace(c, t.linear.get(), INT8Q_FORWARD, 1, 0, &t.out.bytes); },
      [&](C c) { return int8q_forward(c, t.linear.get(), x, 0, &t.y, ws, bytes); },
      [&](C c) { return int8q_forward_many(c, nullptr, 0, x, 0, nullptr, ws, bytes); },
      [&](C c) { return int8q_quantize_part(c, t.linear.get(), x, ws, bytes, 0, 1); },
      [&](C c) { return int8q_forward_part(c, t.linear.get(), x, 0, &t.y, ws, bytes, 0, 1); },
      [&](C c) { return int8q_backward(c, t.linear.get(), t.dy.get(), 0, &t.dx, ws, bytes); },
      [&](C c) { return int8q_quantize_checkpoint(c, "/nowhere", "/nowhere2", nullptr, nullptr, nullptr); },
  };
  C context = t.context.get();
  const int8q_linear* many[1];
  const int8q_matrix* ys[] = {&t.y};
  const std::function<int32_t(L)> with_linear[] = {
      [&](L l) { return int8q_get_blob(l, &t.out.blob, &t.out.bytes); },
      [&](L l) { return int8q_describe_linear(l, &t.out.info); },
      [&](L l) { return int8q_export_linear(context, l, nullptr, t.out.stats, nullptr, nullptr, nullptr); },
      [&](L l) { return int8q_destroy_linear(l); },
      [&](L l) { return int8q_query_workspace(context, l, INT8Q_FORWARD, 1, 0, &t.out.bytes); },
      [&](L l) { return int8q_forward(context, l, x, 0, &t.y, ws, bytes); },
      [&](L l) { return many[0] = l, int8q_forward_many(context, many, 1, x, 0, ys, ws, bytes); },
      [&](L l) { return int8q_quantize_part(context, l, x, ws, bytes, 0, 1); },
      [&](L l) { return int8q_forward_part(context, l, x, 0, &t.y, ws, bytes, 0, 1); },
      [&](L l) { return int8q_backward(context, l, t.dy.get(), 0, &t.dx, ws, bytes); },
  };
  const Workspace zeros(4096);
  std::memset(zeros.get(), 0, 4096);
  const auto refused = [&](const auto& call, auto* handle, const char* name, size_t i) {
    SCOPED_TRACE(::testing::Message() << name << " call " << i << ", handle " << static_cast<const void*>(handle));
    EXPECT_STATUS(INT8Q_INVALID_HANDLE, call(handle));
    EXPECT_NE(nullptr, std::strstr(int8q_last_error(), name)) << int8q_last_error();
    EXPECT_TRUE(t.untouched()) << "outputs were written";
  };
  for (size_t i = 0; i < std::size(with_context); ++i) {
    for (void* handle : {static_cast<void*>(nullptr), zeros.get(), static_cast<void*>(t.linear.get())}) {
      refused(with_context[i], static_cast<C>(handle), "context", i);
    }
  }
  for (size_t i = 0; i < std::size(with_linear); ++i) {
    for (void* handle : {static_cast<void*>(nullptr), zeros.get(), static_cast<void*>(context)}) {
      refused(with_linear[i], static_cast<L>(handle), "linear", i);
    }
  }
}

// The table above would pass calls that always fail: the same arguments, unchanged, succeed.
TEST(Status, TheUnchangedArgumentsAreAccepted) {
  Calls t;
  EXPECT_STATUS(INT8Q_OK, t.quantize(t.x.get()));
  EXPECT_STATUS(INT8Q_OK, t.quantize(t.x.get(), 2, std::numeric_limits<float>::infinity()));
  EXPECT_STATUS(INT8Q_OK, t.quantize(t.x.get(), INT8Q_OUTLIERS_OFF, 0));
  EXPECT_STATUS(INT8Q_OK, int8q_multiply(t.context.get(), t.a.get(), t.b.get(), &t.c));
  EXPECT_STATUS(INT8Q_OK, int8q_scaled_multiply(t.context.get(), t.a.get(), t.row_stats.data(), t.b.get(),
                                                t.col_stats.data(), t.bias.get(), &t.y));
  EXPECT_STATUS(INT8Q_OK, int8q_dequantize_accumulators(t.context.get(), t.acc.get(), t.row_stats.data(),
                                                        t.col_stats.data(), nullptr, &t.y));
  EXPECT_STATUS(INT8Q_OK, t.mixed(0, 0, t.cols.data(), 2));
  EXPECT_STATUS(INT8Q_OK, t.mixed(0, 0, nullptr, 0));
  EXPECT_STATUS(INT8Q_OK, int8q_dequantize_rows(t.context.get(), t.a.get(), t.row_stats.data(), &t.yk));
  std::memset(t.out.counts, 0, sizeof t.out.counts);
  EXPECT_STATUS(INT8Q_OK, int8q_count_outliers(t.context.get(), t.x.get(), 0, t.out.counts));
  EXPECT_STATUS(INT8Q_OK, int8q_select_outlier_cols(t.counts_in.data(), kK, 5, .06, t.out.cols, &t.out.count));
  EXPECT_STATUS(INT8Q_OK, t.forward(t.x.get(), &t.y));
  EXPECT_STATUS(INT8Q_OK, t.forward(t.x.get(), &t.y, INT8Q_ACCUMULATE));
  EXPECT_STATUS(INT8Q_OK, int8q_backward(t.context.get(), t.linear.get(), t.dy.get(), 0, &t.dx, t.workspace.get(),
                                         t.workspace.bytes()));
  EXPECT_STATUS(INT8Q_OK,
                int8q_pack_linear(t.context.get(), t.w.get(), nullptr, nullptr, nullptr, t.blob.get(), t.blob.bytes()));
  EXPECT_STATUS(INT8Q_OK, int8q_forward_many(t.context.get(), nullptr, 0, t.x.get(), 0, nullptr, nullptr, 0));
}

// The limits themselves: the queried workspace, 64 linears, 1024 parts, a blob of exactly its size.
TEST(Status, TheLimitsAreAccepted) {
  Calls t;
  EXPECT_STATUS(INT8Q_OK, t.forward_in(t.needed(INT8Q_FORWARD)));
  EXPECT_STATUS(INT8Q_OK, t.backward_in(t.needed(INT8Q_BACKWARD)));
  for (const int32_t parts : {5, 1024}) {
    const Workspace workspace = make_workspace(t.context.get(), t.linear.get(), kM, INT8Q_FORWARD, parts);
    for (int32_t p = 0; p < parts; ++p) {
      EXPECT_STATUS(INT8Q_OK, int8q_quantize_part(t.context.get(), t.linear.get(), t.x.get(), workspace.get(),
                                                  workspace.bytes(), p, parts));
    }
    for (int32_t p = 0; p < parts; ++p) {
      EXPECT_STATUS(INT8Q_OK, int8q_forward_part(t.context.get(), t.linear.get(), t.x.get(), 0, &t.y, workspace.get(),
                                                 workspace.bytes(), p, parts));
    }
  }
  const std::vector<const int8q_linear*> linears(64, t.linear.get());
  const std::vector<Mat> outputs(64, Mat(INT8Q_F32, kM, kN));
  std::vector<const int8q_matrix*> ys;
  for (const Mat& y : outputs) ys.push_back(y.get());
  EXPECT_STATUS(INT8Q_OK, int8q_forward_many(t.context.get(), linears.data(), 64, t.x.get(), 0, ys.data(),
                                             t.workspace.get(), t.needed(INT8Q_FORWARD)));
  EXPECT_EQ(0, std::memcmp(outputs[63].bytes().data(), t.out.y, outputs[63].bytes().size()));
  EXPECT_STATUS(INT8Q_OK, t.create_keeping({0, kK - 1}, t.w.get()));
  EXPECT_STATUS(INT8Q_OK, int8q_destroy_linear(t.out.linear));
  EXPECT_STATUS(INT8Q_OK,
                int8q_open_linear(t.context.get(), t.packed.get(), blob_bytes_of(t.opened.get()), 0, &t.out.linear));
  EXPECT_STATUS(INT8Q_OK, int8q_destroy_linear(t.out.linear));
}

TEST(Status, FailedPackingDoesNotOpen) {
  Calls t;
  ASSERT_CALL(int8q_pack_linear(t.context.get(), t.w.get(), nullptr, nullptr, nullptr, t.blob.get(), t.blob.bytes()));
  t.w.set(1, 1, kNan);
  EXPECT_STATUS(INT8Q_NOT_FINITE,
                int8q_pack_linear(t.context.get(), t.w.get(), nullptr, nullptr, nullptr, t.blob.get(), t.blob.bytes()));
  EXPECT_STATUS(INT8Q_CORRUPT,
                int8q_open_linear(t.context.get(), t.blob.get(), t.blob.bytes(), INT8Q_TRUST_CHECKSUM, &t.out.linear));
}

// The arena keeps the memory, so reading the dead handle is defined, under AddressSanitizer too. A handle of the default
// allocator is freed memory: there the header promises best effort only, and no test could tell right from luck.
TEST(Status, DestroyedHandlesAreRefused) {
  Arena arena;
  int8q_context* context = make_context(1, nullptr, nullptr, &arena.c).release();
  const Mat w = random_mat(INT8Q_F32, 4, 8, 1);
  int8q_linear* linear = make_linear(context, w).release();
  ASSERT_CALL(int8q_destroy_linear(linear));
  EXPECT_STATUS(INT8Q_INVALID_HANDLE, int8q_destroy_linear(linear));
  const void* blob;
  uint64_t bytes;
  EXPECT_STATUS(INT8Q_INVALID_HANDLE, int8q_get_blob(linear, &blob, &bytes));
  ASSERT_CALL(int8q_destroy_context(context));
  EXPECT_STATUS(INT8Q_INVALID_HANDLE, int8q_destroy_context(context));
  EXPECT_STATUS(INT8Q_INVALID_HANDLE, int8q_prepare_context(context));
  EXPECT_NE(nullptr, std::strstr(int8q_last_error(), "context"));
}

TEST(Status, TextBuffersGetTheNeededLength) {
  const ContextPtr context = make_context(1);
  uint64_t length = 0;
  EXPECT_STATUS(INT8Q_BUFFER_TOO_SMALL, int8q_describe_context(context.get(), nullptr, 0, &length));
  ASSERT_GT(length, 2u);
  std::string text(length + 1, '#');
  uint64_t again = 0;
  EXPECT_STATUS(INT8Q_BUFFER_TOO_SMALL, int8q_describe_context(context.get(), text.data(), length, &again));
  EXPECT_EQ(length, again);
  EXPECT_EQ(std::string(length + 1, '#'), text);
  EXPECT_NE(std::string::npos, std::string(int8q_last_error()).find(std::to_string(length + 1))) << int8q_last_error();
  ASSERT_CALL(int8q_describe_context(context.get(), text.data(), length + 1, &again));
  EXPECT_EQ(length, std::strlen(text.c_str()));
  EXPECT_EQ('{', text[0]);

  EXPECT_STATUS(INT8Q_BUFFER_TOO_SMALL, int8q_diagnose_json(nullptr, 0, &length));
  std::string report(length + 64, '#');
  ASSERT_CALL(int8q_diagnose_json(report.data(), report.size(), &length));
  EXPECT_EQ(length, std::strlen(report.c_str()));
  EXPECT_EQ(std::string(63, '#'), report.substr(length + 1)) << "written past the NUL";
}

TEST(Status, NamesVersionAndNegotiation) {
  EXPECT_STREQ("INT8Q_OK", int8q_status_name(0));
  EXPECT_STREQ("INT8Q_INTERNAL", int8q_status_name(19));
  EXPECT_STREQ("INT8Q_DEVICE_FAILED", int8q_status_name(20));
  EXPECT_STREQ("INT8Q_UNKNOWN_STATUS", int8q_status_name(-1));
  EXPECT_STREQ("INT8Q_UNKNOWN_STATUS", int8q_status_name(1 << 30));
  EXPECT_EQ(INT8Q_ABI_LEVEL, int8q_abi_version());
  uint32_t got = 0;
  EXPECT_STATUS(INT8Q_OK, int8q_negotiate(INT8Q_ABI_LEVEL, &got));
  EXPECT_EQ(INT8Q_ABI_LEVEL, got);
  got = 0;
  EXPECT_STATUS(INT8Q_ABI_MISMATCH, int8q_negotiate(INT8Q_LEVEL(2, 0), &got));
  EXPECT_EQ(INT8Q_ABI_LEVEL, got) << "set in either case";
  EXPECT_EQ(nullptr, int8q_abi_hash(INT8Q_LEVEL(2, 0)));
  EXPECT_EQ(nullptr, int8q_abi_hash(0));
  const char* hash = int8q_abi_hash(INT8Q_ABI_LEVEL);
  ASSERT_NE(nullptr, hash);
  EXPECT_EQ(64u, std::strlen(hash));
  EXPECT_EQ(64u, std::strspn(hash, "0123456789abcdef"));
  EXPECT_NE(nullptr, std::strstr(int8q_version_string(), "(ABI 1.0)"));
}

TEST(Status, TheMessageBelongsToTheThreadAndOutlivesSuccess) {
  std::thread([] { EXPECT_STREQ("", int8q_last_error()); }).join();
  EXPECT_STATUS(INT8Q_INVALID_HANDLE, int8q_prepare_context(nullptr));
  const std::string message = int8q_last_error();
  EXPECT_NE("", message);
  uint32_t got;
  EXPECT_STATUS(INT8Q_OK, int8q_negotiate(INT8Q_ABI_LEVEL, &got));
  EXPECT_EQ(message, int8q_last_error()) << "success leaves it as it is";
  std::thread([] { EXPECT_STATUS(INT8Q_INVALID_ARGUMENT, int8q_query_blob(-1, 1, 0, 0, nullptr)); }).join();
  EXPECT_EQ(message, int8q_last_error()) << "another thread's";
}

}  // namespace
}  // namespace int8q::test
