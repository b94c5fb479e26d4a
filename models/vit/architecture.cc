#include "models/vit/architecture.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <string_view>

#include "models/vit/families.h"

namespace orthofed {
namespace {

// A tensor's name with its block's number taken out: "blocks.3.norm1.weight" is "blocks.{}.norm1."
// and "weight" in block 3.
struct Name {
  std::string pattern;
  int64_t block = -1;
};

Name parse(std::string_view name) {
  Name n;
  size_t begin = 0;
  while (begin <= name.size()) {
    const size_t end = std::min(name.find('.', begin), name.size());
    const std::string_view part = name.substr(begin, end - begin);
    const bool number = !part.empty() && part.size() < 5 &&
                        part.find_first_not_of("0123456789") == std::string_view::npos;
    if (begin > 0) n.pattern += '.';
    if (number && n.block < 0) {
      n.block = std::stoll(std::string(part));
      n.pattern += "{}";
    } else {
      n.pattern += part;
    }
    begin = end + 1;
  }
  return n;
}

std::string with_block(std::string pattern, int64_t block) {
  const size_t at = pattern.find("{}");
  return at == std::string::npos ? pattern : pattern.replace(at, 2, std::to_string(block));
}

bool ends_in_any(std::string_view rule) {
  return rule.ends_with(".*");
}

// What the '*' of a rule stands for in a name, if the rule fits: "weight", "bias", or nothing in a
// rule without one.
std::optional<std::string_view> match(std::string_view rule, std::string_view name) {
  if (!ends_in_any(rule)) return rule == name ? std::optional<std::string_view>("") : std::nullopt;
  const std::string_view stem = rule.substr(0, rule.size() - 1);
  if (!name.starts_with(stem)) return std::nullopt;
  const std::string_view rest = name.substr(stem.size());
  return rest == "weight" || rest == "bias" ? std::optional(rest) : std::nullopt;
}

std::string substitute(std::string_view rule, std::string_view suffix) {
  return ends_in_any(rule) ? std::string(rule.substr(0, rule.size() - 1)) + std::string(suffix)
                           : std::string(rule);
}

struct Part {
  int part;
  Source source;
};

// One reading of a file: by this family, under this prefix.
class Reading {
 public:
  Reading(const Family& family, std::string prefix, const TensorShapes& shapes)
      : family_(family), prefix_(std::move(prefix)), shapes_(shapes) {
    for (const auto& [name, shape] : shapes) place(name, shape);
    for (const char* name : family.required)
      if (!shapes.contains(prefix_ + name)) ++absent_;
  }

  // Fewest tensors without a place, and most of those that make the family what it is.
  std::pair<size_t, size_t> misfit() const { return {absent_, homeless_.size()}; }
  bool fits() const { return absent_ == 0 && homeless_.empty(); }
  size_t placed() const { return parts_.size(); }

  Architecture finish(const ConfigFiles& files) {
    Architecture a;
    a.family = family_.name;
    a.naming = family_.naming;
    a.prefix = prefix_;
    a.unused = std::move(aside_);
    a.mismatches = homeless_;
    for (const char* name : family_.required)
      if (!shapes_.contains(prefix_ + name)) a.mismatches.push_back({prefix_ + name, "is missing"});
    a.config = family_.defaults;
    // What is missing or misshapen in a file of another family would only blur the message.
    if (fits()) geometry(files, a);
    stack(a);
    return a;
  }

 private:
  void place(const std::string& name, const Shape& shape) {
    const bool inside = name.starts_with(prefix_);
    const Name relative = parse(inside ? std::string_view(name).substr(prefix_.size()) : ""),
               whole = parse(name);
    for (const auto& rules : family_.rules)
      for (const NameRule& rule : rules) {
        const bool absolute = rule.file[0] == '/';
        if (!absolute && !inside) continue;
        const Name& n = absolute ? whole : relative;
        const auto suffix = match(rule.file + (absolute ? 1 : 0), n.pattern);
        if (!suffix) continue;
        const std::string ours = with_block(substitute(rule.ours, *suffix), n.block);
        used_.insert(&rule);
        parts_[ours].push_back({rule.part, {name, shape.rank() < 2 ? shape.size() : shape[0]}});
        depth_ = std::max(depth_, ours.starts_with("blocks.") ? n.block + 1 : 0);
        return;
      }
    for (const AsideRule& rule : family_.aside) {
      const bool absolute = rule.file[0] == '/';
      if (!absolute && !inside) continue;
      std::string_view pattern = rule.file, against = name;
      if (absolute)
        pattern.remove_prefix(1);
      else
        against.remove_prefix(prefix_.size());
      const bool any = pattern.ends_with('*');
      if (any ? against.starts_with(pattern.substr(0, pattern.size() - 1)) : against == pattern) {
        aside_.push_back({name, rule.why});
        return;
      }
    }
    homeless_.push_back({name, fmt::format("of shape {} is unexpected", shape.str())});
  }

  bool has(const std::string& ours) const { return parts_.contains(ours); }
  // The shape of a tensor that is one of the file's own.
  Shape shape(const std::string& ours) const {
    const auto it = parts_.find(ours);
    return it == parts_.end() ? Shape() : shapes_.at(it->second.front().source.tensor);
  }
  int64_t rows(const std::string& ours) const {
    int64_t n = 0;
    if (const auto it = parts_.find(ours); it != parts_.end())
      for (const Part& p : it->second) n += p.source.rows;
    return n;
  }

  // The name that the file has or should have for one of ours; of several rules, one that its other
  // tensors follow.
  std::string file_name(const std::string& ours) const {
    if (const auto it = parts_.find(ours); it != parts_.end())
      return it->second.front().source.tensor;
    const Name n = parse(ours);
    std::optional<std::string> name;
    for (const auto& rules : family_.rules)
      for (const NameRule& rule : rules) {
        const auto suffix = match(rule.ours, n.pattern);
        if (!suffix || (name && !used_.contains(&rule))) continue;
        const bool absolute = rule.file[0] == '/';
        name = (absolute ? "" : prefix_) +
               with_block(substitute(rule.file + (absolute ? 1 : 0), *suffix), n.block);
      }
    return name.value_or(ours);
  }

  // The geometry by the shapes and the configuration; then every tensor against it.
  void geometry(const ConfigFiles& files, Architecture& a) {
    VitConfig& c = a.config;
    c.name = family_.naming;
    const ConfigHints hints = read_config(files, c);
    const auto wrong = [&](const std::string& ours, const std::string& why) {
      a.mismatches.push_back({file_name(ours), why});
    };

    const Shape embed = shape("patch_embed.proj.weight");
    if (embed.rank() != 4 || embed[1] != 3 || embed[2] != embed[3] || embed.size() == 0)
      return wrong("patch_embed.proj.weight",
                   fmt::format("has shape {}, expected [dim, 3, patch, patch]", embed.str()));
    c.dim = embed[0];
    c.patch = embed[2];
    c.depth = depth_;
    if (c.depth == 0) return wrong("blocks.0.norm1.weight", "is missing");
    c.class_token = has("cls_token");
    c.distillation_token = has("dist_token");
    c.registers = has("reg_token") ? shape("reg_token").rows() : 0;
    c.pre_norm = has("norm_pre.weight");
    c.norm_after_pool = has("fc_norm.weight") && !has("norm.weight");
    c.qk_norm = has("blocks.0.attn.q_norm.weight");
    c.layer_scale = has("blocks.0.ls1.gamma");
    if (!has("blocks.0.mlp.fc2.weight")) return wrong("blocks.0.mlp.fc2.weight", "is missing");
    c.mlp_dim = shape("blocks.0.mlp.fc2.weight").cols();
    c.gated_mlp = rows("blocks.0.mlp.fc1.weight") == 2 * c.mlp_dim;
    c.classes = rows("head.weight");
    c.projection = has("projection.transposed") ? shape("projection.transposed").cols()
                                                : rows("projection.weight");

    // Its hub code gives the models with registers antialias and no offset.
    if (a.naming == "dinov2" && c.registers > 0) c.positions = PositionRule::antialias;
    const bool timm = a.naming == "timm" || a.naming == "open_clip_timm";
    if (timm && c.pre_norm && !hints.eps_given) c.eps = 1e-5;  // timm's CLIP towers
    if (timm && !hints.gelu_given && hints.architecture.find("quickgelu") != std::string::npos)
      c.gelu = GeluKind::quick;
    if (hints.silu && !c.gated_mlp)
      wrong("blocks.0.mlp.fc1.weight", "is not gated, and the activation is silu");
    if (a.naming == "hf_dinov3_vit" && c.gated_mlp && !hints.silu)
      wrong("blocks.0.mlp.fc1.weight", "is gated by another activation than silu");

    // Heads: as configured, the configuration class's default, or those of a released width.
    if (c.heads == 0 && !files.config.empty()) c.heads = family_.default_heads;
    const bool released = a.naming == "dinov2" || hints.architecture.starts_with("vit_") ||
                          hints.architecture.starts_with("deit");
    if (c.heads == 0 && a.naming == "timm_dinov3")
      c.heads = c.dim == 4096 ? 32 : c.dim / 64;  // of every size that timm has (eva.py)
    if (c.heads == 0 && released) c.heads = released_heads(c.dim);
    if (c.heads <= 0 && files.config.empty())
      throw UserError(
          "no config.json beside the weights; name one (model.config): the number of "
          "heads is not in the tensors");
    if (c.heads <= 0)
      throw UserError(files.config_path +
                      ": 'num_heads' is missing; the weights' shapes do not tell it, add it");
    if (c.dim % c.heads != 0)
      throw UserError(fmt::format("{}: num_heads = {} does not divide the width {}",
                                  files.config_path, c.heads, c.dim));

    pool(hints, c, wrong);
    positions(hints, c, wrong);
    if (a.mismatches.empty()) check_shapes(c, wrong);
  }

  template <class Wrong>
  void pool(const ConfigHints& hints, VitConfig& c, const Wrong& wrong) const {
    if (has("attn_pool.latent"))
      c.pool = Pool::attention;
    else if (c.distillation_token)
      c.pool = Pool::two_tokens;
    else if (c.class_token && c.classes > 0 && shape("head.weight").cols() == 2 * c.dim)
      c.pool = Pool::token_and_average;
    else if (hints.pool)
      c.pool = *hints.pool;
    else
      c.pool = has("fc_norm.weight") || family_.naming == std::string_view("timm_dinov3")
                   ? Pool::average
                   : Pool::token;
    if (c.pool == Pool::attention && !has("attn_pool.latent"))
      wrong("attn_pool.latent", "is missing");
    if (c.pool == Pool::token && !c.class_token)
      wrong("cls_token",
            "is missing; if this model averages its patches, say \"pool\": \"avg\" in config.json");
    if (has("fc_norm.weight") && has("norm.weight"))
      wrong("fc_norm.weight", "beside 'norm.weight': a model has one of the two");
    if (c.distillation_token && !c.class_token) wrong("cls_token", "is missing");
  }

  // The grid of the position embedding: what is left of its rows after the prefix's own.
  template <class Wrong>
  void positions(const ConfigHints& hints, VitConfig& c, const Wrong& wrong) const {
    if (c.positions == PositionRule::rotary) {
      if (hints.image_size <= 0 || hints.image_size % c.patch != 0)
        throw UserError(fmt::format("config.json: image_size {} is no multiple of the patch, {}",
                                    hints.image_size, c.patch));
      if (c.dim / c.heads % 4 != 0)
        wrong("patch_embed.proj.weight", "the width of a head is no multiple of 4 (rotary)");
      c.image_size = hints.image_size;
      return;
    }
    if (!has("pos_embed")) return wrong("pos_embed", "is missing");
    const Shape pos = shape("pos_embed");  // [1, tokens, dim]
    for (int64_t own : {c.prefix(), c.prefix() - c.registers, int64_t(0)}) {
      const int64_t patches = pos.rows() - own;
      const auto side = int64_t(std::lround(std::sqrt(double(std::max<int64_t>(patches, 0)))));
      if (pos.cols() != c.dim || side == 0 || side * side != patches) continue;
      c.grid = side;
      c.image_size = side * c.patch;
      // The file's grid may be larger than what the model is meant to read (DINOv2: 518 and 224).
      if (hints.image_size > 0 && hints.image_size % c.patch == 0) c.image_size = hints.image_size;
      return;
    }
    wrong("pos_embed",
          fmt::format("has shape {}, expected [1, {} + n*n, {}]", pos.str(), c.prefix(), c.dim));
  }

  // Every tensor that this geometry has, with as many elements as it has.
  template <class Wrong>
  void check_shapes(const VitConfig& c, const Wrong& wrong) const {
    const int64_t d = c.dim;
    std::set<std::string> expected;
    const auto expect = [&](bool required, const std::string& ours, const Shape& wanted) {
      expected.insert(ours);
      const auto it = parts_.find(ours);
      if (it == parts_.end()) {
        if (required) wrong(ours, "is missing");
        return;
      }
      int64_t size = 0;
      for (const Part& p : it->second) size += shapes_.at(p.source.tensor).size();
      // A bias may lack a part (DINOv3's keys have none).
      const bool partial = wanted.rank() == 1 && it->second.size() < parts_of(ours);
      if (size == wanted.size() || (partial && size < wanted.size())) return;
      wrong(ours, it->second.size() > 1 || parts_of(ours) > 1
                      ? fmt::format("and its neighbours have {} elements, expected {}", size,
                                    wanted.str())
                      : fmt::format("has shape {}, expected {}", shape(ours).str(), wanted.str()));
    };
    const auto linear = [&](const std::string& name, int64_t out, int64_t in) {
      expect(true, name + ".weight", {out, in});
      expect(false, name + ".bias", {out});
    };
    const auto norm = [&](bool required, const std::string& name, int64_t n) {
      expect(required, name + ".weight", {n});
      expect(required, name + ".bias", {n});
    };
    linear("patch_embed.proj", d, 3 * c.patch * c.patch);
    for (const auto& [present, name] :
         {std::pair{c.class_token, "cls_token"}, std::pair{c.distillation_token, "dist_token"}})
      if (present) expect(true, name, {d});
    if (has("reg_token")) expect(true, "reg_token", {c.registers, d});
    if (has("pos_embed")) expect(true, "pos_embed", shape("pos_embed"));
    if (c.pre_norm) norm(true, "norm_pre", d);
    for (int64_t i = 0; i < c.depth; ++i) {
      const std::string b = fmt::format("blocks.{}.", i);
      norm(true, b + "norm1", d);
      linear(b + "attn.qkv", 3 * d, d);
      if (c.qk_norm)
        for (const char* name : {"attn.q_norm", "attn.k_norm"}) norm(true, b + name, d / c.heads);
      linear(b + "attn.proj", d, d);
      norm(true, b + "norm2", d);
      linear(b + "mlp.fc1", c.gated_mlp ? 2 * c.mlp_dim : c.mlp_dim, d);
      linear(b + "mlp.fc2", d, c.mlp_dim);
      if (c.layer_scale)
        for (const char* name : {"ls1.gamma", "ls2.gamma"}) expect(true, b + name, {d});
    }
    norm(true, c.norm_after_pool ? "fc_norm" : "norm", d);
    if (c.pool == Pool::attention) {
      expect(true, "attn_pool.latent", {d});
      linear("attn_pool.qkv", 3 * d, d);
      linear("attn_pool.proj", d, d);
      norm(true, "attn_pool.norm", d);
      const int64_t hidden = rows("attn_pool.mlp.fc1.weight");
      linear("attn_pool.mlp.fc1", hidden, d);
      linear("attn_pool.mlp.fc2", d, hidden);
    }
    if (c.classes > 0) {
      linear("head", c.classes, c.pool == Pool::token_and_average ? 2 * d : d);
      if (c.pool == Pool::two_tokens) linear("head_dist", c.classes, d);
    }
    if (has("projection.weight")) expect(true, "projection.weight", {c.projection, d});
    if (has("projection.transposed")) expect(true, "projection.transposed", {d, c.projection});
    for (const auto& [ours, parts] : parts_)
      if (!expected.contains(ours)) wrong(ours, "belongs to no part that this model has");
  }

  // The parts that a bias should have: those of its weight, or as many as its own last one counts.
  size_t parts_of(const std::string& ours) const {
    if (!ours.ends_with(".bias")) return 1;
    const auto parts = parts_.find(ours),
               weight = parts_.find(ours.substr(0, ours.size() - 4) + "weight");
    if (parts == parts_.end() || weight == parts_.end()) return 1;
    size_t count = weight->second.size();
    if (count != parts->second.size())
      for (const Part& p : parts->second) count = std::max(count, size_t(p.part) + 1);
    return count;
  }

  // The parts in their order; where a weight has one that its bias has not, zeros.
  void stack(Architecture& a) {
    for (auto& [ours, parts] : parts_)
      std::sort(parts.begin(), parts.end(),
                [](const Part& x, const Part& y) { return x.part < y.part; });
    for (const auto& [ours, parts] : parts_) {
      std::vector<Source>& sources = a.sources[ours];
      const size_t count = parts_of(ours);
      if (count <= parts.size()) {
        for (const Part& p : parts) sources.push_back(p.source);
        continue;
      }
      const auto weight = parts_.find(ours.substr(0, ours.size() - 4) + "weight");
      for (size_t i = 0; i < count; ++i) {
        const auto it = std::find_if(parts.begin(), parts.end(),
                                     [&](const Part& p) { return size_t(p.part) == i; });
        const bool split = weight != parts_.end() && weight->second.size() == count;
        sources.push_back({it != parts.end() ? it->source.tensor : "",
                           split ? weight->second[i].source.rows : parts.front().source.rows});
      }
    }
  }

  const Family& family_;
  std::string prefix_;
  const TensorShapes& shapes_;
  std::map<std::string, std::vector<Part>> parts_;
  std::vector<Remark> homeless_, aside_;
  std::set<const NameRule*> used_;
  size_t absent_ = 0;  // of the family's required names
  int64_t depth_ = 0;
};

}  // namespace

TensorShapes shapes_of(const TensorMap& tensors) {
  TensorShapes shapes;
  for (const auto& [name, t] : tensors) shapes[name] = t.shape();
  return shapes;
}

std::vector<std::string> Architecture::modules_of(const std::string& layer) const {
  constexpr const char* kThirds[] = {"q", "k", "v"};
  constexpr std::string_view kSuffix = ".weight";
  std::vector<std::string> modules;
  const auto module = [&](const Source& s) {
    return s.tensor.ends_with(kSuffix) ? s.tensor.substr(0, s.tensor.size() - kSuffix.size())
                                       : s.tensor;
  };
  if (const auto it = sources.find(layer + ".weight"); it != sources.end()) {
    for (const Source& s : it->second) modules.push_back(module(s));
    return modules;
  }
  const size_t dot = layer.rfind('.');
  if (dot == std::string::npos) return modules;
  const auto it = sources.find(layer.substr(0, dot) + ".qkv.weight");
  if (it == sources.end() || it->second.size() != 3) return modules;
  for (size_t i = 0; i < 3; ++i)
    if (layer.substr(dot + 1) == kThirds[i]) modules.push_back(module(it->second[i]));
  return modules;
}

std::string left_aside(const std::vector<Remark>& unused) {
  std::map<std::string, std::vector<std::string>> by_reason;
  for (const Remark& r : unused) by_reason[r.text].push_back(r.tensor);
  std::string line;
  for (const auto& [reason, tensors] : by_reason)
    line += fmt::format("{}{}{}: {} ({}{})", line.empty() ? "left aside: " : "; ", tensors.size(),
                        tensors.size() == 1 ? " tensor" : " tensors", reason, tensors.front(),
                        tensors.size() > 1 ? ", ..." : "");
  return line;
}

Architecture examine(const TensorShapes& shapes, const ConfigFiles& files) {
  std::optional<Reading> best;
  for (const Family& family : families())
    for (const char* prefix : family.prefixes) {
      Reading r(family, prefix, shapes);
      if (!best || (r.fits() && !best->fits()) ||
          (!best->fits() && (r.placed() > best->placed() ||
                             (r.placed() == best->placed() && r.misfit() < best->misfit()))))
        best.emplace(std::move(r));
    }
  return best->finish(files);
}

Architecture recognise(const TensorShapes& shapes, const ConfigFiles& files) {
  Architecture a = examine(shapes, files);
  if (a.mismatches.empty()) return a;
  const Remark& first = a.mismatches.front();
  const size_t others = a.mismatches.size() - 1;
  throw UserError(fmt::format(
      "tensor '{}' {}{}; the nearest known architecture is {}; this one is not supported "
      "(docs/backbones.md)",
      first.tensor, first.text, others > 0 ? fmt::format(" (and {} more do not fit)", others) : "",
      a.family));
}

}  // namespace orthofed
