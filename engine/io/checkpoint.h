// Hubs store a model's weights in one safetensors file, or in several ("shards") beside an index
// that says which tensor is in which:
//
//   {"metadata": {"total_size": 1234},
//    "weight_map": {"a.weight": "model-00001-of-00002.safetensors"}}
//
// (https://huggingface.co/docs/transformers/big_models#sharded-checkpoints). Every file is mapped:
// its header is read at once, a tensor's bytes when somebody asks for them.
#pragma once
#include <string>
#include <vector>

#include "engine/io/safetensors.h"

namespace orthofed {

// The files behind `path`: a safetensors file; an index (*.safetensors.index.json); or a folder
// with model.safetensors, model.safetensors.index.json, or a single file of either kind.
struct CheckpointFiles {
  std::string main;                 // the file or the index
  std::vector<std::string> shards;  // paths, by name; `main` itself where there is no index
  bool sharded() const { return main.ends_with(".json"); }
};

// Throws UserError where no such file is found or more than one could be meant, where a shard is
// missing, or where a shard's name leads out of the folder.
CheckpointFiles checkpoint_files(const std::string& path);

// Loads the tensors of all shards, and __metadata__ of the first. Refuses what load_safetensors
// refuses, a tensor that the index places in a shard without it, and one that the index does
// not know.
Safetensors load_checkpoint(const std::string& path);

// For a single file this is sha256_of_file. For shards it is the digest of their digests, one line
// "DIGEST  NAME" per shard, by name, as `sha256sum model-*.safetensors | sha256sum` prints it.
std::string sha256_of_checkpoint(const std::string& path);

}  // namespace orthofed
