// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/staging.h"

#include <fcntl.h>
#include <ftw.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

#include "checkpoint/files.h"
#include "checkpoint/folder.h"
#include "core/error.h"

namespace int8q::checkpoint {
namespace {

std::string temporary_in(const std::string& folder) {
  uint64_t random = 0;
  if (::getrandom(&random, sizeof random, 0) != sizeof random) fail_errno(folder, "drawing a random name failed");
  char name[64];
  std::snprintf(name, sizeof name, "/.int8q-%016llx.tmp", static_cast<unsigned long long>(random));
  return folder + name;
}

// A folder that a checkpoint may replace: another one, or an empty folder.
bool is_replaceable(const std::string& folder) {
  struct stat status;
  for (const char* name : {kSingleName, kIndexName, kConfigName}) {
    if (::lstat((folder + "/" + name).c_str(), &status) == 0) return true;
  }
  return names_in(folder).empty();
}

bool no_such_operation() { return errno == EINVAL || errno == ENOSYS || errno == ENOTSUP; }

// Swaps two names: at once where the file system can, else by a third name.
bool exchange(const std::string& a, const std::string& b) {
  if (::renameat2(AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), RENAME_EXCHANGE) == 0) return true;
  if (!no_such_operation()) return false;
  const std::string aside = a + ".old";
  if (::rename(b.c_str(), aside.c_str()) != 0) return false;
  const bool moved = ::rename(a.c_str(), b.c_str()) == 0;
  if (moved && ::rename(aside.c_str(), a.c_str()) == 0) return true;
  const int error = errno;
  if (moved) ::rename(b.c_str(), a.c_str());
  ::rename(aside.c_str(), b.c_str());
  errno = error;
  return false;
}

// Renames unless `to` exists; a file system that cannot promise that renames after a look.
bool rename_new(const std::string& from, const std::string& to) {
  if (::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_NOREPLACE) == 0) return true;
  if (!no_such_operation()) return false;
  struct stat status;
  if (::lstat(to.c_str(), &status) == 0) {
    errno = EEXIST;
    return false;
  }
  return ::rename(from.c_str(), to.c_str()) == 0;
}

// Removes a file or folder; what a symbolic link leads to stays.
void remove_tree(const std::string& path) {
  constexpr int kOpenFolders = 16;
  const auto remove_one = [](const char* name, const struct stat*, int, FTW*) {
    ::remove(name);
    return 0;  // goes on with the rest
  };
  ::nftw(path.c_str(), remove_one, kOpenFolders, FTW_DEPTH | FTW_PHYS);
}

}  // namespace

Staging::Staging(const std::string& out, bool overwrite, bool is_folder)
    : out_(out), overwrite_(overwrite), is_folder_(is_folder) {
  while (out_.size() > 1 && out_.back() == '/') out_.pop_back();
  const size_t slash = out_.rfind('/');
  const std::string name = slash == std::string::npos ? out_ : out_.substr(slash + 1);
  if (name.empty() || name == "." || name == "..") {
    fail(INT8Q_INVALID_ARGUMENT, "out is \"%s\"; expected a path that ends in a name", shown(out).c_str());
  }
  folder_ = slash == std::string::npos ? "." : slash == 0 ? "/" : out_.substr(0, slash);
  struct stat status;
  if (::stat(folder_.c_str(), &status) != 0) fail_errno(folder_, "looking the folder of `out` up failed");
  if (!S_ISDIR(status.st_mode))
    fail(INT8Q_NOT_FOUND, "%s: is no folder; expected the folder of `out`", shown(folder_).c_str());
  if (::lstat(out_.c_str(), &status) == 0) {
    const bool folder_there = ::stat(out_.c_str(), &status) == 0 && S_ISDIR(status.st_mode);
    if (!overwrite) {
      fail(INT8Q_INVALID_ARGUMENT, "out is \"%s\", which exists; pass another path or set overwrite to 1",
           shown(out_).c_str());
    }
    if (folder_there != is_folder) {
      fail(INT8Q_INVALID_ARGUMENT, "out is \"%s\", a %s; expected a %s as `in` is, or a path that is free",
           shown(out_).c_str(), folder_there ? "folder" : "file", is_folder ? "folder" : "file");
    }
    if (folder_there && !is_replaceable(out_)) {
      fail(INT8Q_INVALID_ARGUMENT,
           "out is \"%s\", a folder with files and no checkpoint; expected one, or a path that is free",
           shown(out_).c_str());
    }
  }
  temporary_ = temporary_in(folder_);
}

Staging::~Staging() {
  try {
    // Where the old output cannot be brought back it lies under the temporary name: that must stay.
    if (placed_ && !take_back()) return;
  } catch (...) {
    return;
  }
  remove_tree(temporary_);
}

void Staging::begin() {
  if (is_folder_ && ::mkdir(temporary_.c_str(), 0777) != 0) fail_errno(temporary_, "creating the folder failed");
}

void Staging::put_in_place() {
  if (is_folder_) sync_folder(temporary_);
  placed_ = rename_new(temporary_, out_);
  if (!placed_ && errno == EEXIST && overwrite_) placed_ = replaced_ = exchange(temporary_, out_);
  if (!placed_) fail_errno(out_, "renaming the finished output failed");
  sync_folder(folder_);
}

bool Staging::take_back() {
  return replaced_ ? exchange(temporary_, out_) : ::rename(out_.c_str(), temporary_.c_str()) == 0;
}

}  // namespace int8q::checkpoint
