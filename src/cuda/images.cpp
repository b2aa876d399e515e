// SPDX-License-Identifier: Apache-2.0
#include "cuda/images.h"

#include <cstdlib>
#include <cstring>

// images.inc, which the build writes: INT8Q_IMAGE(name, suffix, capability, tag, runs, driver, file) for each.
#if INT8Q_HAS_KERNELS
#define INT8Q_IMAGE(name, suffix, capability, tag, runs, driver, file)                                                    \
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
#define INT8Q_IMAGE(name, suffix, capability, tag, runs, driver, file) \
  {#name, #suffix, capability, tag, Runs::runs, driver, int8q_image_##suffix},
#include "images.inc"
#undef INT8Q_IMAGE
#endif
    {nullptr, nullptr, 0, 0, Runs::kLater, 0, nullptr}};

}  // namespace

std::span<const Image> images() { return std::span(kImages).first(std::size(kImages) - 1); }

bool runs_on(const Image& image, int major, int minor) {
  const int capability = major * 10 + minor;
  // Tegra's GPUs, Orin's say, do not run the cubins of others.
  const bool tegra = capability == 72 || capability == 87 || capability == 88 || capability == 101 || capability == 110;
  switch (image.runs) {
    case Runs::kOnMajor: return !tegra && image.capability / 10 == major && image.capability <= capability;
    case Runs::kAlone: return image.capability == capability;
    default: return image.capability <= capability;
  }
}

const char* forced_image() {
  const char* forced = std::getenv("INT8Q_CUDA_IMAGE");
  return forced == nullptr || *forced == '\0' ? nullptr : forced;
}

const Image* image_for(int major, int minor) {
  const char* forced = forced_image();
  const Image* best = nullptr;
  for (const Image& image : images()) {
    if (!runs_on(image, major, minor)) continue;
    if (forced != nullptr) {
      if (std::strcmp(image.name, forced) == 0) return &image;
    } else if (image.runs != Runs::kLater || best == nullptr) {  // what is for it alone comes behind what others run, too
      best = &image;
    }
  }
  return best;
}

}  // namespace int8q::cuda
