// SPDX-License-Identifier: Apache-2.0
//
// Reading safetensors: what is true is found, what lies is refused with the right status and a message that says what.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <random>

#include "checkpoint/files.h"
#include "checkpoint/safetensors_format.h"
#include "core/error.h"
#include "support/safetensors_files.h"

namespace int8q::test {
namespace {

int32_t open_status(const std::string& path) {
  int8q_safetensors* file = nullptr;
  const int32_t status = int8q_open_safetensors(path.c_str(), &file);
  EXPECT_EQ(file != nullptr, status == INT8Q_OK);
  if (file != nullptr) int8q_close_safetensors(file);
  return status;
}

// Reads everything that the interface shows, so that a sanitizer sees a pointer or size that is wrong.
uint64_t touch_everything(const std::string& path) {
  int8q_safetensors* file = nullptr;
  if (int8q_open_safetensors(path.c_str(), &file) != INT8Q_OK) return 0;
  int64_t count = 0;
  int8q_count_tensors(file, &count);
  uint64_t sum = 1;
  for (int64_t i = 0; i < count; ++i) {
    int8q_tensor t{};
    t.size = sizeof t;
    int8q_get_tensor(file, i, &t);
    sum += std::strlen(t.name);
    for (int64_t d = 0; d < t.rank; ++d) sum += static_cast<uint64_t>(t.shape[d]);
    for (uint64_t b = 0; b < t.bytes; ++b) sum += static_cast<const unsigned char*>(t.data)[b];
  }
  int8q_close_safetensors(file);
  return sum;
}

std::string small_file() {
  return make_safetensors({f32_tensor("b", {2, 3}, {1, 2, 3, 4, 5, 6}),
                           {"a", "I8", {3}, std::string("\x01\x02\x03")},
                           {"empty", "BF16", {0, 5}, ""},
                           {"scalar", "U8", {}, std::string("\x07")},
                           {"f\xc3\xbcr", "F16", {1}, std::string("\x00\x3c", 2)}},
                          R"({"format":"pt","k\n":"v"})");
}

TEST(Safetensors, ReadsWhatIsThere) {
  TempFolder folder;
  write_bytes(folder / "x.safetensors", small_file());
  OpenFile file(folder / "x.safetensors");
  EXPECT_EQ(file.names(), (std::vector<std::string>{"a", "b", "empty", "f\xc3\xbcr", "scalar"}));
  const int8q_tensor b = file.find("b");
  EXPECT_EQ(b.dtype, INT8Q_F32);
  ASSERT_EQ(b.rank, 2);
  EXPECT_EQ(b.shape[0], 2);
  EXPECT_EQ(b.shape[1], 3);
  EXPECT_EQ(tensor_bytes(b), bytes_of<float>({1, 2, 3, 4, 5, 6}));
  EXPECT_EQ(tensor_bytes(file.find("a")), "\x01\x02\x03");
  EXPECT_EQ(file.find("empty").bytes, 0u);
  EXPECT_EQ(file.find("scalar").rank, 0);
  EXPECT_EQ(tensor_bytes(file.find("f\xc3\xbcr")), std::string("\x00\x3c", 2));
}

TEST(Safetensors, KnowsEveryDtype) {
  const std::vector<std::pair<std::string, int32_t>> dtypes = {
      {"F64", INT8Q_F64}, {"F32", INT8Q_F32}, {"F16", INT8Q_F16},   {"BF16", INT8Q_BF16},       {"I64", INT8Q_S64},
      {"I32", INT8Q_S32}, {"I16", INT8Q_S16}, {"I8", INT8Q_S8},     {"U64", INT8Q_U64},         {"U32", INT8Q_U32},
      {"U16", INT8Q_U16}, {"U8", INT8Q_U8},   {"BOOL", INT8Q_BOOL}, {"F8_E4M3", INT8Q_F8_E4M3}, {"F8_E5M2", INT8Q_F8_E5M2}};
  const std::vector<size_t> sizes = {8, 4, 2, 2, 8, 4, 2, 1, 8, 4, 2, 1, 1, 1, 1};
  std::vector<Tensor> tensors;
  for (size_t i = 0; i < dtypes.size(); ++i) {
    tensors.push_back({dtypes[i].first, dtypes[i].first, {3}, std::string(3 * sizes[i], 'x')});
  }
  TempFolder folder;
  write_bytes(folder / "x", make_safetensors(tensors));
  OpenFile file(folder / "x");
  for (const auto& [name, dtype] : dtypes) EXPECT_EQ(file.find(name).dtype, dtype) << name;
}

TEST(Safetensors, AcceptsPaddingAndAnEmptyFile) {
  TempFolder folder;
  write_bytes(folder / "empty", with_length("{}"));
  EXPECT_EQ(OpenFile(folder / "empty").count(), 0);
  write_bytes(folder / "padded", with_length(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}     )") + "x");
  EXPECT_EQ(OpenFile(folder / "padded").count(), 1);
}

struct Lie {
  const char* what;
  std::string file;
  int32_t status;
  const char* word;  // of the message
};

std::string entry(const std::string& members) { return with_length("{\"a\":{" + members + "}}") + "xxxx"; }
std::string header(const std::string& json) { return with_length(json) + "xxxx"; }

std::vector<Lie> lies() {
  const std::string a = R"("dtype":"F32","shape":[1],"data_offsets":[0,4])";
  std::string huge_length(16, 'x');
  const uint64_t huge = ~uint64_t{0};
  std::memcpy(huge_length.data(), &huge, 8);
  const auto u8s = [](const std::string& spans) { return header(spans); };
  const std::string u8 = R"({"dtype":"U8","shape":)";
  return {
      {"empty file", "", INT8Q_CORRUPT, "0 bytes"},
      {"7 bytes", "1234567", INT8Q_CORRUPT, "at least 8"},
      {"length 2^64 - 1", huge_length, INT8Q_CORRUPT, "header length"},
      {"length past the end", with_length("{}").substr(0, 9), INT8Q_CORRUPT, "header length"},
      {"length 0", with_length(""), INT8Q_CORRUPT, "'{'"},
      {"space before the brace", with_length(" {}"), INT8Q_CORRUPT, "'{'"},
      {"byte order mark", with_length("\xef\xbb\xbf{}"), INT8Q_CORRUPT, "'{'"},
      {"array on top", with_length("[]"), INT8Q_CORRUPT, "'{'"},
      {"NUL ends the JSON early", with_length(std::string("{}\0x", 4)), INT8Q_CORRUPT, "NUL"},
      {"text behind the JSON", with_length("{}x"), INT8Q_CORRUPT, "not JSON"},
      {"second object", with_length("{}{}"), INT8Q_CORRUPT, "not JSON"},
      {"unfinished JSON", with_length("{\"a\":"), INT8Q_CORRUPT, "not JSON"},
      {"bad UTF-8", header("{\"\xff\":{" + a + "}}"), INT8Q_CORRUPT, "not JSON"},
      {"lone surrogate", header(R"({"\ud800":{)" + a + "}}"), INT8Q_CORRUPT, "not JSON"},
      {"NUL in a name", header(R"({"a\u0000b":{)" + a + "}}"), INT8Q_CORRUPT, "NUL"},
      {"tensor twice",
       header("{\"a\":{" + a +
              "},\"a\":{"
              R"("dtype":"F32","shape":[0],"data_offsets":[4,4])"
              "}}"),
       INT8Q_CORRUPT, "twice"},
      {"tensor twice by an escape",
       header("{\"a\":{" + a + R"(},"\u0061":{"dtype":"F32","shape":[0],"data_offsets":[4,4]}})"), INT8Q_CORRUPT, "twice"},
      {"member twice", entry(a + R"(,"dtype":"F32")"), INT8Q_CORRUPT, "second"},
      {"unknown member", entry(a + R"(,"stride":[1])"), INT8Q_CORRUPT, "unknown"},
      {"no dtype", entry(R"("shape":[1],"data_offsets":[0,4])"), INT8Q_CORRUPT, "lacks dtype"},
      {"no shape", entry(R"("dtype":"F32","data_offsets":[0,4])"), INT8Q_CORRUPT, "lacks shape"},
      {"no offsets", entry(R"("dtype":"F32","shape":[1])"), INT8Q_CORRUPT, "lacks data_offsets"},
      {"tensor is a number", header(R"({"a":1})"), INT8Q_CORRUPT, "an object for each name"},
      {"tensor is null", header(R"({"a":null})"), INT8Q_CORRUPT, "null"},
      {"dtype is a number", entry(R"("dtype":1,"shape":[1],"data_offsets":[0,4])"), INT8Q_CORRUPT, "the number 1"},
      {"dtype unknown", entry(R"("dtype":"F4","shape":[1],"data_offsets":[0,4])"), INT8Q_UNSUPPORTED, "\"F4\""},
      {"dtype in lower case", entry(R"("dtype":"f32","shape":[1],"data_offsets":[0,4])"), INT8Q_UNSUPPORTED, "\"f32\""},
      {"shape is a string", entry(R"("dtype":"F32","shape":"1","data_offsets":[0,4])"), INT8Q_CORRUPT, "a string"},
      {"shape is negative", entry(R"("dtype":"F32","shape":[-1],"data_offsets":[0,4])"), INT8Q_CORRUPT, "-1"},
      {"shape is minus zero", entry(R"("dtype":"F32","shape":[-0],"data_offsets":[0,4])"), INT8Q_CORRUPT, "integers"},
      {"shape is a float", entry(R"("dtype":"F32","shape":[1.0],"data_offsets":[0,4])"), INT8Q_CORRUPT, "1.0"},
      {"shape above 2^63", entry(R"("dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,4])"), INT8Q_CORRUPT,
       "9223372036854775808"},
      {"shape above 2^64", entry(R"("dtype":"F32","shape":[36893488147419103232],"data_offsets":[0,4])"), INT8Q_CORRUPT,
       "36893488147419103232"},
      {"shape is nested", entry(R"("dtype":"F32","shape":[[1]],"data_offsets":[0,4])"), INT8Q_CORRUPT, "an array"},
      {"shape holds true", entry(R"("dtype":"F32","shape":[true],"data_offsets":[0,4])"), INT8Q_CORRUPT, "a boolean"},
      {"product overflows", entry(R"("dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4])"), INT8Q_CORRUPT,
       "overflows"},
      {"product wraps to 4", entry(R"("dtype":"F32","shape":[4611686018427387905],"data_offsets":[0,4])"), INT8Q_CORRUPT,
       "overflows"},
      {"product of 2^63", entry(R"("dtype":"F32","shape":[2305843009213693952],"data_offsets":[0,9223372036854775808])"),
       INT8Q_CORRUPT, "overflows"},
      {"product of 2^63 before a zero", entry(R"("dtype":"F32","shape":[2305843009213693952,0],"data_offsets":[0,0])"),
       INT8Q_CORRUPT, "overflows"},
      {"product overflows before a zero", entry(R"("dtype":"F32","shape":[4294967296,4294967296,0],"data_offsets":[0,0])"),
       INT8Q_CORRUPT, "overflows"},
      {"shape larger than the span", entry(R"("dtype":"F32","shape":[2],"data_offsets":[0,4])"), INT8Q_CORRUPT, "8 bytes"},
      {"one offset", entry(R"("dtype":"F32","shape":[1],"data_offsets":[0])"), INT8Q_CORRUPT, "expected 2"},
      {"three offsets", entry(R"("dtype":"F32","shape":[1],"data_offsets":[0,4,4])"), INT8Q_CORRUPT, "2 integers"},
      {"negative offset", entry(R"("dtype":"F32","shape":[1],"data_offsets":[-4,0])"), INT8Q_CORRUPT, "-4"},
      {"offsets backwards", entry(R"("dtype":"F32","shape":[1],"data_offsets":[4,0])"), INT8Q_CORRUPT, "[4, 0]"},
      {"offsets wrap", entry(R"("dtype":"F32","shape":[1],"data_offsets":[18446744073709551612,0])"), INT8Q_CORRUPT,
       "data_offsets"},
      {"truncated data", with_length("{\"a\":{" + a + "}}") + "xxx", INT8Q_CORRUPT, "truncated"},
      {"bytes behind the data", with_length("{\"a\":{" + a + "}}") + "xxxxx", INT8Q_CORRUPT, "cover 4 bytes"},
      {"gap", u8s("{\"a\":" + u8 + "[1],\"data_offsets\":[0,1]},\"b\":" + u8 + "[2],\"data_offsets\":[2,4]}}"),
       INT8Q_CORRUPT, "gap"},
      {"overlap", u8s("{\"a\":" + u8 + "[3],\"data_offsets\":[0,3]},\"b\":" + u8 + "[2],\"data_offsets\":[2,4]}}"),
       INT8Q_CORRUPT, "overlap"},
      {"two tensors share bytes",
       u8s("{\"a\":" + u8 + "[4],\"data_offsets\":[0,4]},\"b\":" + u8 + "[4],\"data_offsets\":[0,4]}}"), INT8Q_CORRUPT,
       "overlap"},
      {"empty tensor inside another",
       u8s("{\"a\":" + u8 + "[4],\"data_offsets\":[0,4]},\"b\":" + u8 + "[0],\"data_offsets\":[2,2]}}"), INT8Q_CORRUPT,
       "overlap"},
      {"metadata is an array", header(R"({"__metadata__":[]})"), INT8Q_CORRUPT, "an array"},
      {"metadata holds a number", header(R"({"__metadata__":{"a":1}})"), INT8Q_CORRUPT, "a string for each name"},
      {"metadata is nested", header(R"({"__metadata__":{"a":{}}})"), INT8Q_CORRUPT, "an object"},
      {"metadata twice", header(R"({"__metadata__":{},"__metadata__":{}})"), INT8Q_CORRUPT, "twice"},
      {"metadata key twice", header(R"({"__metadata__":{"a":"1","a":"2"}})"), INT8Q_CORRUPT, "twice"},
      {"deeply nested", header("{\"a\":" + std::string(1'000'000, '[')), INT8Q_CORRUPT, "an array"},
      {"65 dimensions",
       entry("\"dtype\":\"F32\",\"shape\":[1" +
             [] {
               std::string ones;
               for (int i = 0; i < 64; ++i) ones += ",1";
               return ones;
             }() +
             R"(],"data_offsets":[0,4])"),
       INT8Q_UNSUPPORTED, "dimensions"},
  };
}

// Files that are long enough for the header that they announce: what refuses them is the cap, and one byte less passes it.
TEST(Safetensors, TheHeaderIsCappedAt100MB) {
  TempFolder folder;
  const std::string path = folder / "sparse.safetensors";
  for (const uint64_t length : {100'000'000, 100'000'001}) {
    write_bytes(path, std::string(reinterpret_cast<const char*>(&length), sizeof length) + "{");
    ASSERT_EQ(0, ::truncate(path.c_str(), 200'000'000));
    EXPECT_EQ(open_status(path), INT8Q_CORRUPT);
    const std::string message = int8q_last_error();
    const char* expected =
        length > 100'000'000 ? "header length is 100000001; expected at most 100000000" : "NUL byte at 1";
    EXPECT_NE(message.find(expected), std::string::npos) << message;
  }
}

TEST(Safetensors, RefusesLies) {
  TempFolder folder;
  const std::string path = folder / "lie.safetensors";
  ASSERT_GE(lies().size(), 25u);
  for (const Lie& lie : lies()) {
    write_bytes(path, lie.file);
    EXPECT_EQ(open_status(path), lie.status) << lie.what << ": " << int8q_last_error();
    EXPECT_NE(std::string(int8q_last_error()).find(lie.word), std::string::npos) << lie.what << ": " << int8q_last_error();
    EXPECT_NE(std::string(int8q_last_error()).find("lie.safetensors"), std::string::npos)
        << lie.what << ": " << int8q_last_error();
  }
}

TEST(Safetensors, RefusesEveryTruncation) {
  TempFolder folder;
  const std::string whole = small_file();
  for (size_t bytes = 0; bytes < whole.size(); ++bytes) {
    write_bytes(folder / "cut", whole.substr(0, bytes));
    EXPECT_EQ(open_status(folder / "cut"), INT8Q_CORRUPT) << bytes;
  }
  write_bytes(folder / "cut", whole);
  EXPECT_EQ(open_status(folder / "cut"), INT8Q_OK);
}

TEST(Safetensors, SurvivesFlippedBytes) {
  TempFolder folder;
  const std::string whole = small_file(), path = folder / "flipped";
  std::mt19937_64 random(1);
  int opened = 0;
  for (int round = 0; round < 10'000; ++round) {
    std::string file = whole;
    for (uint64_t flips = 1 + random() % 3; flips > 0; --flips) {
      file[random() % file.size()] ^= static_cast<char>(1 + random() % 255);
    }
    write_bytes(path, file);
    opened += touch_everything(path) != 0;
  }
  EXPECT_GT(opened, 100);  // flips in the data are no lie
  EXPECT_LT(opened, 5000);
}

TEST(Safetensors, RefusesWhatIsNoFile) {
  TempFolder folder;
  EXPECT_EQ(open_status(folder / "missing"), INT8Q_NOT_FOUND);
  EXPECT_NE(std::string(int8q_last_error()).find("No such file"), std::string::npos);
  EXPECT_EQ(open_status(folder.path()), INT8Q_IO);
  ASSERT_EQ(::mkfifo((folder / "fifo").c_str(), 0600), 0);
  EXPECT_EQ(open_status(folder / "fifo"), INT8Q_IO);
  write_bytes(folder / "x", small_file());
  EXPECT_EQ(open_status(folder / "x/y"), INT8Q_NOT_FOUND);
  ASSERT_EQ(::symlink("x", (folder / "link").c_str()), 0);
  EXPECT_EQ(open_status(folder / "link"), INT8Q_OK);
  ASSERT_EQ(::symlink("loop", (folder / "loop").c_str()), 0);
  EXPECT_EQ(open_status(folder / "loop"), INT8Q_IO);
  if (::geteuid() != 0) {
    ASSERT_EQ(::chmod((folder / "x").c_str(), 0), 0);
    EXPECT_EQ(open_status(folder / "x"), INT8Q_IO);
  }
}

TEST(Safetensors, ChecksArguments) {
  TempFolder folder;
  write_bytes(folder / "x", small_file());
  int8q_safetensors* handle = nullptr;
  EXPECT_EQ(int8q_open_safetensors(nullptr, &handle), INT8Q_INVALID_ARGUMENT);
  EXPECT_EQ(int8q_open_safetensors((folder / "x").c_str(), nullptr), INT8Q_INVALID_ARGUMENT);

  OpenFile file(folder / "x");
  int8q_tensor tensor{};
  tensor.size = sizeof tensor;
  for (const int64_t index : {int64_t{-1}, int64_t{5}, INT64_MIN, INT64_MAX}) {
    EXPECT_EQ(int8q_get_tensor(file.get(), index, &tensor), INT8Q_INVALID_ARGUMENT) << index;
  }
  EXPECT_EQ(tensor.name, nullptr);
  EXPECT_EQ(int8q_find_tensor(file.get(), "c", &tensor), INT8Q_NOT_FOUND);
  EXPECT_NE(std::string(int8q_last_error()).find("\"c\""), std::string::npos);
  EXPECT_EQ(int8q_find_tensor(file.get(), "", &tensor), INT8Q_NOT_FOUND);
  EXPECT_EQ(int8q_find_tensor(file.get(), nullptr, &tensor), INT8Q_INVALID_ARGUMENT);
  EXPECT_EQ(int8q_get_tensor(file.get(), 0, nullptr), INT8Q_INVALID_ARGUMENT);
  EXPECT_EQ(int8q_count_tensors(file.get(), nullptr), INT8Q_INVALID_ARGUMENT);
  tensor.size = 8;
  EXPECT_EQ(int8q_get_tensor(file.get(), 0, &tensor), INT8Q_ABI_MISMATCH);
  EXPECT_EQ(tensor.name, nullptr);

  int64_t count = -1;
  alignas(64) unsigned char foreign[256] = {};
  auto* bogus = reinterpret_cast<int8q_safetensors*>(foreign);
  EXPECT_EQ(int8q_count_tensors(nullptr, &count), INT8Q_INVALID_HANDLE);
  EXPECT_EQ(int8q_count_tensors(bogus, &count), INT8Q_INVALID_HANDLE);
  EXPECT_EQ(int8q_close_safetensors(bogus), INT8Q_INVALID_HANDLE);
  EXPECT_EQ(int8q_close_safetensors(nullptr), INT8Q_INVALID_HANDLE);
  EXPECT_EQ(count, -1);
}

TEST(Safetensors, ReadsFilesOfItsOwnWriter) {
  using namespace checkpoint;
  std::vector<TensorEntry> tensors = {{"w", INT8Q_S8, {3, 5}},
                                      {"w.SCB", INT8Q_F32, {3}},
                                      {"n", INT8Q_F16, {0}},
                                      {"quote\" \\ \n \xc3\xa9", INT8Q_S64, {2}},
                                      {"format", INT8Q_U8, {}}};
  const uint64_t bytes = lay_out(tensors);
  EXPECT_EQ(bytes, 15u + 12 + 0 + 16 + 1);
  const std::string header = make_header(tensors, {{"format", "pt"}, {"a\"", "\t"}});
  EXPECT_EQ(header.size() % 8, 0u);
  TempFolder folder;
  write_bytes(folder / "x", header + std::string(bytes, '\x11'));
  const SafetensorsHeader back = read_header(InputFile(folder / "x"));
  EXPECT_EQ(back.data_begin, header.size());
  EXPECT_EQ(back.metadata, (Metadata{{"format", "pt"}, {"a\"", "\t"}}));
  ASSERT_EQ(back.tensors.size(), tensors.size());
  for (const TensorEntry& t : tensors) {
    const TensorEntry* found = find_tensor(back, t.name);
    ASSERT_NE(found, nullptr) << t.name;
    EXPECT_EQ(found->dtype, t.dtype);
    EXPECT_EQ(found->shape, t.shape);
    EXPECT_EQ(found->begin, t.begin);
    EXPECT_EQ(found->begin % (t.dtype == INT8Q_S64 ? 8 : t.dtype == INT8Q_F32 ? 4 : t.dtype == INT8Q_F16 ? 2 : 1), 0u);
  }
}

TEST(Safetensors, ReportsAFullDevice) {
  const int fd = ::open("/dev/full", O_WRONLY | O_CLOEXEC);
  if (fd < 0) GTEST_SKIP() << "no /dev/full here";
  try {
    checkpoint::write_exactly(fd, "/dev/full", "abc", 3, 0);
    ADD_FAILURE() << "writing to a full device succeeded";
  } catch (const Error& error) {
    EXPECT_EQ(error.status, INT8Q_IO);
    EXPECT_NE(std::string(last_error()).find("No space left"), std::string::npos) << last_error();
    EXPECT_NE(std::string(last_error()).find("/dev/full"), std::string::npos) << last_error();
  }
  ::close(fd);
}

}  // namespace
}  // namespace int8q::test
