// SPDX-License-Identifier: Apache-2.0
//
// A Hugging Face checkpoint folder: which files are its shards, which are copied, and its two JSON files.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "checkpoint/files.h"

namespace int8q::checkpoint {

struct ShardSource {
  std::string name;  // relative to the folder
  std::string in_path;
  std::vector<std::string> promised;  // tensors that an index says are in it
};

struct Folder {
  std::string path;
  std::vector<ShardSource> shards;
  std::vector<std::string> subfolders;  // relative, parents first
  std::vector<std::string> copied;      // relative
  std::string config;                   // text of config.json, "" without one
  std::string index;                    // text of the index, "" without one
};

inline constexpr const char* kSingleName = "model.safetensors";
inline constexpr const char* kIndexName = "model.safetensors.index.json";
inline constexpr const char* kConfigName = "config.json";

// Not copied at the top level: weights as pickles and their index, which would be a second, unquantized model.
inline constexpr const char* kPickleSuffixes[] = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".bin.index.json"};
// Not copied at any level: version control, and the downloader's notes about files that are not these any more.
inline constexpr const char* kSkippedFolders[] = {".git", ".hg", ".svn", ".cache"};

// NOT_FOUND, IO; CORRUPT for an index that lies; UNSUPPORTED without safetensors or where config.json is quantized already.
Folder read_folder(const std::string& path);

// config.json with bitsandbytes' quantization_config.
std::string quantized_config(const Folder& folder, float threshold, const std::vector<std::string>& skipped_modules);

// The index with the output's tensors, {tensor: shard}, and the bytes of all; the rest of its metadata stays.
std::string quantized_index(const Folder& folder, const std::map<std::string, std::string>& weight_map,
                            uint64_t total_size);

}  // namespace int8q::checkpoint
