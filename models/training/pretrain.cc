#include "models/training/pretrain.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "engine/data/image_feed.h"
#include "engine/ops/cross_entropy.h"
#include "engine/ops/sum.h"
#include "engine/optim/optimizer.h"
#include "kernels/core/philox.h"

namespace orthofed {
namespace {

// A set of images and its way to the device.
class PatchSource {
 public:
  PatchSource(const MultiHeadImages& set, const Vit& model, int64_t batch)
      : set_(set),
        feed_({batch, set.images.dim(1), set.images.dim(1), model.config.image_size,
               model.config.patch},
              model.config.mean, model.config.std, model.compute),
        stage_(feed_.stage()) {}

  // Images `indices` as patches, flipped and turned if an rng is given; good until the next call.
  Tensor patches(const std::vector<int64_t>& indices, const Philox* rng, uint64_t counter) {
    const int64_t side = set_.images.dim(1);
    const auto count = int64_t(indices.size());
    for (int64_t i = 0; i < count; ++i) {
      std::copy_n(set_.images.row<uint8_t>(indices[size_t(i)] * side * side), side * side * 3,
                  stage_.pixels.row<uint8_t>(i));
      if (rng == nullptr) continue;
      const auto r = (*rng)(counter + uint64_t(i));
      stage_.augment[i].flip_horizontal = r[0] & 1;
      stage_.augment[i].flip_vertical = r[0] & 2;
      stage_.augment[i].quarter_turns = int(r[1] % 4);
    }
    return feed_.patches_of(stage_, count);
  }

 private:
  const MultiHeadImages& set_;
  ImageFeed feed_;
  ImageFeed::Stage stage_;
};

Tensor labels_of(const std::vector<int32_t>& labels, const std::vector<int64_t>& indices) {
  std::vector<int32_t> v;
  for (int64_t i : indices) v.push_back(labels[size_t(i)]);
  return Tensor::of(v, {int64_t(v.size())});
}

int64_t argmax(const Tensor& z, int64_t row) {
  return dispatch_accum(z.dtype(), [&]<class R>(Tag<R>) {
    const R* r = z.row<R>(row);
    return int64_t(std::max_element(r, r + z.cols()) - r);
  });
}

}  // namespace

PretrainResult pretrain(const MultiHeadImages& pool, const MultiHeadImages& held_out,
                        const PretrainOptions& options,
                        const std::function<void(int64_t, int64_t, double)>& progress) {
  VitConfig config = options.vit;
  config.classes = 0;
  const int64_t n = pool.images.dim(0), heads = int64_t(options.head_classes.size());
  OF_CHECK(n > 0 && heads == int64_t(pool.labels.size()), "a label for every head");
  OF_CHECK(pool.images.cols() == 3 && pool.images.dense(), "dense RGB images");

  PretrainResult result{Vit::create(config, options.compute, options.seed), {}, {}, 0};
  Vit& model = result.model;
  const DType sums = accum(options.compute);
  std::vector<Linear> head;
  ParameterGroup group;
  for (const Var& p : model.parameters())
    group.add(p, p.value().rank() > 1 ? options.weight_decay : 0);
  for (int64_t h = 0; h < heads; ++h) {
    const Philox rng = PhiloxKey(options.seed).with("pretrain head").with(uint64_t(h));
    std::vector<float> w(size_t(options.head_classes[size_t(h)] * config.feature_dim()));
    for (size_t i = 0; i < w.size(); ++i) w[i] = float(0.02 * normal(rng, i));
    head.emplace_back(
        Var(Tensor::of(w, {options.head_classes[size_t(h)], config.feature_dim()}).to(sums), true,
            "head"),
        Var(Tensor::zeros({options.head_classes[size_t(h)]}, sums), true, "head"), sums);
    group.add(head.back().weight, options.weight_decay);
    group.add(head.back().bias, 0);
  }

  Optimizer optimizer({});
  const Philox order = PhiloxKey(options.seed).with("pretrain order");
  const Philox augment = PhiloxKey(options.seed).with("pretrain augment");
  const Tensor weights = Tensor::full({options.batch_size}, sums, 1);
  PatchSource source(pool, model, options.batch_size);
  double smoothed = 0;
  for (int64_t step = 0; step < options.steps; ++step) {
    std::vector<int64_t> indices;
    for (int64_t i = 0; i < options.batch_size; ++i)
      indices.push_back(int64_t(order(uint64_t(step * options.batch_size + i))[0] % uint64_t(n)));
    Tape tape;
    const Tensor patches = source.patches(indices, &augment, uint64_t(step * options.batch_size));
    const Var f = model.features(tape, patches, options.batch_size);
    std::vector<Var> losses;
    for (int64_t h = 0; h < heads; ++h)
      losses.push_back(cross_entropy(tape, linear(tape, head[size_t(h)], f),
                                     labels_of(pool.labels[size_t(h)], indices), weights, {}, {},
                                     {}));
    const Var loss = sum(tape, losses);
    const double value = loss.value().item();
    if (!std::isfinite(value)) throw Error("pre-training has diverged; a smaller rate helps");
    tape.backward(loss);
    const double u = double(step) / double(options.steps);
    optimizer.step({&group}, options.lr * schedule_factor(Schedule::cosine, options.warmup, u));
    smoothed = step == 0 ? value : 0.95 * smoothed + 0.05 * value;
    if (progress) progress(step + 1, (step + 1) * options.batch_size, smoothed);
  }
  result.final_loss = smoothed;
  for (const Var& p : model.parameters()) {
    p.set_requires_grad(false);
    p.drop_grad();
  }

  const int64_t held = held_out.images.dim(0);
  std::vector<int64_t> hits(size_t(heads), 0);
  PatchSource held_out_source(held_out, model, options.batch_size);
  for (int64_t begin = 0; begin < held; begin += options.batch_size) {
    std::vector<int64_t> indices(size_t(std::min(options.batch_size, held - begin)));
    std::iota(indices.begin(), indices.end(), begin);
    Tape tape(false);
    const Var f =
        model.features(tape, held_out_source.patches(indices, nullptr, 0), int64_t(indices.size()));
    for (size_t h = 0; h < size_t(heads); ++h) {
      const Tensor z = linear(tape, head[h], f).value().on(Device::cpu);
      for (size_t i = 0; i < indices.size(); ++i)
        hits[h] += argmax(z, int64_t(i)) == held_out.labels[h][size_t(indices[i])];
    }
  }
  for (size_t h = 0; h < size_t(heads); ++h) {
    result.accuracy.push_back(double(hits[h]) / double(held));
    result.chance.push_back(1.0 / double(options.head_classes[h]));
  }
  return result;
}

}  // namespace orthofed
