// SPDX-License-Identifier: Apache-2.0
//
// int8q selftest: every kernel of every ISA that this CPU runs, through the C ABI, against plain loops, bit for bit.
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <random>

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include "command.h"
#include "dtype.h"
#include "oracle.h"
#include "selftest.h"

namespace tool {
namespace {

using Json = nlohmann::ordered_json;

constexpr int32_t kFloats[3] = {INT8Q_F32, INT8Q_F16, INT8Q_BF16};
constexpr const char* kSuffix[3] = {"_f32", "_f16", "_bf16"};
constexpr float kThreshold = 6.0f;
constexpr int64_t kK = 131, kN = 67;  // tails in every unit: 4, 8, 16, 32, 64

// Outputs checked and wrong, by operation. A wrong output counts against every kernel that took part in it.
struct Count {
  int64_t checked = 0, wrong = 0;
};

class Selftest {
 public:
  explicit Selftest(int8q_context* context) : context_(context) {}

  std::map<std::string, Count> run() {
    for (int d = 0; d < 3; ++d) {
      quantize_rows(d);
      for (const int64_t m : {int64_t{3}, int64_t{21}}) {
        linear(d, m, INT8Q_OUTLIERS_COLUMN);
        linear(d, m, INT8Q_OUTLIERS_ELEMENT);
      }
      linear(d, 21, INT8Q_OUTLIERS_OFF);
      backward(d);
      dequantize(d);
    }
    multiply(3);
    multiply(21);
    return counts_;
  }

 private:
  static std::string op(const char* name, int d) { return name + std::string(kSuffix[d]); }

  void count(std::initializer_list<std::string> operations, int64_t checked, int64_t wrong) {
    for (const std::string& operation : operations) {
      counts_[operation].checked += checked;
      counts_[operation].wrong += wrong;
    }
  }

  // Normal values, outliers in three columns, a zero row, and a row so small that 127 / absmax would overflow.
  Tensor activations(int d, int64_t m) {
    Tensor x(kFloats[d], m, kK);
    for (int64_t i = 0; i < m; ++i) {
      const float size = i == 1 ? 0.0f : i == 2 && kFloats[d] != INT8Q_F16 ? 0x1p-125f : 1.0f;
      for (int64_t j = 0; j < kK; ++j) {
        const bool outlier = size == 1.0f && i % 3 == 0 && (j == 0 || j == 66 || j == kK - 1);
        x.set(i, j, outlier ? -20.5f : std::fmin(5.0f, std::fmax(-5.0f, normal_(random_))) * size);
      }
    }
    return x;
  }

  Tensor weights(int d) {
    Tensor w(kFloats[d], kN, kK);
    for (int64_t i = 0; i < kN; ++i) {
      for (int64_t j = 0; j < kK; ++j) w.set(i, j, normal_(random_) * 0.1f);
    }
    return w;
  }

  void quantize_rows(int d) {
    for (const int32_t mode : {INT8Q_OUTLIERS_COLUMN, INT8Q_OUTLIERS_ELEMENT}) {
      Tensor x = activations(d, 9), q(INT8Q_S8, 9, kK);
      const int8q_matrix in = x.view(), out = q.view();
      std::vector<float> stats(9);
      std::vector<int64_t> cols(static_cast<size_t>(kK));
      int64_t found = 0;
      check(int8q_quantize_rows(context_, &in, mode, kThreshold, &out, stats.data(), nullptr, cols.data(), &found));
      const Quantized expected = quantize(x, mode, kThreshold);
      cols.resize(static_cast<size_t>(found));
      int64_t wrong = cols != expected.cols ? 1 : 0;
      for (size_t i = 0; i < stats.size(); ++i) wrong += std::memcmp(&stats[i], &expected.stats[i], 4) != 0;
      for (size_t i = 0; i < q.bytes.size(); ++i) wrong += static_cast<int8_t>(q.bytes[i]) != expected.codes[i];
      count({op("scan", d), op("encode_s8", d)}, static_cast<int64_t>(q.bytes.size() + stats.size()) + 1, wrong);
    }
  }

  struct Layer {
    int8q_linear* handle = nullptr;
    Layer() = default;
    ~Layer() { int8q_destroy_linear(handle); }
    Layer(const Layer&) = delete;
    Layer& operator=(const Layer&) = delete;
  };

  void create(Layer& layer, int d, Tensor& w, std::vector<float>* bias, int32_t mode) {
    const int8q_matrix weight = w.view();
    const int8q_matrix b{sizeof b, INT8Q_F32, 1, kN, kN, bias != nullptr ? bias->data() : nullptr};
    const int8q_linear_options options{sizeof options, mode, kThreshold, 0, nullptr, 0, nullptr};
    check(int8q_create_linear(context_, &weight, nullptr, bias != nullptr ? &b : nullptr, &options, &layer.handle));
    Tensor codes(INT8Q_S8, kN, kK);
    const int8q_matrix out = codes.view();
    check(int8q_export_linear(context_, layer.handle, &out, nullptr, nullptr, nullptr, nullptr));
    const Quantized expected = quantize(w, INT8Q_OUTLIERS_OFF, 0);
    int64_t wrong = 0;
    for (size_t i = 0; i < codes.bytes.size(); ++i) wrong += static_cast<int8_t>(codes.bytes[i]) != expected.codes[i];
    count({op("scan", d), op("encode_s8", d), "pack"}, static_cast<int64_t>(codes.bytes.size()), wrong);
  }

  void* workspace(const Layer& layer, int32_t operation, int64_t rows, uint64_t& bytes) {
    check(int8q_query_workspace(context_, layer.handle, operation, rows, 0, &bytes));
    memory_.resize(bytes + 64);
    return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(memory_.data()) + 63) / 64 * 64);
  }

  void linear(int d, int64_t m, int32_t mode) {
    Tensor w = weights(d), x = activations(d, m);
    std::vector<float> bias(static_cast<size_t>(kN));
    for (float& b : bias) b = normal_(random_);
    Layer layer;
    create(layer, d, w, &bias, mode);
    const Quantized qx = quantize(x, mode, kThreshold), qw = quantize(w, INT8Q_OUTLIERS_OFF, 0);
    const LinearOracle oracle{x, qx, qw, &bias, mode, kThreshold};
    for (int e = 0; e < 3; ++e) {
      Tensor y(kFloats[e], m, kN);
      const int8q_matrix in = x.view(), out = y.view();
      uint64_t bytes;
      void* memory = workspace(layer, INT8Q_FORWARD, m, bytes);
      check(int8q_forward(context_, layer.handle, &in, 0, &out, memory, bytes));
      int64_t wrong = 0;
      for (int64_t i = 0; i < m; ++i) {
        for (int64_t j = 0; j < kN; ++j) wrong += !same(y, i, j, oracle.value(i, j));
      }
      const std::string gemm = m <= 16 ? "gemv" : "gemm";
      count({op("scan", d), op("encode", d), "pack", gemm, op("epilogue", e)}, m * kN, wrong);
      if (mode != INT8Q_OUTLIERS_OFF) count({"outliers"}, m * kN, wrong);
    }
  }

  void backward(int d) {
    constexpr int64_t kM = 7;
    Tensor w = weights(0), dy(kFloats[d], kM, kN);
    for (int64_t i = 0; i < kM; ++i) {
      for (int64_t j = 0; j < kN; ++j) dy.set(i, j, normal_(random_));
    }
    Layer layer;
    create(layer, 0, w, nullptr, INT8Q_OUTLIERS_COLUMN);
    const Quantized qw = quantize(w, INT8Q_OUTLIERS_OFF, 0);
    for (int e = 0; e < 3; ++e) {
      Tensor dx(kFloats[e], kM, kK);
      const int8q_matrix in = dy.view(), out = dx.view();
      uint64_t bytes;
      void* memory = workspace(layer, INT8Q_BACKWARD, kM, bytes);
      check(int8q_backward(context_, layer.handle, &in, 0, &out, memory, bytes));
      int64_t wrong = 0;
      for (int64_t i = 0; i < kM; ++i) {
        for (int64_t k = 0; k < kK; ++k) {
          float sum = 0.0f;
          for (int64_t n = 0; n < kN; ++n) {
            const float g = dy.at(i, n) * (qw.stats[static_cast<size_t>(n)] * (1.0f / 127.0f));
            sum = std::fmaf(g, qw.codes[static_cast<size_t>(n * kK + k)], sum);
          }
          wrong += !same(dx, i, k, sum);
        }
      }
      count({op("scale", d), "unpack", "backward", op("store", e)}, kM * kK, wrong);
    }
  }

  void dequantize(int d) {
    constexpr int64_t kRows = 5;
    Tensor q(INT8Q_S8, kRows, kK), y(kFloats[d], kRows, kK);
    const std::vector<float> stats = {0.0f, 1.0f, 3.7f, 0x1p-130f, 65504.0f};
    for (int64_t i = 0; i < kRows; ++i) {
      for (int64_t j = 0; j < kK; ++j) q.set_integer(i, j, static_cast<int32_t>((i * kK + j) % 256) - 128);
    }
    const int8q_matrix in = q.view(), out = y.view();
    check(int8q_dequantize_rows(context_, &in, stats.data(), &out));
    int64_t wrong = 0;
    for (int64_t i = 0; i < kRows; ++i) {
      for (int64_t j = 0; j < kK; ++j) {
        wrong += !same(y, i, j, (static_cast<float>(q.integer(i, j)) * stats[static_cast<size_t>(i)]) * (1.0f / 127.0f));
      }
    }
    count({op("dequantize", d)}, kRows * kK, wrong);
  }

  // Full +-127 and -128, where saturating arithmetic would give itself away.
  void multiply(int64_t m) {
    for (const int fill : {0, 1}) {
      Tensor a(INT8Q_S8, m, kK), b(INT8Q_S8, kN, kK), c(INT8Q_S32, m, kN);
      std::uniform_int_distribution<int> codes(-128, 127);
      for (uint8_t& code : a.bytes)
        code = static_cast<uint8_t>(fill == 0 ? codes(random_) : codes(random_) < 0 ? -128 : 127);
      for (uint8_t& code : b.bytes)
        code = static_cast<uint8_t>(fill == 0 ? codes(random_) : codes(random_) < 0 ? -128 : 127);
      const int8q_matrix left = a.view(), right = b.view(), out = c.view();
      check(int8q_multiply(context_, &left, &right, &out));
      int64_t wrong = 0;
      for (int64_t i = 0; i < m; ++i) {
        for (int64_t j = 0; j < kN; ++j) {
          const auto* x = reinterpret_cast<const int8_t*>(a.bytes.data()) + i * kK;
          const auto* w = reinterpret_cast<const int8_t*>(b.bytes.data()) + j * kK;
          wrong += c.integer(i, j) != product(x, w, kK);
        }
      }
      if (m > 16) {
        count({"widen", "pack", "gemm"}, m * kN, wrong);
      } else {
        count({"dot"}, m * kN, wrong);
      }
    }
  }

  int8q_context* context_;
  std::mt19937 random_{20080};
  std::normal_distribution<float> normal_;
  std::vector<uint8_t> memory_;
  std::map<std::string, Count> counts_;
};

struct Context {
  int8q_context* handle = nullptr;
  explicit Context(const char* isa) {
    int8q_context_options options{};
    options.size = sizeof options;
    options.isa = isa;
    const int32_t status = int8q_create_context(&options, &handle);
    if (status == INT8Q_UNSUPPORTED) throw Failure(kUsage, int8q_last_error(), "`int8q doctor` lists what this CPU runs");
    check(status);
  }
  ~Context() { int8q_destroy_context(handle); }
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;
};

std::vector<std::string> isas_to_run(const std::string& chosen) {
  const char* forced = std::getenv("INT8Q_CPU_ISA");
  if (!chosen.empty()) return {chosen};
  if (forced != nullptr && *forced != '\0') return {""};  // the library reads it, and names it in its errors
  std::vector<std::string> names;
  const Json diagnosis = diagnose();
  for (const Json& isa : diagnosis["cpu"]["isas"]) {
    if (isa["runnable"].get<bool>()) names.push_back(isa["name"].get<std::string>());
  }
  return names;
}

}  // namespace

std::string call_for_text(const std::function<int32_t(char*, uint64_t, uint64_t*)>& call) {
  uint64_t length = 0;
  call(nullptr, 0, &length);
  std::string text(length + 1, '\0');
  check(call(text.data(), text.size(), &length));
  text.resize(length);
  return text;
}

Json diagnose() { return Json::parse(call_for_text(int8q_diagnose_json)); }

Json describe(int8q_context* context) {
  return Json::parse(
      call_for_text([context](char* b, uint64_t c, uint64_t* l) { return int8q_describe_context(context, b, c, l); }));
}

Json run_selftest(const char* isa) {
  const Context context(isa);
  std::map<std::string, Count> counts = Selftest(context.handle).run();
  Json kernels = Json::array();
  int64_t checked = 0, wrong = 0;
  const Json description = describe(context.handle);
  for (const auto& [operation, name] : description["kernels"].items()) {
    const Count count = counts[operation];
    kernels.push_back({{"operation", operation}, {"kernel", name}, {"checked", count.checked}, {"wrong", count.wrong}});
    checked += count.checked;
    // A kernel that no check reaches is as bad as a wrong one.
    wrong += count.checked == 0 ? 1 : count.wrong;
  }
  return {{"isa", description["isa"]}, {"checked", checked}, {"wrong", wrong}, {"kernels", kernels}};
}

void add_selftest(CLI::App& app, int& exit) {
  struct Options {
    std::string isa;
    bool json = false;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command =
      app.add_subcommand("selftest", "Check every kernel that this CPU runs against plain loops, bit for bit.");
  command->add_option("--isa", options->isa, "only this ISA (default: INT8Q_CPU_ISA, else all that this CPU runs)");
  command->add_flag("--json", options->json, "print JSON");
  command->footer(
      "Exit status 1 if any output is wrong.\n\n"
      "Examples:\n"
      "  int8q selftest\n"
      "  int8q selftest --isa avx2\n"
      "  INT8Q_CPU_ISA=generic int8q selftest --json");
  command->callback([options, &exit] {
    Json results = Json::array();
    int64_t wrong = 0;
    for (const std::string& isa : isas_to_run(options->isa)) {
      const Json result = run_selftest(isa.empty() ? nullptr : isa.c_str());
      wrong += result["wrong"].get<int64_t>();
      if (options->json) {
        results.push_back(result);
        continue;
      }
      const auto name = result["isa"].get<std::string>();
      fmt::print("{}\n", name);
      for (const Json& k : result["kernels"]) {
        fmt::print("  {:<16} {:<32} {:>8} outputs  {}\n", k["operation"].get<std::string>(), k["kernel"].get<std::string>(),
                   k["checked"].get<int64_t>(),
                   k["checked"] == 0 ? "NOT CHECKED"
                   : k["wrong"] == 0 ? "ok"
                                     : fmt::format("{} WRONG", k["wrong"].get<int64_t>()));
      }
      fmt::print("  {}: {} outputs checked, {} wrong\n", name, result["checked"].get<int64_t>(),
                 result["wrong"].get<int64_t>());
    }
    if (options->json) fmt::print("{}\n", results.dump(2));
    if (wrong != 0) exit = kFault;
  });
}

}  // namespace tool
