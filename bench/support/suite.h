// SPDX-License-Identifier: Apache-2.0
//
// What the benchmarks share: the command line, the shapes, int8q's layers with their inputs, and the counters.
//
// Rows are named operation/contender/K:4096/N:4096/M:128/T:2, then what else distinguishes them; T is threads.
#pragma once

#include <benchmark/benchmark.h>

#include <chrono>
#include <compare>
#include <cstdint>
#include <functional>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#include "int8q/int8q.hpp"
#include "support/shapes.h"

namespace int8q::bench {

struct Options {
  std::vector<std::string> isas;  // supported ones only
  std::vector<int> threads;
  bool all_shapes;
};

// Each bench_NAME.cpp defines this one; support/main.cpp calls it.
void register_benchmarks(const Options& options);

struct Size {
  int64_t k, n;
  auto operator<=>(const Size&) const = default;  // NOLINT(modernize-use-nullptr): the check misreads <=>
};

// 4096 x 4096 and 768 x 768, which the speed goals name; with all_shapes every layer of the list of shapes.
std::vector<Size> sizes(const Options& options);

struct Row {
  const char* operation;
  std::string contender;
  Size size;
  int64_t m;  // 0 where there are no rows
  int threads;
  std::string more;  // "/dtype:bf16/rotated"

  std::string name() const;
};

// Registers one row. The body sets itself up and then runs its loop over `state`.
//
// What rows of a size keep from one repetition to the next is dropped once rows of two other sizes have come: layers of all
// models together are larger than a machine. The two default sizes take turns and keep theirs.
void add(const Row& row, const std::function<void(benchmark::State&)>& body);

// peak/NAME/T:2, clock and bandwidth/{read,copy}/T:2, to be interleaved with what is compared with them.
void add_peaks(const Options& options, const std::vector<std::string>& names);
void add_bandwidths(const Options& options);

// Has `drop` called when what was made for this size is dropped.
void on_drop(Size size, std::function<void()> drop);

// Sets the counters of `state` from what one iteration did: Tops and % of the named peak, GB/s and % of the bandwidth.
void count_operations(benchmark::State& state, double macs, const std::string& peak, int threads);
void count_bytes(benchmark::State& state, double bytes, double bandwidth);

// Waits until the spinning threads of a contender that ran before (OpenMP's, ours) have gone to sleep.
inline void let_others_sleep() { std::this_thread::sleep_for(std::chrono::milliseconds(15)); }

// Times calls, once others sleep and this contender's threads are awake and, by the system's balancing, on CPUs of their
// own.
template <class Call>
void time_calls(benchmark::State& state, const Call& call) {
  using namespace std::chrono_literals;
  let_others_sleep();
  for (const auto end = std::chrono::steady_clock::now() + 20ms; std::chrono::steady_clock::now() < end;) call();
  while (state.KeepRunning()) call();
}

Context& context(const std::string& isa, int threads);

// fp32 weights [N,K] and bias [N] of a size, made once.
struct FloatLayer {
  std::vector<float> weight, bias;
};
const FloatLayer& float_layer(Size size);

// Linears of the same size, each with memory of its own; `rotated`: together more than 128 MiB, else one.
std::vector<const Linear*> linears(Size size, bool rotated, int32_t outlier_mode = INT8Q_OUTLIERS_COLUMN);
int64_t copies(Size size, bool rotated, int64_t bytes_a_weight);

// Normal activations cut at 3.5; on three rows of four, `outliers` columns hold 40.
std::vector<BFloat16> activations(int64_t m, int64_t k, int64_t outliers);

BFloat16 to_bf16(float f);
std::vector<BFloat16> to_bf16(const std::vector<float>& values);
std::vector<float> normal(int64_t count, uint64_t seed);

// fp32 and bf16: normal; fp16: 0.5 .. 2.
template <class T>
std::vector<T> values(int64_t count, uint64_t seed) {
  if constexpr (std::is_same_v<T, float>) {
    return normal(count, seed);
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    return to_bf16(normal(count, seed));
  } else {
    std::vector<T> halves(static_cast<size_t>(count));
    for (size_t i = 0; i < halves.size(); ++i) halves[i] = {static_cast<uint16_t>(0x3800 + (i * 37) % 0x600)};
    return halves;
  }
}

}  // namespace int8q::bench
