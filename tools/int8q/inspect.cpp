// SPDX-License-Identifier: Apache-2.0
//
// int8q inspect PATH: tensors, sizes, and what quantization would have to cope with.
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <csignal>
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

// Columns whose squares sum to far more than the median column's; where most columns are zero, none.
Json prone_columns(const std::vector<double>& squares) {
  Json prone = Json::array();
  if (squares.empty()) return prone;
  std::vector<double> sorted = squares;
  const auto middle = sorted.begin() + static_cast<std::ptrdiff_t>(sorted.size() / 2);
  std::nth_element(sorted.begin(), middle, sorted.end());
  const double limit = *middle * kProneRatio * kProneRatio;
  for (size_t j = 0; j < squares.size() && limit > 0.0; ++j) {
    if (squares[j] > limit) prone.push_back(j);
  }
  return prone;
}

Json float_stats(const int8q_tensor& t) {
  const int64_t rows = t.shape[0], cols = t.shape[1];
  std::vector<double> squares(rows > 0 ? static_cast<size_t>(cols) : 0);
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
  const double elements = std::max(1.0, static_cast<double>(rows) * static_cast<double>(cols) - static_cast<double>(bad));
  return {{"absmax", absmax},
          {"mean_abs", sum / elements},
          {"not_finite", bad},
          {"outlier_prone_columns", prone_columns(squares)}};
}

// Of a weight [N,K] with its SCB [N].
Json int8_stats(const int8q_tensor& codes, const int8q_tensor& scb) {
  const int64_t cols = codes.shape[1];
  std::vector<double> squares(codes.shape[0] > 0 ? static_cast<size_t>(cols) : 0);
  std::vector<float> stats;
  int64_t bad = 0, full = 0;
  const auto* q = static_cast<const int8_t*>(codes.data);
  for (int64_t i = 0; i < codes.shape[0]; ++i, q += cols) {
    const float stat = float_at(INT8Q_F32, scb.data, i);
    const bool valid = std::isfinite(stat) && stat >= 0.0f;  // NaN has no place in an order
    valid ? stats.push_back(stat) : void(++bad);
    for (int64_t j = 0; j < cols; ++j) {
      full += q[j] == 127 || q[j] == -127;
      const double w = valid ? static_cast<double>(q[j]) * static_cast<double>(stat) / 127.0 : 0.0;
      squares[static_cast<size_t>(j)] += w * w;
    }
  }
  std::sort(stats.begin(), stats.end());
  const double elements = std::max(1.0, static_cast<double>(codes.bytes));
  Json json = {{"codes_at_127", static_cast<double>(full) / elements}, {"scb_invalid", bad}};
  if (!stats.empty()) {
    json["scb"] = {{"min", stats.front()}, {"median", stats[stats.size() / 2]}, {"max", stats.back()}};
  }
  json["outlier_prone_columns"] = prone_columns(squares);
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
    if (found && scb.dtype == INT8Q_F32 && scb.rank == 1 && scb.shape[0] == t.shape[0]) json["stats"] = int8_stats(t, scb);
  }
  return json;
}

std::string prone_text(const Json& prone) {
  if (prone.empty()) return "";
  std::string text = fmt::format("  outlier-prone {}:", prone.size());
  for (size_t i = 0; i < prone.size() && i < 6; ++i) text += fmt::format(" {}", prone[i].get<int64_t>());
  return prone.size() > 6 ? text + " ..." : text;
}

std::string stats_text(const Json& tensor) {
  if (!tensor.contains("stats")) return "";
  const Json& s = tensor["stats"];
  std::string text;
  if (s.contains("absmax")) {
    text = fmt::format("absmax {:.3g}  mean {:.3g}", s["absmax"].get<double>(), s["mean_abs"].get<double>());
    if (s["not_finite"] > 0) text += fmt::format("  NOT FINITE {}", s["not_finite"].get<int64_t>());
  } else {
    if (s.contains("scb")) {
      text = fmt::format("SCB {:.3g} {:.3g} {:.3g}  at 127 {:.2f}%", s["scb"]["min"].get<double>(),
                         s["scb"]["median"].get<double>(), s["scb"]["max"].get<double>(),
                         100 * s["codes_at_127"].get<double>());
    }
    if (s["scb_invalid"] > 0) text += fmt::format("  SCB NOT FINITE OR NEGATIVE {}", s["scb_invalid"].get<int64_t>());
  }
  return text + prone_text(s["outlier_prone_columns"]);
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

// A mapped file that somebody cuts while it is read raises SIGBUS: an error of the input, not a crash.
void exit_on_cut_file() {
  struct sigaction action {};
  action.sa_handler = [](int) {
    constexpr char kText[] = "int8q: error: the file was cut while it was read\n";
    static_cast<void>(!write(STDERR_FILENO, kText, sizeof kText - 1));
    _exit(kBadInput);
  };
  sigaction(SIGBUS, &action, nullptr);
}

void inspect(const Options& options) {
  exit_on_cut_file();
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
      "Float matrices: absmax and mean |w|. Int8 matrices: smallest, median, largest SCB (absmax of a row), share of "
      "codes\n"
      "at +-127. Both: outlier-prone input columns, those whose root mean square is more than 6 times the median column's\n"
      "(none where that is zero). That is a property of the weights; which columns of the activations are outliers only a\n"
      "calibration on data tells.\n\n"
      "Examples:\n"
      "  int8q inspect model.safetensors\n"
      "  int8q inspect --no-stats ./Llama-3.2-1B\n"
      "  int8q inspect --json model-int8.safetensors");
  command->callback([options] { inspect(*options); });
}

}  // namespace tool
