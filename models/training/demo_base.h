// The demo's own foundation model: a small ViT pre-trained from scratch on generated cells whose
// labels are the generator's factors, never a class of the federation.
#pragma once
#include <functional>
#include <string>

#include "models/training/pretrain.h"

namespace orthofed {

struct DemoBaseOptions {
  int64_t steps = 1400, batch_size = 32;  // about a minute on two cores
  int64_t held_out = 1024;
  uint64_t seed = 0;
  DType compute = DType::f32;
};

// 32 px, patch 4, width 96, 4 blocks, 3 heads.
VitConfig demo_geometry();

// progress(step, steps, loss). Throws Error if a factor is recognised on fewer than twice as many
// held-out images as chance gives: the demo on such a base would show nothing.
PretrainResult make_demo_base(const DemoBaseOptions& options,
                              const std::function<void(int64_t, int64_t, double)>& progress);

// model.safetensors and config.json in `folder`; returns the weights' path.
std::string save_base(const Vit& model, const std::string& folder);

}  // namespace orthofed
