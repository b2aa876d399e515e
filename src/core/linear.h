// SPDX-License-Identifier: Apache-2.0
//
// The linear layer's handle: immutable, shared freely, independent of ISA and context.
#pragma once

#include "core/blob.h"
#include "core/memory.h"

namespace int8q::cuda {
struct DeviceWeights;
}

struct int8q_linear {
  static constexpr uint64_t kMagic = 0x69387143'4c696e72u;  // "i8qCLinr"

  uint64_t magic = kMagic;
  int8q::Allocator handles;               // host memory
  int8q::Allocator allocator;             // of the weights
  void* owned;                            // the blob if the library made it, else NULL
  int8q::BlobSections blob;               // on a GPU only the header, which is that of on_device
  int8q::cuda::DeviceWeights* on_device;  // NULL: the CPU's

  int32_t outlier_mode() const { return blob.header->outlier_mode; }
  float threshold() const { return blob.header->threshold; }
  int64_t n() const { return blob.header->n; }
  int64_t k() const { return blob.header->k; }
};

namespace int8q {

using Linear = int8q_linear;

}  // namespace int8q
