#include "engine/io/checkpoint.h"

#include <fmt/core.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "engine/io/files.h"
#include "engine/io/sha256.h"

namespace orthofed {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kWeights = ".safetensors";
constexpr const char* kIndex = ".safetensors.index.json";

struct Index {
  std::map<std::string, std::string> shard_of;  // by tensor
  std::vector<std::string> shards;              // names, sorted
};

// Shards lie beside their index. (They may be symbolic links, as in the cache of a hub's client.)
bool plain_name(const std::string& name) {
  return !name.empty() && name != "." && name != ".." &&
         name.find_first_of(std::string_view("/\\\0", 3)) == std::string::npos;
}

Index read_index(const std::string& path) {
  const auto fail = [&](const std::string& what) -> void {
    throw UserError(fmt::format("{}: {}", path, what));
  };
  std::set<std::string> seen;  // a parser keeps the last of two equal keys
  const auto check = [&](int depth, json::parse_event_t event, json& parsed) {
    if (depth > 4) fail("is nested too deeply for an index; fetch it again");
    if (event == json::parse_event_t::key && depth == 2 &&
        !seen.insert(parsed.get_ref<const std::string&>()).second)
      fail(fmt::format("names '{}' twice; fetch it again", parsed.get_ref<const std::string&>()));
    return true;
  };
  json document;
  try {
    document = json::parse(read_text(path), check);
  } catch (const json::exception&) {
    fail("is not valid JSON; fetch it again");
  }
  const auto map = document.is_object() ? document.find("weight_map") : document.end();
  if (map == document.end() || !map->is_object() || map->empty())
    fail("has no 'weight_map' from tensors to files; is it a safetensors index?");
  Index index;
  std::set<std::string> names;
  for (const auto& [tensor, shard] : map->items()) {
    if (!shard.is_string()) fail(fmt::format("weight_map['{}'] must be a file's name", tensor));
    const auto& name = shard.get_ref<const std::string&>();
    if (!plain_name(name))
      fail(
          fmt::format("weight_map['{}'] is {}: a shard must lie beside its index; write its name "
                      "alone",
                      tensor, shard.dump()));
    index.shard_of[tensor] = name;
    names.insert(name);
  }
  index.shards.assign(names.begin(), names.end());
  return index;
}

// The weights in a folder, by the names that hubs use, else the only candidate.
std::string weights_in(const std::string& folder) {
  require_directory(folder, "the folder of the weights");
  const auto in_folder = [&](const std::string& name) {
    return (fs::path(folder) / name).string();
  };
  for (const char* kind : {kWeights, kIndex})
    if (fs::exists(in_folder(std::string("model") + kind)))
      return in_folder(std::string("model") + kind);
  for (const char* kind : {kIndex, kWeights}) {
    std::vector<std::string> found;
    for (const auto& entry : fs::directory_iterator(folder))
      if (const std::string name = entry.path().filename(); name.ends_with(kind))
        found.push_back(name);
    std::sort(found.begin(), found.end());
    if (found.size() == 1) return in_folder(found[0]);
    if (found.size() > 1)
      throw UserError(
          fmt::format("{}: holds {} and {}; name the file", folder, found[0], found[1]));
  }
  throw UserError(
      fmt::format("{}: no safetensors file in this folder (scripts/pth_to_safetensors.py converts "
                  ".pth and .bin)",
                  folder));
}

}  // namespace

CheckpointFiles checkpoint_files(const std::string& path) {
  CheckpointFiles files;
  files.main = fs::is_directory(path) ? weights_in(path) : path;
  if (!files.sharded()) {
    files.shards = {files.main};
    return files;
  }
  const fs::path folder = fs::path(files.main).parent_path();
  for (const std::string& name : read_index(files.main).shards) {
    files.shards.push_back((folder / name).string());
    if (!fs::exists(files.shards.back()))
      throw UserError(fmt::format("{}: names the shard '{}', which is not beside it; fetch it too",
                                  files.main, name));
  }
  return files;
}

Safetensors load_checkpoint(const std::string& path) {
  const CheckpointFiles files = checkpoint_files(path);
  if (!files.sharded()) return load_safetensors(files.main);
  const Index index = read_index(files.main);
  Safetensors all;
  for (const std::string& shard : files.shards) {
    const std::string name = fs::path(shard).filename();
    Safetensors part = load_safetensors(shard);
    for (const auto& [tensor, value] : part.tensors) {
      const auto listed = index.shard_of.find(tensor);
      if (listed == index.shard_of.end() || listed->second != name)
        throw UserError(fmt::format(
            "{}: holds '{}', which {} places {}; fetch index and shards of one version", shard,
            tensor, files.main,
            listed == index.shard_of.end() ? "nowhere" : "in '" + listed->second + "'"));
      all.tensors.emplace(tensor, value);
    }
    if (all.metadata.empty()) all.metadata = std::move(part.metadata);
  }
  for (const auto& [tensor, shard] : index.shard_of)
    if (!all.tensors.contains(tensor))
      throw UserError(
          fmt::format("{}: places '{}' in '{}', which does not hold it; fetch index and shards of "
                      "one version",
                      files.main, tensor, shard));
  return all;
}

std::string sha256_of_checkpoint(const std::string& path) {
  const CheckpointFiles files = checkpoint_files(path);
  if (!files.sharded()) return sha256_of_file(files.main);
  std::string lines;
  for (const std::string& shard : files.shards)
    lines += sha256_of_file(shard) + "  " + fs::path(shard).filename().string() + "\n";
  return sha256(lines);
}

}  // namespace orthofed
