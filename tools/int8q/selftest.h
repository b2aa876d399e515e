// SPDX-License-Identifier: Apache-2.0
//
// The library's descriptions of itself, and the self-test, for selftest and doctor.
#pragma once

#include <functional>
#include <string>

#include <nlohmann/json.hpp>

#include "int8q/int8q.h"

namespace tool {

// Text of a function with int8q_diagnose_json's buffer convention.
std::string call_for_text(const std::function<int32_t(char*, uint64_t, uint64_t*)>& call);

nlohmann::ordered_json diagnose();
nlohmann::ordered_json describe(int8q_context* context);

// {"isa", "checked", "wrong", "kernels": [{"operation", "kernel", "checked", "wrong"}]}; isa NULL: the default.
nlohmann::ordered_json run_selftest(const char* isa);

}  // namespace tool
