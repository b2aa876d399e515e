// SPDX-License-Identifier: Apache-2.0
#include "support/suite.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <list>
#include <map>
#include <memory>
#include <random>
#include <thread>
#include <utility>

#include "cpu/registry.h"
#include "support/machine.h"

namespace int8q::bench {

std::vector<Size> sizes(const Options& options) {
  std::vector<Size> list{{4096, 4096}, {768, 768}};
  if (!options.all_shapes) return list;
  for (const test::ModelLayer& layer : test::kModelLayers) {
    const bool listed = std::any_of(list.begin(), list.end(), [&](Size s) { return s.k == layer.k && s.n == layer.n; });
    if (!listed) list.push_back({layer.k, layer.n});
  }
  return list;
}

std::string Row::name() const {
  std::string text = operation + ("/" + contender);
  if (size.k > 0) text += "/K:" + std::to_string(size.k) + "/N:" + std::to_string(size.n);
  if (m > 0) text += "/M:" + std::to_string(m);
  return text + "/T:" + std::to_string(threads) + more;
}

namespace {

struct Kept {
  Size size;
  std::vector<std::function<void()>> drops;
};

// Those of the last sizes, the last one in front.
std::list<Kept>& kept_sizes() {
  static std::list<Kept> all;
  return all;
}

void use(Size size) {
  constexpr size_t kMost = 2;
  std::list<Kept>& all = kept_sizes();
  const auto found = std::find_if(all.begin(), all.end(), [&](const Kept& kept) { return kept.size == size; });
  if (found == all.end()) {
    all.push_front({size, {}});
  } else {
    all.splice(all.begin(), all, found);
  }
  for (; all.size() > kMost; all.pop_back()) {
    for (const auto& drop : all.back().drops) drop();
  }
}

}  // namespace

void on_drop(Size size, std::function<void()> drop) {
  use(size);
  kept_sizes().front().drops.push_back(std::move(drop));
}

void add(const Row& row, const std::function<void(benchmark::State&)>& body) {
#ifndef __clang_analyzer__  // takes the benchmark, which the library owns, for leaked
  benchmark::RegisterBenchmark(row.name().c_str(), body)->UseRealTime()->Unit(benchmark::kMicrosecond);
#endif
}

namespace {

// A row whose one iteration is one measurement; the rate is what counts.
void add_measurement(const Row& row, const std::function<double()>& measure, const char* counter, double scale) {
  const auto body = [=](benchmark::State& state) {
    double sum = 0.0;
    let_others_sleep();
    while (state.KeepRunning()) sum += measure();
    state.counters[counter] = scale * sum / static_cast<double>(state.iterations());
  };
  add(row, body);
}

}  // namespace

void add_peaks(const Options& options, const std::vector<std::string>& names) {
  for (const std::string& name : names) {
    const Peak& peak = find_peak(name);
    if (!peak.supported()) continue;
    for (const int threads : options.threads) {
      add_measurement(
          {"peak", name, {}, 0, threads, ""}, [&peak, threads] { return measure_peak(peak, threads); }, "Tops", 2e-12);
    }
  }
  add_measurement({"clock", "core", {}, 0, 1, ""}, measure_clock, "GHz", 1e-9);
}

void add_bandwidths(const Options& options) {
  for (const int threads : options.threads) {
    add_measurement(
        {"bandwidth", "read", {}, 0, threads, ""}, [threads] { return measure_read(threads); }, "GB/s", 1e-9);
    add_measurement(
        {"bandwidth", "copy", {}, 0, threads, ""}, [threads] { return measure_copy(threads); }, "GB/s", 1e-9);
  }
}

void count_operations(benchmark::State& state, double macs, const std::string& peak, int threads) {
  using benchmark::Counter;
  state.counters["Tops"] = Counter(2e-12 * macs, Counter::kIsIterationInvariantRate);
  state.counters["%peak"] = Counter(100.0 * macs / peak_of(peak, threads), Counter::kIsIterationInvariantRate);
}

void count_bytes(benchmark::State& state, double bytes, double bandwidth) {
  using benchmark::Counter;
  state.counters["GB/s"] = Counter(1e-9 * bytes, Counter::kIsIterationInvariantRate);
  state.counters["%bandwidth"] = Counter(100.0 * bytes / bandwidth, Counter::kIsIterationInvariantRate);
}

Context& context(const std::string& isa, int threads) {
  static std::map<std::pair<std::string, int>, Context> all;
  return all.try_emplace({isa, threads}, threads, isa.c_str()).first->second;
}

std::vector<float> normal(int64_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> distribution;
  // One period of random numbers is enough: products do not depend on their values.
  std::vector<float> period(static_cast<size_t>(std::min<int64_t>(count, 1 << 20)));
  for (float& v : period) v = distribution(random);
  std::vector<float> values(static_cast<size_t>(count));
  for (size_t i = 0; i < values.size(); ++i) values[i] = period[i % period.size()];
  return values;
}

const FloatLayer& float_layer(Size size) {
  static std::map<Size, FloatLayer> all;
  const auto [layer, is_new] = all.try_emplace(size);
  if (is_new) {
    layer->second = {normal(size.n * size.k, 2), normal(size.n, 3)};
    on_drop(size, [size] { all.erase(size); });
  }
  return layer->second;
}

int64_t copies(Size size, bool rotated, int64_t bytes_a_weight) {
  return rotated ? (int64_t{160} << 20) / (size.k * size.n * bytes_a_weight) + 1 : 1;
}

std::vector<const Linear*> linears(Size size, bool rotated, int32_t outlier_mode) {
  using Key = std::pair<Size, int32_t>;
  static std::map<Key, std::vector<std::unique_ptr<Linear>>> all;
  const Key key{size, outlier_mode};
  const auto [found, is_new] = all.try_emplace(key);
  if (is_new) on_drop(size, [key] { all.erase(key); });
  std::vector<std::unique_ptr<Linear>>& made = found->second;
  const size_t count = static_cast<size_t>(copies(size, rotated, 1));
  const FloatLayer& layer = float_layer(size);
  Context& packer = context(cpu::best_isa().name, static_cast<int>(std::thread::hardware_concurrency()));
  int8q_linear_options options{};
  options.outlier_mode = outlier_mode;
  while (made.size() < count) {
    made.push_back(std::make_unique<Linear>(packer, view(layer.weight.data(), size.n, size.k),
                                            view(layer.bias.data(), 1, size.n), options));
  }
  std::vector<const Linear*> list;
  for (size_t i = 0; i < count; ++i) list.push_back(made[i].get());
  return list;
}

BFloat16 to_bf16(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, sizeof bits);
  return {static_cast<uint16_t>((bits + 0x8000u) >> 16)};
}

std::vector<BFloat16> to_bf16(const std::vector<float>& values) {
  std::vector<BFloat16> list(values.size());
  std::transform(values.begin(), values.end(), list.begin(), [](float f) { return to_bf16(f); });
  return list;
}

std::vector<BFloat16> activations(int64_t m, int64_t k, int64_t outliers) {
  std::vector<float> x = normal(m * k, 1);
  for (float& v : x) v = std::clamp(v, -3.5f, 3.5f);
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t t = 0; t < outliers && (i % 4 != 3 || m < 4); ++t)
      x[static_cast<size_t>(i * k + t * k / outliers)] = 40.0f;
  }
  return to_bf16(x);
}

}  // namespace int8q::bench
