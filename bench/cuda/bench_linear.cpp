// SPDX-License-Identifier: Apache-2.0
//
// The linear on a GPU: what bench_linear --backend=cuda runs. bf16 in and out, bias, threshold 6, 7 outlier columns unless
// a row says otherwise. Beside it cuBLASLt's bare products, s8 and bf16, and the library's own product alone.
//
// A repetition is one sample: calls one after another, as many as take 10 ms, between two CUDA events. M up to 64 rotates
// the weights; "graph" rows replay a captured pass over them. %bandwidth counts one read of the weights (for quantize_input
// what is read and written), %peak is of twice the rate of bf16 products in this run.
//
// The time that --seconds gives is spent on all rows alike where repetitions are interleaved at random; what is not reached
// then is an error of its row, in the JSON, too.
#include <CLI/CLI.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <exception>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "cublaslt.h"
#include "gpu.h"
#include "layers.h"
#include "support/suite.h"

namespace int8q::bench {
namespace {

using cublaslt::Kind;

constexpr int64_t kOutliers = 7, kMostRotatedRows = 64, kPeakRows = 2048;

struct Choice {
  std::vector<Size> sizes;
  std::vector<int64_t> rows{1, 8, 16, 64, 128, 512, 2048, 4096};
  std::vector<int64_t> sweep_rows{512, 2048};
  double seconds = 0;            // 0: as many as it takes
  std::string contender;         // "int8q:sm_90"
  std::string linear_contender;  // "int8q:sm_90:cublaslt" where its integers may be multiplied by cuBLASLt
};

// When no row begins any more.
struct Deadline {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point begin = Clock::now();
  double seconds = 0;
  int left_out = 0;  // repetitions

  bool is_over() const { return seconds > 0 && std::chrono::duration<double>(Clock::now() - begin).count() > seconds; }
  // Throws.
  void check() {
    if (!is_over()) return;
    ++left_out;
    throw std::runtime_error("not reached in --seconds=" + std::to_string(std::llround(seconds)));
  }
};
Deadline& deadline() {
  static Deadline of_the_program;
  return of_the_program;
}

// Of this run, measured before its rows. 0: not measured.
struct Limits {
  double read = 0, copy = 0, peak = 0;  // bytes and multiply-adds a second
};
Limits& limits() {
  static Limits measured;
  return measured;
}

// What one call does, and how many calls make a pass.
struct Work {
  std::function<void()> call;
  int calls;
};
struct Counts {
  double macs, bytes, bandwidth;
};

// The layers in turn; else so few calls that a pass is no longer than some ten milliseconds.
int calls_of_a_pass(int64_t m, int copies) { return m <= kMostRotatedRows ? copies : m <= 512 ? 8 : 2; }

void count(benchmark::State& state, const Counts& counts) {
  using benchmark::Counter;
  if (counts.macs > 0) state.counters["Tops"] = Counter(2e-12 * counts.macs, Counter::kIsIterationInvariantRate);
  if (counts.macs > 0 && limits().peak > 0)
    state.counters["%peak"] = Counter(100 * counts.macs / limits().peak, Counter::kIsIterationInvariantRate);
  state.counters["GB/s"] = Counter(1e-9 * counts.bytes, Counter::kIsIterationInvariantRate);
  if (counts.bandwidth > 0)
    state.counters["%bandwidth"] = Counter(100 * counts.bytes / counts.bandwidth, Counter::kIsIterationInvariantRate);
}

// `sample` returns seconds and may set counters. What fails is said in its place: inside of the loop, since a repetition that
// failed before it counts as no iteration, and Google Benchmark aborts over rows of which some count one and some none.
void register_row(const std::string& name, const std::function<double(benchmark::State&)>& sample) {
  const auto body = [=](benchmark::State& state) {
    while (state.KeepRunning()) {
      try {
        deadline().check();
        state.SetIterationTime(sample(state));
      } catch (const std::exception& error) {
        state.SkipWithError(error.what());
      }
    }
  };
#ifndef __clang_analyzer__  // takes the benchmark, which the library owns, for leaked
  benchmark::RegisterBenchmark(name.c_str(), body)->Iterations(1)->UseManualTime()->Unit(benchmark::kMicrosecond);
#endif
}

// Registers a row; what it takes is made at its first repetition.
void add_one(const std::string& name, const std::function<Work()>& make, const Counts& counts, bool graph) {
  auto timed = std::make_shared<std::optional<Timed>>();
  const auto sample = [=](benchmark::State& state) {
    if (!*timed) {
      const Work work = make();
      timed->emplace(work.call, work.calls, graph);
    }
    count(state, counts);
    return (*timed)->sample();
  };
  register_row(name + (graph ? "/graph" : "/eager"), sample);
}

void add_both(const std::string& name, const std::function<Work()>& make, const Counts& counts) {
  for (const bool graph : {false, true}) add_one(name, make, counts, graph);
}

std::string name_of(const std::string& operation, const std::string& contender, Size size, int64_t m,
                    const std::string& more) {
  return operation + "/" + contender + "/K:" + std::to_string(size.k) + (size.n > 0 ? "/N:" + std::to_string(size.n) : "") +
         "/M:" + std::to_string(m) + more + (size.n > 0 && m <= kMostRotatedRows ? "/rotated" : "");
}

Counts product_counts(Size size, int64_t m, int64_t bytes_a_weight) {
  const auto weights = static_cast<double>(size.n * size.k);
  return {weights * static_cast<double>(m), weights * static_cast<double>(bytes_a_weight), limits().read};
}

// ---- int8q

Work linear_work(Size size, int64_t m, int64_t outliers, int32_t mode, int32_t operation) {
  struct Parts {
    Context context = cuda_context();
    std::optional<Memory> workspace;
  };
  Layers& layers = Layers::of(size);
  const bool rotated = m <= kMostRotatedRows;
  auto next = layers.next_linear(mode, rotated);
  auto parts = std::make_shared<Parts>();
  const uint64_t bytes = layers.next_linear(mode, false)()->workspace_bytes(parts->context, operation, m);
  parts->workspace.emplace(static_cast<int64_t>(bytes));
  const bool forward = operation == INT8Q_FORWARD;
  const int64_t in = forward ? size.k : size.n, out = forward ? size.n : size.k;
  const Matrix x(INT8Q_BF16, m, in, bf16_activations(in, outliers)), y(INT8Q_BF16, m, out, output());
  return {[=]() mutable {
            Workspace workspace(parts->workspace->at(), bytes);
            const Linear* linear = next();
            forward ? linear->forward(parts->context, x, y, workspace) : linear->backward(parts->context, x, y, workspace);
          },
          calls_of_a_pass(m, layers.copies_of_codes())};
}

void add_linear(const Choice& choice, Size size, int64_t m) {
  for (const int32_t mode : {INT8Q_OUTLIERS_COLUMN, INT8Q_OUTLIERS_ALL}) {
    const auto make = [=] { return linear_work(size, m, kOutliers, mode, INT8Q_FORWARD); };
    const std::string scope = mode == INT8Q_OUTLIERS_ALL ? "/scope:all" : "";
    const std::string& contender = mode == INT8Q_OUTLIERS_ALL ? choice.contender : choice.linear_contender;
    add_both(name_of("linear", contender, size, m, "/dtype:bf16" + scope), make, product_counts(size, m, 1));
  }
}

// On both sides of the limit of M * K up to which one launch quantizes and multiplies (kFusedBytes in src/cuda/layer.cpp),
// two of each, and at 48 KiB, where nothing changes. The library has no switch for it: how a second launch compares with
// one is read from the step over 16 KiB beside the steps of a row more with the same launches.
void add_limit(const Choice& choice, Size size) {
  constexpr int64_t kLimit = 16 << 10, kOtherLimit = 48 << 10;
  const int64_t last = kLimit / size.k, other = kOtherLimit / size.k;
  for (const int64_t m : std::set<int64_t>{last - 1, last, last + 1, last + 2, other, other + 1}) {
    if (m < 1 || m > kMostRotatedRows) continue;
    const auto make = [=] { return linear_work(size, m, kOutliers, INT8Q_OUTLIERS_COLUMN, INT8Q_FORWARD); };
    add_one(name_of("limit", choice.linear_contender, size, m, "/dtype:bf16"), make, product_counts(size, m, 1), true);
  }
}

// What any number of outlier columns costs, in both scopes.
void add_outlier_sweep(const Choice& choice, int64_t m) {
  const Size size = choice.sizes[0];
  for (const int64_t outliers : {int64_t{0}, kOutliers, int64_t{64}, size.k}) {
    for (const int32_t mode : {INT8Q_OUTLIERS_COLUMN, INT8Q_OUTLIERS_ELEMENT}) {
      const std::string scope = mode == INT8Q_OUTLIERS_COLUMN ? "column" : "element";
      const auto make = [=] {
        Work work = linear_work(size, m, outliers, mode, INT8Q_FORWARD);
        if (outliers == size.k) work.calls = 1;
        return work;
      };
      const std::string more = "/dtype:bf16/outliers:" + std::to_string(outliers) + "/scope:" + scope;
      add_one(name_of("sweep", choice.linear_contender, size, m, more), make, product_counts(size, m, 1), true);
    }
  }
}

// The quantization alone, of other rows at each call, since a small x would lie in the cache; in column scope with the pass
// that zeroes outlier columns, which the linear does without.
void add_quantize_input(const Choice& choice, int64_t k, int64_t m) {
  for (const int32_t mode : {INT8Q_OUTLIERS_COLUMN, INT8Q_OUTLIERS_ELEMENT}) {
    const auto make = [=]() -> Work {
      auto context = std::make_shared<Context>(cuda_context());
      const RotatedRows& rows = RotatedRows::of(k);
      return {[=, next = rows.next(m)]() mutable {
                const RotatedRows::Block block = next();
                const Matrix x(INT8Q_BF16, m, k, block.x), q(INT8Q_S8, m, k, block.codes);
                quantize_rows(*context, x, {.mode = mode}, q, block.row_stats);
              },
              rows.blocks(m)};
    };
    const std::string scope = mode == INT8Q_OUTLIERS_COLUMN ? "column" : "element";
    add_one(name_of("quantize_input", choice.contender, {k, 0}, m, "/dtype:bf16/scope:" + scope + "/rotated"), make,
            {0, static_cast<double>(3 * m * k), limits().copy}, true);
  }
}

// The product alone, scaled to bf16: one launch of the library's own kernels, by cuBLASLt never. It has no workspace in which
// blocks could share K, as the linear's do for M = 65 .. 512 and few tiles: there it says nothing of the linear's product.
void add_gemm(const Choice& choice, Size size, int64_t m) {
  const auto make = [=]() -> Work {
    Layers& layers = Layers::of(size);
    auto context = std::make_shared<Context>(cuda_context());
    const Codes x = s8_activations(size.k);
    auto next = layers.next_codes(m <= kMostRotatedRows);
    return {[=, &layers]() mutable {
              scaled_multiply(*context, Matrix(INT8Q_S8, m, size.k, x.codes), x.row_stats,
                              Matrix(INT8Q_S8, size.n, size.k, next()), layers.col_stats(), layers.bias(),
                              Matrix(INT8Q_BF16, m, size.n, output()));
            },
            calls_of_a_pass(m, layers.copies_of_codes())};
  };
  add_both(name_of("gemm", choice.contender, size, m, "/dtype:s8"), make, product_counts(size, m, 1));
}

// ---- cuBLASLt

// One for eager and graph. m: rows of x, or of dy.
const cublaslt::Product& product_of(Kind kind, Size size, int64_t m) {
  static auto& all = *new std::map<std::tuple<Kind, Size, int64_t>, std::unique_ptr<cublaslt::Product>>;
  auto& made = all[{kind, size, m}];
  if (made == nullptr) {
    const Layers& layers = Layers::of(size);
    const bool rotated = m <= kMostRotatedRows;
    const void* x = kind == Kind::kS8 ? s8_activations(size.k).codes
                                      : bf16_activations(kind == Kind::kBf16 ? size.k : size.n, kOutliers);
    made = std::make_unique<cublaslt::Product>(
        kind, m, size.n, size.k, kind == Kind::kS8 ? layers.next_codes(rotated) : layers.next_bf16(rotated), x, output());
  }
  return *made;
}

Work opponent_work(Kind kind, Size size, int64_t m) {
  const cublaslt::Product& product = product_of(kind, size, m);
  const Layers& layers = Layers::of(size);
  const bool rotated = m <= kMostRotatedRows, s8 = kind == Kind::kS8;
  auto next = s8 ? layers.next_codes(rotated) : layers.next_bf16(rotated);
  const void* x = s8 ? s8_activations(size.k).codes : bf16_activations(kind == Kind::kBf16 ? size.k : size.n, kOutliers);
  return {[=, &product]() mutable { product.run(next(), x, output()); },
          calls_of_a_pass(m, s8 ? layers.copies_of_codes() : layers.copies_of_bf16())};
}

void add_opponent(const char* operation, Kind kind, Size size, int64_t m) {
  if (!cublaslt::is_there()) return;
  const bool s8 = kind == Kind::kS8;
  add_both(
      name_of(operation, s8 ? "cublaslt:s8" : "cublaslt:bf16", size, m, s8 ? "/dtype:s8" : "/dtype:bf16"),
      [=] { return opponent_work(kind, size, m); }, product_counts(size, m, s8 ? 1 : 2));
}

// ---- What the machine can do

// The best bf16 product of the run's larger M; its rows are measured once more among the others.
double measure_bf16(const Choice& choice) {
  double best = 0;
  const int64_t most = *std::max_element(choice.rows.begin(), choice.rows.end());
  for (const Size size : choice.sizes) {
    for (const int64_t m : choice.rows) {
      if (m < std::min(kPeakRows, most) || (best > 0 && deadline().is_over())) continue;
      const Work work = opponent_work(Kind::kBf16, size, m);
      Timed timed(work.call, work.calls, false);
      best = std::max(best, static_cast<double>(m * size.n * size.k) / measure(timed));
    }
  }
  return best;
}

double median_of_five(double (*measure)()) {
  std::array<double, 5> values;
  for (double& value : values) value = measure();
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

void measure_limits(const Choice& choice) {
  limits().copy = median_of_five(measure_copy);
  std::string of = "a kernel that reads";
  try {
    limits().read = median_of_five(measure_read);
  } catch (const std::exception& error) {  // a driver without its compiler of PTX
    limits().read = limits().copy;
    of = std::string("a copy, bytes read and written, since the kernel that reads failed: ") + error.what();
  }
  benchmark::AddCustomContext("bandwidth_of", of);
  benchmark::AddCustomContext("read_GB/s", std::to_string(1e-9 * limits().read));
  benchmark::AddCustomContext("copy_GB/s", std::to_string(1e-9 * limits().copy));
  if (!cublaslt::is_there()) return;
  try {
    const double bf16 = measure_bf16(choice);
    limits().peak = 2 * bf16;
    benchmark::AddCustomContext("bf16_Tops", std::to_string(2e-12 * bf16));
  } catch (const std::exception& error) {
    benchmark::AddCustomContext("bf16_Tops", std::string("not measured: ") + error.what());
  }
}

void add_bandwidth(const char* what, double (*measure)()) {
  register_row(std::string("bandwidth/") + what + "/GB:1", [=](benchmark::State& state) {
    const double rate = measure();
    state.counters["GB/s"] = 1e-9 * rate;
    return 1e9 / rate;
  });
}

// Do both libraries compute the same product? In s32, so bit for bit.
std::string compare_products(Size size, int64_t m) {
  if (!cublaslt::is_there()) return "no cuBLASLt";
  try {
    Context context = cuda_context();
    const Memory ours(4 * m * size.n), theirs(4 * m * size.n);
    const Codes x = s8_activations(size.k);
    const void* w = Layers::of(size).next_codes(false)();
    multiply(context, Matrix(INT8Q_S8, m, size.k, x.codes), Matrix(INT8Q_S8, size.n, size.k, w),
             Matrix(INT8Q_S32, m, size.n, ours.at()));
    product_of(Kind::kS8, size, m).run(w, x.codes, theirs.at());
    std::vector<int32_t> a(static_cast<size_t>(m * size.n)), b(a.size());
    ours.download(a.data(), ours.bytes());
    theirs.download(b.data(), theirs.bytes());
    return a == b ? "yes" : "NO, of M=" + std::to_string(m);
  } catch (const std::exception& error) {
    return std::string("not known: ") + error.what();
  }
}

// By the kernels of the fewest and of the most rows.
std::string compare_products(const Choice& choice) {
  const auto [least, most] = std::minmax_element(choice.rows.begin(), choice.rows.end());
  const std::string few = compare_products(choice.sizes[0], *least);
  return few == "yes" ? compare_products(choice.sizes[0], *most) : few;
}

void register_rows(const Choice& choice) {
  add_bandwidth("read", measure_read);
  add_bandwidth("copy", measure_copy);
  std::vector<int64_t> widths;
  for (const Size size : choice.sizes) {
    for (const int64_t m : choice.rows) {
      add_linear(choice, size, m);
      add_gemm(choice, size, m);
      add_opponent("gemm", Kind::kS8, size, m);
      add_opponent("gemm", Kind::kBf16, size, m);
    }
    if (std::find(widths.begin(), widths.end(), size.k) != widths.end()) continue;
    widths.push_back(size.k);
    add_limit(choice, size);
  }
  for (const int64_t m : choice.rows) {
    if (m <= kMostRotatedRows) continue;
    for (const int64_t k : widths) add_quantize_input(choice, k, m);
    const Size size = choice.sizes[0];
    const auto make = [=] { return linear_work(size, m, kOutliers, INT8Q_OUTLIERS_COLUMN, INT8Q_BACKWARD); };
    add_one(name_of("backward", choice.contender, size, m, "/dtype:bf16"), make, product_counts(size, m, 1), true);
    if (cublaslt::is_there()) {
      add_one(
          name_of("backward", "cublaslt:bf16", size, m, "/dtype:bf16"),
          [=] { return opponent_work(Kind::kBf16Untransposed, size, m); }, product_counts(size, m, 2), true);
    }
  }
  for (const int64_t m : choice.sweep_rows) add_outlier_sweep(choice, m);
}

Size parse_size(const std::string& text) {
  const size_t x = text.find('x');
  const Size size{std::atoll(text.c_str()), x == std::string::npos ? 0 : std::atoll(text.c_str() + x + 1)};
  if (size.k <= 0 || size.n <= 0) throw std::invalid_argument("--shapes: " + text + " is not KxN, as 4096x14336");
  return size;
}

void prepare(Choice& choice, const std::string& library) {
  int64_t most_rows = kMostRotatedRows, most_cols = 0;
  for (const int64_t m : choice.rows) most_rows = std::max(most_rows, m);
  for (const int64_t m : choice.sweep_rows) most_rows = std::max(most_rows, m);
  for (const Size size : choice.sizes) most_cols = std::max({most_cols, size.k, size.n});
  set_most_rows(most_rows);
  reserve_output(4 * most_rows * most_cols);
  const auto described = nlohmann::json::parse(cuda_context().describe());
  const auto image = described.at("image").get<std::string>(), gemm = described.at("gemm").get<std::string>();
  choice.contender = "int8q:" + image;
  choice.linear_contender = choice.contender + (gemm == "int8q" ? "" : ":cublaslt");

  using benchmark::AddCustomContext;
  AddCustomContext("image", image);
  AddCustomContext("gemm", gemm);
  AddCustomContext("gpu", gpu().name);
  AddCustomContext("capability", gpu().capability);
  AddCustomContext("multiprocessors", std::to_string(gpu().multiprocessors));
  AddCustomContext("cache_bytes", std::to_string(gpu().cache_bytes));
  AddCustomContext("driver", std::to_string(gpu().driver_version));
  AddCustomContext("int8q", int8q_version_string());
  AddCustomContext("compiler", __VERSION__);
  AddCustomContext("rotated_bytes", std::to_string(settings().rotated_bytes));
  AddCustomContext("sample_seconds", std::to_string(settings().sample_seconds));
  AddCustomContext("seconds", std::to_string(choice.seconds));
  AddCustomContext("cublaslt", cublaslt::open(library));
  if (!cublaslt::is_there()) std::cerr << "no rows of cuBLASLt: " << cublaslt::open(library) << "\n";
  const std::string same = compare_products(choice);
  AddCustomContext("cublaslt_s8_equals_int8q", same);
  if (cublaslt::is_there() && same != "yes") std::cerr << "cuBLASLt's s8 product equals int8q's: " << same << "\n";
  measure_limits(choice);
}

}  // namespace
}  // namespace int8q::bench

int main(int argc, char** argv) try {
  using namespace int8q::bench;
  deadline();  // begins
  CLI::App app("The linear on a GPU beside cuBLASLt; %peak and %bandwidth are of what this GPU did in this run.");
  app.allow_extras();
  app.footer("Google Benchmark's own options follow, as --benchmark_filter=REGEX and --benchmark_out=FILE.");
  Choice choice;
  std::vector<std::string> shapes;
  std::string library;
  int64_t rotated_mib = settings().rotated_bytes >> 20;
  double sample_ms = 1e3 * settings().sample_seconds;
  app.add_option("--shapes", shapes, "KxN; 4096x4096 and Llama-3-8B's if none")->delimiter(',');
  app.add_option("--rows", choice.rows, "M")->delimiter(',')->check(CLI::PositiveNumber);
  app.add_option("--sweep-rows", choice.sweep_rows, "M of the rows over outlier columns")
      ->delimiter(',')
      ->check(CLI::PositiveNumber);
  app.add_option("--seconds", choice.seconds, "after which no row begins: what is left is named as not reached")
      ->check(CLI::PositiveNumber);
  app.add_option("--rotated-mib", rotated_mib, "layers in turn take more than this")->check(CLI::NonNegativeNumber);
  app.add_option("--sample-ms", sample_ms, "what a repetition takes")->check(CLI::PositiveNumber);
  app.add_option("--cublaslt", library, "libcublasLt.so; where the loader finds it, if empty");
  CLI11_PARSE(app, argc, argv);

  std::vector<std::string> rest = app.remaining();
  std::vector<char*> arguments{argv[0]};
  for (std::string& argument : rest) arguments.push_back(argument.data());
  int count = static_cast<int>(arguments.size());
  benchmark::Initialize(&count, arguments.data());
  if (benchmark::ReportUnrecognizedArguments(count, arguments.data())) return 1;

  choice.sizes = {{4096, 4096}};
  for (const int8q::test::ModelLayer& layer : int8q::test::kModelLayers) {
    if (std::string(layer.model) == "Llama-3-8B") choice.sizes.push_back({layer.k, layer.n});
  }
  if (!shapes.empty()) {
    choice.sizes.clear();
    for (const std::string& shape : shapes) choice.sizes.push_back(parse_size(shape));
  }
  settings().rotated_bytes = rotated_mib << 20;
  settings().sample_seconds = 1e-3 * sample_ms;
  deadline().seconds = choice.seconds;
  std::string command;
  for (int i = 0; i < argc; ++i) command += std::string(i > 0 ? " " : "") + argv[i];
  benchmark::AddCustomContext("command", command);
  prepare(choice, library);
  register_rows(choice);
  benchmark::RunSpecifiedBenchmarks();
  benchmark::ClearRegisteredBenchmarks();  // with their device memory, while the driver is there
  benchmark::Shutdown();
  if (deadline().left_out > 0)
    std::cerr << "--seconds=" << choice.seconds << ": " << deadline().left_out << " repetitions of rows were left out\n";
  return 0;
} catch (const std::exception& error) {
  std::cerr << argv[0] << ": " << error.what() << "\n";
  return 1;
}
