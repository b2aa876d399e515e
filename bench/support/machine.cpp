// SPDX-License-Identifier: Apache-2.0
#include "support/machine.h"

#include <immintrin.h>
#include <sched.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <map>
#include <new>
#include <stdexcept>
#include <thread>
#include <utility>
#include <vector>

#include "cpu/cpuid.h"

namespace int8q::bench {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// 12 or 24 independent accumulators cover latency x throughput of every instruction here. Both operands hold 1.0 as bf16
// and about 1 as fp32: no denormals, no infinities. The upper registers need no clobber: nothing else here uses them.
alignas(64) const uint16_t kOperand[32] = {0x3f80, 0x3f80, 0x3f80, 0x3f80, 0x3f80, 0x3f80, 0x3f80, 0x3f80,
                                           0x3f80, 0x3f80, 0x3f80, 0x3f80, 0x3f80, 0x3f80, 0x3f80, 0x3f80,
                                           0x3f80, 0x3f80, 0x3f80, 0x3f80, 0x3f80, 0x3f80, 0x3f80, 0x3f80,
                                           0x3f80, 0x3f80, 0x3f80, 0x3f80, 0x3f80, 0x3f80, 0x3f80, 0x3f80};

#define INT8Q_TWELVE "0,1,2,3,4,5,6,7,8,9,10,11"
#define INT8Q_PEAK_LOOP(name, load, accumulators, body)                                                              \
  void name(int64_t rounds) {                                                                                        \
    asm volatile(load "1:\n.irp r," accumulators "\n" body "\n.endr\n dec %0\n jnz 1b\n vzeroupper"                  \
                 : "+r"(rounds)                                                                                      \
                 : "r"(kOperand)                                                                                     \
                 : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", \
                   "xmm12", "xmm13", "xmm14", "xmm15", "memory");                                                    \
  }
#define INT8Q_PEAK_YMM(name, body) \
  INT8Q_PEAK_LOOP(name, "vmovups (%1), %%ymm14\n vmovups (%1), %%ymm15\n", INT8Q_TWELVE, body)
#define INT8Q_PEAK_ZMM(name, body)                                         \
  INT8Q_PEAK_LOOP(name, "vmovups (%1), %%zmm30\n vmovups (%1), %%zmm31\n", \
                  INT8Q_TWELVE ",16,17,18,19,20,21,22,23,24,25,26,27", body)

// Four products, then the additions of four chains, which no order of the two is faster than.
#define INT8Q_PAIRS(v, one, t0, t1, t2, t3)                                                    \
  "vpmaddwd %%" v one ", %%" v one ", %%" v t0 "\n vpmaddwd %%" v one ", %%" v one ", %%" v t1 \
  "\n"                                                                                         \
  "vpmaddwd %%" v one ", %%" v one ", %%" v t2 "\n vpmaddwd %%" v one ", %%" v one ", %%" v t3 \
  "\n"                                                                                         \
  "vpaddd %%" v t0 ", %%" v "0, %%" v "0\n vpaddd %%" v t1 ", %%" v "1, %%" v                  \
  "1\n"                                                                                        \
  "vpaddd %%" v t2 ", %%" v "2, %%" v "2\n vpaddd %%" v t3 ", %%" v "3, %%" v "3"
INT8Q_PEAK_LOOP(pair256, "vmovups (%1), %%ymm15\n", "0,1,2,3", INT8Q_PAIRS("ymm", "15", "8", "9", "10", "11"))
INT8Q_PEAK_LOOP(pair512, "vmovups (%1), %%zmm15\n", "0,1,2,3", INT8Q_PAIRS("zmm", "15", "8", "9", "10", "11"))
INT8Q_PEAK_YMM(vnni256_vex, "%{vex%} vpdpbusd %%ymm14, %%ymm15, %%ymm\\r")
INT8Q_PEAK_YMM(vnni256_evex, "%{evex%} vpdpbusd %%ymm14, %%ymm15, %%ymm\\r")
INT8Q_PEAK_ZMM(vnni512, "vpdpbusd %%zmm30, %%zmm31, %%zmm\\r")
INT8Q_PEAK_YMM(fma256, "vfmadd231ps %%ymm14, %%ymm15, %%ymm\\r")
INT8Q_PEAK_ZMM(fma512, "vfmadd231ps %%zmm30, %%zmm31, %%zmm\\r")
INT8Q_PEAK_ZMM(bf16, "vdpbf16ps %%zmm30, %%zmm31, %%zmm\\r")

void vnni256(int64_t rounds) { cpu::cpu_features().avxvnni ? vnni256_vex(rounds) : vnni256_evex(rounds); }

constexpr Peak kPeaks[] = {
    {"avx2", [] { return cpu::cpu_features().avx2; }, pair256, 16 * 16},
    {"avxvnni", [] { return cpu::cpu_features().avxvnni || cpu::cpu_features().avx512vnni; }, vnni256, 12 * 32},
    {"avx512bw", [] { return cpu::cpu_features().avx512bw; }, pair512, 16 * 32},
    {"avx512vnni", [] { return cpu::cpu_features().avx512vnni; }, vnni512, 24 * 64},
    {"fma256", [] { return cpu::cpu_features().avx2; }, fma256, 12 * 8},
    {"fma512", [] { return cpu::cpu_features().avx512bw; }, fma512, 24 * 16},
    {"bf16", [] { return cpu::cpu_features().avx512bf16; }, bf16, 24 * 32},
};

// 512 MiB in huge pages where there are some, touched by the threads in the ranges that they will sweep.
class Memory {
 public:
  static constexpr int64_t kBytes = int64_t{512} << 20;

  static Memory& of(int threads) {
    static std::map<int, Memory> all;
    return all.try_emplace(threads, threads).first->second;
  }

  explicit Memory(int threads) : threads_(threads) {
    void* memory = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    madvise(memory, kBytes, MADV_HUGEPAGE);
    bytes_ = static_cast<uint8_t*>(memory);
    run_together(threads, [&](int t) { std::fill(begin(t), end(t), uint8_t{1}); });
  }
  ~Memory() { munmap(bytes_, kBytes); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  uint8_t* begin(int t) const { return bytes_ + kBytes / 64 * t / threads_ * 64; }
  uint8_t* end(int t) const { return begin(t + 1); }

 private:
  int threads_;
  uint8_t* bytes_;
};

// Four streams: one leaves the memory of a server idle between a single stream's requests.
__attribute__((target("avx2"))) void read_all(const uint8_t* begin, const uint8_t* end) {
  constexpr int kStreams = 4;
  const int64_t share = (end - begin) / kStreams / 64 * 64;
  __m256i seen[kStreams] = {};
  for (int64_t i = 0; i < share; i += 64) {
    for (int s = 0; s < kStreams; ++s) {
      const auto* line = reinterpret_cast<const __m256i*>(begin + s * share + i);
      seen[s] = _mm256_or_si256(seen[s], _mm256_or_si256(_mm256_loadu_si256(line), _mm256_loadu_si256(line + 1)));
    }
  }
  asm volatile("" : : "x"(seen[0]), "x"(seen[1]), "x"(seen[2]), "x"(seen[3]));
}

__attribute__((target("avx2"))) void read_in_order(const uint8_t* begin, const uint8_t* end) {
  __m256i seen[2] = {};
  for (; begin < end; begin += 64) {
    const auto* line = reinterpret_cast<const __m256i*>(begin);
    for (int i = 0; i < 2; ++i) seen[i] = _mm256_or_si256(seen[i], _mm256_loadu_si256(line + i));
  }
  asm volatile("" : : "x"(seen[0]), "x"(seen[1]));
}

__attribute__((target("avx2"))) void copy_half(uint8_t* begin, uint8_t* end) {
  const int64_t half = (end - begin) / 128 * 64;
  for (int64_t i = 0; i < half; i += 32) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(begin + half + i),
                        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(begin + i)));
  }
  _mm_sfence();
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

double once(const std::string& name, int threads, const std::function<double()>& measure) {
  static std::map<std::pair<std::string, int>, double> known;
  const auto [entry, is_new] = known.try_emplace({name, threads}, 0.0);
  if (is_new) {
    std::vector<double> values;
    for (int i = 0; i < 9; ++i) values.push_back(measure());
    entry->second = median(values);
  }
  return entry->second;
}

void pin_to_nth(const cpu_set_t& allowed, int n) {
  n %= CPU_COUNT(&allowed);
  cpu_set_t one;
  CPU_ZERO(&one);
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &allowed) && n-- == 0) CPU_SET(cpu, &one);
  }
  sched_setaffinity(0, sizeof one, &one);
}

}  // namespace

const Peak& find_peak(const std::string& name) {
  for (const Peak& peak : kPeaks) {
    if (name == peak.name) return peak;
  }
  throw std::invalid_argument("no peak loop is named " + name);
}

double run_together(int threads, const std::function<void(int)>& body) {
  std::atomic<int> waiting{threads};
  std::vector<Clock::time_point> begin(static_cast<size_t>(threads)), end(begin);
  // Each on a CPU of its own where there are enough: new threads may share one for as long as a measurement takes.
  cpu_set_t allowed;
  sched_getaffinity(0, sizeof allowed, &allowed);
  const auto run = [&](int t) {
    pin_to_nth(allowed, t);
    --waiting;
    while (waiting > 0) std::this_thread::yield();
    begin[static_cast<size_t>(t)] = Clock::now();
    body(t);
    end[static_cast<size_t>(t)] = Clock::now();
  };
  std::vector<std::jthread> others;
  for (int t = 1; t < threads; ++t) others.emplace_back(run, t);
  run(0);
  others.clear();
  sched_setaffinity(0, sizeof allowed, &allowed);
  return std::chrono::duration<double>(*std::max_element(end.begin(), end.end()) -
                                       *std::min_element(begin.begin(), begin.end()))
      .count();
}

double measure_peak(const Peak& peak, int threads) {
  constexpr int64_t kRounds = 1'500'000;
  return static_cast<double>(threads * kRounds * peak.macs) / run_together(threads, [&](int) { peak.loop(kRounds); });
}

double measure_clock() {
  constexpr int64_t kRounds = 1'000'000;
  int64_t rounds = kRounds;
  const Clock::time_point start = Clock::now();
  asm volatile(
      "1:\n lea 1(%%rax), %%rax\n lea 1(%%rax), %%rax\n lea 1(%%rax), %%rax\n lea 1(%%rax), %%rax\n dec %0\n jnz 1b"
      : "+r"(rounds)
      :
      : "rax");
  return 4.0 * kRounds / seconds_since(start);
}

double measure_read(int threads) {
  const Memory& memory = Memory::of(threads);
  const double streams = run_together(threads, [&](int t) { read_all(memory.begin(t), memory.end(t)); });
  const double in_order = run_together(threads, [&](int t) { read_in_order(memory.begin(t), memory.end(t)); });
  return static_cast<double>(Memory::kBytes) / std::min(streams, in_order);
}

double measure_copy(int threads) {
  const Memory& memory = Memory::of(threads);
  return static_cast<double>(Memory::kBytes) /
         run_together(threads, [&](int t) { copy_half(memory.begin(t), memory.end(t)); });
}

double peak_of(const std::string& name, int threads) {
  return once(name, threads, [&] { return measure_peak(find_peak(name), threads); });
}
double read_of(int threads) {
  return once("read", threads, [&] { return measure_read(threads); });
}
double copy_of(int threads) {
  return once("copy", threads, [&] { return measure_copy(threads); });
}

}  // namespace int8q::bench
