#include "models/adapters/adapter_file.h"

#include <fmt/core.h>

#include <nlohmann/json.hpp>

#include "engine/io/safetensors.h"
#include "engine/ops/residual.h"

namespace orthofed {
namespace {

constexpr const char* kFormat = "orthofed-adapter/1";

std::string base_name(const std::string& tensor) {
  const size_t at = tensor.find(".lora_A.weight");
  return at == std::string::npos ? "" : tensor.substr(0, at);
}

}  // namespace

void save_adapter(const std::string& path, const AdapterFile& file) {
  const Preprocessing& p = file.preprocessing;
  save_safetensors(path, file.tensors,
                   {{"format", kFormat},
                    {"kind", name_of(file.kind)},
                    {"scale", fmt::format("{}", file.scale)},
                    {"classes", nlohmann::json(file.classes).dump()},
                    {"base_sha256", file.base_sha256},
                    {"method", file.method},
                    {"round", std::to_string(file.round)},
                    {"image_size", std::to_string(p.image_size)},
                    {"crop_pct", fmt::format("{}", p.crop_pct)},
                    {"interpolation", p.interpolation}});
}

AdapterFile load_adapter(const std::string& path) {
  const Safetensors file = load_safetensors(path);
  auto get = [&](const char* key) {
    const auto it = file.metadata.find(key);
    if (it == file.metadata.end())
      throw UserError(
          fmt::format("{}: not an adapter written by orthofed ('{}' is missing from its "
                      "metadata)",
                      path, key));
    return it->second;
  };
  if (!get("format").starts_with("orthofed-adapter/"))
    throw UserError(
        fmt::format("{}: not an adapter (its format is '{}'); give general_adapter.safetensors or "
                    "personal_adapter.safetensors of a run",
                    path, get("format")));
  if (get("format") != kFormat)
    throw UserError(fmt::format("{}: adapter format '{}', this version reads '{}'", path,
                                get("format"), kFormat));
  AdapterFile a;
  a.kind = get("kind") == "general" ? AdapterKind::general : AdapterKind::personal;
  try {
    a.scale = std::stod(get("scale"));
    a.round = std::stoll(get("round"));
    a.classes = nlohmann::json::parse(get("classes")).get<std::vector<std::string>>();
    if (file.metadata.contains("image_size"))  // earlier releases did not write it
      a.preprocessing = {std::stoll(get("image_size")), std::stod(get("crop_pct")),
                         get("interpolation")};
  } catch (const UserError&) {
    throw;
  } catch (const std::exception&) {
    throw UserError(fmt::format(
        "{}: its metadata (scale, round, classes, image_size, crop_pct) is damaged", path));
  }
  a.base_sha256 = get("base_sha256");
  a.method = get("method");
  a.tensors = file.tensors;
  for (const auto& [name, t] : a.tensors)
    if (!t.all_finite()) throw UserError(fmt::format("{}: '{}' holds NaN or infinity", path, name));
  return a;
}

Predictor::Predictor(std::unique_ptr<Vit> model, const std::vector<std::string>& adapters)
    : model_(std::move(model)) {
  const OnDevice scope(model_->device());
  const DType dtype = accum(model_->compute);
  bool seen[2] = {false, false};
  for (const std::string& path : adapters) {
    const AdapterFile file = load_adapter(path);
    const bool personal = file.kind == AdapterKind::personal;
    if (std::exchange(seen[personal], true))
      throw UserError(
          fmt::format("{}: a second {} adapter; give at most one general and one personal", path,
                      name_of(file.kind)));
    if (!model_->sha256.empty() && file.base_sha256 != model_->sha256)
      throw UserError(
          fmt::format("{}: trained on another base model (sha256 {:.12}..., the weights "
                      "given are {:.12}...)",
                      path, file.base_sha256, model_->sha256));
    if (!classes_.empty() && !file.classes.empty() && classes_ != file.classes)
      throw UserError(fmt::format("{}: its classes differ from the other adapter's", path));
    if (classes_.empty()) classes_ = file.classes;
    VitConfig& images = model_->config;
    if (const int64_t size = file.preprocessing.image_size; size > 0 && size != images.image_size)
      throw UserError(fmt::format(
          "{}: trained on images of {} pixels, the model reads {}: set its image size to {}", path,
          size, images.image_size, size));
    if (file.preprocessing.crop_pct > 0) images.crop_pct = file.preprocessing.crop_pct;
    if (!file.preprocessing.interpolation.empty())
      images.interpolation = file.preprocessing.interpolation;

    for (const auto& [name, t] : file.tensors)
      if (const std::string slice = base_name(name); !slice.empty())
        attach_adapter(*model_, slice, file.kind, t.rows(), file.scale);
    load_adapters(*model_, file.kind, file.tensors);
    for (Linear* layer : adapted_layers(*model_)) layer->refresh_adapters();

    auto head = [&](const std::string& prefix, Linear& to) {
      const auto w = file.tensors.find(prefix + "head.weight");
      const auto b = file.tensors.find(prefix + "head.bias");
      if (w == file.tensors.end() || b == file.tensors.end()) return;
      if (w->second.cols() != model_->config.feature_dim() || b->second.size() != w->second.rows())
        throw UserError(fmt::format("{}: its head {} does not fit features of width {}", path,
                                    w->second.shape().str(), model_->config.feature_dim()));
      to = Linear(Var(w->second.to(dtype).on(scope.device())),
                  Var(b->second.to(dtype).on(scope.device())), dtype);
    };
    head("", head_);
    head("personal_", personal_head_);
  }
  if (!head_.weight.defined() && model_->has_head()) {
    head_ = model_->head;
    classes_.clear();
  }
}

Predictor::Output Predictor::predict(const Tensor& patches, int64_t batch) const {
  const OnDevice scope(model_->device());
  Tape tape(false);
  const Var f = model_->features(tape, patches.on(scope.device()), batch);
  Output out{f.value().to(DType::f32).on(Device::cpu), {}};
  if (!has_head()) return out;
  Var z = linear(tape, head_, f);
  if (personal_head_.weight.defined())
    z = residual(tape, z, linear(tape, personal_head_, f), Var());
  out.logits = z.value().to(DType::f32).on(Device::cpu);
  return out;
}

}  // namespace orthofed
