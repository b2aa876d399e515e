// SPDX-License-Identifier: Apache-2.0
//
// BERT's uncased WordPiece tokenizer: lower case, accents stripped, split at spaces, punctuation and CJK characters, then
// the longest known pieces from the left.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

namespace minilm {

class WordPiece {
 public:
  explicit WordPiece(const std::string& vocab_path);  // vocab.txt, a piece a line
  // [CLS] pieces... [SEP], at most max_tokens of them.
  std::vector<int32_t> encode(const std::string& text, size_t max_tokens) const;

 private:
  void append_word(const std::string& word, std::vector<int32_t>& ids) const;

  std::unordered_map<std::string, int32_t> vocab_;
  int32_t unknown_, cls_, sep_;
};

}  // namespace minilm
