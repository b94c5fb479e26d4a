#include "models/methods/method.h"

#include <fmt/core.h>

#include "engine/tensor/watch.h"
#include "kernels/core/parallel.h"

namespace orthofed {

Method method_named(const std::string& name) {
  if (name == "opal" || name == "dual")
    return {.general = true, .personal = true, .federated = true};
  if (name == "fedavg") return {.general = true, .federated = true};
  if (name == "fedavg_ft") return {.general = true, .federated = true, .fine_tunes = true};
  if (name == "local") return {.personal = true};
  if (name == "pooled") return {.general = true};
  throw UserError(
      fmt::format("method: '{}' is not one of opal, dual, fedavg, fedavg_ft, local, pooled", name));
}

Device device_named(const std::string& name) {
  const std::string wanted =
      name != "auto" ? name : name_of(available(Device::cuda) ? Device::cuda : Device::cpu);
  for (const Device device : {Device::cpu, Device::cuda, Device::simt})
    if (wanted == name_of(device)) {
      const OnDevice at_hand(device);
      if (device == Device::cpu && shadow_asked())
        throw UserError(
            "--shadow cpu compares a device with the CPU, but the device is cpu: choose cuda or "
            "simt (--device, or device in the configuration)");
      return device;
    }
  throw UserError(fmt::format("device: '{}' is not one of auto, cpu, cuda, simt", name));
}

DType compute_type(const std::string& precision, Device device) {
  if (precision == "f32") return DType::f32;
  if (precision == "bf16") return DType::bf16;
  if (precision == "auto") {
    const bool native = device == Device::cuda || (device == Device::cpu && cpu::native_bf16());
    return native ? DType::bf16 : DType::f32;
  }
  throw UserError(fmt::format("precision: '{}' is not one of auto, f32, bf16", precision));
}

std::unique_ptr<Vit> load_base(const std::string& weights, const std::string& config_json,
                               Device device, const std::string& precision, int64_t image_size) {
  const OnDevice scope(device);
  return std::make_unique<Vit>(
      Vit::load(weights, config_json, compute_type(precision, device), image_size));
}

std::unique_ptr<Vit> load_base(const RunConfig& config) {
  if (config.model.weights.empty())
    throw UserError("model.weights: name the base model's safetensors file");
  auto base = load_base(config.model.weights, config.model.config, device_named(config.device),
                        config.precision, config.data.image_size);
  if (config.train.frozen_precision == "fp8") base->quantize();  // now, so that copies share it
  return base;
}

std::unique_ptr<FineTuner> make_fine_tuner(const RunConfig& config, const std::string& client,
                                           const Vit* base) {
  const Method method = method_named(config.method);
  if (config.data.classes.size() < 2)
    throw UserError("data.classes: name at least two classes, in the federation's order");
  auto model = base ? std::make_unique<Vit>(*base) : load_base(config);
  FineTuneOptions options;
  options.general = method.general;
  options.personal = method.personal;
  options.head = config.model.head;
  options.classes = int64_t(config.data.classes.size());
  options.seed = config.seed;
  options.client = client;
  options.lora = config.lora;
  options.penalty = config.penalty;
  options.train = config.train;
  return std::make_unique<FineTuner>(std::move(model), options);
}

}  // namespace orthofed
