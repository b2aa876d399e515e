// SPDX-License-Identifier: Apache-2.0
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "core/pool.h"

namespace int8q {
namespace {

// CPUs that a cgroup v2 "cpu.max" ("max 100000", "150000 100000") or the v1 pair of files grants, rounded up; 0: no limit.
int quota_of_folder(const char* folder) {
  char path[4200];
  long long quota = -1, period = 0;
  std::snprintf(path, sizeof path, "%s/cpu.max", folder);
  if (std::FILE* file = std::fopen(path, "re")) {
    if (std::fscanf(file, "%lld %lld", &quota, &period) != 2) quota = -1;
    std::fclose(file);
  } else {
    for (const char* name : {"cpu.cfs_quota_us", "cpu.cfs_period_us"}) {
      std::snprintf(path, sizeof path, "%s/%s", folder, name);
      if (std::FILE* v1 = std::fopen(path, "re")) {
        long long& value = name[8] == 'q' ? quota : period;
        if (std::fscanf(v1, "%lld", &value) != 1) value = -1;
        std::fclose(v1);
      }
    }
  }
  return quota > 0 && period > 0 ? static_cast<int>((quota + period - 1) / period) : 0;
}

// Whether the list "cpu,cpuacct" names the controller `cpu`; "cpuset" is another one, with groups of its own.
bool names_cpu(const char* controllers) {
  while (controllers != nullptr) {
    if (std::strncmp(controllers, "cpu", 3) == 0 && (controllers[3] == '\0' || controllers[3] == ',')) return true;
    controllers = std::strchr(controllers, ',');
    if (controllers != nullptr) ++controllers;
  }
  return false;
}

// The tightest quota from this process's group up to the root; 0: no limit.
int cgroup_quota(const char* cgroup_file, const char* cgroup_root) {
  int tightest = 0;
  std::FILE* file = std::fopen(cgroup_file, "re");
  if (file == nullptr) return 0;
  char line[4096];
  while (std::fgets(line, sizeof line, file) != nullptr) {
    line[std::strcspn(line, "\n")] = '\0';
    char* controllers = std::strchr(line, ':');
    char* group = controllers != nullptr ? std::strchr(controllers + 1, ':') : nullptr;
    if (group == nullptr) continue;
    *group++ = '\0';
    ++controllers;
    const bool v2 = *controllers == '\0';
    if (!v2 && !names_cpu(controllers)) continue;
    char folder[4160];
    for (;;) {
      std::snprintf(folder, sizeof folder, "%s%s%s", cgroup_root, v2 ? "" : "/cpu", group);
      const int quota = quota_of_folder(folder);
      if (quota > 0 && (tightest == 0 || quota < tightest)) tightest = quota;
      char* slash = std::strrchr(group, '/');
      if (slash == nullptr || *group == '\0') break;
      *slash = '\0';
    }
  }
  std::fclose(file);
  return tightest;
}

}  // namespace

int available_threads(const char* cgroup_file, const char* cgroup_root) {
  cpu_set_t set;  // 1024 CPUs; the call fails on larger machines
  const int threads =
      sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
  const int quota = cgroup_quota(cgroup_file, cgroup_root);
  return std::max(1, quota > 0 ? std::min(threads, quota) : threads);
}

}  // namespace int8q
