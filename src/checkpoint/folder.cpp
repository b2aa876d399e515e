// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/folder.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <map>
#include <memory>

#include "checkpoint/json_members.h"
#include "core/error.h"

namespace int8q::checkpoint {
namespace {

constexpr uint64_t kLongestJson = 100'000'000;

// Shards as the index names them. A shard lies beside its index: a name with '/' could lead anywhere.
std::vector<ShardSource> shards_of_index(const std::string& folder, const JsonMembers& index) {
  const std::string path = folder + "/" + kIndexName;
  const auto weight_map = index.children.find("weight_map");
  if (weight_map == index.children.end() || weight_map->second.empty()) {
    fail(INT8Q_CORRUPT, "%s: \"weight_map\" is missing or empty; expected {tensor: shard}", shown(path).c_str());
  }
  std::map<std::string, ShardSource> shards;
  for (const auto& [tensor, value] : weight_map->second) {
    const std::string& shard = value.text;
    if (!value.is_string || !shard.ends_with(".safetensors") || shard.find('/') != std::string::npos ||
        shard.find('\0') != std::string::npos) {
      fail(INT8Q_CORRUPT, "%s: tensor \"%s\" is in \"%s\"; expected the name of a .safetensors file in this folder",
           shown(path).c_str(), shown(tensor).c_str(), shown(shard).c_str());
    }
    ShardSource& source = shards[shard];
    source.name = shard;
    source.in_path = folder + "/" + shard;
    source.promised.push_back(tensor);
  }
  std::vector<ShardSource> ordered;
  for (auto& [name, source] : shards) ordered.push_back(std::move(source));
  return ordered;
}

bool exists(const std::string& path) {
  struct stat status;
  if (::stat(path.c_str(), &status) == 0) return true;
  if (errno != ENOENT) fail_errno(path, "looking it up failed");
  return false;
}

bool is_skipped_folder(const std::string& name, int depth) {
  const auto is = [&](const char* skipped) { return name == skipped; };
  return std::any_of(std::begin(kSkippedFolders), std::end(kSkippedFolders), is) ||
         (depth == 0 && std::any_of(std::begin(kOtherModels), std::end(kOtherModels), is));
}

bool holds_other_weights(const std::string& name) {
  return name.starts_with("consolidated.") || std::any_of(std::begin(kOtherWeights), std::end(kOtherWeights),
                                                          [&](const char* suffix) { return name.ends_with(suffix); });
}

bool is_replaced(const Folder& folder, const std::string& name) {
  return name == kConfigName || (name == kIndexName && !folder.index.empty()) || holds_other_weights(name) ||
         std::any_of(folder.shards.begin(), folder.shards.end(), [&](const ShardSource& s) { return s.name == name; });
}

// Everything below `prefix` ("" or "a/b/") that is copied. Symbolic links to files count as files: a downloader's cache is
// made of them.
void list_others(Folder& folder, const std::string& prefix, int depth) {
  constexpr int kDeepest = 100;
  if (depth > kDeepest)
    fail(INT8Q_UNSUPPORTED, "%s: is nested deeper than %d folders", shown(folder.path).c_str(), kDeepest);
  for (const std::string& name : names_in(folder.path + "/" + prefix)) {
    const std::string relative = prefix + name, path = folder.path + "/" + relative;
    struct stat status, link;
    if (::lstat(path.c_str(), &link) != 0 || ::stat(path.c_str(), &status) != 0) fail_errno(path, "looking it up failed");
    if (S_ISREG(status.st_mode)) {
      if (depth > 0 || !is_replaced(folder, name)) folder.copied.push_back(relative);
    } else if (!S_ISDIR(status.st_mode) || S_ISLNK(link.st_mode)) {
      fail(INT8Q_UNSUPPORTED, "%s: is a %s; expected files and folders: remove it, or put in what it leads to",
           shown(path).c_str(), S_ISLNK(link.st_mode) ? "symbolic link to a folder" : "special file");
    } else if (!is_skipped_folder(name, depth)) {
      folder.subfolders.push_back(relative);
      list_others(folder, relative + "/", depth + 1);
    }
  }
}

// The shortest decimal that is this float, as Python prints it: transformers wants 6.0, not 6.
std::string python_float(float value) {
  char text[32];
  std::string decimal(text, std::to_chars(text, text + sizeof text, value).ptr);
  return decimal.find_first_of(".e") == std::string::npos ? decimal + ".0" : decimal;
}

}  // namespace

Folder read_folder(const std::string& path) {
  Folder folder;
  folder.path = path;
  const std::string config_path = path + "/" + kConfigName, index_path = path + "/" + kIndexName;
  if (exists(config_path)) {
    folder.config = read_text(config_path, kLongestJson);
    const JsonMembers config = read_members(folder.config, config_path);
    if (const auto type = config.members.find("model_type"); type != config.members.end()) {
      folder.model_type = type->second.text;
    }
    if (config.members.count("quantization_config") != 0) {
      fail(INT8Q_UNSUPPORTED, "%s: has a \"quantization_config\" already; expected a checkpoint in floating point",
           shown(config_path).c_str());
    }
  }
  const bool single = exists(path + "/" + kSingleName);
  if (exists(index_path)) {
    folder.index = read_text(index_path, kLongestJson);
    folder.shards = shards_of_index(path, read_members(folder.index, index_path));
    const bool named = std::any_of(folder.shards.begin(), folder.shards.end(),
                                   [](const ShardSource& shard) { return shard.name == kSingleName; });
    if (single && !named) {
      fail(INT8Q_UNSUPPORTED, "%s: has both %s and an index that does not name it; remove the one that is not the model",
           shown(path).c_str(), kSingleName);
    }
  } else if (single) {
    folder.shards = {{kSingleName, path + "/" + kSingleName, {}}};
  } else {
    fail(INT8Q_UNSUPPORTED,
         "%s: has neither %s nor %s; expected a Hugging Face folder with safetensors (pickles are not "
         "read: save the model with safe_serialization)",
         shown(path).c_str(), kSingleName, kIndexName);
  }
  list_others(folder, "", 0);
  return folder;
}

std::string quantized_config(const Folder& folder, float threshold, const std::vector<std::string>& skipped_modules) {
  std::string skipped;
  for (const std::string& module : skipped_modules) skipped += (skipped.empty() ? "" : ", ") + quoted(module);
  // What is there stays as it is, to the byte; the text ends in the top object's brace.
  std::string config = folder.config.substr(0, folder.config.rfind('}'));
  config.erase(config.find_last_not_of(" \t\r\n") + 1);
  if (!read_members(folder.config, folder.path + "/" + kConfigName).members.empty()) config += ',';
  // The members that transformers' BitsAndBytesConfig(load_in_8bit=True) writes.
  return config + R"(
  "quantization_config": {
    "_load_in_4bit": false,
    "_load_in_8bit": true,
    "bnb_4bit_compute_dtype": "float32",
    "bnb_4bit_quant_storage": "uint8",
    "bnb_4bit_quant_type": "fp4",
    "bnb_4bit_use_double_quant": false,
    "llm_int8_enable_fp32_cpu_offload": false,
    "llm_int8_has_fp16_weight": false,
    "llm_int8_skip_modules": [)" +
         skipped + R"(],
    "llm_int8_threshold": )" +
         python_float(threshold) + R"(,
    "load_in_4bit": false,
    "load_in_8bit": true,
    "quant_method": "bitsandbytes"
  }
}
)";
}

std::string quantized_index(const Folder& folder, const std::map<std::string, std::string>& weight_map,
                            uint64_t total_size) {
  JsonMembers index = read_members(folder.index, folder.path + "/" + kIndexName);
  std::map<std::string, JsonScalar>& metadata = index.children["metadata"];
  metadata["total_size"] = {false, std::to_string(total_size)};
  std::string text = "{\n  \"metadata\": {";
  const char* separator = "\n";
  for (const auto& [name, value] : metadata) {
    if (!value.is_string && value.text.empty()) continue;  // an object or array, which no loader reads
    text += separator + ("    " + quoted(name)) + ": " + (value.is_string ? quoted(value.text) : value.text);
    separator = ",\n";
  }
  text += "\n  },\n  \"weight_map\": {";
  separator = "\n";
  for (const auto& [tensor, shard] : weight_map) {
    text += separator + ("    " + quoted(tensor)) + ": " + quoted(shard);
    separator = ",\n";
  }
  return text + "\n  }\n}\n";
}

}  // namespace int8q::checkpoint
