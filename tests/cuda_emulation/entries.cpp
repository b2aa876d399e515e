// SPDX-License-Identifier: Apache-2.0
//
// Compiled once for each INT8Q_ARCH.
#include "cuda_emulation/entries.h"

#define INT8Q_EMULATED_KERNEL(name, threads, Arguments)                                                      \
  static void name##_entry(const Arguments& p);                                                              \
  static const emulation::Registration name##_registration(                                                  \
      #name, INT8Q_ARCH,                                                                                     \
      {threads, sizeof(Arguments), [](const void* p) { name##_entry(*static_cast<const Arguments*>(p)); }}); \
  static void name##_entry(const Arguments& p)

#include "cuda/kernels/entries.cu"
