// SPDX-License-Identifier: Apache-2.0
//
// The test of the dispatcher: names, order, forcing, and the proof of which kernel ran. The proof corrupts the first output
// of one kernel (INT8Q_CORRUPT_KERNEL, test builds only) and shows that the operation which is documented to run it gives
// other bits, on its own ISA and on no other.
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <map>
#include <set>
#include <sstream>

#include "cpu/registry.h"
#include "support/call.h"
#include "support/oracle.h"

namespace int8q::test {
namespace {

using Bytes = std::vector<uint8_t>;

// Seven operations for each of three dtypes, and nine without: what for_each_kernel lists; and two for bf16 products.
constexpr size_t kOperations = 7 * 3 + 9, kBf16Operations = 2;

class Environment {
 public:
  Environment(const char* name, const char* value) : name_(name) { setenv(name, value, 1); }
  ~Environment() { unsetenv(name_); }
  Environment(const Environment&) = delete;
  Environment& operator=(const Environment&) = delete;

 private:
  const char* name_;
};

std::string describe(int8q_context* context) {
  uint64_t length = 0;
  EXPECT_STATUS(INT8Q_BUFFER_TOO_SMALL, int8q_describe_context(context, nullptr, 0, &length));
  std::string text(length + 1, '\0');
  EXPECT_STATUS(INT8Q_OK, int8q_describe_context(context, text.data(), text.size(), &length));
  text.resize(length);
  return text;
}

// Whether the JSON text has "key": "value", with or without a blank.
bool has_member(const std::string& json, const std::string& key, const std::string& value) {
  const std::string quoted = "\"" + value + "\"";
  return json.find("\"" + key + "\":" + quoted) != std::string::npos ||
         json.find("\"" + key + "\": " + quoted) != std::string::npos;
}

using Named = std::map<std::string, std::string>;  // operation -> kernel

Named kernels_of(const cpu::Kernels& kernels) {
  Named named;
  cpu::for_each_kernel(
      kernels,
      [](void* arg, const char* operation, const char* name) {
        EXPECT_TRUE(static_cast<Named*>(arg)->emplace(operation, name).second) << operation;
      },
      &named);
  return named;
}

TEST(Dispatch, RegistryAscendsAndListsItsNames) {
  const std::vector<std::string> ascending = {"generic", "avx2", "avxvnni", "avx512bw", "avx512vnni"};
  std::string joined;
  size_t last = 0;
  for (const cpu::Isa& isa : cpu::isas()) {
    const auto at = static_cast<size_t>(std::find(ascending.begin(), ascending.end(), isa.name) - ascending.begin());
    ASSERT_LT(at, ascending.size()) << isa.name << " is new: say here where it ranks";
    if (!joined.empty()) {
      EXPECT_GT(at, last) << isa.name;
    }
    last = at;
    joined += (joined.empty() ? "" : ", ") + std::string(isa.name);
    EXPECT_EQ(&isa, cpu::find_isa(isa.name));
    EXPECT_STREQ(isa.name, isa.kernels().isa);
  }
  EXPECT_EQ(joined, cpu::isa_names());
  EXPECT_EQ(nullptr, cpu::find_isa("AVX2"));
  EXPECT_EQ(nullptr, cpu::find_isa(""));
  EXPECT_TRUE(cpu::isas().front().supported()) << "generic runs everywhere";
  EXPECT_STREQ(runnable_isas().back()->name, cpu::best_isa().name);
  unsetenv("INT8Q_CPU_ISA");
  EXPECT_TRUE(has_member(describe(make_context().get()), "isa", cpu::best_isa().name));
}

// What Linux says of this CPU, independently of the library's cpuid; empty where it says nothing.
std::set<std::string> cpu_flags() {
  std::ifstream file("/proc/cpuinfo");
  std::set<std::string> flags;
  for (std::string line; flags.empty() && std::getline(file, line);) {
    if (line.rfind("flags", 0) != 0) continue;
    std::istringstream words(line.substr(line.find(':') + 1));
    for (std::string word; words >> word;) flags.insert(word);
  }
  return flags;
}

#if defined(__x86_64__)
// An ISA that silently stops to run is seen here.
TEST(Dispatch, TheIsasThatRunAreThoseOfTheCpusFlags) {
  const std::set<std::string> flags = cpu_flags();
  if (flags.empty()) GTEST_SKIP() << "no flags in /proc/cpuinfo";
  const auto has = [&](std::initializer_list<const char*> names) {
    return std::all_of(names.begin(), names.end(), [&](const char* name) { return flags.count(name) == 1; });
  };
  const bool avx2 = has({"avx2", "fma", "f16c"}), avx512bw = avx2 && has({"avx512f", "avx512bw", "avx512vl", "avx512dq"});
  const bool avx512vnni = avx512bw && has({"avx512_vnni"});
  const std::map<std::string, bool> expected = {
      {"generic", true},
      {"avx2", avx2},
      {"avxvnni", avx2 && (has({"avx_vnni"}) || avx512vnni)},  // the test library encodes it as EVEX where need be
      {"avx512bw", avx512bw},
      {"avx512vnni", avx512vnni}};
  EXPECT_EQ(expected.size(), cpu::isas().size());
  for (const cpu::Isa& isa : cpu::isas()) EXPECT_EQ(expected.at(isa.name), isa.supported()) << isa.name;
}
#endif

// AVX512-BF16 is no ISA of its own: avx512vnni uses it where the CPU has it.
size_t bf16_operations(const cpu::Isa& isa) {
  return std::strcmp(isa.name, "avx512vnni") == 0 && cpu_flags().count("avx512_bf16") == 1 ? kBf16Operations : 0;
}

TEST(Dispatch, EachKernelIsNamedForItsOperationAndIsa) {
  for (const cpu::Isa& isa : cpu::isas()) {
    const Named named = kernels_of(isa.kernels());
    EXPECT_EQ(kOperations + bf16_operations(isa), named.size());
    for (const auto& [operation, name] : named) {
      const std::string op = operation.substr(0, operation.find('_'));
      EXPECT_EQ(0u, name.find(op)) << operation << " is " << name;
      EXPECT_NE(std::string::npos, name.rfind('_')) << name;
    }
  }
}

TEST(Dispatch, AForcedIsaIsTheOneDescribed) {
  for (const cpu::Isa* isa : runnable_isas()) {
    SCOPED_TRACE(isa->name);
    const Named named = kernels_of(isa->kernels());
    const auto check = [&](const ContextPtr& context) {
      const std::string json = describe(context.get());
      EXPECT_TRUE(has_member(json, "isa", isa->name)) << json;
      EXPECT_TRUE(has_member(json, "backend", "cpu")) << json;
      for (const auto& [operation, name] : named)
        EXPECT_TRUE(has_member(json, operation, name)) << operation << ": " << json;
    };
    check(make_context(1, isa->name));
    const Environment environment("INT8Q_CPU_ISA", isa->name);
    check(make_context(1));
    if (isa != runnable_isas().front()) {  // options win over the environment
      EXPECT_TRUE(has_member(describe(make_context(1, "generic").get()), "isa", "generic"));
    }
  }
}

TEST(Dispatch, AnUnknownIsaIsAnErrorThatListsTheNames) {
  const auto refused = [](const char* isa, const char* from) {
    int8q_context_options options{};
    options.size = sizeof options;
    options.isa = isa;
    int8q_context* context = nullptr;
    EXPECT_STATUS(INT8Q_UNSUPPORTED, int8q_create_context(&options, &context));
    EXPECT_EQ(nullptr, context);
    const std::string message = int8q_last_error();
    EXPECT_NE(std::string::npos, message.find(from)) << message;
    EXPECT_NE(std::string::npos, message.find("bogus")) << message;
    for (const cpu::Isa& known : cpu::isas()) EXPECT_NE(std::string::npos, message.find(known.name)) << message;
  };
  refused("bogus", "options->isa");
  const Environment environment("INT8Q_CPU_ISA", "bogus");
  refused(nullptr, "INT8Q_CPU_ISA");
}

TEST(Dispatch, AnIsaThatThisMachineLacksIsAnError) {
  int missing = 0;
  for (const cpu::Isa& isa : cpu::isas()) {
    if (isa.supported()) continue;
    ++missing;
    int8q_context_options options{};
    options.size = sizeof options;
    options.isa = isa.name;
    int8q_context* context = nullptr;
    EXPECT_STATUS(INT8Q_UNSUPPORTED, int8q_create_context(&options, &context));
    EXPECT_NE(nullptr, std::strstr(int8q_last_error(), isa.name)) << int8q_last_error();
  }
  if (missing == 0) GTEST_SKIP() << "this machine runs every ISA of the build";
}

constexpr int64_t kN = 40, kK = 100;

// One layer with everything that the operations below take, made without corruption: the blob does not depend on the ISA.
struct Operands {
  ContextPtr context = make_context(1, "generic");
  Mat w = random_mat(INT8Q_F32, kN, kK, 1), bias = random_mat(INT8Q_F32, 1, kN, 2);
  LinearPtr column = make_linear(context.get(), w, &bias), off = make_linear(context.get(), w, &bias, INT8Q_OUTLIERS_OFF);
  std::vector<float> row_stats = std::vector<float>(64, 1.25f), col_stats = std::vector<float>(kN, 0.75f);
};

const Operands& operands() {
  static const Operands all;
  return all;
}

int dtype_of(const std::string& operation) {
  const std::string suffix = operation.substr(operation.rfind('_') + 1);
  return suffix == "f16" ? INT8Q_F16 : suffix == "bf16" ? INT8Q_BF16 : INT8Q_F32;
}

Bytes forward_bytes(int8q_context* c, const int8q_linear* linear, int64_t m, int32_t x_dtype, int32_t y_dtype) {
  const Mat x = random_input(x_dtype, m, kK, 5), y(y_dtype, m, kN);
  EXPECT_STATUS(INT8Q_OK, forward(c, linear, x, y));
  return y.bytes();
}

Bytes multiply_bytes(int8q_context* c, int64_t m) {
  const Mat a = random_mat(INT8Q_S8, m, kK, 6), b = random_mat(INT8Q_S8, kN, kK, 7), y(INT8Q_S32, m, kN);
  EXPECT_STATUS(INT8Q_OK, int8q_multiply(c, a.get(), b.get(), y.get()));
  return y.bytes();
}

Bytes quantize_bytes(int8q_context* c, int32_t dtype) {
  const Mat x = random_input(dtype, 3, kK, 8), q(INT8Q_S8, 3, kK);
  float stats[3];
  EXPECT_STATUS(INT8Q_OK,
                int8q_quantize_rows(c, x.get(), INT8Q_OUTLIERS_COLUMN, 0, q.get(), stats, nullptr, nullptr, nullptr));
  Bytes bytes = q.bytes();
  bytes.insert(bytes.end(), reinterpret_cast<uint8_t*>(stats), reinterpret_cast<uint8_t*>(stats + 3));
  return bytes;
}

Bytes backward_bytes(int8q_context* c, int32_t dy_dtype, int32_t dx_dtype) {
  const Mat dy = random_mat(dy_dtype, 5, kN, 9), dx(dx_dtype, 5, kK);
  EXPECT_STATUS(INT8Q_OK, backward(c, operands().column.get(), dy, dx));
  return dx.bytes();
}

Bytes pack_bytes(int8q_context* c) {
  const LinearPtr linear = make_linear(c, operands().w);
  const Mat codes(INT8Q_S8, kN, kK);
  EXPECT_STATUS(INT8Q_OK, int8q_export_linear(c, linear.get(), codes.get(), nullptr, nullptr, nullptr, nullptr));
  return codes.bytes();
}

// The bits that the operation which is documented to use the kernel gives on this context.
Bytes run_operation(int8q_context* c, const std::string& operation) {
  const Operands& o = operands();
  const int32_t dtype = dtype_of(operation);
  const std::string op =
      operation.substr(0, operation.rfind("_f") != std::string::npos ? operation.rfind("_f") : operation.rfind("_bf"));
  if (op == "scan" || op == "encode_s8") return quantize_bytes(c, dtype);
  if (op == "encode") return forward_bytes(c, o.off.get(), 3, dtype, INT8Q_F32);
  if (op == "widen") return multiply_bytes(c, 20);
  if (op == "pack") return pack_bytes(c);
  if (op == "gemm") return forward_bytes(c, o.off.get(), cpu::kGemvRows + 1, INT8Q_F32, INT8Q_F32);
  if (op == "gemv") return forward_bytes(c, o.off.get(), cpu::kGemvRows, INT8Q_F32, INT8Q_F32);
  if (op == "dot") return multiply_bytes(c, 8);
  if (op == "columns" || op == "outliers") return forward_bytes(c, o.column.get(), 3, INT8Q_F32, INT8Q_F32);
  if (op == "epilogue") return forward_bytes(c, o.off.get(), 3, INT8Q_F32, dtype);
  if (op == "dequantize") {
    const Mat q = random_mat(INT8Q_S8, 3, kK, 10), y(dtype, 3, kK);
    EXPECT_STATUS(INT8Q_OK, int8q_dequantize_rows(c, q.get(), o.row_stats.data(), y.get()));
    return y.bytes();
  }
  if (op == "scale") return backward_bytes(c, dtype, INT8Q_F32);
  if (op == "unpack" || op == "backward") return backward_bytes(c, dtype, INT8Q_F32);
  if (op == "store") return backward_bytes(c, INT8Q_F32, dtype);
  ADD_FAILURE() << operation << " has no operation that proves it";
  return {};
}

// The same corruption must not show where another kernel is documented to run.
void expect_other_path_clean(int8q_context* c, const std::string& operation, const std::map<std::string, Bytes>& right) {
  static const std::map<std::string, std::string> others = {{"gemm", "gemv"},
                                                            {"gemv", "gemm"},
                                                            {"dot", "widen"},
                                                            {"widen", "dot"},
                                                            {"encode_f16", "encode_f32"},
                                                            {"epilogue_bf16", "epilogue_f32"},
                                                            {"store_f16", "store_f32"},
                                                            {"backward", "gemm"},
                                                            {"backward_bf16", "backward"},
                                                            {"outliers", "gemm"}};
  const auto other = others.find(operation);
  if (other == others.end()) return;
  EXPECT_EQ(right.at(other->second), run_operation(c, other->second))
      << operation << " ran where " << other->second << " should";
}

TEST(Dispatch, CorruptionProvesWhichKernelRan) {
  unsetenv("INT8Q_CORRUPT_KERNEL");
  std::map<std::string, std::map<std::string, Bytes>> right;  // ISA -> operation -> bits
  for (const cpu::Isa* isa : runnable_isas()) {
    const ContextPtr context = make_context(1, isa->name);
    for (const auto& [operation, name] : kernels_of(isa->kernels()))
      right[isa->name][operation] = run_operation(context.get(), operation);
  }
  size_t proven = 0, kernels = 0;
  for (const cpu::Isa* isa : runnable_isas()) {
    kernels += kOperations + bf16_operations(*isa);
    for (const auto& [operation, name] : kernels_of(isa->kernels())) {
      SCOPED_TRACE(operation + " by " + name);
      const Environment corrupt("INT8Q_CORRUPT_KERNEL", name.c_str());
      for (const cpu::Isa* other : runnable_isas()) {
        const Named named = kernels_of(other->kernels());
        const auto same_operation = named.find(operation);
        if (same_operation == named.end()) continue;
        const ContextPtr context = make_context(1, other->name);
        const Bytes bits = run_operation(context.get(), operation);
        // Only a kernel that two ISAs share (the generic packing) may show on another ISA.
        if (same_operation->second == name) {
          EXPECT_NE(right[other->name].at(operation), bits) << "on " << other->name << ": the kernel did not run";
          expect_other_path_clean(context.get(), operation, right[other->name]);
          proven += other == isa ? 1 : 0;
        } else {
          EXPECT_EQ(right[other->name].at(operation), bits) << "on " << other->name;
        }
      }
    }
  }
  std::printf("%zu kernels proven to run, on %zu ISAs\n", proven, runnable_isas().size());
  EXPECT_EQ(kernels, proven);
}

}  // namespace
}  // namespace int8q::test
