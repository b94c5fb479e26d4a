// The families of vision transformers that are recognised, as tables of names.
#pragma once
#include <span>
#include <string>
#include <vector>

#include "models/vit/vit_config.h"

namespace orthofed {

// In a pattern `{}` is the block's number, a trailing ".*" is ".weight" and ".bias" alike, a
// leading
// '/' means the whole name where the others leave out the family's prefix.
struct NameRule {
  const char* file;
  const char* ours;
  int part = 0;  // its place in what is stacked: q, k, v or gate, up
};

// Known and left aside: a trailing '*' stands for anything.
struct AsideRule {
  const char* file;
  const char* why;
};

// A module of the file, without its prefix, and what the library calls it. One that is two modules
// there has two rules, in the order of its rows.
struct LiveRule {
  const char* file;
  const char* live;
};

// A module is as a rule called what its tensors in the file are called. transformers keeps the
// names of files for ever and renames modules in their models; an adapter for PEFT is by modules.
struct LiveNames {
  const char* prefix4 = nullptr;          // in the place of the file's prefix up to transformers 4,
  const char* prefix5 = nullptr;          // and since 5; nullptr: the file's own
  std::span<const LiveRule> rules5 = {};  // since 5
};

struct Family {
  const char* naming;
  const char* name;
  std::vector<const char*> prefixes;  // of the vision tower; a file uses one of them
  std::vector<const char*> required;  // names that tell this family from its neighbours
  std::vector<std::span<const NameRule>> rules;
  std::vector<AsideRule> aside;
  VitConfig defaults;         // where the configuration is silent
  int64_t default_heads = 0;  // of the configuration class, which leaves its defaults out; 0: none
  LiveNames live = {};
};

// Where two fit, the first is meant.
const std::vector<Family>& families();
const Family& family_named(const std::string& naming);

// The heads of the widths that were released under timm's, DINOv2's and OpenCLIP's names; 0 for any
// other width.
int64_t released_heads(int64_t dim);

}  // namespace orthofed
