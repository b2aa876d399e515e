// SPDX-License-Identifier: Apache-2.0
#include "cublaslt.h"

#include <dlfcn.h>

#include <array>
#include <limits>
#include <stdexcept>
#include <type_traits>
#include <vector>

#include "gpu.h"

namespace int8q::bench::cublaslt {
namespace {

// Of cublasLt.h, cublas_api.h and library_types.h of CUDA 12 and 13.
enum : int {
  kR32F = 0,
  kR8I = 3,
  kR32I = 10,
  kR16BF = 14,
  kCompute32F = 68,
  kCompute32I = 72,
  kOpN = 0,
  kOpT = 1,
  kDescTransA = 3,
  kDescTransB = 4,
  kPreferMaxWorkspaceBytes = 1,
};
struct Algorithm {  // cublasLtMatmulAlgo_t
  uint64_t opaque[8];
};
struct Proposal {  // cublasLtMatmulHeuristicResult_t
  Algorithm algorithm;
  size_t workspace_bytes;
  int state;
  float waves;
  int reserved[4];
};
static_assert(sizeof(Proposal) == 96);

// name, parameters. Each returns a cublasStatus_t.
#define INT8Q_CUBLASLT_FUNCTIONS(F)                                                                                       \
  F(cublasLtCreate, void** handle)                                                                                        \
  F(cublasLtMatmulDescCreate, void** desc, int compute_type, int scale_type)                                              \
  F(cublasLtMatmulDescSetAttribute, void* desc, int attribute, const void* value, size_t bytes)                           \
  F(cublasLtMatrixLayoutCreate, void** layout, int type, uint64_t rows, uint64_t cols, int64_t stride)                    \
  F(cublasLtMatmulPreferenceCreate, void** preference)                                                                    \
  F(cublasLtMatmulPreferenceSetAttribute, void* preference, int attribute, const void* value, size_t bytes)               \
  F(cublasLtMatmulAlgoGetHeuristic, void* handle, void* desc, void* a, void* b, void* c, void* d, void* preference,       \
    int wanted, Proposal* proposals, int* found)                                                                          \
  F(cublasLtMatmul, void* handle, void* desc, const void* alpha, const void* a, void* a_layout, const void* b,            \
    void* b_layout, const void* beta, const void* c, void* c_layout, void* d, void* d_layout, const Algorithm* algorithm, \
    void* workspace, size_t workspace_bytes, void* stream)

struct Library {
#define INT8Q_DECLARE(name, ...) int (*name)(__VA_ARGS__) = nullptr;
  INT8Q_CUBLASLT_FUNCTIONS(INT8Q_DECLARE)
#undef INT8Q_DECLARE
  void* handle = nullptr;  // NULL: there is none
  std::string what;
};

constexpr size_t kWorkspaceBytes = size_t{32} << 20;  // what cuBLAS takes on Hopper

void check(int status, const char* what) {
  if (status != 0) throw std::runtime_error(std::string(what) + ": cublasStatus_t " + std::to_string(status));
}

// Loads one file; `what` says why not.
Library load(const std::string& name) {
  Library l;
  void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    l.what = dlerror();
    return l;
  }
  const char* missing = nullptr;
  const auto resolve = [&](const char* function_name, auto& function) {
    void* address = dlsym(library, function_name);
    if (address == nullptr) missing = function_name;
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(address);
  };
#define INT8Q_RESOLVE(name, ...) resolve(#name, l.name);
  INT8Q_CUBLASLT_FUNCTIONS(INT8Q_RESOLVE)
#undef INT8Q_RESOLVE
  size_t (*get_version)() = nullptr;
  resolve("cublasLtGetVersion", get_version);
  if (missing != nullptr) {
    l.what = name + " lacks " + missing;
    return l;
  }
  if (const int status = l.cublasLtCreate(&l.handle); status != 0) {
    l.handle = nullptr;
    l.what = name + ": cublasLtCreate: cublasStatus_t " + std::to_string(status);
    return l;
  }
  Dl_info info{};
  const bool known = dladdr(reinterpret_cast<void*>(get_version), &info) != 0 && info.dli_fname != nullptr;
  l.what = std::to_string(get_version()) + " of " + (known ? info.dli_fname : name.c_str());
  return l;
}

Library& library() {
  static Library loaded;
  return loaded;
}

void* workspace() {
  static Memory& memory = *new Memory(kWorkspaceBytes);
  return memory.at();
}

void* make_layout(int type, int64_t rows, int64_t cols) {
  void* layout = nullptr;
  check(library().cublasLtMatrixLayoutCreate(&layout, type, static_cast<uint64_t>(rows), static_cast<uint64_t>(cols), rows),
        "cublasLtMatrixLayoutCreate");
  return layout;
}

}  // namespace

const std::string& open(const std::string& path) {
  std::string why;
  const std::vector<std::string> names =
      path.empty() ? std::vector<std::string>{"libcublasLt.so.13", "libcublasLt.so.12"} : std::vector<std::string>{path};
  for (const std::string& name : names) {
    library() = load(name);
    if (is_there()) return library().what;
    why += (why.empty() ? "none: " : "; ") + library().what;
  }
  return library().what = why;
}

bool is_there() { return library().handle != nullptr; }

// What row-major calls [rows, cols], cuBLASLt, which is column-major, calls [cols, rows]: y^T = w . x^T, w's transpose
// being what it calls w. s8 products want just this order of transposes.
struct Product::Parts {
  void *desc, *w, *x, *y;  // operation and layouts: kept as long as the process
  bool integers;
  Algorithm algorithm{};

  Parts(Kind kind, int64_t m, int64_t n, int64_t k) : desc(nullptr), integers(kind == Kind::kS8) {
    const int in = integers ? kR8I : kR16BF, out = integers ? kR32I : kR16BF;
    check(library().cublasLtMatmulDescCreate(&desc, integers ? kCompute32I : kCompute32F, integers ? kR32I : kR32F),
          "cublasLtMatmulDescCreate");
    const bool transposed = kind != Kind::kBf16Untransposed;
    set(kDescTransA, transposed ? kOpT : kOpN);
    set(kDescTransB, kOpN);
    w = make_layout(in, k, n);
    x = make_layout(in, transposed ? k : n, m);
    y = make_layout(out, transposed ? n : k, m);
  }

  std::vector<Proposal> proposals() const {
    void* preference = nullptr;
    check(library().cublasLtMatmulPreferenceCreate(&preference), "cublasLtMatmulPreferenceCreate");
    check(library().cublasLtMatmulPreferenceSetAttribute(preference, kPreferMaxWorkspaceBytes, &kWorkspaceBytes,
                                                         sizeof kWorkspaceBytes),
          "cublasLtMatmulPreferenceSetAttribute");
    std::vector<Proposal> list(8);
    int found = 0;
    check(library().cublasLtMatmulAlgoGetHeuristic(library().handle, desc, w, x, y, y, preference,
                                                   static_cast<int>(list.size()), list.data(), &found),
          "cublasLtMatmulAlgoGetHeuristic");
    list.resize(static_cast<size_t>(found));
    return list;
  }

  int run(const Algorithm& by, const void* from_w, const void* from_x, void* to) const {
    constexpr float kOne = 1.0f, kZero = 0.0f;
    constexpr int32_t kIntegerOne = 1, kIntegerZero = 0;
    const void* alpha = integers ? static_cast<const void*>(&kIntegerOne) : &kOne;
    const void* beta = integers ? static_cast<const void*>(&kIntegerZero) : &kZero;
    return library().cublasLtMatmul(library().handle, desc, alpha, from_w, w, from_x, x, beta, to, y, to, y, &by,
                                    workspace(), kWorkspaceBytes, gpu().stream);
  }

 private:
  void set(int attribute, int32_t value) const {
    check(library().cublasLtMatmulDescSetAttribute(desc, attribute, &value, sizeof value),
          "cublasLtMatmulDescSetAttribute");
  }
};

Product::Product(Kind kind, int64_t m, int64_t n, int64_t k, const std::function<const void*()>& next_w, const void* x,
                 void* y)
    : parts_(std::make_unique<Parts>(kind, m, n, k)) {
  double best = std::numeric_limits<double>::infinity();
  for (const Proposal& proposal : parts_->proposals()) {
    if (proposal.state != 0 || parts_->run(proposal.algorithm, next_w(), x, y) != 0) continue;
    gpu().wait();
    Timed timed([&] { check(parts_->run(proposal.algorithm, next_w(), x, y), "cublasLtMatmul"); }, 1, false);
    if (const double seconds = timed.sample(); seconds < best) {
      best = seconds;
      parts_->algorithm = proposal.algorithm;
    }
  }
  if (best == std::numeric_limits<double>::infinity())
    throw std::runtime_error("cuBLASLt has no algorithm for this product");
}

Product::~Product() = default;

void Product::run(const void* w, const void* x, void* y) const {
  check(parts_->run(parts_->algorithm, w, x, y), "cublasLtMatmul");
}

}  // namespace int8q::bench::cublaslt
