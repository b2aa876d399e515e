// SPDX-License-Identifier: Apache-2.0
#include "progress.h"

#include <algorithm>
#include <cstdio>

#include <fmt/core.h>

#include "command.h"

namespace tool {
namespace {

// The end of UTF-8 text that fits in `columns` columns, one a character; "..." stands for what does not.
std::string tail_of(const std::string& text, int columns) {
  const auto starts_character = [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; };
  const auto length = std::count_if(text.begin(), text.end(), starts_character);
  if (length <= columns) return text;
  if (columns < 8) return "";
  auto left = columns - 3;
  auto from = text.end();
  while (left > 0) left -= starts_character(*--from) ? 1 : 0;
  return "..." + std::string(from, text.end());
}

}  // namespace

ProgressBar::ProgressBar(bool enabled) : enabled_(enabled && is_terminal(stderr)) {}

void ProgressBar::show(uint64_t done, uint64_t total, const std::string& what) {
  const Clock::time_point now = Clock::now();
  const bool due = now - last_ > std::chrono::milliseconds(100) || done == total;
  if (!enabled_ || !due) return;
  last_ = now;
  shown_ = true;
  // All but the name takes 57 columns; a line that is wider than the terminal would not be overwritten.
  constexpr int kWidth = 24, kFixed = 57;
  const double seconds = std::chrono::duration<double>(now - start_).count();
  const double share = total == 0 ? 1.0 : static_cast<double>(done) / static_cast<double>(total);
  const double rate = static_cast<double>(done) / std::max(seconds, 1e-9);
  const double left = rate > 0.0 ? static_cast<double>(total - done) / rate : 0.0;
  const auto filled = static_cast<size_t>(share * kWidth);
  const std::string line = fmt::format("\r\x1b[K[{}{}] {:3.0f}% {:>9}/s {:>6} left  {}", std::string(filled, '#'),
                                       std::string(kWidth - filled, '.'), share * 100.0, human_bytes(rate),
                                       human_seconds(left), tail_of(what, terminal_columns(stderr) - kFixed));
  std::fputs(line.c_str(), stderr);  // fmt::print would throw on a terminal that is gone
}

void ProgressBar::clear() {
  if (shown_) std::fputs("\r\x1b[K", stderr);
  shown_ = false;
}

}  // namespace tool
