// SPDX-License-Identifier: Apache-2.0
//
// Files by descriptor: whole reads and writes at an offset, the operating system's refusals as statuses with path and
// reason. Nothing here raises a signal: sizes are compared with the file-size limit before the first write.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace int8q::checkpoint {

// Text of a file or a caller for a message: control bytes replaced, cut at 200 bytes.
std::string shown(std::string_view text);

// The status of errno: NOT_FOUND, OUT_OF_MEMORY or IO; the message is "<path>: <what>: <strerror>".
[[noreturn]] void fail_errno(const std::string& path, const char* what);

// All of it, or IO.
void write_exactly(int fd, const std::string& path, const void* bytes, uint64_t count, uint64_t offset);

// Syncs a folder's entries, so that a rename in it survives a power cut.
void sync_folder(const std::string& path);

// The names in a folder, sorted; readdir instead of std::filesystem, whose iterators end the process where memory ends.
std::vector<std::string> names_in(const std::string& path);

// A regular file open for reading; symbolic links are followed.
class InputFile {
 public:
  explicit InputFile(const std::string& path);
  ~InputFile();
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  const std::string& path() const { return path_; }
  int fd() const { return fd_; }
  uint64_t bytes() const { return bytes_; }
  mode_t mode() const { return mode_; }

  // CORRUPT if the file ends before.
  void read_exactly(void* to, uint64_t count, uint64_t offset) const;

 private:
  std::string path_;
  int fd_;
  uint64_t bytes_ = 0;
  mode_t mode_ = 0;
};

// A new file of a known size. finish() syncs and closes it; without, it stays behind incomplete for its folder's or
// Staging's owner to remove.
class OutputFile {
 public:
  OutputFile(const std::string& path, uint64_t bytes, mode_t mode = 0666);
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  // What is large the disk begins to write at once, so that finish() finds little left to do.
  void write(const void* bytes, uint64_t count, uint64_t offset);
  void finish();

 private:
  std::string path_;
  int fd_;
};

std::string read_text(const std::string& path, uint64_t limit);
void write_text(const std::string& path, std::string_view text);

}  // namespace int8q::checkpoint
