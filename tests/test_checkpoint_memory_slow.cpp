// SPDX-License-Identifier: Apache-2.0
//
// A checkpoint of 1.9 GB (sparse: zeros that take no disk) is quantized in less than 64 MiB above what the process holds.
#include <fcntl.h>
#include <unistd.h>

#include "support/checkpoint_calls.h"

namespace int8q::test {
namespace {

constexpr uint64_t kBound = 64u << 20;

// Bytes of a line like "VmHWM:  1234 kB" of /proc/self/status.
uint64_t status_bytes(const std::string& name) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.compare(0, name.size() + 1, name + ":") == 0) return std::stoull(line.substr(name.size() + 1)) * 1024;
  }
  ADD_FAILURE() << "no " << name;
  return 0;
}

bool reset_peak() {
  const int fd = ::open("/proc/self/clear_refs", O_WRONLY | O_CLOEXEC);
  const bool done = fd >= 0 && ::write(fd, "5", 1) == 1;
  if (fd >= 0) ::close(fd);
  return done;
}

TEST(CheckpointMemory, IsBoundedByBlocks) {
  TempFolder folder;
  // One huge tensor, one huge transposed tensor, and 20,000 small ones for the header's share.
  const uint64_t rows = 180'000, cols = 4096, conv_k = 4096, conv_n = 50'000;
  std::string json = "{\"big.weight\":{\"dtype\":\"F16\",\"shape\":[180000,4096],\"data_offsets\":[0,";
  uint64_t offset = rows * cols * 2;
  const auto add = [&](const std::string& name, const std::string& shape, uint64_t bytes) {
    json +=
        ",\"" + name + "\":{\"dtype\":\"F16\",\"shape\":" + shape + ",\"data_offsets\":[" + std::to_string(offset) + ",";
    offset += bytes;
    json += std::to_string(offset) + "]}";
  };
  json += std::to_string(offset) + "]}";
  add("h.0.attn.c_attn.weight", "[4096,50000]", conv_k * conv_n * 2);
  add("h.0.attn.c_attn.bias", "[50000]", conv_n * 2);
  for (int i = 0; i < 20'000; ++i) add("model.layers." + std::to_string(i) + ".self_attn.q_proj.weight", "[2,2]", 8);
  const std::string head = with_length(json + "}");
  write_bytes(folder / "in.safetensors", head);
  std::filesystem::resize_file(folder / "in.safetensors", head.size() + offset);
  ASSERT_GT(offset, 1'800'000'000u);
  if (std::filesystem::space(folder.path()).available < offset) GTEST_SKIP() << "needs 1.9 GB of disk";
  json = {};

  const ContextPtr context = make_context(2);
  write_bytes(folder / "small", make_safetensors({f32_tensor("a.weight", {2, 2}, {1, 2, 3, 4})}));
  ASSERT_EQ((Quantize{.in = folder / "small", .out = folder / "small8"}.run(context)), INT8Q_OK) << int8q_last_error();
  if (!reset_peak()) GTEST_SKIP() << "the kernel keeps no resettable peak";
  const uint64_t before = status_bytes("VmRSS");
  const std::string in = folder / "in.safetensors", out = folder / "out.safetensors";
  ASSERT_EQ(int8q_quantize_checkpoint(context.get(), in.c_str(), out.c_str(), nullptr, nullptr, nullptr), INT8Q_OK)
      << int8q_last_error();
  const uint64_t above = status_bytes("VmHWM") - before;
  RecordProperty("mib_above_baseline", static_cast<int>(above >> 20));
  std::printf("%.1f MiB above the baseline of %.1f MiB\n", static_cast<double>(above) / (1 << 20),
              static_cast<double>(before) / (1 << 20));
  EXPECT_LE(above, kBound);
  EXPECT_GT(above, 8u << 20) << "less than one block: the measurement is wrong";
  EXPECT_EQ(OpenFile(out).find("big.weight").bytes, rows * cols);
}

}  // namespace
}  // namespace int8q::test
