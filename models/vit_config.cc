// config.json: what the shapes of a ViT's tensors cannot tell.
#include <fmt/core.h>

#include <nlohmann/json.hpp>

#include "engine/io/files.h"
#include "models/vit.h"

namespace orthofed {
namespace {

using nlohmann::json;

// The value of `key` at the top level or in timm's pretrained_cfg.
const json* find(const json& j, const char* key) {
  if (j.contains(key)) return &j.at(key);
  if (j.contains("pretrained_cfg") && j.at("pretrained_cfg").contains(key))
    return &j.at("pretrained_cfg").at(key);
  return nullptr;
}

template <class T>
void read(const json& j, const char* key, const std::string& path, T& value) {
  const json* v = find(j, key);
  if (v == nullptr) return;
  try {
    value = v->get<T>();
  } catch (const json::exception&) {
    throw UserError(fmt::format("{}: '{}' has the wrong type: {}", path, key, v->dump()));
  }
}

}  // namespace

VitConfig read_vit_config(const std::string& path) {
  json j;
  try {
    j = json::parse(read_text(path));
  } catch (const json::exception& e) {
    throw UserError(fmt::format("{}: not JSON: {}", path, e.what()));
  }
  if (!j.is_object()) throw UserError(path + ": a JSON object is expected");

  VitConfig c;
  read(j, "architecture", path, c.name);
  c.heads = 0;
  read(j, "num_heads", path, c.heads);
  if (c.heads <= 0)
    throw UserError(path + ": 'num_heads' is missing; the weights' shapes do not tell it, add it");
  read(j, "norm_eps", path, c.eps);
  read(j, "interpolation", path, c.interpolation);
  read(j, "crop_pct", path, c.crop_pct);
  std::string act = "gelu", pool;
  read(j, "act", path, act);
  if (act == "gelu" || act == "gelu_exact_erf" || act == "gelu_erf")
    c.gelu = GeluKind::erf;
  else if (act == "gelu_tanh" || act == "gelu_pytorch_tanh")
    c.gelu = GeluKind::tanh;
  else
    throw UserError(fmt::format("{}: activation '{}' is not known (gelu, gelu_tanh)", path, act));
  read(j, "pool", path, pool);
  if (!pool.empty() && pool != "cls_token" && pool != "token" && pool != "avg")
    throw UserError(fmt::format("{}: pool '{}' is not known (cls_token, avg)", path, pool));
  c.pool_average = pool == "avg";
  for (const char* key : {"mean", "std"}) {
    std::vector<float> v;
    read(j, key, path, v);
    if (v.empty()) continue;
    if (v.size() != 3) throw UserError(fmt::format("{}: '{}' has three numbers", path, key));
    std::copy(v.begin(), v.end(), key[0] == 'm' ? c.mean : c.std);
  }
  for (float s : c.std)
    if (!(s > 0)) throw UserError(path + ": 'std' must be positive");
  return c;
}

std::string VitConfig::json() const {
  const nlohmann::ordered_json j = {
      {"architecture", name},
      {"img_size", image_size},
      {"patch_size", patch},
      {"in_chans", 3},
      {"embed_dim", dim},
      {"depth", depth},
      {"num_heads", heads},
      {"mlp_ratio", double(mlp_dim) / double(dim)},
      {"num_classes", classes},
      {"act", gelu == GeluKind::erf ? "gelu" : "gelu_tanh"},
      {"norm_eps", eps},
      {"pool", pool_average ? "avg" : "cls_token"},
      {"mean", {mean[0], mean[1], mean[2]}},
      {"std", {std[0], std[1], std[2]}},
      {"interpolation", interpolation},
      {"crop_pct", crop_pct},
  };
  return j.dump(2) + "\n";
}

}  // namespace orthofed
