// SPDX-License-Identifier: Apache-2.0
//
// A GPU with its primary context and our kernels on it; and a context's queue of work for it.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>

#include "core/memory.h"
#include "cuda/cublaslt_gemm.h"
#include "cuda/driver.h"
#include "cuda/images.h"
#include "cuda/kernels/portable.h"

namespace int8q::cuda {

// Functions of the image, by what they are launched for. NULL where the architecture has none.
struct Kernels {
  template <int kKinds>
  using ByAlignment = std::array<std::array<Function, 2>, kKinds>;  // [][aligned]

  ByAlignment<3> quantize_rows;  // by gpu::Dtype
  std::array<Function, 2> gemm;
  Function finish;                                // of what cuBLASLt multiplied
  Function gemm_small;                            // which takes aligned weights alone, as do those of wgmma:
  std::array<Function, 2> gemm_wgmma;             // by tiles of 128 and 256 columns
  ByAlignment<4> skinny;                          // for 8, 16, 32 and 64 rows
  std::array<Function, 4> skinny_fused;           // which takes aligned matrices alone
  ByAlignment<3> backward;                        // by gpu::Multiply, as what follows
  ByAlignment<3> w8a16_few, w8a16_skinny, w8a16;  // for W8a16SkinnyShape::kFew, kMost and any rows
  std::array<Function, 3> w8a16_small;            // which takes aligned matrices alone
  // By wgmma, of aligned matrices of fp16 or bf16: by gpu::Multiply and the tile's rows, 64, 128 and 256.
  std::array<std::array<Function, 3>, 2> w8a16_wgmma, backward_wgmma;
  Function finish_columns, list_columns, copy_codes, dequantize_rows, dequantize_accumulators, count_outliers;
};

// What the host must know of an architecture's kernels.
struct Tile {
  int m, n, threads;
  int (*shared_bytes)(int64_t k, bool outliers, bool kept);
};
struct Shapes {
  Tile large, small;
  std::array<Tile, 2> wgmma;  // of 128 and 256 columns; of no rows where there are none
  int skinny_rows;            // at most
};

class Device {
 public:
  // Opens it the first time. NO_DEVICE without such a GPU, kernels for it, or a driver that takes them. Never closed: its primary
  // context may be torch's.
  static Device& open(int ordinal);
  // Fails as open would, and leaves nothing open that was not.
  static void try_open(int ordinal);

  const Driver& driver;
  const int ordinal;
  std::string name;
  int major = 0, minor = 0, multiprocessors = 0, shared_bytes = 0;
  bool reads_pageable_memory = false;  // of the host
  DriverContext context = nullptr;
  const Image* image = nullptr;
  Kernels kernels{};
  Shapes shapes{};
  std::unique_ptr<CublasLt> cublaslt;  // NULL: our own kernels multiply

  bool has_wgmma() const { return shapes.wgmma[0].m != 0; }
  // INVALID_ARGUMENT for memory of the host or of another GPU that this one cannot read. The device is current.
  void expect_reachable(const void* p, const char* argument) const;
  // SIZE_OVERFLOW where a block of a kernel has not so much shared memory.
  void expect_shared(int bytes) const;

  // cuMemAlloc and cuMemFree, or theirs, called with this device current.
  Allocator allocator(const int8q_allocator* theirs);

 private:
  Device(const Driver& found, int which) : driver(found), ordinal(which) {}
  static std::unique_ptr<Device> started(const Driver& driver, int ordinal);
  void start();
  void close();
  void load_kernels();
  void find_kernels();

  Module module_ = nullptr;
};

// Makes the device's primary context this thread's while it lives. NO_DEVICE in a process that was forked since it was opened.
class Current {
 public:
  explicit Current(const Device& device) : driver_(require_driver()) {
    check(driver_.cuCtxPushCurrent(device.context), "cuCtxPushCurrent");
  }
  ~Current() {
    DriverContext popped;
    driver_.cuCtxPopCurrent(&popped);
  }
  Current(const Current&) = delete;
  Current& operator=(const Current&) = delete;

 private:
  const Driver& driver_;
};

// Where a context's work goes. All but launch() are for the making of linears, and may wait.
struct Queue {
  Device& device;
  Stream stream;
  uint64_t launches = 0;

  template <class Arguments>
  void launch(Function function, int64_t blocks, int threads, int shared_bytes, const Arguments& arguments) {
    void* parameters[] = {const_cast<Arguments*>(&arguments)};
    launch_with(function, blocks, threads, shared_bytes, parameters);
  }

  void count_launch();  // which somebody else made

  void upload(void* to, const void* from, int64_t bytes);
  void download(void* to, const void* from, int64_t bytes);
  // Rows of `bytes` bytes, from the device to it or to the host.
  void copy_rows(void* to, int64_t to_stride, const void* from, int64_t from_stride, int64_t bytes, int64_t rows,
                 bool to_host = false);
  void wait();

 private:
  void launch_with(Function function, int64_t blocks, int threads, int shared_bytes, void** parameters);
};

// One line of diagnosis a GPU, for int8q_diagnose_json, of what is known before it is opened.
struct Gpu {
  std::string name;
  int major, minor;
  const Image* image;  // NULL: none
  const char* state;   // "works", or as why says
  std::string why;     // for people; empty: it may work
};
Gpu describe_gpu(int ordinal);

}  // namespace int8q::cuda
