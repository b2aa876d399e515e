// SPDX-License-Identifier: Apache-2.0
#include "cuda/cublaslt_product.h"

#include <dlfcn.h>

#include <type_traits>

namespace int8q::cuda::cublaslt {
namespace {

Library load_file(const std::string& name) {
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

}  // namespace

Library load(const std::string& path) {
  if (!path.empty()) return load_file(path);
  Library newer = load_file("libcublasLt.so.13");
  if (newer.handle != nullptr) return newer;
  Library older = load_file("libcublasLt.so.12");
  if (older.handle == nullptr) older.what = newer.what + "; " + older.what;
  return older;
}

Product::~Product() {
  if (desc_ != nullptr) library_.cublasLtMatmulDescDestroy(desc_);
  for (void* layout : {w_, x_, y_}) {
    if (layout != nullptr) library_.cublasLtMatrixLayoutDestroy(layout);
  }
}

// What row-major calls [rows, cols], cuBLASLt, which is column-major, calls [cols, rows]: y^T = w . x^T, w's transpose
// being what it calls w. s8 products want just this order of transposes.
int Product::make() {
  const auto& [m, n, k, x_stride, w_stride, y_stride, integers, transposed] = shape_;
  const int in = integers ? kR8I : kR16BF, out = integers ? kR32I : kR16BF;
  const auto layout = [&](void** made, int type, int64_t rows, int64_t cols, int64_t stride) {
    return library_.cublasLtMatrixLayoutCreate(made, type, static_cast<uint64_t>(rows), static_cast<uint64_t>(cols),
                                               stride);
  };
  const int32_t op_w = transposed ? kOpT : kOpN, op_x = kOpN;
  int status = library_.cublasLtMatmulDescCreate(&desc_, integers ? kCompute32I : kCompute32F, integers ? kR32I : kR32F);
  if (status == 0) status = library_.cublasLtMatmulDescSetAttribute(desc_, kDescTransA, &op_w, sizeof op_w);
  if (status == 0) status = library_.cublasLtMatmulDescSetAttribute(desc_, kDescTransB, &op_x, sizeof op_x);
  if (status == 0) status = layout(&w_, in, k, n, w_stride);
  if (status == 0) status = layout(&x_, in, transposed ? k : n, m, x_stride);
  if (status == 0) status = layout(&y_, out, transposed ? n : k, m, y_stride);
  return status;
}

int Product::propose(size_t most_workspace_bytes, std::vector<Proposal>& list, uint32_t alignment) const {
  void* preference = nullptr;
  int status = library_.cublasLtMatmulPreferenceCreate(&preference), found = 0;
  if (status == 0) {
    status = library_.cublasLtMatmulPreferenceSetAttribute(preference, kPreferMaxWorkspaceBytes, &most_workspace_bytes,
                                                           sizeof most_workspace_bytes);
  }
  for (int which = kPreferMinAlignmentA; status == 0 && which <= kPreferMinAlignmentD; ++which) {
    status = library_.cublasLtMatmulPreferenceSetAttribute(preference, which, &alignment, sizeof alignment);
  }
  list.resize(8);
  if (status == 0) {
    status = library_.cublasLtMatmulAlgoGetHeuristic(library_.handle, desc_, w_, x_, y_, y_, preference,
                                                     static_cast<int>(list.size()), list.data(), &found);
  }
  list.resize(static_cast<size_t>(found));
  if (preference != nullptr) library_.cublasLtMatmulPreferenceDestroy(preference);
  return status;
}

int Product::run(const Algorithm& by, const void* w, const void* x, void* y, void* workspace, size_t workspace_bytes,
                 void* stream) const {
  constexpr float kOne = 1.0f, kZero = 0.0f;
  constexpr int32_t kIntegerOne = 1, kIntegerZero = 0;
  const void* alpha = shape_.integers ? static_cast<const void*>(&kIntegerOne) : &kOne;
  const void* beta = shape_.integers ? static_cast<const void*>(&kIntegerZero) : &kZero;
  return library_.cublasLtMatmul(library_.handle, desc_, alpha, w, w_, x, x_, beta, y, y_, y, y_, &by, workspace,
                                 workspace_bytes, stream);
}

}  // namespace int8q::cuda::cublaslt
