// SPDX-License-Identifier: Apache-2.0
//
// The kernels that this library carries: a cubin an architecture, and PTX for GPUs to come.
#pragma once

#include <cstdint>
#include <span>

namespace int8q::cuda {

enum class Runs {
  kOnMajor,  // cubin: GPUs of its major version and no earlier minor one
  kAlone,    // cubin of an architecture with "a" behind it: GPUs of that capability
  kLater,    // PTX: any GPU from its capability on
};

struct Image {
  const char* name;    // "sm_90", "compute_80"
  const char* suffix;  // of its kernels' names: "sm90", "ptx80"
  int capability;      // 90
  int tag;             // of arch.h: whose shapes its kernels have
  Runs runs;
  int driver;  // the oldest that takes it, by its CUDA's version: 12090
  const uint8_t* data;
};

// In ascending order of capability, one with "a" behind its namesake, PTX last. Empty in a build without kernels.
std::span<const Image> images();

bool runs_on(const Image& image, int major, int minor);

// INT8Q_CUDA_IMAGE of the environment; NULL: unset or empty.
const char* forced_image();

// What a GPU of this capability runs: a cubin before PTX, the latest; or what INT8Q_CUDA_IMAGE names. NULL if there is none.
const Image* image_for(int major, int minor);

}  // namespace int8q::cuda
