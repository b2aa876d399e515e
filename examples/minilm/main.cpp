// SPDX-License-Identifier: Apache-2.0
//
// minilm: embeds the sentences of a text with an fp32 and with an int8 engine, searches them, and compares size, speed and
// accuracy. Exit status 1 if int8 misses what is promised: cosine, size, speed.
#include <algorithm>
#include <chrono>
#include <fstream>
#include <iostream>
#include <set>
#include <sstream>

#include <fmt/core.h>
#include <CLI/CLI.hpp>

#include "bert.h"
#include "wordpiece.h"

namespace {

using minilm::Bert;
using minilm::RowMatrix;
using minilm::Sentence;

constexpr size_t kMaxTokens = 128;
constexpr size_t kBatch = 16;

// Sentences of plain text: paragraphs at blank lines, cut behind ". ", "? " and "! "; 5 to 60 words, each once.
std::vector<std::string> read_sentences(const std::string& path, size_t most) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error(path + ": cannot be read");
  std::vector<std::string> sentences;
  std::set<std::string> seen;
  std::string sentence;
  int words = 0;
  const auto flush = [&] {
    if (words >= 5 && words <= 60 && sentences.size() < most && seen.insert(sentence).second) sentences.push_back(sentence);
    sentence.clear();
    words = 0;
  };
  for (std::string line; std::getline(file, line);) {
    std::istringstream stream(line);
    bool blank = true;
    for (std::string word; stream >> word; blank = false) {
      sentence += (sentence.empty() ? "" : " ") + word;
      ++words;
      if (word.back() == '.' || word.back() == '?' || word.back() == '!') flush();
    }
    if (blank) flush();
  }
  flush();
  return sentences;
}

std::vector<std::vector<Sentence>> batches(const std::vector<Sentence>& sentences, size_t size) {
  std::vector<std::vector<Sentence>> result;
  for (size_t i = 0; i < sentences.size(); i += size) {
    const auto begin = sentences.begin() + static_cast<std::ptrdiff_t>(i);
    result.emplace_back(begin, begin + static_cast<std::ptrdiff_t>(std::min(size, sentences.size() - i)));
  }
  return result;
}

RowMatrix embed_all(Bert& bert, const std::vector<std::vector<Sentence>>& groups, Eigen::Index width) {
  RowMatrix all(0, width);
  for (const auto& group : groups) {
    const RowMatrix rows = bert.embed(group);
    all.conservativeResize(all.rows() + rows.rows(), width);
    all.bottomRows(rows.rows()) = rows;
  }
  return all;
}

// Median milliseconds a sentence of each engine; the engines take turns batch by batch, so a busy machine is busy for both.
std::pair<double, double> compare(Bert& fp32, Bert& int8, const std::vector<std::vector<Sentence>>& groups, int rounds) {
  std::vector<double> times[2];
  for (int round = 0; round < rounds; ++round) {
    double sum[2] = {0, 0};
    size_t count = 0;
    for (const auto& group : groups) {
      for (int e = 0; e < 2; ++e) {
        const auto start = std::chrono::steady_clock::now();
        (e == 0 ? fp32 : int8).embed(group);
        sum[e] += std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
      }
      count += group.size();
    }
    for (int e = 0; e < 2; ++e) times[e].push_back(sum[e] / static_cast<double>(count));
  }
  for (auto& t : times) std::nth_element(t.begin(), t.begin() + static_cast<std::ptrdiff_t>(t.size() / 2), t.end());
  return {times[0][times[0].size() / 2], times[1][times[1].size() / 2]};
}

void search(const Eigen::RowVectorXf& embedding, const RowMatrix& all, const std::vector<std::string>& sentences,
            const char* engine) {
  Eigen::Index best;
  const float score = (all * embedding.transpose()).maxCoeff(&best);
  fmt::print("  {:<5} {:.4f}  {}\n", engine, score, sentences[static_cast<size_t>(best)]);
}

struct Options {
  std::string fp32, int8, text;
  std::vector<std::string> queries = {"How do I upgrade to a new release?", "Where can I report a bug?",
                                      "What is in the kernel package?"};
  int threads = 2, rounds = 5;
  size_t most = 320;
};

int run(const Options& o) {
  minilm::Threads threads(o.threads);
  Bert fp32(o.fp32, minilm::Engine::kFp32, threads), int8(o.int8, minilm::Engine::kInt8, threads);
  const minilm::WordPiece tokenizer(o.fp32 + "/vocab.txt");
  const std::vector<std::string> sentences = read_sentences(o.text, o.most);
  if (sentences.empty()) throw std::runtime_error(o.text + ": no sentences found");
  std::vector<Sentence> tokens;
  size_t token_count = 0;
  for (const std::string& s : sentences) {
    tokens.push_back(tokenizer.encode(s, kMaxTokens));
    token_count += tokens.back().size();
  }
  const auto groups = batches(tokens, kBatch);
  const RowMatrix a = embed_all(fp32, groups, 384), b = embed_all(int8, groups, 384);
  const Eigen::VectorXf cosine = (a.array() * b.array()).rowwise().sum();

  fmt::print("{} sentences of {}, {:.1f} tokens each\n\n", sentences.size(), o.text,
             static_cast<double>(token_count) / static_cast<double>(sentences.size()));
  for (const std::string& query : o.queries) {
    fmt::print("{}\n", query);
    const std::vector<Sentence> q = {tokenizer.encode(query, kMaxTokens)};
    search(fp32.embed(q).row(0), a, sentences, "fp32");
    search(int8.embed(q).row(0), b, sentences, "int8");
  }

  const auto [batch32, batch8] = compare(fp32, int8, groups, o.rounds);
  const std::vector<Sentence> first(tokens.begin(),
                                    tokens.begin() + static_cast<std::ptrdiff_t>(std::min<size_t>(tokens.size(), 64)));
  const auto [one32, one8] = compare(fp32, int8, batches(first, 1), o.rounds);
  const double bytes32 = static_cast<double>(fp32.linear_bytes()), bytes8 = static_cast<double>(int8.linear_bytes());

  fmt::print("\n{:<44} {:>10} {:>10} {:>9}\n", fmt::format("all-MiniLM-L6-v2, {} threads", o.threads), "fp32", "int8",
             "ratio");
  fmt::print("{:<44} {:>10.2f} {:>10.2f} {:>9.4f}\n", "linears in the checkpoint, MB", bytes32 / 1e6, bytes8 / 1e6,
             bytes8 / bytes32);
  fmt::print("{:<44} {:>10.3f} {:>10.3f} {:>8.2f}x\n", fmt::format("ms a sentence, batches of {}", kBatch), batch32, batch8,
             batch32 / batch8);
  fmt::print("{:<44} {:>10.3f} {:>10.3f} {:>8.2f}x\n", "ms a sentence, one by one", one32, one8, one32 / one8);
  fmt::print("{:<44} {:>10} {:>10.5f}\n", "cosine to fp32, mean", 1, cosine.mean());
  fmt::print("{:<44} {:>10} {:>10.5f}\n", "cosine to fp32, smallest", 1, cosine.minCoeff());

  bool good = true;
  const auto expect = [&](bool holds, const char* what) {
    if (!holds) fmt::print("MISSED: {}\n", what);
    good = good && holds;
  };
  expect(cosine.mean() >= 0.999f, "mean cosine >= 0.999");
  expect(bytes8 <= 0.26 * bytes32, "linears <= 0.26 x fp32");
  expect(batch8 < batch32 && one8 < one32, "int8 faster than fp32 a sentence");
  return good ? 0 : 1;
}

}  // namespace

// Only a failure to report a failure is not caught.
int main(int argc, char** argv) {  // NOLINT(bugprone-exception-escape)
  Options o;
  CLI::App app("Embeds a text with an fp32 and an int8 engine and compares them.");
  app.add_option("--model-fp32", o.fp32, "folder of all-MiniLM-L6-v2")->required();
  app.add_option("--model-int8", o.int8, "folder that `int8q quantize` wrote from it")->required();
  app.add_option("--text", o.text, "plain text")->required();
  app.add_option("--query", o.queries, "what to search for (repeatable)");
  app.add_option("--threads", o.threads, "threads of both engines")->capture_default_str()->check(CLI::Range(1, 64));
  app.add_option("--rounds", o.rounds, "timed rounds, of which the median counts")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000));
  app.add_option("--sentences", o.most, "at most so many sentences")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  try {
    return run(o);
  } catch (const std::exception& error) {
    fmt::print(stderr, "minilm: error: {}\n", error.what());
    return 2;
  }
}
