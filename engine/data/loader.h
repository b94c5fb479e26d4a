// A loader serves epochs of batches, which worker threads prepare ahead of the step that uses them.
// On the CPU the workers make the patches; for another device they gather pixels, and the device
// makes the patches (image_feed.h), from a copy that runs beside the step before.
//
// The order of an epoch and every augmentation are drawn from Philox keyed by (seed, epoch, sample
// id): they do not depend on the number of workers, the batch size, or the order of a manifest. The
// last batch of an epoch is filled up with samples of weight 0, so shapes never change.
#pragma once
#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "engine/data/augment.h"
#include "engine/data/image_cache.h"

namespace orthofed {

struct LoaderOptions {
  int64_t batch_size = 16;
  int64_t patch = 16;  // pixels; divides the cache's size
  std::array<float, 3> mean{0.5F, 0.5F, 0.5F}, std{0.5F, 0.5F, 0.5F};
  DType dtype = DType::f32;               // of the patches: f64 (on the CPU), f32 or bf16
  Device device = Device::cpu;            // of the batches: the model's
  bool shuffle = false;                   // else the order of the indices: for evaluation
  std::optional<AugmentOptions> augment;  // none: the images as they are
  uint64_t seed = 0;
  int64_t workers = 1;
};

// Samples `valid` and up only fill the batch: weight 0, patches 0, label 0, index -1. The tensors
// are on the device of the options.
struct Batch {
  Tensor patches;                // dtype [batch * patches, 3 * patch * patch]
  Tensor labels;                 // i32 [batch]
  Tensor weights;                // f32 (f64 for f64 patches) [batch]
  std::vector<int64_t> indices;  // [batch], into ImageCache::samples()
  int64_t valid = 0;
};

class Loader {
 public:
  Loader(std::shared_ptr<const ImageCache> cache, const LoaderOptions& options);
  // indices: the samples of the cache that take part.
  Loader(std::shared_ptr<const ImageCache> cache, const LoaderOptions& options,
         std::vector<int64_t> indices);
  ~Loader();  // stops the workers
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  int64_t samples() const;  // in an epoch
  int64_t batches() const;  // in an epoch

  // Begins an epoch and drops what is left of another.
  void start(int64_t epoch);
  // Returns the next batch, which stays as it is until the next call of next() or start(); null at
  // the end of the epoch. Buffers are made once and used again; on a device all batches use one.
  // Throws what a worker threw.
  const Batch* next();

  std::vector<int64_t> order(int64_t epoch) const;  // the samples in the order they are served

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace orthofed
