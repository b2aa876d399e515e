// SPDX-License-Identifier: Apache-2.0
//
// Output that appears whole or not at all: a file or folder that is written beside `out` under a temporary name and
// renamed at the end. What is not kept is removed with the object.
#pragma once

#include <string>

namespace int8q::checkpoint {

class Staging {
 public:
  // Checks `out` (INVALID_ARGUMENT if it exists and may not be replaced, or is of the other kind); writes nothing.
  Staging(const std::string& out, bool overwrite, bool is_folder);
  ~Staging();
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  const std::string& out() const { return out_; }        // without trailing slashes
  const std::string& folder() const { return folder_; }  // that holds `out`

  // Where to write. begin() makes the folder if it is one.
  const std::string& path() const { return temporary_; }
  void begin();

  // Renames to `out`; what was there lies at path() then.
  void put_in_place();

  // `out` stays. Without it, the destructor brings back what was there.
  void keep() { placed_ = false; }

 private:
  bool take_back();

  std::string out_;
  std::string folder_;
  std::string temporary_;
  bool overwrite_;
  bool is_folder_;
  bool placed_ = false;
  bool replaced_ = false;
};

}  // namespace int8q::checkpoint
