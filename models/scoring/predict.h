// Features and class probabilities of images, from files or arrays, batch by batch.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "models/adapters/adapter_file.h"

namespace orthofed {

struct PredictImages {
  std::vector<std::string> names;  // path, or "FILE#index" for an array
  // Image i, u8 [H, W, 3]. Throws UserError naming it.
  std::function<Tensor(int64_t)> load;
  int64_t size() const { return int64_t(names.size()); }
};

// One .npz with `images` (engine/data/dataset.h, array_images), one folder (searched recursively,
// sorted), or image files. Throws UserError where there is nothing to predict.
PredictImages open_images(const std::vector<std::string>& inputs);

struct Prediction {
  Tensor features;       // f32 [N, D]
  Tensor logits;         // f32 [N, C]; undefined without a head
  Tensor probabilities;  // f32 [N, C]: softmax of logits
};

// Each image is resized as the model's config.json says. progress(done, total).
Prediction predict(const Predictor& predictor, const PredictImages& images, int64_t batch_size,
                   const std::function<void(int64_t, int64_t)>& progress);

// path, class, then one column of probability a class; the whole file or nothing. classes empty:
// their indices.
void write_predictions_csv(const std::string& path, const PredictImages& images,
                           const Prediction& prediction, const std::vector<std::string>& classes);

// Pixels to the patches a model reads (kernels/image), without augmentation, on the model's device.
// images u8 [S, S, 3] on the host.
Tensor to_patches(const std::vector<Tensor>& images, const Vit& model);

}  // namespace orthofed
