// SPDX-License-Identifier: Apache-2.0
#include "cpu/registry.h"

#include <cstring>

#include "cpu/cpuid.h"
#include "cpu/test_hooks.h"

namespace int8q::cpu {
namespace {

#if defined(__x86_64__)
const Kernels& avx512vnni() { return cpu_features().avx512bf16 ? avx512vnni_bf16_kernels() : avx512vnni_kernels(); }
#endif

constexpr Isa kIsas[] = {
    {"generic", [] { return true; }, table<generic_kernels>},
#if defined(__x86_64__)
    {"avx2", [] { return cpu_features().avx2; }, table<avx2_kernels>},
    {"avxvnni", supports_avxvnni, table<avxvnni_kernels>},
    {"avx512bw", [] { return cpu_features().avx512bw; }, table<avx512bw_kernels>},
    {"avx512vnni", [] { return cpu_features().avx512vnni; }, table<avx512vnni>},
#endif
};

}  // namespace

std::span<const Isa> isas() { return kIsas; }

const Isa& best_isa() {
  const Isa* best = kIsas;
  for (const Isa& isa : kIsas) {
    if (isa.supported()) best = &isa;
  }
  return *best;
}

const Isa* find_isa(const char* name) {
  for (const Isa& isa : kIsas) {
    if (std::strcmp(isa.name, name) == 0) return &isa;
  }
  return nullptr;
}

const char* isa_names() {
#if defined(__x86_64__)
  return "generic, avx2, avxvnni, avx512bw, avx512vnni";
#else
  return "generic";
#endif
}

void for_each_kernel(const Kernels& k, void (*visit)(void*, const char*, const char*), void* arg) {
  const auto by_dtype = [&](const auto& kernels, const char* f32, const char* f16, const char* bf16) {
    visit(arg, f32, kernels[0].name);
    visit(arg, f16, kernels[1].name);
    visit(arg, bf16, kernels[2].name);
  };
  by_dtype(k.scan, "scan_f32", "scan_f16", "scan_bf16");
  by_dtype(k.encode, "encode_f32", "encode_f16", "encode_bf16");
  by_dtype(k.encode_s8, "encode_s8_f32", "encode_s8_f16", "encode_s8_bf16");
  visit(arg, "widen", k.widen.name);
  visit(arg, "pack", k.pack.name);
  visit(arg, "gemm", k.gemm.name);
  visit(arg, "gemv", k.gemv.name);
  visit(arg, "dot", k.dot.name);
  visit(arg, "columns", k.columns.name);
  visit(arg, "outliers", k.outliers.name);
  by_dtype(k.epilogue, "epilogue_f32", "epilogue_f16", "epilogue_bf16");
  by_dtype(k.dequantize, "dequantize_f32", "dequantize_f16", "dequantize_bf16");
  by_dtype(k.scale, "scale_f32", "scale_f16", "scale_bf16");
  visit(arg, "unpack", k.unpack.name);
  visit(arg, "backward", k.backward.name);
  by_dtype(k.store, "store_f32", "store_f16", "store_bf16");
  if (k.backward_bf16.run == nullptr) return;
  visit(arg, "unpack_bf16", k.unpack_bf16.name);
  visit(arg, "backward_bf16", k.backward_bf16.name);
}

}  // namespace int8q::cpu
