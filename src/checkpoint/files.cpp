// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/files.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>

#include "core/error.h"

namespace int8q::checkpoint {
namespace {

using ull = unsigned long long;

constexpr uint64_t kLargestTransfer = 1u << 30;  // Linux moves at most 2^31 - 4096 bytes a call
constexpr uint64_t kWorthStarting = 256u << 10;  // smaller writes end inside pages, which would be written twice

// A write past RLIMIT_FSIZE raises SIGXFSZ, which ends the process by default: refuse before instead.
void check_file_size_limit(const std::string& path, uint64_t bytes) {
  rlimit limit;
  if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY && bytes > limit.rlim_cur) {
    fail(INT8Q_IO,
         "%s: %llu bytes are to be written and this process may write files of at most %llu (ulimit -f); "
         "raise the limit",
         shown(path).c_str(), static_cast<ull>(bytes), static_cast<ull>(limit.rlim_cur));
  }
}

}  // namespace

std::string shown(std::string_view text) {
  constexpr size_t kLongest = 200;
  std::string copy(text.substr(0, kLongest));
  for (size_t i = 0; i < copy.size(); ++i) {
    const auto byte = static_cast<unsigned char>(copy[i]);
    // C1 controls are two bytes in UTF-8: 0xc2, then 0x80 to 0x9f.
    const bool c1 = byte >= 0x80 && byte < 0xa0 && i > 0 && static_cast<unsigned char>(text[i - 1]) == 0xc2;
    if (byte < 0x20 || byte == 0x7f || c1) copy[i] = '?';
  }
  return text.size() > kLongest ? copy + "..." : copy;
}

void fail_errno(const std::string& path, const char* what) {
  const int error = errno;
  const int32_t status = error == ENOENT || error == ENOTDIR ? INT8Q_NOT_FOUND
                         : error == ENOMEM                   ? INT8Q_OUT_OF_MEMORY
                                                             : INT8Q_IO;
  char reason[128];
  fail(status, "%s: %s: %s", shown(path).c_str(), what, strerror_r(error, reason, sizeof reason));
}

void write_exactly(int fd, const std::string& path, const void* bytes, uint64_t count, uint64_t offset) {
  const char* from = static_cast<const char*>(bytes);
  while (count > 0) {
    const ssize_t written = ::pwrite(fd, from, std::min(count, kLargestTransfer), static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail_errno(path, "writing failed");
    if (written == 0) fail(INT8Q_IO, "%s: writing failed: the system wrote nothing", shown(path).c_str());
    from += written;
    offset += static_cast<uint64_t>(written);
    count -= static_cast<uint64_t>(written);
  }
}

void sync_folder(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) fail_errno(path, "opening the folder failed");
  const int failed = ::fsync(fd);
  const int error = errno;
  ::close(fd);
  if (failed != 0 && error != EINVAL) {  // EINVAL: a file system whose folders cannot be synced
    errno = error;
    fail_errno(path, "syncing the folder failed");
  }
}

std::vector<std::string> names_in(const std::string& path) {
  const std::unique_ptr<DIR, int (*)(DIR*)> folder(::opendir(path.c_str()), ::closedir);
  if (folder == nullptr) fail_errno(path, "opening the folder failed");
  std::vector<std::string> names;
  errno = 0;
  while (const dirent* entry = ::readdir(folder.get())) {
    const std::string name = entry->d_name;
    if (name != "." && name != "..") names.push_back(name);
    errno = 0;
  }
  if (errno != 0) fail_errno(path, "listing the folder failed");
  std::sort(names.begin(), names.end());
  return names;
}

InputFile::InputFile(const std::string& path)
    : path_(path), fd_(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {  // O_NONBLOCK: a FIFO must not hang
  if (fd_ < 0) fail_errno(path, "opening failed");
  struct stat status;
  if (::fstat(fd_, &status) != 0 || !S_ISREG(status.st_mode)) {
    ::close(fd_);
    fail(INT8Q_IO, "%s: not a regular file; pass a file's path", shown(path).c_str());
  }
  bytes_ = static_cast<uint64_t>(status.st_size);
  mode_ = status.st_mode & 0777;
}

InputFile::~InputFile() { ::close(fd_); }

void InputFile::read_exactly(void* to, uint64_t count, uint64_t offset) const {
  char* at = static_cast<char*>(to);
  while (count > 0) {
    const ssize_t got = ::pread(fd_, at, std::min(count, kLargestTransfer), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail_errno(path_, "reading failed");
    if (got == 0) {
      fail(INT8Q_CORRUPT, "%s: ends at byte %llu, %llu bytes early; it was cut while it was read", shown(path_).c_str(),
           static_cast<ull>(offset), static_cast<ull>(count));
    }
    at += got;
    offset += static_cast<uint64_t>(got);
    count -= static_cast<uint64_t>(got);
  }
}

OutputFile::OutputFile(const std::string& path, uint64_t bytes, mode_t mode) : path_(path), fd_(-1) {
  check_file_size_limit(path, bytes);
  fd_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, mode);
  if (fd_ < 0) fail_errno(path, "creating failed");
  // Reserves the space: a disk that is too small is known now, not after an hour. Not every file system can.
  if (bytes > 0 && ::fallocate(fd_, 0, 0, static_cast<off_t>(bytes)) != 0 &&
      (errno == ENOSPC || errno == EDQUOT || errno == EFBIG || errno == EIO)) {
    const int error = errno;
    ::close(fd_);
    errno = error;
    fail_errno(path, "reserving space failed");
  }
}

OutputFile::~OutputFile() {
  if (fd_ >= 0) ::close(fd_);
}

void OutputFile::write(const void* bytes, uint64_t count, uint64_t offset) {
  write_exactly(fd_, path_, bytes, count, offset);
  if (count >= kWorthStarting)
    ::sync_file_range(fd_, static_cast<off_t>(offset), static_cast<off_t>(count), SYNC_FILE_RANGE_WRITE);
}

void OutputFile::finish() {
  if (::fsync(fd_) != 0) fail_errno(path_, "syncing failed");
  const int fd = fd_;
  fd_ = -1;  // Linux frees the descriptor whatever close returns
  if (::close(fd) != 0 && errno != EINTR) fail_errno(path_, "closing failed");
}

std::string read_text(const std::string& path, uint64_t limit) {
  const InputFile file(path);
  if (file.bytes() > limit) {
    fail(INT8Q_CORRUPT, "%s: has %llu bytes; expected at most %llu", shown(path).c_str(), static_cast<ull>(file.bytes()),
         static_cast<ull>(limit));
  }
  std::string text(file.bytes(), '\0');
  file.read_exactly(text.data(), text.size(), 0);
  return text;
}

void write_text(const std::string& path, std::string_view text) {
  OutputFile file(path, text.size());
  file.write(text.data(), text.size(), 0);
  file.finish();
}

}  // namespace int8q::checkpoint
