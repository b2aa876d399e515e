// SPDX-License-Identifier: Apache-2.0
#include "cuda/images.h"

#include <cstdlib>
#include <cstring>

// images.inc, which the build writes: INT8Q_IMAGE(name, suffix, capability, tag, runs, file) for each.
#if INT8Q_HAS_KERNELS
#define INT8Q_IMAGE(name, suffix, capability, tag, runs, file)                                                            \
  asm(".pushsection .rodata.int8q_images,\"a\"\n.balign 64\n.hidden int8q_image_" #suffix "\n.globl int8q_image_" #suffix \
      "\nint8q_image_" #suffix ":\n.incbin \"" file "\"\n.byte 0\n.popsection\n");                                        \
  extern "C" __attribute__((visibility("hidden"))) const uint8_t int8q_image_##suffix[];
#include "images.inc"
#undef INT8Q_IMAGE
#endif

namespace int8q::cuda {
namespace {

constexpr Image kImages[] = {
#if INT8Q_HAS_KERNELS
#define INT8Q_IMAGE(name, suffix, capability, tag, runs, file) \
  {#name, #suffix, capability, tag, Runs::runs, int8q_image_##suffix},
#include "images.inc"
#undef INT8Q_IMAGE
#endif
    {nullptr, nullptr, 0, 0, Runs::kLater, nullptr}};

}  // namespace

std::span<const Image> images() { return std::span(kImages).first(std::size(kImages) - 1); }

const Image* image_for(int major, int minor) {
  const int capability = major * 10 + minor;
  const char* forced = std::getenv("INT8Q_CUDA_IMAGE");
  // Tegra's GPUs, Orin's say, do not run the cubins of others.
  const bool tegra = capability == 72 || capability == 87 || capability == 101 || capability == 110;
  const Image* best = nullptr;
  for (const Image& image : images()) {
    if (forced != nullptr && *forced != '\0') {
      if (std::strcmp(image.name, forced) == 0) return &image;
    } else if (image.runs == Runs::kOnMajor && !tegra && image.capability / 10 == major && image.capability <= capability) {
      best = &image;
    } else if (image.runs == Runs::kLater && image.capability <= capability && best == nullptr) {
      best = &image;
    }
  }
  return best;
}

}  // namespace int8q::cuda
