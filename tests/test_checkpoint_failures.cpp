// SPDX-License-Identifier: Apache-2.0
//
// int8q_quantize_checkpoint that cannot succeed: the status, the words of the message, and nothing left behind. The system
// calls that write are replaced by ones that fail at their nth call; so is operator new. Long because all of it goes through
// those replacements.
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <new>

#include "support/checkpoint_calls.h"

namespace {

// The call that fails: `armed` counts down at each call of the named kind, and 0 fails it, once.
enum Call { kNone, kPwrite, kPread, kFsync, kClose, kFallocate, kRename, kPlainRename, kMkdir, kNew };
std::atomic<int> kind{kNone};
std::atomic<int64_t> countdown{0};
std::atomic<bool> fired{false};
std::atomic<int> error_code{EIO};
std::atomic<bool> without_rename_flags{false};  // a file system that knows neither exchange nor no-replace
std::atomic<bool> stutter{false};               // pwrite and pread move 7 bytes a call, and every other call is interrupted

bool fails(Call call) {
  if (kind.load(std::memory_order_relaxed) != call || countdown.fetch_sub(1) != 0) return false;
  fired = true;
  errno = error_code;
  return true;
}

template <class Function>
Function* next(const char* name) {
  return reinterpret_cast<Function*>(::dlsym(RTLD_NEXT, name));
}

bool interrupted() {
  static std::atomic<unsigned> calls{0};
  if (!stutter || calls.fetch_add(1) % 2 == 0) return false;
  errno = EINTR;
  return true;
}

}  // namespace

extern "C" {
ssize_t pwrite(int fd, const void* bytes, size_t count, off_t offset) {
  static auto* const real = next<ssize_t(int, const void*, size_t, off_t)>("pwrite");
  if (fails(kPwrite) || interrupted()) return -1;
  return real(fd, bytes, stutter && count > 7 ? 7 : count, offset);
}
ssize_t pread(int fd, void* bytes, size_t count, off_t offset) {
  static auto* const real = next<ssize_t(int, void*, size_t, off_t)>("pread");
  if (fails(kPread) || interrupted()) return -1;
  return real(fd, bytes, stutter && count > 7 ? 7 : count, offset);
}
int fsync(int fd) {
  static auto* const real = next<int(int)>("fsync");
  return fails(kFsync) ? -1 : real(fd);
}
int close(int fd) {
  static auto* const real = next<int(int)>("close");
  const int result = real(fd);
  return fails(kClose) ? -1 : result;
}
int fallocate(int fd, int mode, off_t offset, off_t length) {
  static auto* const real = next<int(int, int, off_t, off_t)>("fallocate");
  return fails(kFallocate) ? -1 : real(fd, mode, offset, length);
}
int renameat2(int from_fd, const char* from, int to_fd, const char* to, unsigned flags) noexcept {
  static auto* const real = next<int(int, const char*, int, const char*, unsigned)>("renameat2");
  if (!without_rename_flags || flags == 0) return fails(kRename) ? -1 : real(from_fd, from, to_fd, to, flags);
  errno = EINVAL;
  return -1;
}
int rename(const char* from, const char* to) noexcept {
  static auto* const real = next<int(const char*, const char*)>("rename");
  return fails(kPlainRename) ? -1 : real(from, to);
}
int mkdir(const char* path, mode_t mode) noexcept {
  static auto* const real = next<int(const char*, mode_t)>("mkdir");
  return fails(kMkdir) ? -1 : real(path, mode);
}
}

[[gnu::noinline]] void* operator new(size_t bytes) {
  if (fails(kNew)) throw std::bad_alloc();
  void* memory = std::malloc(bytes == 0 ? 1 : bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
// Out of line: inlined, free and new look mismatched to the compiler.
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace int8q::test {
namespace {

// The names and contents of everything below a folder.
std::vector<std::pair<std::string, std::string>> contents(const std::string& folder) {
  std::vector<std::pair<std::string, std::string>> all;
  for (const std::string& path : tree(folder)) {
    all.emplace_back(path, std::filesystem::is_regular_file(folder + "/" + path) ? read_bytes(folder + "/" + path) : "");
  }
  return all;
}

class Failures : public ::testing::Test {
 protected:
  void SetUp() override {
    write_sharded_model(folder_ / "in");
    write_bytes(folder_ / "in.safetensors",
                make_safetensors({f32_tensor("a.weight", {2, 2}, {1, 2, 3, 4}),
                                  f32_tensor("b.weight", {2, 2}, {1, 2, 3, 4}), f32_tensor("b.bias", {2}, {1, 2})}));
  }
  void TearDown() override {
    kind = kNone;
    without_rename_flags = false;
  }

  // The call fails as told and changes nothing on the disk.
  void expect(Quantize call, int32_t status, const std::string& word) {
    const auto before = contents(folder_.path());
    EXPECT_EQ(call.run(context_), status) << int8q_last_error();
    EXPECT_TRUE(message_has(word)) << "expected \"" << word << "\" in: " << int8q_last_error();
    EXPECT_TRUE(contents(folder_.path()) == before) << "something changed: " << int8q_last_error();
  }
  Quantize file_call() { return {.in = folder_ / "in.safetensors", .out = folder_ / "out.safetensors"}; }
  Quantize folder_call() { return {.in = folder_ / "in", .out = folder_ / "out"}; }

  void replace(const std::string& file, const std::string& from, const std::string& to) {
    std::string text = read_bytes(folder_ / file);
    const size_t at = text.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    write_bytes(folder_ / file, text.replace(at, from.size(), to));
  }

  TempFolder folder_;
  const ContextPtr context_ = make_context(2);
};

// ---- arguments

TEST_F(Failures, Arguments) {
  int8q_context* context = context_.get();
  const std::string in = folder_ / "in.safetensors", out = folder_ / "out";
  EXPECT_EQ(int8q_quantize_checkpoint(nullptr, in.c_str(), out.c_str(), nullptr, nullptr, nullptr), INT8Q_INVALID_HANDLE);
  EXPECT_EQ(int8q_quantize_checkpoint(context, nullptr, out.c_str(), nullptr, nullptr, nullptr), INT8Q_INVALID_ARGUMENT);
  EXPECT_EQ(int8q_quantize_checkpoint(context, in.c_str(), nullptr, nullptr, nullptr, nullptr), INT8Q_INVALID_ARGUMENT);
  int8q_checkpoint_options options{};
  options.size = 8;
  EXPECT_EQ(int8q_quantize_checkpoint(context, in.c_str(), out.c_str(), &options, nullptr, nullptr), INT8Q_ABI_MISMATCH);
  options.size = sizeof options;
  options.dry_run = 2;
  EXPECT_EQ(int8q_quantize_checkpoint(context, in.c_str(), out.c_str(), &options, nullptr, nullptr),
            INT8Q_INVALID_ARGUMENT);
  options.dry_run = 0;
  options.include_count = 1;
  EXPECT_EQ(int8q_quantize_checkpoint(context, in.c_str(), out.c_str(), &options, nullptr, nullptr),
            INT8Q_INVALID_ARGUMENT);
  options.include_count = 0;
  options.exclude_count = -1;
  EXPECT_EQ(int8q_quantize_checkpoint(context, in.c_str(), out.c_str(), &options, nullptr, nullptr),
            INT8Q_INVALID_ARGUMENT);
  for (const float threshold : {-1.0f, std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    Quantize call = file_call();
    call.threshold = threshold;
    expect(call, INT8Q_INVALID_ARGUMENT, "threshold");
  }
  EXPECT_EQ(int8q_quantize_checkpoint(context, in.c_str(), out.c_str(), nullptr, nullptr, nullptr), INT8Q_OK)
      << int8q_last_error();
}

TEST_F(Failures, Patterns) {
  const std::string long_pattern(1025, 'a'), nested = std::string(512, '(') + std::string(512, ')');
  for (const char* pattern : {"(", "[a", "a{2,1}", "*", "\\"}) {
    Quantize call = file_call();
    call.use_include = true;
    call.include = {"fine", pattern};
    expect(call, INT8Q_INVALID_ARGUMENT, std::string("include pattern \"") + pattern + "\"");
    std::swap(call.include, call.exclude);
    std::swap(call.use_include, call.use_exclude);
    expect(call, INT8Q_INVALID_ARGUMENT, std::string("exclude pattern \"") + pattern + "\"");
  }
  Quantize call = file_call();
  call.use_include = true;
  call.include = {"fine", nullptr};
  expect(call, INT8Q_INVALID_ARGUMENT, "include[1] is NULL");
  call.include = {long_pattern.c_str()};
  expect(call, INT8Q_INVALID_ARGUMENT, "longer than 1024");
  call.include = {nested.c_str()};
  EXPECT_EQ(call.run(context_), INT8Q_OK) << int8q_last_error();
}

TEST_F(Failures, LongNames) {
  const auto file = [&](size_t length) {
    write_bytes(folder_ / "long", make_safetensors({f32_tensor(std::string(length - 7, 'n') + ".weight", {1, 1}, {1})}));
    Quantize call{.in = folder_ / "long", .out = folder_ / "out"};
    call.use_exclude = true;
    call.exclude = {"(.|x)*y"};
    return call;
  };
  expect(file(1025), INT8Q_UNSUPPORTED, "1025 bytes");
  EXPECT_EQ(file(1024).run(context_), INT8Q_OK) << int8q_last_error();
}

TEST_F(Failures, Paths) {
  Quantize call = file_call();
  call.in = folder_ / "missing";
  expect(call, INT8Q_NOT_FOUND, "missing");
  call = file_call();
  call.out = folder_ / "no/such/folder/x";
  expect(call, INT8Q_NOT_FOUND, "no/such/folder");
  for (const char* out : {"", "/", ".", "..", "x/."}) {
    call.out = out;
    expect(call, INT8Q_INVALID_ARGUMENT, "ends in a name");
  }
  call.out = folder_ / "in.safetensors/x";
  expect(call, INT8Q_NOT_FOUND, "is no folder");
  call.out = folder_ / std::string(256, 'x');
  expect(call, INT8Q_IO, "too long");
  call = folder_call();
  call.out = folder_ / "in/out";
  expect(call, INT8Q_INVALID_ARGUMENT, "one lies in the other");
  call = folder_call();
  call.in = folder_ / "in/1_Pooling";
  call.out = folder_ / "in";
  call.overwrite = true;
  expect(call, INT8Q_INVALID_ARGUMENT, "one lies in the other");
}

TEST_F(Failures, UnwritableFolder) {
  std::filesystem::create_directory(folder_ / "locked");
  ASSERT_EQ(::chmod(folder_.path().c_str(), 0755), 0);
  ASSERT_EQ(::chmod((folder_ / "locked").c_str(), 0555), 0);
  constexpr uid_t kNobody = 65534;
  const bool root = ::geteuid() == 0;  // who writes everywhere
  if (root && ::seteuid(kNobody) != 0) GTEST_SKIP() << "cannot stop being root: " << strerror(errno);
  for (Quantize call : {file_call(), folder_call()}) {
    call.out = folder_ / "locked/out";
    expect(call, INT8Q_IO, "Permission denied");
  }
  if (root) {
    ASSERT_EQ(::seteuid(0), 0);
  }
}

TEST_F(Failures, ReadOnlyPlaces) {  // root, too, cannot create files there
  Quantize call = file_call();
  call.out = "/proc/int8q-out";
  expect(call, INT8Q_NOT_FOUND, "/proc/");
  call = folder_call();
  call.out = "/proc/int8q-out";
  expect(call, INT8Q_NOT_FOUND, "/proc/");
}

// ---- overwriting

TEST_F(Failures, AnExistingOutputIsKept) {
  write_bytes(folder_ / "out.safetensors", "precious");
  write_bytes(folder_ / "out/precious", "precious");
  expect(file_call(), INT8Q_INVALID_ARGUMENT, "overwrite");
  expect(folder_call(), INT8Q_INVALID_ARGUMENT, "overwrite");
  Quantize call = file_call();
  call.overwrite = true;
  call.out = folder_ / "out";
  expect(call, INT8Q_INVALID_ARGUMENT, "a folder");
  call = folder_call();
  call.overwrite = true;
  call.out = folder_ / "out.safetensors";
  expect(call, INT8Q_INVALID_ARGUMENT, "a file");
  ASSERT_EQ(::symlink("nowhere", (folder_ / "dangling").c_str()), 0);
  call = file_call();
  call.out = folder_ / "dangling";
  EXPECT_EQ(call.run(context_), INT8Q_INVALID_ARGUMENT);
  EXPECT_TRUE(std::filesystem::is_symlink(folder_ / "dangling"));
}

TEST_F(Failures, OverwriteReplacesCheckpointsOnly) {
  write_bytes(folder_ / "thesis/chapter.txt", "precious");
  Quantize call = folder_call();
  call.overwrite = true;
  call.out = folder_ / "thesis";
  expect(call, INT8Q_INVALID_ARGUMENT, "no checkpoint");
  std::filesystem::remove(folder_ / "thesis/chapter.txt");
  EXPECT_EQ(call.run(context_), INT8Q_OK) << "an empty folder: " << int8q_last_error();
}

TEST_F(Failures, OverwriteReplacesAtTheEnd) {
  write_bytes(folder_ / "out.safetensors", "old");
  write_bytes(folder_ / "out/model.safetensors", "old");
  for (Quantize call : {file_call(), folder_call()}) {
    call.overwrite = true;
    const bool is_folder = call.in == folder_ / "in";
    call.on_event = [&](const Event& e) {
      if (e.phase == INT8Q_PHASE_WRITE) {
        EXPECT_EQ(read_bytes(is_folder ? folder_ / "out/model.safetensors" : folder_ / "out.safetensors"), "old");
      }
      return 0;
    };
    EXPECT_EQ(call.run(context_), INT8Q_OK) << int8q_last_error();
  }
  EXPECT_EQ(OpenFile(folder_ / "out.safetensors").count(), 7);
  EXPECT_FALSE(std::filesystem::exists(folder_ / "out/model.safetensors"));
  EXPECT_TRUE(std::filesystem::exists(folder_ / "out/config.json"));
  size_t beside = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(folder_.path())) ++beside;
  EXPECT_EQ(beside, 4u);  // in, in.safetensors, out, out.safetensors
}

TEST_F(Failures, OverwriteInPlaceAndThroughLinks) {
  ASSERT_EQ(::symlink("in.safetensors", (folder_ / "link").c_str()), 0);
  Quantize call{.in = folder_ / "link", .out = folder_ / "link", .overwrite = true};
  const std::string before = read_bytes(folder_ / "in.safetensors");
  ASSERT_EQ(call.run(context_), INT8Q_OK) << int8q_last_error();
  EXPECT_FALSE(std::filesystem::is_symlink(folder_ / "link"));  // the name is replaced, what it led to is not
  EXPECT_EQ(read_bytes(folder_ / "in.safetensors"), before);
  EXPECT_EQ(OpenFile(folder_ / "link").count(), 7);

  ASSERT_EQ(::symlink("in", (folder_ / "folder_link").c_str()), 0);
  const auto in_before = contents(folder_ / "in");
  call = {.in = folder_ / "folder_link", .out = folder_ / "folder_link", .overwrite = true};
  ASSERT_EQ(call.run(context_), INT8Q_OK) << int8q_last_error();
  EXPECT_TRUE(contents(folder_ / "in") == in_before);
  EXPECT_FALSE(std::filesystem::is_symlink(folder_ / "folder_link"));

  call = {.in = folder_ / "in", .out = folder_ / "in", .overwrite = true};
  ASSERT_EQ(call.run(context_), INT8Q_OK) << int8q_last_error();
  EXPECT_EQ(OpenFile(folder_ / "in/model-00001-of-00002.safetensors").count(), 4);
}

TEST_F(Failures, FollowsLinksToFiles) {  // as a downloader's cache has them
  std::filesystem::rename(folder_ / "in", folder_ / "blobs");
  std::filesystem::create_directory(folder_ / "in");
  for (const char* name : {"config.json", "tokenizer.json", "model.safetensors.index.json",
                           "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}) {
    ASSERT_EQ(::symlink((std::string("../blobs/") + name).c_str(), (folder_ / (std::string("in/") + name)).c_str()), 0);
  }
  ASSERT_EQ(folder_call().run(context_), INT8Q_OK) << int8q_last_error();
  EXPECT_TRUE(std::filesystem::is_regular_file(std::filesystem::symlink_status(folder_ / "out/tokenizer.json")));
  EXPECT_EQ(OpenFile(folder_ / "out/model-00001-of-00002.safetensors").count(), 4);
  std::filesystem::remove_all(folder_ / "out");
  ASSERT_EQ(::symlink("../blobs/1_Pooling", (folder_ / "in/1_Pooling").c_str()), 0);
  EXPECT_EQ(folder_call().run(context_), INT8Q_UNSUPPORTED);
  EXPECT_TRUE(message_has("1_Pooling")) << int8q_last_error();
  ASSERT_EQ(::unlink((folder_ / "in/1_Pooling").c_str()), 0);
  ASSERT_EQ(::symlink("../blobs/nowhere", (folder_ / "in/vocab").c_str()), 0);
  EXPECT_NE(folder_call().run(context_), INT8Q_OK);
  EXPECT_TRUE(message_has("vocab")) << int8q_last_error();
}

// ---- what is in the files

TEST_F(Failures, NotFiniteNamesTensorAndRow) {
  constexpr size_t kRows = 70'000, kBlock = 1 << 16;  // rows that are quantized at a time
  const auto file_with = [&](size_t row, size_t col, float value) {
    std::vector<float> w(kRows * 2, 1.0f);
    w[2 * row + col] = value;
    write_bytes(folder_ / "in.safetensors", make_safetensors({f32_tensor("a.weight", {kRows, 2}, w)}));
  };
  for (const size_t row : {size_t{0}, size_t{3}, kBlock - 1, kBlock, size_t{66'000}, kRows - 1}) {
    for (const float value : {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
      file_with(row, row % 2, value);
      expect(file_call(), INT8Q_NOT_FINITE, "row " + std::to_string(row) + ";");
      EXPECT_TRUE(message_has("a.weight"));
    }
  }
}

TEST_F(Failures, AlreadyQuantized) {
  ASSERT_EQ(file_call().run(context_), INT8Q_OK);
  Quantize call{.in = folder_ / "out.safetensors", .out = folder_ / "again"};
  expect(call, INT8Q_UNSUPPORTED, "quantized already");
  write_bytes(folder_ / "in.safetensors",
              make_safetensors({f32_tensor("a.weight", {1, 1}, {1}), f32_tensor("a.SCB", {1}, {1})}));
  std::filesystem::remove(folder_ / "out.safetensors");
  expect(file_call(), INT8Q_UNSUPPORTED, "a.SCB");
  write_bytes(folder_ / "in/config.json", R"({"quantization_config": {"quant_method": "gptq"}})");
  expect(folder_call(), INT8Q_UNSUPPORTED, "quantization_config");
}

TEST_F(Failures, KAboveTheLimit) {
  write_bytes(folder_ / "in.safetensors",
              make_safetensors({{"a.weight", "F16", {1, 133'145}, std::string(266'290, '\0')}}));
  expect(file_call(), INT8Q_SIZE_OVERFLOW, "133145");
}

TEST_F(Failures, CorruptShard) {
  const std::string shard = read_bytes(folder_ / "in/model-00002-of-00002.safetensors");
  write_bytes(folder_ / "in/model-00002-of-00002.safetensors", shard.substr(0, shard.size() - 1));
  expect(folder_call(), INT8Q_CORRUPT, "model-00002");
}

TEST_F(Failures, MissingShard) {
  std::filesystem::remove(folder_ / "in/model-00002-of-00002.safetensors");
  expect(folder_call(), INT8Q_NOT_FOUND, "model-00002-of-00002.safetensors");
}

TEST_F(Failures, IndexThatLies) {
  const std::string index = "in/model.safetensors.index.json", good = read_bytes(folder_ / index);
  const auto bad = [&](const std::string& from, const std::string& to, int32_t status, const std::string& word) {
    write_bytes(folder_ / index, good);
    replace(index, from, to);
    expect(folder_call(), status, word);
  };
  bad("model.norm.weight", "model.lost.weight", INT8Q_CORRUPT, "model.lost.weight");
  bad("\"model-00001-of-00002.safetensors\"", "\"model-00002-of-00002.safetensors\"", INT8Q_CORRUPT, "is not in it");
  for (const char* escape : {"\"../in.safetensors\"", "\"/etc/x.safetensors\"", "\"1_Pooling/x.safetensors\"", "\"..\"",
                             "\"\"", "\"config.json\"", "7", "null", "\"x\\u0000.safetensors\""}) {
    bad("\"model-00001-of-00002.safetensors\"", escape, INT8Q_CORRUPT, "expected the name of a .safetensors file");
  }
  bad("\"weight_map\"", "\"weights\"", INT8Q_CORRUPT, "weight_map");
  bad("\"weight_map\": {", "\"weight_map\": [", INT8Q_CORRUPT, "not JSON");
  write_bytes(folder_ / index, "{\"weight_map\": " + std::string(100'000, '['));
  expect(folder_call(), INT8Q_CORRUPT, "deeper");
  write_bytes(folder_ / index, "[]");
  expect(folder_call(), INT8Q_CORRUPT, "expected a JSON object");
}

TEST_F(Failures, TensorInTwoShards) {
  write_bytes(
      folder_ / "in/model-00002-of-00002.safetensors",
      make_safetensors({f32_tensor("model.layers.0.up_proj.weight", {1, 1}, {1}),
                        f32_tensor("model.layers.0.up_proj.bias", {1}, {1}), f32_tensor("model.norm.weight", {1}, {1}),
                        f32_tensor("model.layers.0.q_proj.weight", {1, 1}, {1})}));
  expect(folder_call(), INT8Q_CORRUPT, "also in another shard");
}

TEST_F(Failures, FoldersThatAreNoModel) {
  std::filesystem::remove(folder_ / "in/model.safetensors.index.json");
  expect(folder_call(), INT8Q_UNSUPPORTED, "neither model.safetensors nor");
  write_sharded_model(folder_ / "in");
  write_bytes(folder_ / "in/model.safetensors", make_safetensors({f32_tensor("a.weight", {1, 1}, {1})}));
  expect(folder_call(), INT8Q_UNSUPPORTED, "both");
  std::filesystem::remove(folder_ / "in/model.safetensors");
  write_bytes(folder_ / "in/config.json", "{\"a\": ");
  expect(folder_call(), INT8Q_CORRUPT, "config.json");
  write_bytes(folder_ / "in/config.json", R"({"a": 1, "\u0061": 2})");
  expect(folder_call(), INT8Q_CORRUPT, "\"a\" twice");
  write_sharded_model(folder_ / "in");
  ASSERT_EQ(::mkfifo((folder_ / "in/fifo").c_str(), 0600), 0);
  EXPECT_EQ(folder_call().run(context_), INT8Q_UNSUPPORTED);
  EXPECT_TRUE(message_has("fifo")) << int8q_last_error();
  EXPECT_FALSE(std::filesystem::exists(folder_ / "out"));
}

TEST_F(Failures, AFileThatChangesWhileItIsRead) {
  Quantize call = file_call();
  call.on_event = [&](const Event& e) {
    if (e.phase == INT8Q_PHASE_PLAN) ::truncate((folder_ / "in.safetensors").c_str(), 300);
    return 0;
  };
  EXPECT_EQ(call.run(context_), INT8Q_CORRUPT) << int8q_last_error();
  EXPECT_TRUE(message_has("300 bytes now")) << int8q_last_error();
  EXPECT_FALSE(std::filesystem::exists(folder_ / "out.safetensors"));
}

// ---- interruption

TEST_F(Failures, CancelAtEveryCall) {
  write_bytes(folder_ / "old.safetensors", "old");
  write_bytes(folder_ / "old/model.safetensors", "old");
  for (const Quantize& call : {file_call(), folder_call()}) {
    for (const bool overwrite : {false, true}) {
      Quantize whole = call;
      ASSERT_EQ(whole.run(context_), INT8Q_OK);
      std::filesystem::remove_all(call.out);
      const size_t calls = whole.events.size();
      ASSERT_GT(calls, 6u);
      for (size_t stop = 1; stop <= calls; ++stop) {
        Quantize cancelled = call;
        cancelled.overwrite = overwrite;
        if (overwrite) cancelled.out = call.in == folder_ / "in" ? folder_ / "old" : folder_ / "old.safetensors";
        size_t seen = 0;
        cancelled.on_event = [&](const Event&) { return ++seen == stop ? 7 : 0; };
        expect(cancelled, INT8Q_CANCELLED, "asked to stop");
        EXPECT_EQ(seen, stop);
      }
    }
  }
}

TEST_F(Failures, ACallbackThatThrows) {
  for (const int32_t phase : {INT8Q_PHASE_PLAN, INT8Q_PHASE_WRITE, INT8Q_PHASE_FINISH}) {
    for (Quantize call : {file_call(), folder_call()}) {
      call.on_event = [&](const Event& e) -> int32_t {
        if (e.phase == phase) throw std::string("no");
        return 0;
      };
      expect(call, INT8Q_INTERNAL, "callback");
    }
  }
  EXPECT_EQ(file_call().run(context_), INT8Q_OK) << "the context is usable afterwards: " << int8q_last_error();
}

TEST_F(Failures, AContextInUseIsBusy) {
  Quantize call = file_call();
  int32_t inner = -1;
  call.on_event = [&](const Event&) {
    Quantize nested = folder_call();
    inner = nested.run(context_);
    return 0;
  };
  EXPECT_EQ(call.run(context_), INT8Q_OK) << int8q_last_error();
  EXPECT_EQ(inner, INT8Q_BUSY);
}

// ---- the system refuses

// Fails the nth call of one kind for every n that happens.
template <class Expect>
int sweep(Call call, int code, const Expect& expect_failure) {
  int n = 0;
  for (;; ++n) {
    fired = false;
    error_code = code;
    countdown = n;
    const bool done = expect_failure(call);
    kind = kNone;
    if (done) return n;
  }
}

TEST_F(Failures, EverySystemCall) {
  struct Case {
    Call call;
    int code;
    int calls;  // of this model, by the design
  };
  // Writes: 2 headers, 3 copied tensors, 2 x (codes, stats, format), 3 copied files, config, index. Reads: 2 lengths and 2
  // headers, 5 tensors, 3 files, config, index. Syncs: 2 shards, 5 files, 2 sub-folders, the folder, its parent.
  const std::vector<Case> cases = {{kPwrite, ENOSPC, 16}, {kPread, EIO, 14},  {kFsync, EIO, 11}, {kFallocate, ENOSPC, 7},
                                   {kRename, EACCES, 1},  {kMkdir, EROFS, 3}, {kClose, EIO, 7}};
  write_bytes(folder_ / "old/model.safetensors", "old");
  for (const bool overwrite : {false, true}) {
    for (const Case& c : cases) {
      Quantize call = folder_call();
      call.overwrite = overwrite;
      if (overwrite) call.out = folder_ / "old";
      const auto before = contents(folder_.path());
      int failures = 0;
      const int calls = sweep(c.call, c.code, [&](Call armed) {
        call.on_event = [&](const Event&) { return 0; };
        kind = armed;
        const int32_t status = call.run(context_);
        kind = kNone;
        if (!fired) {
          EXPECT_EQ(status, INT8Q_OK) << int8q_last_error();
          return true;
        }
        if (status == INT8Q_OK) {  // a read-only file's close, or one while cleaning up: nothing is at stake
          EXPECT_EQ(c.call, kClose);
          std::filesystem::remove_all(call.out);
          if (overwrite) write_bytes(folder_ / "old/model.safetensors", "old");
          return false;
        }
        ++failures;
        EXPECT_EQ(status, INT8Q_IO) << int8q_last_error();
        EXPECT_TRUE(message_has(strerror(c.code))) << int8q_last_error();
        EXPECT_TRUE(message_has(folder_.path())) << int8q_last_error();
        EXPECT_TRUE(contents(folder_.path()) == before) << "call " << c.call << ": " << int8q_last_error();
        return false;
      });
      // Replacing takes two renames: one that must not replace, one that exchanges.
      const int expected = c.calls + (c.call == kRename && overwrite);
      EXPECT_EQ(failures, expected) << c.call;
      EXPECT_TRUE(calls == expected || c.call == kClose) << c.call << ": " << calls;
      std::filesystem::remove_all(call.out);
      if (overwrite) write_bytes(folder_ / "old/model.safetensors", "old");
    }
  }
}

// Large tensors are read and written by every thread: what fails in any of them ends the call.
TEST_F(Failures, EveryThreadsSystemCall) {
  const int64_t n = 301, k = 1000;
  write_bytes(folder_ / "large", make_safetensors({f32_tensor("a.weight", {n, k}, std::vector<float>(n * k, 1.0f)),
                                                   f32_tensor("embedding", {n * k}, std::vector<float>(n * k, 1.0f))}));
  const auto before = contents(folder_.path());
  // Writes: the header, codes and a copy by three threads each, stats, format. Reads: length, header, and likewise.
  for (const auto& [call, calls] : {std::pair{kPwrite, 9}, {kPread, 8}}) {
    const ContextPtr context = make_context(3);
    const int made = sweep(call, EIO, [&](Call armed) {
      Quantize quantize{.in = folder_ / "large", .out = folder_ / "large8"};
      kind = armed;
      const int32_t status = quantize.run(context);
      kind = kNone;
      EXPECT_EQ(status, fired ? INT8Q_IO : INT8Q_OK) << int8q_last_error();
      if (!fired) return true;
      EXPECT_TRUE(message_has(strerror(EIO))) << int8q_last_error();
      EXPECT_TRUE(contents(folder_.path()) == before) << "call " << armed << ": " << int8q_last_error();
      return false;
    });
    EXPECT_EQ(made, calls) << call;
    std::filesystem::remove(folder_ / "large8");
  }
}

TEST_F(Failures, WithoutRenameFlags) {
  write_bytes(folder_ / "old/model.safetensors", "old");
  Quantize call{.in = folder_ / "in", .out = folder_ / "new"};
  without_rename_flags = true;
  EXPECT_EQ(call.run(context_), INT8Q_OK) << int8q_last_error();
  EXPECT_TRUE(std::filesystem::exists(folder_ / "new/config.json"));
  call.out = folder_ / "old";
  call.overwrite = true;
  // An exchange by a third name: the old output aside, the new one into its place, the old one to where the new one was.
  // Whichever of the first two fails, the old output is back.
  for (const int64_t nth : {0, 1}) {
    fired = false;
    error_code = EACCES;
    countdown = nth;
    kind = kPlainRename;
    expect(call, INT8Q_IO, strerror(EACCES));
    EXPECT_TRUE(fired) << nth;
    kind = kNone;
  }
  // So it is when the last step, syncing the parent folder, fails after the exchange.
  fired = false;
  error_code = EIO;
  countdown = 10;
  kind = kFsync;
  expect(call, INT8Q_IO, "syncing the folder failed");
  EXPECT_TRUE(fired);
  kind = kNone;
  EXPECT_EQ(call.run(context_), INT8Q_OK) << int8q_last_error();
  EXPECT_TRUE(std::filesystem::exists(folder_ / "old/config.json"));
  EXPECT_FALSE(std::filesystem::exists(folder_ / "old/model.safetensors"));
  size_t beside = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(folder_.path())) ++beside;
  EXPECT_EQ(beside, 4u);  // in, in.safetensors, new, old
}

TEST_F(Failures, ShortAndInterruptedTransfers) {
  Quantize call = folder_call();
  ASSERT_EQ(call.run(context_), INT8Q_OK);
  const auto expected = contents(folder_ / "out");
  std::filesystem::remove_all(folder_ / "out");
  stutter = true;
  const int32_t status = call.run(context_);
  stutter = false;
  EXPECT_EQ(status, INT8Q_OK) << int8q_last_error();
  EXPECT_TRUE(contents(folder_ / "out") == expected);
}

TEST_F(Failures, EveryAllocation) {
  const auto before = contents(folder_.path());
  const std::string in = folder_ / "in", out = folder_ / "out";
  const int allocations = sweep(kNew, 0, [&](Call armed) {
    kind = armed;
    const int32_t status = int8q_quantize_checkpoint(context_.get(), in.c_str(), out.c_str(), nullptr, nullptr, nullptr);
    kind = kNone;
    if (!fired) {
      EXPECT_EQ(status, INT8Q_OK) << int8q_last_error();
      return true;
    }
    if (status == INT8Q_OK) {  // while the temporary names are cleaned up
      std::filesystem::remove_all(out);
      return false;
    }
    EXPECT_EQ(status, INT8Q_OUT_OF_MEMORY) << int8q_last_error();
    EXPECT_TRUE(contents(folder_.path()) == before);
    return false;
  });
  EXPECT_GT(allocations, 1000);
}

TEST_F(Failures, TheCallersAllocator) {
  int8q_allocator allocator{};
  allocator.size = sizeof allocator;
  int64_t left = 0;
  allocator.opaque = &left;
  allocator.allocate = [](void* opaque, uint64_t bytes, uint64_t alignment) -> void* {
    return (*static_cast<int64_t*>(opaque))-- == 0
               ? nullptr
               : std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  };
  allocator.deallocate = [](void*, void* memory, uint64_t) { std::free(memory); };
  left = 1000;
  const ContextPtr context = make_context(2, nullptr, nullptr, &allocator);
  const auto before = contents(folder_.path());
  int64_t n = 0;
  for (;; ++n) {
    left = n;
    Quantize call = file_call();
    if (call.run(context) == INT8Q_OK) break;
    EXPECT_TRUE(message_has("allocat")) << int8q_last_error();
    EXPECT_TRUE(contents(folder_.path()) == before);
    ASSERT_LT(n, 100);
  }
  EXPECT_GE(n, 1);
}

TEST_F(Failures, FileSizeLimit) {  // past the limit the kernel would send SIGXFSZ, which ends the process
  rlimit old;
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &old), 0);
  rlimit small = old;
  small.rlim_cur = 100;
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  Quantize one = file_call(), many = folder_call();
  const int32_t first = one.run(context_);
  const bool first_said = message_has("ulimit");
  const int32_t second = many.run(context_);
  const bool second_said = message_has("ulimit");
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &old), 0);
  EXPECT_EQ(first, INT8Q_IO);
  EXPECT_EQ(second, INT8Q_IO);
  EXPECT_TRUE(first_said && second_said);
  EXPECT_FALSE(std::filesystem::exists(folder_ / "out"));
  EXPECT_FALSE(std::filesystem::exists(folder_ / "out.safetensors"));
}

TEST_F(Failures, FullDisk) {
  const std::string disk = folder_ / "disk";
  std::filesystem::create_directory(disk);
  if (::mount("int8q", disk.c_str(), "tmpfs", 0, "size=1m") != 0)
    GTEST_SKIP() << "mounting needs root: " << strerror(errno);
  std::vector<float> w(1'500'000, 1.0f);  // 1.5 MB of codes
  write_bytes(folder_ / "in/model-00002-of-00002.safetensors",
              make_safetensors({f32_tensor("model.layers.0.up_proj.weight", {1000, 1500}, w),
                                f32_tensor("model.layers.0.up_proj.bias", {4}, {1, 2, 3, 4}),
                                f32_tensor("model.norm.weight", {4}, {1, 1, 1, 1})}));
  std::filesystem::copy_file(folder_ / "in/model-00002-of-00002.safetensors", folder_ / "big");
  for (const std::string& in : {folder_ / "in", folder_ / "big"}) {
    Quantize call{.in = in, .out = disk + "/out"};
    EXPECT_EQ(call.run(context_), INT8Q_IO);
    EXPECT_TRUE(message_has("No space left")) << int8q_last_error();
    EXPECT_TRUE(std::filesystem::is_empty(disk));
  }
  EXPECT_EQ(::umount(disk.c_str()), 0);
}

}  // namespace
}  // namespace int8q::test
