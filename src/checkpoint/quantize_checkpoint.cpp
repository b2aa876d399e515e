// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/quantize_checkpoint.h"

#include <sys/stat.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <optional>

#include "checkpoint/folder.h"
#include "checkpoint/plan.h"
#include "checkpoint/shard_writer.h"
#include "checkpoint/staging.h"

namespace int8q::checkpoint {
namespace {

bool is_folder(const std::string& path) {
  struct stat status;
  if (::stat(path.c_str(), &status) != 0) fail_errno(path, "looking `in` up failed");
  return S_ISDIR(status.st_mode);
}

void refuse_unloadable(const Folder& folder) {
  for (const char* type : kUnloadableTypes) {
    if (folder.model_type == type) {
      fail(INT8Q_UNSUPPORTED,
           "%s: model_type is \"%s\", whose linears transformers does not load in int8; to quantize it for another engine, "
           "name the tensors with include",
           shown(folder.path).c_str(), type);
    }
  }
}

std::string file_name(const std::string& path) { return path.substr(path.rfind('/') + 1); }

std::string real_path(const std::string& path) {
  const std::unique_ptr<char, void (*)(void*)> resolved(::realpath(path.c_str(), nullptr), std::free);
  if (resolved == nullptr) fail_errno(path, "resolving the path failed");
  return resolved.get();
}

// Replacing a folder that holds the input, or writing into the folder that is read, would end in a loss.
void check_apart(const std::string& in, const Staging& staging) {
  const std::string from = real_path(in) + "/", to = real_path(staging.folder()) + "/" + file_name(staging.out()) + "/";
  if (from != to && (from.starts_with(to) || to.starts_with(from))) {
    fail(INT8Q_INVALID_ARGUMENT, "out is \"%s\" and in is \"%s\": one lies in the other; expected folders apart",
         shown(staging.out()).c_str(), shown(in).c_str());
  }
}

void copy_file(const std::string& from, const std::string& to) {
  const InputFile in(from);
  OutputFile out(to, in.bytes(), in.mode() | 0200);
  std::string block(std::min<uint64_t>(in.bytes(), 1u << 20), '\0');
  for (uint64_t at = 0; at < in.bytes(); at += block.size()) {
    const uint64_t count = std::min<uint64_t>(block.size(), in.bytes() - at);
    in.read_exactly(block.data(), count, at);
    out.write(block.data(), count, at);
  }
  out.finish();
}

void write_folder_files(const Folder& folder, const Plan& plan, const std::string& to, float threshold) {
  for (const std::string& name : folder.copied) copy_file(folder.path + "/" + name, to + "/" + name);
  if (!folder.config.empty()) {
    write_text(to + "/" + kConfigName, quantized_config(folder, threshold, skipped_modules(plan)));
  }
  if (!folder.index.empty()) {
    std::map<std::string, std::string> weight_map;
    for (const PlannedShard& shard : plan.shards) {
      for (const TensorEntry& tensor : shard.out) weight_map.emplace(tensor.name, shard.name);
    }
    write_text(to + "/" + kIndexName, quantized_index(folder, weight_map, plan.bytes_out));
  }
  for (auto name = folder.subfolders.rbegin(); name != folder.subfolders.rend(); ++name) sync_folder(to + "/" + *name);
}

void make_subfolders(const Folder& folder, const std::string& to) {
  for (const std::string& name : folder.subfolders) {
    const std::string path = to + "/" + name;
    if (::mkdir(path.c_str(), 0777) != 0) fail_errno(path, "creating the folder failed");
  }
}

}  // namespace

void quantize_checkpoint(Context& context, const std::string& in, const char* out, const QuantizeOptions& options,
                         const ProgressSink& sink) {
  std::string source = in;
  while (source.size() > 1 && source.back() == '/') source.pop_back();
  const bool folder_wanted = is_folder(source);
  const Patterns include(options.include, "include"), exclude(options.exclude, "exclude");
  std::optional<Staging> staging;
  if (out != nullptr) {
    staging.emplace(out, options.overwrite, folder_wanted);
    if (folder_wanted) check_apart(source, *staging);
  }
  Folder folder;
  if (folder_wanted) {
    folder = read_folder(source);
    if (options.include.data() == kDefaultInclude) refuse_unloadable(folder);
  } else {
    folder.shards = {{file_name(staging ? staging->out() : source), source, {}}};
  }
  const Plan plan = make_plan(folder.shards, include, exclude);

  Progress progress(sink, plan);
  for (const PlannedShard& shard : plan.shards) {
    for (const PlannedTensor& tensor : shard.tensors) progress.planned(shard, tensor);
  }
  if (options.dry_run) return;

  staging->begin();
  if (folder_wanted) make_subfolders(folder, staging->path());
  {
    ShardWriter writer(context, progress);
    for (const PlannedShard& shard : plan.shards) {
      writer.write(shard, folder_wanted ? staging->path() + "/" + shard.name : staging->path());
    }
  }
  if (folder_wanted) write_folder_files(folder, plan, staging->path(), options.threshold);
  staging->put_in_place();
  progress.finished(file_name(staging->out()));
  staging->keep();
}

}  // namespace int8q::checkpoint
