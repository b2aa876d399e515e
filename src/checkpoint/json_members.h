// SPDX-License-Identifier: Apache-2.0
//
// The little that is read of a model's JSON files, without a document tree: nlohmann::json's destructor allocates, and
// ends the process where that fails.
#pragma once

#include <map>
#include <string>

namespace int8q::checkpoint {

// A member that is no object and no array: a string's value, or the text of a number, true, false or null.
struct JsonScalar {
  bool is_string = false;
  std::string text;  // "" for an object or array, which is not kept
};

struct JsonMembers {
  std::map<std::string, JsonScalar> members;                          // of the top object
  std::map<std::string, std::map<std::string, JsonScalar>> children;  // of its members that are objects
};

// CORRUPT for what is no JSON object, is nested deeper than 100, or has a member of the top object twice.
JsonMembers read_members(const std::string& json, const std::string& path);

// A JSON string.
std::string quoted(const std::string& text);

}  // namespace int8q::checkpoint
