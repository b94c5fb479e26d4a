// Trains a small ViT from scratch, all of its parameters, on images with several labels each; every
// label has a linear head of its own. The demo makes its base model this way; real runs start from
// public weights.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "models/vit/vit.h"

namespace orthofed {

struct MultiHeadImages {
  Tensor images;                             // u8 [n, S, S, 3]
  std::vector<std::vector<int32_t>> labels;  // of each head: [n]
};

struct PretrainOptions {
  VitConfig vit;                      // classes is ignored: the heads are thrown away
  std::vector<int64_t> head_classes;  // of each head
  int64_t steps = 1000, batch_size = 64;
  double lr = 2e-3, weight_decay = 0.05;
  double warmup = 0.1;  // share of the steps; then cosine to 0
  uint64_t seed = 0;
  DType compute = DType::f32;
};

struct PretrainResult {
  Vit model;                     // without heads
  std::vector<double> accuracy;  // of each head on the held-out images
  std::vector<double> chance;    // 1 / classes of each head
  double final_loss = 0;
};

// progress(step, images seen, smoothed loss) after every step. Deterministic in the seed.
PretrainResult pretrain(const MultiHeadImages& pool, const MultiHeadImages& held_out,
                        const PretrainOptions& options,
                        const std::function<void(int64_t, int64_t, double)>& progress);

}  // namespace orthofed
