#include "models/training/make.h"

#include "engine/tensor/watch.h"
#include "kernels/core/parallel.h"
#include "models/methods/method.h"

namespace orthofed {

Device device_of(DeviceChoice choice) {
  const auto chosen = [&] {
    switch (choice) {
      case DeviceChoice::cpu:
        return Device::cpu;
      case DeviceChoice::cuda:
        return Device::cuda;
      case DeviceChoice::simt:
        return Device::simt;
      case DeviceChoice::automatic:
        break;
    }
    return available(Device::cuda) ? Device::cuda : Device::cpu;
  };
  const Device device = chosen();
  const OnDevice at_hand(device);
  if (device == Device::cpu && shadow_asked())
    throw UserError(
        "shadow: every kernel call is to be compared with the CPU's, but the device is cpu: set "
        "device to cuda or simt");
  return device;
}

DType compute_type(Precision precision, Device device) {
  if (precision != Precision::automatic)
    return precision == Precision::f32 ? DType::f32 : DType::bf16;
  const bool native = device == Device::cuda || (device == Device::cpu && cpu::native_bf16());
  return native ? DType::bf16 : DType::f32;
}

std::unique_ptr<Vit> load_base(const std::string& weights, const std::string& config_json,
                               Device device, Precision precision, int64_t image_size) {
  const OnDevice scope(device);
  return std::make_unique<Vit>(
      Vit::load(weights, config_json, compute_type(precision, device), image_size));
}

std::unique_ptr<Vit> load_base(const RunConfig& config) {
  if (config.model.weights.empty())
    throw UserError("model.weights: name the base model's safetensors file");
  auto base = load_base(config.model.weights, config.model.config, device_of(config.device),
                        config.precision, config.data.image_size);
  if (config.train.frozen_precision == FrozenPrecision::fp8)
    base->quantize();  // now, so that copies share it
  return base;
}

std::unique_ptr<FineTuner> make_fine_tuner(const RunConfig& config, const std::string& client,
                                           const Vit* base) {
  const Method& method = method_named(config.method);
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
