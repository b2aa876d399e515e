// SPDX-License-Identifier: Apache-2.0
#include "wordpiece.h"

#include <algorithm>
#include <fstream>
#include <stdexcept>

#include <utf8proc.h>

namespace minilm {
namespace {

std::string utf8(utf8proc_int32_t c) {
  utf8proc_uint8_t bytes[4];
  return {reinterpret_cast<char*>(bytes), static_cast<size_t>(utf8proc_encode_char(c, bytes))};
}

bool is_punctuation(utf8proc_int32_t c) {
  if ((c >= 33 && c <= 47) || (c >= 58 && c <= 64) || (c >= 91 && c <= 96) || (c >= 123 && c <= 126)) return true;
  const utf8proc_category_t category = utf8proc_category(c);
  return category >= UTF8PROC_CATEGORY_PC && category <= UTF8PROC_CATEGORY_PO;
}

bool is_cjk(utf8proc_int32_t c) {
  return (c >= 0x4E00 && c <= 0x9FFF) || (c >= 0x3400 && c <= 0x4DBF) || (c >= 0x20000 && c <= 0x2A6DF) ||
         (c >= 0x2A700 && c <= 0x2CEAF) || (c >= 0xF900 && c <= 0xFAFF) || (c >= 0x2F800 && c <= 0x2FA1F);
}

bool is_space(utf8proc_int32_t c) {
  const utf8proc_category_t category = utf8proc_category(c);
  return c == '\t' || c == '\n' || c == '\r' || category == UTF8PROC_CATEGORY_ZS || category == UTF8PROC_CATEGORY_ZL ||
         category == UTF8PROC_CATEGORY_ZP;
}

bool is_control(utf8proc_int32_t c) {
  const utf8proc_category_t category = utf8proc_category(c);
  return c == 0 || c == 0xFFFD || category == UTF8PROC_CATEGORY_CC || category == UTF8PROC_CATEGORY_CF ||
         category == UTF8PROC_CATEGORY_CO;
}

}  // namespace

WordPiece::WordPiece(const std::string& vocab_path) {
  std::ifstream file(vocab_path);
  for (std::string line; std::getline(file, line);) vocab_.emplace(line, static_cast<int32_t>(vocab_.size()));
  if (vocab_.count("[UNK]") + vocab_.count("[CLS]") + vocab_.count("[SEP]") != 3) {
    throw std::runtime_error(vocab_path + ": no BERT vocabulary");
  }
  unknown_ = vocab_.at("[UNK]");
  cls_ = vocab_.at("[CLS]");
  sep_ = vocab_.at("[SEP]");
}

void WordPiece::append_word(const std::string& word, std::vector<int32_t>& ids) const {
  if (word.empty()) return;
  const size_t before = ids.size();
  const auto characters = std::count_if(word.begin(), word.end(), [](char c) { return (c & 0xc0) != 0x80; });
  for (size_t start = 0; start < word.size();) {
    size_t end = word.size();
    auto piece = vocab_.end();
    for (; end > start && piece == vocab_.end(); --end) {
      piece = vocab_.find((start > 0 ? "##" : "") + word.substr(start, end - start));
    }
    if (piece == vocab_.end() || characters > 100) {
      ids.resize(before);
      ids.push_back(unknown_);
      return;
    }
    ids.push_back(piece->second);
    start = end + 1;
  }
}

std::vector<int32_t> WordPiece::encode(const std::string& text, size_t max_tokens) const {
  std::vector<int32_t> ids = {cls_};
  std::string word;
  const auto flush = [&] {
    append_word(word, ids);
    word.clear();
  };
  const auto* next = reinterpret_cast<const utf8proc_uint8_t*>(text.data());
  for (auto left = static_cast<utf8proc_ssize_t>(text.size()); left > 0;) {
    utf8proc_int32_t c;
    const utf8proc_ssize_t used = utf8proc_iterate(next, left, &c);
    const utf8proc_ssize_t step = used > 0 ? used : 1;
    next += step;
    left -= step;
    if (used <= 0) continue;
    if (is_space(c)) {
      flush();
    } else if (is_control(c)) {
      continue;
    } else if (is_cjk(c)) {
      flush();
      append_word(utf8(c), ids);
    } else {
      utf8proc_int32_t parts[8];
      int boundary = 0;
      const utf8proc_ssize_t count = utf8proc_decompose_char(c, parts, 8, UTF8PROC_DECOMPOSE, &boundary);
      for (utf8proc_ssize_t i = 0; i < count; ++i) {
        if (utf8proc_category(parts[i]) == UTF8PROC_CATEGORY_MN) continue;
        const utf8proc_int32_t lower = utf8proc_tolower(parts[i]);
        if (is_punctuation(lower)) {
          flush();
          append_word(utf8(lower), ids);
        } else {
          word += utf8(lower);
        }
      }
    }
  }
  flush();
  if (ids.size() > max_tokens - 1) ids.resize(max_tokens - 1);
  ids.push_back(sep_);
  return ids;
}

}  // namespace minilm
