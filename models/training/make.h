// What a configuration makes: its device, its precision, the frozen base and a site's fine-tuner.
#pragma once
#include <memory>
#include <string>

#include "models/config/config.h"
#include "models/training/fine_tune.h"

namespace orthofed {

// `automatic` takes a GPU where there is one. Throws UserError for a device that is not at hand.
Device device_of(DeviceChoice choice);

// The dtype that a precision means on the device: `automatic` is bf16 only where that is native.
DType compute_type(Precision precision, Device device);

// The frozen base on that device, which it stays on; config_json and image_size as for Vit::load.
std::unique_ptr<Vit> load_base(const std::string& weights, const std::string& config_json,
                               Device device, Precision precision, int64_t image_size = 0);
std::unique_ptr<Vit> load_base(const RunConfig& config);

// The base model with this method's adapters and heads, nothing drawn yet. `client` keys the
// personal draw; the server passes "". base: what load_base gave for this configuration, whose
// frozen tensors are then shared; null: loaded from model.weights.
std::unique_ptr<FineTuner> make_fine_tuner(const RunConfig& config, const std::string& client,
                                           const Vit* base = nullptr);

}  // namespace orthofed
