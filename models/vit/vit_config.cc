// config.json, open_clip_config.json and preprocessor_config.json: what the shapes of a ViT's
// tensors cannot tell.
#include "models/vit/vit_config.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>

#include "engine/io/files.h"
#include "kernels/core/check.h"

namespace orthofed {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

// One file: where a key may stand, and the types it must have.
class Document {
 public:
  Document(const std::string& text, std::string path) : path_(std::move(path)) {
    if (text.empty()) return;
    try {
      root_ = json::parse(text);
    } catch (const json::exception& e) {
      throw UserError(fmt::format("{}: not JSON: {}", path_, e.what()));
    }
    if (!root_.is_object()) fail("a JSON object is expected");
    // The vision part of a two-tower model goes before what stands at the top.
    for (const char* place : {"/vision_config", "/model_cfg/vision_cfg", "", "/pretrained_cfg",
                              "/model_args", "/model_cfg", "/preprocess_cfg"}) {
      const json::json_pointer pointer(place);
      if (root_.contains(pointer) && root_.at(pointer).is_object())
        sections_.push_back(&root_.at(pointer));
    }
  }

  [[noreturn]] void fail(const std::string& what) const {
    throw UserError(fmt::format("{}: {}", path_, what));
  }
  const json* find(const char* key) const {
    for (const json* section : sections_)
      if (section->contains(key) && !section->at(key).is_null()) return &section->at(key);
    return nullptr;
  }
  // The first of several names that is there.
  template <class T>
  bool read(std::initializer_list<const char*> keys, T& value) const {
    for (const char* key : keys) {
      const json* v = find(key);
      if (v == nullptr) continue;
      try {
        value = v->get<T>();
      } catch (const json::exception&) {
        fail(fmt::format("'{}' has the wrong type: {}", key, v->dump()));
      }
      return true;
    }
    return false;
  }

 private:
  json root_;
  std::vector<const json*> sections_;
  std::string path_;
};

struct NamedGelu {
  const char* name;
  GeluKind kind;
};
constexpr NamedGelu kGelus[] = {
    {"gelu", GeluKind::erf},        {"gelu_exact_erf", GeluKind::erf},
    {"gelu_erf", GeluKind::erf},    {"gelu_tanh", GeluKind::tanh},
    {"gelu_new", GeluKind::tanh},   {"gelu_pytorch_tanh", GeluKind::tanh},
    {"quick_gelu", GeluKind::quick}};
const char* name_of(GeluKind kind) {
  return std::find_if(std::begin(kGelus), std::end(kGelus),
                      [&](const NamedGelu& g) { return g.kind == kind; })
      ->name;
}

struct NamedPool {
  const char* name;
  Pool pool;
};
constexpr NamedPool kPools[] = {{"cls_token", Pool::token},
                                {"token", Pool::token},
                                {"avg", Pool::average},
                                {"map", Pool::attention}};

void read_activation(const Document& d, VitConfig& c, ConfigHints& hints) {
  std::string act;
  bool quick = false;
  if (d.read({"quick_gelu"}, quick)) {  // OpenCLIP; its timm trunks ignore it
    c.gelu = quick ? GeluKind::quick : GeluKind::erf;
    hints.gelu_given = true;
  }
  if (!d.read({"act", "hidden_act", "act_layer"}, act)) return;
  hints.silu = act == "silu" || act == "swish";
  hints.gelu_given = true;
  if (hints.silu) return;
  for (const NamedGelu& g : kGelus)
    if (act == g.name) {
      c.gelu = g.kind;
      return;
    }
  d.fail(fmt::format(
      "activation '{}' is not known (gelu, gelu_tanh, quick_gelu, or silu in a gated MLP)", act));
}

void read_normalisation(const Document& d, VitConfig& c) {
  for (const auto& [key, other, to] :
       {std::tuple{"mean", "image_mean", c.mean}, std::tuple{"std", "image_std", c.std}}) {
    std::vector<float> v;
    if (!d.read({key, other}, v)) continue;
    if (v.size() != 3) d.fail(fmt::format("'{}' has three numbers", key));
    std::copy(v.begin(), v.end(), to);
  }
  for (float s : c.std)
    if (!(s > 0)) d.fail("'std' must be positive");
}

// resize_to_square squashes at 1 and below it cuts the middle out of an image whose shorter side is
// floor(size / crop_pct): the value that makes that `edge`.
double crop_for(int64_t size, int64_t edge) {
  if (edge <= size) return std::nextafter(1.0, 0.0);
  double pct = double(size) / double(edge);
  while (int64_t(double(size) / pct) < edge) pct = std::nextafter(pct, 0.0);
  return pct;
}

// Hugging Face's preprocessor_config.json.
void read_preprocessor(const Document& d, VitConfig& c, ConfigHints& hints) {
  bool normalise = true, centre = false;
  d.read({"do_normalize"}, normalise);
  if (normalise) {
    read_normalisation(d, c);
  } else {
    std::fill_n(c.mean, 3, 0.0f);
    std::fill_n(c.std, 3, 1.0f);
  }
  double rescale = 1.0 / 255;
  d.read({"rescale_factor"}, rescale);
  if (!(std::abs(rescale * 255 - 1) < 1e-6))
    d.fail(fmt::format("'rescale_factor' {} is not 1/255", rescale));
  int64_t resample = c.interpolation == "bilinear" ? 2 : 3;  // PIL's numbers
  d.read({"resample"}, resample);
  if (resample != 2 && resample != 3)
    d.fail(fmt::format("'resample' {} is neither 2 (bilinear) nor 3 (bicubic)", resample));
  c.interpolation = resample == 2 ? "bilinear" : "bicubic";

  // A size is a number, {height, width} or {shortest_edge}.
  struct Size {
    int64_t square = 0, edge = 0;
  };
  const auto size_of = [&](const char* key) {
    Size s;
    const json* v = d.find(key);
    if (v == nullptr) return s;
    const auto number = [&](const json& j, const char* name) {
      if (!j.contains(name) || j.at(name).is_null()) return int64_t(0);
      if (!j.at(name).is_number_integer()) d.fail(fmt::format("'{}.{}' is no integer", key, name));
      return j.at(name).get<int64_t>();
    };
    if (v->is_number_integer()) {
      s.square = v->get<int64_t>();
    } else if (v->is_object()) {
      s.edge = number(*v, "shortest_edge");
      s.square = number(*v, "height");
      if (s.square != number(*v, "width")) d.fail(fmt::format("'{}' is not square", key));
    } else {
      d.fail(fmt::format("'{}' has the wrong type: {}", key, v->dump()));
    }
    return s;
  };
  const Size size = size_of("size");
  d.read({"do_center_crop"}, centre);
  if (centre) {
    Size crop = size_of("crop_size");
    if (crop.square == 0) crop.square = std::max(size.square, size.edge);
    hints.image_size = crop.square;
    c.crop_pct = crop_for(crop.square, std::max({size.edge, size.square, crop.square}));
  } else if (size.square > 0) {
    hints.image_size = size.square;
    c.crop_pct = 1;
  } else if (size.edge > 0) {
    hints.image_size = size.edge;
    c.crop_pct = crop_for(size.edge, size.edge);
  }
}

}  // namespace

const char* name_of(PositionRule rule) {
  switch (rule) {
    case PositionRule::antialias:
      return "bicubic with antialias";
    case PositionRule::plain:
      return "bicubic";
    case PositionRule::offset:
      return "bicubic, grid + 0.1";
    case PositionRule::rotary:
      return "rotary";
  }
  return "?";
}

ConfigFiles ConfigFiles::beside(const std::string& weights, const std::string& config) {
  const fs::path folder = fs::path(weights).parent_path();
  ConfigFiles files;
  if (!config.empty()) {
    files.config_path = config;
    files.config = read_text(config);
  } else {
    for (const char* name : {"config.json", "open_clip_config.json"}) {
      const fs::path path = folder / name;
      if (!fs::exists(path)) continue;
      files.config_path = path.string();
      files.config = read_text(path.string());
      break;
    }
  }
  const fs::path path = folder / "preprocessor_config.json";
  if (fs::exists(path)) {
    files.preprocessor_path = path.string();
    files.preprocessor = read_text(path.string());
  }
  return files;
}

ConfigHints read_config(const ConfigFiles& files, VitConfig& c) {
  ConfigHints hints;
  const Document d(files.config, files.config_path);
  if (d.read({"architecture", "timm_model_name"}, hints.architecture)) c.name = hints.architecture;
  if (hints.architecture.empty()) d.read({"model_type"}, c.name);
  d.read({"num_heads", "num_attention_heads"}, c.heads);
  int64_t width = 0, head_width = 64;  // OpenCLIP
  d.read({"head_width"}, head_width);
  if (c.heads == 0 && d.find("layers") != nullptr && d.read({"width"}, width) && head_width > 0)
    c.heads = width / head_width;
  hints.eps_given = d.read({"norm_eps", "layer_norm_eps"}, c.eps);
  read_activation(d, c, hints);
  read_normalisation(d, c);
  d.read({"interpolation"}, c.interpolation);
  d.read({"crop_pct"}, c.crop_pct);
  std::string crop;
  d.read({"crop_mode", "resize_mode"}, crop);
  if (crop == "squash") c.crop_pct = 1;
  if ((crop == "center" || crop == "shortest") && c.crop_pct >= 1) c.crop_pct = crop_for(1, 1);
  d.read({"rope_theta", "rope_temperature"}, c.rope_theta);
  if (const json* rope = d.find("rope_parameters");
      rope != nullptr && rope->is_object() && rope->contains("rope_theta"))
    c.rope_theta = rope->at("rope_theta").get<double>();

  if (const json* size = d.find("input_size");
      size != nullptr && size->is_array() && size->size() == 3 && size->at(2).is_number_integer())
    hints.image_size = size->at(2).get<int64_t>();
  else
    d.read({"img_size", "image_size"}, hints.image_size);
  std::string pool;
  if (d.read({"pool", "global_pool"}, pool) && !pool.empty()) {
    for (const NamedPool& p : kPools)
      if (pool == p.name) hints.pool = p.pool;
    if (!hints.pool) d.fail(fmt::format("pool '{}' is not known (cls_token, avg, map)", pool));
  }
  if (!files.preprocessor.empty())
    read_preprocessor(Document(files.preprocessor, files.preprocessor_path), c, hints);
  return hints;
}

std::string VitConfig::json() const {
  OF_CHECK(pool == Pool::token || pool == Pool::average, "config.json of a plain ViT");
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
      {"act", name_of(gelu)},
      {"norm_eps", eps},
      {"pool", pool == Pool::average ? "avg" : "cls_token"},
      {"mean", {mean[0], mean[1], mean[2]}},
      {"std", {std[0], std[1], std[2]}},
      {"interpolation", interpolation},
      {"crop_pct", crop_pct},
  };
  return j.dump(2) + "\n";
}

}  // namespace orthofed
