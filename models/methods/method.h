// What tells one method from another (docs/method.md, "Baselines"): which adapters a client trains,
// and what the server averages. Everything else is the same code for all.
#pragma once
#include <memory>
#include <string>

#include "models/config/config.h"
#include "models/training/fine_tune.h"

namespace orthofed {

struct Method {
  bool general = false;     // trains the adapter (and head) that is averaged
  bool personal = false;    // trains the adapter that stays home
  bool federated = false;   // sends and averages
  bool fine_tunes = false;  // extra local epochs after the last broadcast
};

// opal, dual, fedavg, fedavg_ft, local, pooled. Throws UserError for any other name.
Method method_named(const std::string& name);

// `automatic` takes a GPU where there is one. Throws UserError for a device that is not at hand.
Device device_of(DeviceChoice choice);

// The dtype that a precision means on the device: `automatic` takes bf16 only where it is multiplied
// natively.
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
