// SPDX-License-Identifier: Apache-2.0
//
// Of several GPUs' global memory what the running kernel's GPU reaches, for a driver that plays them.
#pragma once

namespace int8q::emulation {

extern bool (*reaches)(const void* p);  // NULL: all of it

}  // namespace int8q::emulation
