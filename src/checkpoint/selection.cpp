// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/selection.h"

#include "checkpoint/files.h"
#include "core/error.h"

namespace int8q::checkpoint {
namespace {

constexpr size_t kLongestPattern = 1024;  // std::regex recurses at each parenthesis
constexpr size_t kLongestName = 1024;

[[noreturn]] void fail_pattern(const char* argument, const std::string& pattern, const char* why) {
  fail(INT8Q_INVALID_ARGUMENT, "%s pattern \"%s\": %s; expected an ECMAScript regex", argument, shown(pattern).c_str(),
       why);
}

}  // namespace

Patterns::Patterns(std::span<const char* const> patterns, const char* argument) : argument_(argument) {
  for (const char* pattern : patterns) {
    if (pattern == nullptr) {
      fail(INT8Q_INVALID_ARGUMENT, "%s[%zu] is NULL; expected an ECMAScript regex", argument, patterns_.size());
    }
    const std::string text(pattern);
    if (text.size() > kLongestPattern) fail_pattern(argument, text, "is longer than 1024 bytes");
    try {
      patterns_.push_back({text, std::regex(text, std::regex::ECMAScript)});
    } catch (const std::regex_error& error) {
      fail_pattern(argument, text, error.what());
    }
  }
}

bool Patterns::found_in(const std::string& name) const {
  if (name.size() > kLongestName) {
    fail(INT8Q_UNSUPPORTED, "tensor \"%s\" has a name of %zu bytes; expected at most %zu", shown(name).c_str(), name.size(),
         kLongestName);
  }
  for (const Pattern& pattern : patterns_) {
    try {
      if (std::regex_search(name, pattern.regex)) return true;
    } catch (const std::regex_error& error) {
      fail_pattern(argument_, pattern.text, error.what());
    }
  }
  return false;
}

bool module_prefix(std::string_view weight_name, std::string_view* prefix) {
  constexpr std::string_view kWeight = "weight";
  if (!weight_name.ends_with(kWeight)) return false;
  const std::string_view before = weight_name.substr(0, weight_name.size() - kWeight.size());
  if (!before.empty() && before.back() != '.') return false;
  *prefix = before;
  return true;
}

}  // namespace int8q::checkpoint
