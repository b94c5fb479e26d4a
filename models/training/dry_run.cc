#include "models/training/dry_run.h"

#include <chrono>

#include "engine/data/loader.h"
#include "engine/io/safetensors.h"
#include "engine/tensor/allocator.h"
#include "kernels/core/philox.h"
#include "models/methods/method.h"
#include "models/training/make.h"

namespace orthofed {

DryRun dry_run(const RunConfig& config, int64_t train) {
  const auto tuner = make_fine_tuner(config, "dry run");
  tuner->draw_general();
  tuner->draw_personal();
  const VitConfig& c = tuner->model().config;
  const int64_t batch = config.train.batch_size;
  Batch b;  // where a loader leaves it: on the model's device
  const Tensor patches =
      Tensor::empty({batch * c.patches(), 3 * c.patch * c.patch}, tuner->model().compute);
  const Philox rng = PhiloxKey(config.seed).with("dry run");
  dispatch(patches.dtype(), [&]<class T>(Tag<T>) {
    uint64_t counter = 0;
    for (int64_t r = 0; r < patches.rows(); ++r)
      for (int64_t k = 0; k < patches.cols(); ++k)
        patches.row<T>(r)[k] = T(2 * uniform01(rng(counter++)[0]) - 1);
  });
  const Device device = tuner->model().device();
  b.patches = patches.on(device);
  b.labels = Tensor::zeros({batch}, DType::i32).on(device);
  b.weights = Tensor::full({batch}, DType::f32, 1).on(device);
  b.valid = batch;

  DryRun d;
  tuner->step({&b}, 0.5, 1, Phase::joint, 0);
  reset_peak(tuner->model().device());
  const auto begin = std::chrono::steady_clock::now();
  tuner->step({&b}, 0.5, 1, Phase::joint, 1);
  d.seconds_per_step =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  d.peak_bytes = allocator_stats(tuner->model().device()).peak_bytes_in_use;
  const int64_t per_epoch = (train + batch - 1) / batch;
  d.steps_per_round = config.train.steps > 0 ? config.train.steps * config.train.accumulate
                                             : config.train.epochs * per_epoch;
  const Method& method = method_named(config.method);
  const bool twice = config.train.alternation == Alternation::alternate && method.two_adapters();
  d.seconds_per_round = d.seconds_per_step * double(d.steps_per_round) * (twice ? 2 : 1);
  const auto bytes_of = [&](const Exchange& parts) {
    return parts == kNothing
               ? 0
               : int64_t(encode_safetensors(exchanged(tuner->general(), parts)).size());
  };
  d.bytes_sent = bytes_of(method.up);
  d.bytes_received = bytes_of(method.down);
  return d;
}

}  // namespace orthofed
