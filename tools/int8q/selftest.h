// SPDX-License-Identifier: Apache-2.0
//
// The self-test, for selftest and doctor.
#pragma once

#include <nlohmann/json.hpp>

namespace tool {

// {"isa", "checked", "wrong", "kernels": [{"operation", "kernel", "checked", "wrong"}]}; isa NULL: the default.
nlohmann::ordered_json run_selftest(const char* isa);

}  // namespace tool
