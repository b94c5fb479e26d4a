#include "models/adapters/bundle.h"

#include <fmt/core.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "engine/io/files.h"

namespace orthofed {
namespace {

using json = nlohmann::ordered_json;

constexpr const char* kOpenClipConfig = "open_clip_config.json";

json parsed(const std::string& text, const std::string& path) {
  try {
    json j = json::parse(text);
    if (j.is_object()) return j;
  } catch (const json::exception&) {
  }
  throw UserError(fmt::format("{}: a JSON object is expected", path));
}

// W + s B A, [rows, in] in fp32.
Tensor with_update(const Tensor& weight, const ModuleAdapter& m) {
  const Tensor out = Tensor::empty(weight.shape(), DType::f32, Device::cpu);
  out.copy_from(weight);
  std::vector<double> row(size_t(out.cols()));
  for (int64_t i = 0; i < out.rows(); ++i) {
    float* w = out.row<float>(i);
    for (int64_t j = 0; j < out.cols(); ++j) row[size_t(j)] = w[j];
    for (int64_t r = 0; r < m.rank(); ++r) {
      const double factor = m.scale * m.b.row<float>(i)[r];
      const float* a = m.a.row<float>(r);
      if (factor != 0)
        for (int64_t j = 0; j < out.cols(); ++j) row[size_t(j)] += factor * a[j];
    }
    for (int64_t j = 0; j < out.cols(); ++j) w[j] = float(row[size_t(j)]);
  }
  return out;
}

std::vector<std::string> classes_of(std::span<const AdapterFile> adapters) {
  for (const AdapterFile& file : adapters)
    if (!file.classes.empty()) return file.classes;
  return {};
}

// A value is at the top level or in timm's pretrained_cfg; the reader looks at both, in this order.
void put(json& config, const char* key, const json& value) {
  const auto inner = config.find("pretrained_cfg");
  if (inner == config.end() || config.contains(key)) config[key] = value;
  if (inner != config.end() && inner->is_object()) (*inner)[key] = value;
}

// timm takes a configuration without pretrained_cfg for one, and stops at a key that it does not
// know there. With it, keys beside it are left alone (timm/models/_hub.py, _parse_model_cfg).
void add_pretrained_cfg(json& config) {
  if (config.contains("pretrained_cfg") || !config.contains("architecture")) return;
  json inner = json::object();
  for (const char* key : {"mean", "std", "interpolation", "crop_pct", "crop_mode", "num_classes"})
    if (config.contains(key)) inner[key] = config[key];
  if (const auto size = config.find("img_size"); size != config.end() && size->is_number_integer())
    inner["input_size"] = {3, *size, *size};
  config["pretrained_cfg"] = inner;
}

json merged_config(const BaseFile& base, std::span<const AdapterFile> adapters) {
  json config = parsed(base.configs.config, base.configs.config_path);
  const auto classes = classes_of(adapters);
  const auto head = head_of(adapters);
  if (head && config.contains("model_type")) {  // Hugging Face's
    json names = json::object(), numbers = json::object();
    for (int64_t i = 0; i < head->weight.rows(); ++i) {
      const std::string name =
          size_t(i) < classes.size() ? classes[size_t(i)] : fmt::format("LABEL_{}", i);
      names[std::to_string(i)] = name;
      numbers[name] = i;
    }
    config["id2label"] = names;
    config["label2id"] = numbers;
    if (base.architecture.naming == "hf_vit")
      config["architectures"] = {"ViTForImageClassification"};
  } else if (head) {
    put(config, "num_classes", head->weight.rows());
    for (const char* stale : {"label_names", "label_descriptions", "labels"}) {
      config.erase(stale);
      if (config.contains("pretrained_cfg")) config["pretrained_cfg"].erase(stale);
    }
    if (!classes.empty()) config["label_names"] = classes;
  }
  const Preprocessing& images = adapters[0].preprocessing;
  if (images.crop_pct > 0) {
    put(config, "crop_pct", images.crop_pct);
    put(config, "crop_mode", images.crop_pct < 1 ? "center" : "squash");
  }
  if (!images.interpolation.empty()) put(config, "interpolation", images.interpolation);
  if (images.image_size > 0) {
    config["img_size"] = images.image_size;
    if (config.contains("pretrained_cfg"))
      config["pretrained_cfg"]["input_size"] = {3, images.image_size, images.image_size};
  }
  add_pretrained_cfg(config);
  return config;
}

// Hugging Face's preprocessor_config.json, which has the last word where there is one.
json merged_preprocessor(const BaseFile& base, const Preprocessing& images) {
  json j = parsed(base.configs.preprocessor, base.configs.preprocessor_path);
  const VitConfig& c = base.architecture.config;
  const int64_t size = images.image_size > 0 ? images.image_size : c.image_size;
  const double crop = images.crop_pct > 0 ? images.crop_pct : c.crop_pct;
  const json square = {{"height", size}, {"width", size}};
  if (images.image_size > 0 || images.crop_pct > 0) {
    j["do_center_crop"] = crop < 1;
    j["size"] = crop < 1 ? json{{"shortest_edge", int64_t(double(size) / crop)}} : square;
    if (crop < 1) j["crop_size"] = square;
  }
  if (!images.interpolation.empty()) j["resample"] = images.interpolation == "bilinear" ? 2 : 3;
  return j;
}

}  // namespace

TensorMap merged_tensors(const BaseFile& base, std::span<const AdapterFile> adapters) {
  TensorMap tensors = base.file.tensors;
  for (const ModuleAdapter& m : module_adapters(base, adapters)) {
    Tensor& weight = tensors.at(m.weight);
    weight = with_update(weight, m);
  }
  const auto head = head_of(adapters);
  if (!head || !base.head()) return tensors;
  // What was of masked pretraining alone is no part of a classifier: it loads strictly.
  for (const Remark& r : base.architecture.unused) tensors.erase(r.tensor);
  TensorMap with_head;
  for (const auto& [name, tensor] : tensors)
    if (!name.starts_with(*base.head() + ".")) with_head[base.outer() + name] = tensor;
  with_head[*base.head() + ".weight"] = head->weight;
  with_head[*base.head() + ".bias"] = head->bias;
  return with_head;
}

void save_merged(const std::string& folder, const BaseFile& base,
                 std::span<const AdapterFile> adapters) {
  if (base.configs.config.empty())
    throw UserError(fmt::format(
        "{}: no config.json beside the weights; name one: the merged model needs it", base.path));
  const json config = merged_config(base, adapters);
  const std::filesystem::path to(folder);
  save_safetensors((to / "model.safetensors").string(), merged_tensors(base, adapters),
                   {{"format", "pt"}});
  if (const auto head = head_of(adapters); head && !base.head())
    save_safetensors((to / kHeadFile).string(), {{"weight", head->weight}, {"bias", head->bias}},
                     {{"format", "pt"}});
  const std::string name = std::filesystem::path(base.configs.config_path).filename().string();
  write_file((to / (name == kOpenClipConfig ? name : "config.json")).string(),
             config.dump(2) + "\n");
  if (!base.configs.preprocessor.empty())
    write_file((to / "preprocessor_config.json").string(),
               merged_preprocessor(base, adapters[0].preprocessing).dump(2) + "\n");
}

std::vector<std::string> label_names(const std::string& weights, const std::string& config) {
  const ConfigFiles files = ConfigFiles::beside(checkpoint_files(weights).main, config);
  if (files.config.empty()) return {};
  const json j = parsed(files.config, files.config_path);
  const json inner = j.value("pretrained_cfg", json::object());
  std::vector<std::string> names;
  for (const json* at : {&j, &inner}) {
    const auto list = at->find("label_names");
    if (list == at->end() || !list->is_array()) continue;
    for (const json& name : *list)
      if (name.is_string()) names.push_back(name.get<std::string>());
    if (names.size() == list->size()) return names;
    names.clear();
  }
  if (const auto map = j.find("id2label"); map != j.end() && map->is_object())
    for (size_t i = 0; i < map->size(); ++i) {
      const auto name = map->find(std::to_string(i));
      if (name == map->end() || !name->is_string()) return {};
      names.push_back(name->get<std::string>());
    }
  return names;
}

}  // namespace orthofed
