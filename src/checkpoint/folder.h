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
  std::string model_type;               // that config.json names, else ""
  std::string index;                    // text of the index, "" without one
};

inline constexpr const char* kSingleName = "model.safetensors";
inline constexpr const char* kIndexName = "model.safetensors.index.json";
inline constexpr const char* kConfigName = "config.json";

// Not copied at the top level: weights in other formats and their indices, folders of them, and consolidated.*: each would
// be a second, unquantized model. Deeper, they are parts of this one (sentence-transformers' 2_Dense).
inline constexpr const char* kOtherWeights[] = {".bin",  ".pt",      ".pth", ".ckpt",  ".pkl",       ".bin.index.json",
                                                ".h5",   ".msgpack", ".ot",  ".onnx",  ".onnx_data", ".h5.index.json",
                                                ".gguf", ".ggml",    ".npz", ".tflite"};
inline constexpr const char* kOtherModels[] = {"onnx", "openvino", "coreml", "original", "gguf"};
// Not copied at any level: version control, and the downloader's notes about files that are not these any more.
inline constexpr const char* kSkippedFolders[] = {".git", ".hg", ".svn", ".cache"};

// Architectures whose linears transformers replaces by no int8 layer, since their class is not nn.Linear's own (Falcon) or
// their checkpoint is taken apart at loading (Nomic BERT): what was quantized would not run.
inline constexpr const char* kUnloadableTypes[] = {"falcon", "RefinedWeb", "RefinedWebModel", "nomic_bert"};

// NOT_FOUND, IO; CORRUPT for an index that lies; UNSUPPORTED without safetensors or where config.json is quantized already.
Folder read_folder(const std::string& path);

// config.json with bitsandbytes' quantization_config.
std::string quantized_config(const Folder& folder, float threshold, const std::vector<std::string>& skipped_modules);

// The index with the output's tensors, {tensor: shard}, and the bytes of all; the rest of its metadata stays.
std::string quantized_index(const Folder& folder, const std::map<std::string, std::string>& weight_map,
                            uint64_t total_size);

}  // namespace int8q::checkpoint
