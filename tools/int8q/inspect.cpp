// SPDX-License-Identifier: Apache-2.0
//
// int8q inspect PATH: tensors, sizes, and what quantization would have to cope with.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <memory>
#include <vector>

#include <nlohmann/json.hpp>

#include "command.h"
#include "dtype.h"

namespace tool {
namespace {

using Json = nlohmann::ordered_json;

// A column whose root mean square over the rows is this many times the median column's.
constexpr double kProneRatio = 6.0;

struct Options {
  std::string path;
  bool json = false, stats = true;
};

std::vector<std::string> files_of(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::is_directory(path, error)) return {path};
  std::vector<std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(path, error)) {
    if (entry.path().extension() == ".safetensors") files.push_back(entry.path().string());
  }
  if (error) throw Failure(kInputOutput, path + ": " + error.message(), "check the path and its permissions");
  if (files.empty()) {
    throw Failure(kInputOutput, path + " holds no .safetensors file",
                  "pickled checkpoints (.bin, .pt) are not read; convert them first");
  }
  std::sort(files.begin(), files.end());
  return files;
}

Json float_stats(const int8q_tensor& t) {
  const int64_t rows = t.shape[0], cols = t.shape[1];
  std::vector<double> squares(static_cast<size_t>(cols));
  double absmax = 0, sum = 0;
  int64_t bad = 0;
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) {
      const double w = std::fabs(static_cast<double>(float_at(t.dtype, t.data, i * cols + j)));
      if (!std::isfinite(w)) {
        ++bad;
        continue;
      }
      absmax = std::max(absmax, w);
      sum += w;
      squares[static_cast<size_t>(j)] += w * w;
    }
  }
  Json prone = Json::array();
  if (rows > 0 && cols > 0) {
    std::vector<double> sorted = squares;
    std::nth_element(sorted.begin(), sorted.begin() + cols / 2, sorted.end());
    const double limit = sorted[static_cast<size_t>(cols / 2)] * kProneRatio * kProneRatio;
    // Where most columns are zero, "far from the median column" says nothing.
    for (int64_t j = 0; j < cols && limit > 0.0; ++j) {
      if (squares[static_cast<size_t>(j)] > limit) prone.push_back(j);
    }
  }
  const double elements = std::max(1.0, static_cast<double>(rows) * static_cast<double>(cols) - static_cast<double>(bad));
  return {{"absmax", absmax}, {"mean_abs", sum / elements}, {"not_finite", bad}, {"outlier_prone_columns", prone}};
}

Json int8_stats(const int8q_tensor& codes, const int8q_tensor& scb) {
  std::vector<float> stats;
  int64_t bad = 0;
  for (int64_t i = 0; i < scb.shape[0]; ++i) {
    const float stat = float_at(INT8Q_F32, scb.data, i);
    std::isfinite(stat) && stat >= 0.0f ? stats.push_back(stat) : void(++bad);  // NaN has no place in an order
  }
  std::sort(stats.begin(), stats.end());
  const auto* q = static_cast<const int8_t*>(codes.data);
  const auto full = std::count_if(q, q + codes.bytes, [](int8_t c) { return c == 127 || c == -127; });
  const double elements = std::max(1.0, static_cast<double>(codes.bytes));
  Json json = {{"codes_at_127", static_cast<double>(full) / elements}, {"scb_invalid", bad}};
  if (!stats.empty()) {
    json["scb"] = {{"min", stats.front()}, {"median", stats[stats.size() / 2]}, {"max", stats.back()}};
  }
  return json;
}

Json describe(const int8q::Safetensors& file, const int8q_tensor& t, bool stats) {
  Json shape = Json::array();
  for (int64_t i = 0; i < t.rank; ++i) shape.push_back(t.shape[i]);
  Json json = {{"name", t.name}, {"dtype", dtype_name(t.dtype)}, {"shape", shape}, {"bytes", t.bytes}};
  if (!stats || t.rank != 2) return json;
  if (t.dtype == INT8Q_F32 || t.dtype == INT8Q_F16 || t.dtype == INT8Q_BF16) json["stats"] = float_stats(t);
  const std::string name = t.name;
  const size_t dot = name.rfind('.');
  if (t.dtype == INT8Q_S8 && dot != std::string::npos) {
    int8q_tensor scb;
    const bool found = file.find((name.substr(0, dot) + ".SCB").c_str(), &scb);
    if (found && scb.dtype == INT8Q_F32 && scb.rank == 1) json["stats"] = int8_stats(t, scb);
  }
  return json;
}

std::string stats_text(const Json& tensor) {
  if (!tensor.contains("stats")) return "";
  const Json& s = tensor["stats"];
  if (s.contains("codes_at_127")) {
    const auto bad = s["scb_invalid"].get<int64_t>();
    const std::string invalid = bad > 0 ? fmt::format("  SCB NOT FINITE OR NEGATIVE {}", bad) : "";
    if (!s.contains("scb")) return invalid;
    return fmt::format("SCB {:.3g} {:.3g} {:.3g}  at 127 {:.2f}%", s["scb"]["min"].get<double>(),
                       s["scb"]["median"].get<double>(), s["scb"]["max"].get<double>(),
                       100 * s["codes_at_127"].get<double>()) +
           invalid;
  }
  if (!s.contains("absmax")) return "";
  std::string text = fmt::format("absmax {:.3g}  mean {:.3g}", s["absmax"].get<double>(), s["mean_abs"].get<double>());
  if (s["not_finite"].get<int64_t>() > 0) text += fmt::format("  NOT FINITE {}", s["not_finite"].get<int64_t>());
  const Json& prone = s["outlier_prone_columns"];
  if (!prone.empty()) {
    text += fmt::format("  outlier-prone {}:", prone.size());
    for (size_t i = 0; i < prone.size() && i < 6; ++i) text += fmt::format(" {}", prone[i].get<int64_t>());
    if (prone.size() > 6) text += " ...";
  }
  return text;
}

void print_table(const Json& files) {
  for (const Json& file : files) {
    print("{}\n", shown(file["file"].get<std::string>()));
    for (const Json& t : file["tensors"]) {
      std::string shape;
      for (const Json& size : t["shape"]) shape += (shape.empty() ? "" : "x") + std::to_string(size.get<int64_t>());
      print("  {:<56} {:>7} {:>13} {:>9}  {}\n", shown(t["name"].get<std::string>()), t["dtype"].get<std::string>(),
            shape.empty() ? "scalar" : shape, human_bytes(t["bytes"].get<double>()), stats_text(t));
    }
  }
}

void inspect(const Options& options) {
  Json files = Json::array();
  std::map<std::string, std::pair<int64_t, uint64_t>> totals;
  for (const std::string& path : files_of(options.path)) {
    const int8q::Safetensors file(path.c_str());
    Json tensors = Json::array();
    for (int64_t i = 0; i < file.size(); ++i) {
      const int8q_tensor t = file[i];
      tensors.push_back(describe(file, t, options.stats));
      auto& total = totals[dtype_name(t.dtype)];
      total.first += 1;
      total.second += t.bytes;
    }
    files.push_back({{"file", path}, {"tensors", tensors}});
  }
  if (options.json) {
    Json sums = Json::object();
    for (const auto& [dtype, total] : totals) sums[dtype] = {{"tensors", total.first}, {"bytes", total.second}};
    write_text(Json{{"files", files}, {"totals", sums}}.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
    return;
  }
  print_table(files);
  for (const auto& [dtype, total] : totals) {
    print("{:>8}: {} tensors, {}\n", dtype, total.first, human_bytes(static_cast<double>(total.second)));
  }
}

}  // namespace

void add_inspect(CLI::App& app, int&) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("inspect", "List a checkpoint's tensors with their statistics.");
  command->add_option("PATH", options->path, "a .safetensors file, or a folder of them")->required();
  command->add_flag("--stats,!--no-stats", options->stats, "read the data for statistics (default)");
  command->add_flag("--json", options->json, "print JSON");
  command->footer(
      "Float matrices: absmax, mean |w|, and outlier-prone input columns, those whose root mean square is more than 6 "
      "times the\n"
      "median column's. That is a property of the weights; which columns of the activations are outliers only a "
      "calibration on\n"
      "data tells. None are named where the median column is zero. Int8 matrices: smallest, median, largest SCB (absmax of "
      "a row) and the share of codes at +-127.\n\n"
      "Examples:\n"
      "  int8q inspect model.safetensors\n"
      "  int8q inspect --no-stats ./Llama-3.2-1B\n"
      "  int8q inspect --json model-int8.safetensors");
  command->callback([options] { inspect(*options); });
}

}  // namespace tool
