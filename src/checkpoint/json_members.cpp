// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/json_members.h"

#include <nlohmann/json.hpp>

#include "checkpoint/files.h"
#include "core/error.h"

namespace int8q::checkpoint {
namespace {

constexpr int kDeepest = 100;

class MembersHandler {
 public:
  MembersHandler(const std::string& path, JsonMembers& members) : path_(path), members_(members) {}

  bool null() { return scalar({false, "null"}); }
  bool boolean(bool value) { return scalar({false, value ? "true" : "false"}); }
  bool number_integer(int64_t value) { return scalar({false, std::to_string(value)}); }
  bool number_unsigned(uint64_t value) { return scalar({false, std::to_string(value)}); }
  bool number_float(double, const std::string& text) { return scalar({false, text}); }
  bool string(std::string& text) { return scalar({true, text}); }
  bool binary(std::vector<std::uint8_t>&) { return scalar({}); }

  bool start_object(size_t) {
    scalar({});
    if (depth_ == 1) members_.children[top_];
    return deeper(true);
  }
  bool start_array(size_t) {
    scalar({});
    return deeper(false);
  }
  bool end_object() { return --depth_ >= 0; }
  bool end_array() { return --depth_ >= 0; }

  bool key(std::string& text) {
    if (depth_ == 2) child_ = text;
    if (depth_ != 1) return true;
    if (!members_.members.emplace(text, JsonScalar{}).second) {
      fail(INT8Q_CORRUPT, "%s: has the member \"%s\" twice", shown(path_).c_str(), shown(text).c_str());
    }
    top_ = text;
    return true;
  }

  template <class Exception>
  bool parse_error(size_t position, const std::string&, const Exception& error) {
    fail(INT8Q_CORRUPT, "%s: not JSON at byte %zu: %s", shown(path_).c_str(), position, shown(error.what()).c_str());
  }

 private:
  bool scalar(const JsonScalar& value) {
    if (depth_ == 0 && !value.text.empty()) fail(INT8Q_CORRUPT, "%s: expected a JSON object", shown(path_).c_str());
    if (depth_ == 1) members_.members[top_] = value;
    if (depth_ == 2 && in_object_) members_.children[top_][child_] = value;
    return true;
  }

  bool deeper(bool object) {
    if (depth_ == 0 && !object) fail(INT8Q_CORRUPT, "%s: expected a JSON object", shown(path_).c_str());
    if (depth_ == 1) in_object_ = object;
    if (++depth_ > kDeepest) {
      fail(INT8Q_CORRUPT, "%s: JSON is nested deeper than %d", shown(path_).c_str(), kDeepest);
    }
    return true;
  }

  const std::string& path_;
  JsonMembers& members_;
  int depth_ = 0;
  bool in_object_ = false;  // the member of the top object is an object
  std::string top_, child_;
};

}  // namespace

JsonMembers read_members(const std::string& json, const std::string& path) {
  if (json.find('\0') != std::string::npos) {  // the parser would take it for the end
    fail(INT8Q_CORRUPT, "%s: has a NUL byte; expected JSON", shown(path).c_str());
  }
  JsonMembers members;
  MembersHandler handler(path, members);
  nlohmann::json::sax_parse(json.begin(), json.end(), &handler);
  return members;
}

std::string quoted(const std::string& text) { return nlohmann::json(text).dump(); }

}  // namespace int8q::checkpoint
