#include "models/training/demo_base.h"

#include <fmt/core.h>

#include "engine/data/synthetic.h"
#include "engine/io/files.h"
#include "engine/io/safetensors.h"

namespace orthofed {
namespace {

constexpr const char* kHeads[] = {"lobes", "granules", "hue"};

MultiHeadImages labelled(const PretrainingPool& pool) {
  return {pool.images, {pool.lobes, pool.granules, pool.hues}};
}

}  // namespace

VitConfig demo_geometry() {
  VitConfig c;
  c.name = "orthofed_demo_vit";
  c.image_size = 32;
  c.patch = 4;
  c.dim = 96;
  c.depth = 4;
  c.heads = 3;
  c.mlp_dim = 384;
  return c;
}

PretrainResult make_demo_base(const DemoBaseOptions& options,
                              const std::function<void(int64_t, int64_t, double)>& progress) {
  // Few images are seen more than three times, and each time flipped and turned.
  const int64_t images = std::min<int64_t>(options.steps * options.batch_size, 16384);
  const PretrainingPool pool = make_pretraining_pool(
      {.first = 0, .count = images, .size = demo_geometry().image_size, .seed = options.seed});
  const PretrainingPool held_out = make_pretraining_pool({.first = images,
                                                          .count = options.held_out,
                                                          .size = demo_geometry().image_size,
                                                          .seed = options.seed});
  PretrainOptions o;
  o.vit = demo_geometry();
  o.head_classes = {CellFactors::kLobes, CellFactors::kGranules, CellFactors::kHues};
  o.steps = options.steps;
  o.batch_size = options.batch_size;
  o.seed = options.seed;
  o.compute = options.compute;
  PretrainResult result =
      pretrain(labelled(pool), labelled(held_out), o, [&](int64_t step, int64_t, double loss) {
        if (progress) progress(step, options.steps, loss);
      });
  for (size_t h = 0; h < result.accuracy.size(); ++h)
    if (!(result.accuracy[h] >= 2 * result.chance[h]))
      throw Error(
          fmt::format("the demo's base model recognises {} on {:.2f} of held-out images, less "
                      "than twice chance ({:.2f}): it has learnt too little to build on",
                      kHeads[h], result.accuracy[h], result.chance[h]));
  return result;
}

std::string save_base(const Vit& model, const std::string& folder) {
  make_directories(folder);
  write_file(folder + "/config.json", model.config.json());
  const std::string path = folder + "/model.safetensors";
  save_safetensors(path, model.tensors(), {{"format", "pt"}});
  return path;
}

}  // namespace orthofed
