// SPDX-License-Identifier: Apache-2.0
//
// How many threads a context gets: options, INT8Q_NUM_THREADS, affinity, cgroup quota. The affinity mask is this test's
// own, so that a quota shows on machines with few CPUs too.
#include <sched.h>

#include <cerrno>
#include <cstdio>

#include "core/pool.h"
#include "support/call.h"
#include "support/safetensors_files.h"

namespace {

constexpr int kCpus = 48;
int cpus = kCpus;  // 0: sched_getaffinity fails

}  // namespace

extern "C" int sched_getaffinity(pid_t, size_t bytes, cpu_set_t* set) noexcept {
  if (cpus == 0) {
    errno = EINVAL;
    return -1;
  }
  CPU_ZERO_S(bytes, set);
  for (int cpu = 0; cpu < cpus; ++cpu) CPU_SET_S(static_cast<size_t>(cpu) * 2 + 1, bytes, set);
  return 0;
}

namespace int8q::test {
namespace {

class Threads : public ::testing::Test {
 protected:
  void SetUp() override { unsetenv("INT8Q_NUM_THREADS"); }
  void TearDown() override {
    unsetenv("INT8Q_NUM_THREADS");
    cpus = kCpus;
  }

  // With the lines of /proc/self/cgroup as told and the groups that were written below the folder.
  int available(const std::string& lines) {
    write_bytes(folder_ / "cgroup", lines);
    return available_threads((folder_ / "cgroup").c_str(), (folder_ / "root").c_str());
  }
  void quota(const std::string& group, const std::string& text) {
    write_bytes(folder_ / ("root" + group + "/cpu.max"), text);
  }
  void quota_v1(const std::string& group, const std::string& micros, const std::string& period) {
    if (!micros.empty()) write_bytes(folder_ / ("root/cpu" + group + "/cpu.cfs_quota_us"), micros);
    if (!period.empty()) write_bytes(folder_ / ("root/cpu" + group + "/cpu.cfs_period_us"), period);
  }

  TempFolder folder_;
};

int32_t threads_of(int32_t wanted) {
  const ContextPtr context = make_context(wanted);
  char json[4096] = "";
  EXPECT_STATUS(INT8Q_OK, int8q_describe_context(context.get(), json, sizeof json, nullptr));
  const char* member = std::strstr(json, "\"threads\":");
  EXPECT_NE(nullptr, member) << json;
  return member == nullptr ? -1 : std::atoi(member + std::strlen("\"threads\":"));
}

TEST_F(Threads, OptionsThenEnvironmentThenCpus) {
  EXPECT_EQ(available_threads(), threads_of(0));
  EXPECT_EQ(5, threads_of(5));
  setenv("INT8Q_NUM_THREADS", "3", 1);
  EXPECT_EQ(3, threads_of(0));
  EXPECT_EQ(5, threads_of(5));
  setenv("INT8Q_NUM_THREADS", "1024", 1);
  EXPECT_EQ(1024, threads_of(0));
  setenv("INT8Q_NUM_THREADS", "", 1);
  EXPECT_EQ(available_threads(), threads_of(0)) << "empty is unset";
}

TEST_F(Threads, ABadEnvironmentIsRefusedByName) {
  for (const char* text :
       {"4x", "x", "0", "-1", "1025", "3 ", "1.5", "0x4", "99999999999999999999", "-99999999999999999999"}) {
    setenv("INT8Q_NUM_THREADS", text, 1);
    int8q_context* context = nullptr;
    EXPECT_STATUS(INT8Q_INVALID_ARGUMENT, int8q_create_context(nullptr, &context));
    EXPECT_EQ(nullptr, context);
    const std::string named = "INT8Q_NUM_THREADS is \"" + std::string(text) + "\"";
    EXPECT_NE(nullptr, std::strstr(int8q_last_error(), named.c_str())) << int8q_last_error();
    EXPECT_EQ(2, threads_of(2)) << "options win over \"" << text << "\"";
  }
}

TEST_F(Threads, TheAffinityMaskCounts) {
  EXPECT_EQ(kCpus, available("")) << "no group";
  cpus = 7;
  EXPECT_EQ(7, available(""));
  cpus = 0;
  EXPECT_GE(available(""), 1) << "more CPUs than a mask holds: the system's count";
}

TEST_F(Threads, QuotaOfCgroup2) {
  const std::pair<const char*, int> quotas[] = {
      {"150000 100000\n", 2}, {"100000 100000\n", 1},  {"1000 100000\n", 1},        {"100001 100000\n", 2},
      {"350000 50000\n", 7},  {"max 100000\n", kCpus}, {"9900000 100000\n", kCpus}, {"", kCpus},
      {"nonsense\n", kCpus},  {"100000\n", kCpus},     {"100000 0\n", kCpus},       {"-1 100000\n", kCpus}};
  for (const auto& [text, threads] : quotas) {
    quota("/own", text);
    EXPECT_EQ(threads, available("0::/own\n")) << text;
  }
}

TEST_F(Threads, TheTightestOfNestedGroups) {
  quota("/a", "800000 100000");
  quota("/a/b", "300000 100000");
  quota("/a/b/c", "500000 100000");
  EXPECT_EQ(3, available("0::/a/b/c\n"));
  EXPECT_EQ(3, available("0::/a/b\n"));
  EXPECT_EQ(8, available("0::/a\n"));
  EXPECT_EQ(kCpus, available("0::/\n"));
  EXPECT_EQ(8, available("0::/a/unknown\n")) << "a group without a quota of its own";
  quota("", "200000 100000");
  EXPECT_EQ(2, available("0::/a/b/c\n")) << "the root of a container";
  EXPECT_EQ(2, available("0::/\n"));
}

TEST_F(Threads, QuotaOfCgroup1) {
  const std::string own = "12:devices:/own\n7:cpu,cpuacct:/own\n";
  quota_v1("/own", "150000\n", "100000\n");
  EXPECT_EQ(2, available(own));
  quota_v1("/own", "-1\n", "100000\n");
  EXPECT_EQ(kCpus, available(own));
  quota_v1("/own", "900000\n", "100000\n");
  quota_v1("", "400000\n", "100000\n");
  EXPECT_EQ(4, available(own));
  EXPECT_EQ(4, available("3:cpuacct,cpu:/\n"));
  quota_v1("/set", "100000\n", "100000\n");
  EXPECT_EQ(4, available("4:cpuset:/set\n" + own)) << "the group of another controller";
  quota_v1("/half", "100000\n", "");
  quota_v1("", "-1", "100000");
  EXPECT_EQ(kCpus, available("7:cpu:/half\n")) << "a quota without its period";
}

TEST_F(Threads, FilesThatAreMissingOrBroken) {
  EXPECT_EQ(kCpus, available_threads((folder_ / "missing").c_str(), (folder_ / "root").c_str()));
  for (const char* lines : {"0::/gone\n", "nonsense\n", "0:\n", "0::\n", ":::::\n", "\n\n", "0::/gone"}) {
    EXPECT_EQ(kCpus, available(lines)) << lines;
  }
}

}  // namespace
}  // namespace int8q::test
