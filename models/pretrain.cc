#include "models/pretrain.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "engine/ops/cross_entropy.h"
#include "engine/ops/sum.h"
#include "engine/optim/optimizer.h"
#include "kernels/core/philox.h"
#include "kernels/image/image.h"

namespace orthofed {
namespace {

// Rows `indices` of the set as patches, flipped and turned if an rng is given.
Tensor patches_of(const MultiLabelImages& set, const std::vector<int64_t>& indices,
                  const Vit& model, const Philox* rng, uint64_t counter) {
  const VitConfig& c = model.config;
  const int64_t side = set.images.dim(1), batch = int64_t(indices.size());
  std::vector<const uint8_t*> images;
  std::vector<ImageAugment> augment(indices.size());
  for (size_t i = 0; i < indices.size(); ++i) {
    images.push_back(set.images.row<uint8_t>(indices[i] * side * side));
    if (rng == nullptr) continue;
    const auto r = (*rng)(counter + i);
    augment[i].flip_horizontal = r[0] & 1;
    augment[i].flip_vertical = r[0] & 2;
    augment[i].quarter_turns = int(r[1] % 4);
  }
  const Tensor patches = Tensor::empty({batch * c.patches(), 3 * c.patch * c.patch}, model.compute);
  dispatch(model.compute, [&]<class T>(Tag<T>) {
    cpu::image_to_patches<T>(images.data(), augment.data(), c.mean, c.std, patches.data<T>(),
                             patches.pitch(),
                             {.batch = batch,
                              .source_height = side,
                              .source_width = side,
                              .size = c.image_size,
                              .patch = c.patch});
  });
  return patches;
}

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

PretrainResult pretrain(const MultiLabelImages& pool, const MultiLabelImages& held_out,
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
  double smoothed = 0;
  for (int64_t step = 0; step < options.steps; ++step) {
    std::vector<int64_t> indices;
    for (int64_t i = 0; i < options.batch_size; ++i)
      indices.push_back(int64_t(order(uint64_t(step * options.batch_size + i))[0] % uint64_t(n)));
    Tape tape;
    const Tensor patches =
        patches_of(pool, indices, model, &augment, uint64_t(step * options.batch_size));
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
  for (int64_t begin = 0; begin < held; begin += options.batch_size) {
    std::vector<int64_t> indices(size_t(std::min(options.batch_size, held - begin)));
    std::iota(indices.begin(), indices.end(), begin);
    Tape tape(false);
    const Var f = model.features(tape, patches_of(held_out, indices, model, nullptr, 0),
                                 int64_t(indices.size()));
    for (size_t h = 0; h < size_t(heads); ++h) {
      const Tensor z = linear(tape, head[h], f).value();
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
