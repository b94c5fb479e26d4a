// The tables of names by which families of vision transformers are recognised.
#pragma once
#include <span>
#include <string>
#include <vector>

#include "models/vit/vit_config.h"

namespace orthofed {

// In a pattern `{}` stands for the block's number, and a trailing ".*" for ".weight" and ".bias"
// alike. A leading '/' begins a whole name; the other patterns leave out the family's prefix.
struct NameRule {
  const char* file;
  const char* ours;
  int part = 0;  // its place in what is stacked: q, k, v or gate, up
};

// A name that is known and left aside; a trailing '*' stands for anything.
struct AsideRule {
  const char* file;
  const char* why;
};

// A module of the file, without its prefix, and what the library calls it. A module that is two
// modules there has two rules, in the order of its rows.
struct LiveRule {
  const char* file;
  const char* live;
};

// Most modules have the same name as their tensors in the file. transformers, however, never
// changes the names in files but does rename the modules of its models, and PEFT's adapters go
// by modules.
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

// Where two families fit, the first is meant.
const std::vector<Family>& families();
const Family& family_named(const std::string& naming);

// Returns the number of heads of a width that was released under timm's, DINOv2's or OpenCLIP's
// names, and 0 for any other width.
int64_t released_heads(int64_t dim);

}  // namespace orthofed
