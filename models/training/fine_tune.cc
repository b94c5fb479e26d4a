#include "models/training/fine_tune.h"

#include <fmt/core.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>
#include <utility>

#include "engine/data/loader.h"
#include "engine/ops/cross_entropy.h"
#include "engine/tensor/bytes.h"
#include "engine/tensor/profile.h"
#include "engine/tensor/watch.h"
#include "kernels/core/philox.h"
#include "models/config/check.h"
#include "models/training/memory_advice.h"

namespace orthofed {

FineTuner::FineTuner(std::unique_ptr<Vit> model, const FineTuneOptions& options)
    : model_(std::move(model)),
      options_(options),
      optimizer_({.adamw = options.train.optimizer == OptimizerKind::adamw,
                  .momentum = options.train.momentum,
                  .clip = options.train.clip}) {
  require_compatible(options.lora, options.penalty, options.train);
  const OnDevice scope(model_->device());
  if (options.general) attach_adapters(*model_, options.lora, AdapterKind::general);
  if (options.personal) attach_adapters(*model_, options.lora, AdapterKind::personal);
  heads_ = std::make_unique<Heads>(*model_, options.classes, options.head);
  penalties_ = std::make_unique<Penalties>(*model_, options.penalty);
  if (options.train.frozen_precision == FrozenPrecision::fp8) model_->quantize();
  adapted_ = adapted_layers(*model_);
  for (Linear* layer : adapted_)  // takes the memory before any step is captured
    layer->set_strategy(options.lora.strategy);

  const double decay = options.train.weight_decay;
  for (AdapterSlice* s : adapter_slices(*model_)) {
    for (auto [kind, group] : {std::pair{AdapterKind::general, &general_group_},
                               std::pair{AdapterKind::personal, &personal_group_}}) {
      const Adapter* adapter = adapter_of(*s, kind);
      if (adapter == nullptr) continue;
      group->add(adapter->a, decay);
      group->add(adapter->b, decay);
    }
  }
  const GraphUse graph = options.train.graph;
  const Device device = scope.device();
  if (device == Device::cuda ? graph != GraphUse::off
                             : device == Device::simt && graph == GraphUse::on)
    graphs_ = std::make_unique<StepGraphs>(device);
  heads_->add_to(general_group_, AdapterKind::general, decay);
  heads_->add_to(personal_group_, AdapterKind::personal, decay);
}

void FineTuner::draw_general() {
  const OnDevice scope(model_->device());
  draw_adapters(*model_, options_.lora, AdapterKind::general, options_.seed, "");
  heads_->draw_first(options_.seed);
}

void FineTuner::draw_personal() {
  const OnDevice scope(model_->device());
  draw_adapters(*model_, options_.lora, AdapterKind::personal, options_.seed, options_.client);
  if (options_.lora.init_orthogonal) orthogonalise_personal(*model_);
  heads_->clear_second();
}

TensorMap FineTuner::general() const {
  TensorMap t = adapter_tensors(*model_, AdapterKind::general);
  heads_->put(AdapterKind::general, t);
  return t;
}

void FineTuner::load_general(const TensorMap& tensors) {
  load_adapters(*model_, AdapterKind::general, tensors);
  heads_->take(AdapterKind::general, tensors);
}

TensorMap FineTuner::personal() const {
  TensorMap t = adapter_tensors(*model_, AdapterKind::personal);
  heads_->put(AdapterKind::personal, t);
  return t;
}

void FineTuner::load_personal(const TensorMap& tensors) {
  load_adapters(*model_, AdapterKind::personal, tensors);
  heads_->take(AdapterKind::personal, tensors);
}

TensorMap FineTuner::optimizer_state() const {
  TensorMap t;
  general_group_.save("general.", t);
  personal_group_.save("personal.", t);
  return t;
}

void FineTuner::load_optimizer_state(const TensorMap& tensors) {
  general_group_.load("general.", tensors);
  personal_group_.load("personal.", tensors);
}

void FineTuner::reset_optimizer(bool general, bool personal) {
  if (general) general_group_.reset();
  if (personal) personal_group_.reset();
}

void FineTuner::set_class_counts(const std::vector<int64_t>& counts) {
  OF_CHECK(int64_t(counts.size()) == options_.classes, "one count a class");
  class_weights_ = prior_ = Tensor();
  if (graphs_ != nullptr) graphs_ = std::make_unique<StepGraphs>(model_->device());
  if (options_.train.class_weights == ClassWeights::none) return;
  const OnDevice scope(model_->device());
  int64_t total = 0, present = 0;
  for (int64_t n : counts) {
    total += n;
    present += n > 0;
  }
  std::vector<double> v(counts.size());
  if (options_.train.class_weights == ClassWeights::inverse) {
    // N / (C_present n_c), at most 10; an absent class never occurs as a label.
    for (size_t c = 0; c < v.size(); ++c)
      v[c] = counts[c] > 0 ? std::min(10.0, double(total) / (double(present) * double(counts[c])))
                           : 0.0;
    class_weights_ = Tensor::of(v, {options_.classes}).to(accum(model_->compute));
  } else {
    // log prior; an absent class gets half an image, so that its logit stays finite.
    for (size_t c = 0; c < v.size(); ++c)
      v[c] = std::log(std::max(double(counts[c]), 0.5) / double(total));
    prior_ = Tensor::of(v, {options_.classes}).to(accum(model_->compute));
  }
}

void FineTuner::refresh_adapters() {
  const Span span("adapters");
  for (Linear* layer : adapted_) layer->refresh_adapters();
}

void FineTuner::set_phase(Phase phase, bool personal_active) {
  set_active(*model_, AdapterKind::personal, personal_active);
  set_trainable(*model_, AdapterKind::general, phase != Phase::personal);
  set_trainable(*model_, AdapterKind::personal, phase != Phase::general && personal_active);
  heads_->set_trainable(AdapterKind::general, phase != Phase::personal);
  heads_->set_trainable(AdapterKind::personal, phase != Phase::general);
}

bool FineTuner::dropped(uint64_t index) const {
  const double p = options_.train.personal_dropout;
  if (p == 0) return false;
  const Philox rng(PhiloxKey(options_.seed).with("personal_dropout").with(options_.client));
  return uniform01(rng(index)[0]) < float(p);
}

// The numbers of a step, 8 bytes each, in the order of the members' comments.
struct FineTuner::Step {
  Kind kind;
  std::vector<Input> inputs;  // of each micro-batch
  int64_t penalty_kinds = 0, layers = 0;
  Tensor numbers;  // bytes
  bool penalised = false;
  // Of the step at hand.
  double ramp = 0;
  uint64_t index = 0;
  int64_t features_layers = 0;
  std::vector<ParameterGroup*> stepped;

  int64_t micro_batches() const { return int64_t(kind.valid.size()); }
  int64_t images() const {
    return std::accumulate(kind.valid.begin(), kind.valid.end(), int64_t{0});
  }
  // Given: learning rate, scale of the gradients, the groups' counts (general, personal), penalty
  // weights [kinds], features weights [micro-batches].
  int64_t penalty_weights() const { return 4; }
  int64_t features_weights() const { return penalty_weights() + penalty_kinds; }
  int64_t given() const { return features_weights() + micro_batches(); }
  // Made, counted from there: norm, factor, losses [micro-batches], penalties [kinds, layers],
  // features [micro-batches, layers].
  static constexpr int64_t kNorm = 0, kFactor = 1, kLosses = 2;
  int64_t penalties() const { return kLosses + micro_batches(); }
  int64_t features() const { return penalties() + penalty_kinds * layers; }
  int64_t made() const { return features() + micro_batches() * layers; }

  template <class X>
  X* at(int64_t i) const {
    return as<X>(numbers) + i;
  }
  double* made_at(int64_t i) const { return at<double>(given() + i); }
};

FineTuner::~FineTuner() = default;

StepGraphs::Key FineTuner::Kind::key() const {
  StepGraphs::Key key = {int64_t(phase), personal_active, features, int64_t(images.size())};
  key.insert(key.end(), images.begin(), images.end());
  key.insert(key.end(), valid.begin(), valid.end());
  return key;
}

FineTuner::Step& FineTuner::prepare(const std::vector<const Batch*>& micro_batches,
                                    double learning_rate, double ramp, Phase phase, uint64_t index,
                                    bool measure_features) {
  Kind kind{
      .phase = phase,
      .personal_active = phase == Phase::personal || (phase == Phase::joint && !dropped(index))};
  set_phase(phase, kind.personal_active);
  const bool penalised = kind.personal_active && options_.general && options_.personal;
  kind.features = penalised && (penalties_->features_lambda() > 0 || measure_features);
  for (const Batch* batch : micro_batches) {
    kind.images.push_back(batch->labels.size());
    kind.valid.push_back(batch->valid);
  }
  std::unique_ptr<Step>& known = steps_[kind];
  if (known == nullptr) {
    auto made = std::make_unique<Step>();
    made->kind = kind;
    made->penalised = penalised;
    made->penalty_kinds = penalties_->kinds();
    made->layers = penalties_->layers();
    made->numbers = Tensor::dense_zeros({8 * (made->given() + made->made())}, DType::u8);
    known = std::move(made);
  }
  Step& step = *known;
  OF_CHECK(step.images() > 0, "a step needs at least one image");

  step.inputs.clear();
  for (size_t j = 0; j < micro_batches.size(); ++j) {
    const Batch& batch = *micro_batches[j];
    Input& in = inputs_[{j, batch.labels.size()}];
    const auto put = [&](Tensor& to, const Tensor& from, DType dtype) {
      if (model_->device() == Device::cpu) {
        to = from.to(dtype);
      } else {
        if (!to.defined()) to = Tensor::empty(from.shape(), dtype);
        to.copy_from(from);
      }
    };
    put(in.patches, batch.patches, batch.patches.dtype());
    put(in.labels, batch.labels, DType::i32);
    put(in.weights, batch.weights, accum(model_->compute));
    step.inputs.push_back(in);
  }

  const double images = double(step.images());
  std::vector<double> given = {learning_rate, 1 / images};
  for (const ParameterGroup* g : {&general_group_, &personal_group_})
    given.push_back(std::bit_cast<double>(g->step() + 1));
  for (const double w : penalties_->weights(ramp * images)) given.push_back(w);
  for (const int64_t valid : kind.valid)
    given.push_back(penalties_->features_weight(ramp * double(valid)));
  const size_t bytes = given.size() * sizeof(double);
  copy_rows(step.numbers.raw(), step.numbers.device(), bytes, given.data(), Device::cpu, bytes,
            bytes, 1);
  step.ramp = ramp;
  step.index = index;
  return step;
}

void FineTuner::queue_gradients(Step& step) {
  const CrossEntropyOptions loss_options{options_.train.label_smoothing, options_.train.focal};
  refresh_adapters();
  for (size_t j = 0; j < step.inputs.size(); ++j) {
    const int64_t valid = step.kind.valid[j];
    if (valid == 0) continue;
    const Input& in = step.inputs[j];
    FeaturesPenalty features = penalties_->features(
        valid * model_->config.tokens(), step.at<double>(step.features_weights() + int64_t(j)),
        step.made_at(step.features() + int64_t(j) * step.layers));
    Tape tape;
    Var loss;
    {
      const Span span("forward");
      const Var f = model_->features(tape, in.patches, in.labels.size(),
                                     step.kind.features ? &features : nullptr);
      const Var z = heads_->logits(tape, f, step.kind.personal_active);
      loss = cross_entropy(tape, z, in.labels, in.weights, class_weights_, prior_, loss_options);
    }
    Tensor::view(nullptr, step.made_at(Step::kLosses + int64_t(j)), {1}, DType::f64, 0,
                 step.numbers.device())
        .copy_from(loss.value());
    {
      const Span span("backward");
      // Gradients are summed with each micro-batch's images as weight and divided once at the end.
      tape.backward(loss, double(valid));
    }
    step.features_layers = features.layers();
  }
  if (step.penalised) {
    set_watched_layer("the penalties");
    const Span span("penalties");
    penalties_->apply(step.at<double>(step.penalty_weights()), step.made_at(step.penalties()));
  }
}

// What a step that failed has left.
void FineTuner::clear_gradients() {
  for (const ParameterGroup* g : {&general_group_, &personal_group_})
    for (const Var& p : g->parameters()) p.clear_grad();
}

void FineTuner::queue_step(Step& step) {
  queue_gradients(step);
  set_watched_layer("the optimiser");
  const Span span("optimizer");
  OptimizerNumbers numbers{.learning_rate = step.at<double>(0),
                           .scale = step.at<double>(1),
                           .counts = {},
                           .norm = step.made_at(Step::kNorm),
                           .factor = step.made_at(Step::kFactor)};
  std::vector<ParameterGroup*> groups;
  if (step.kind.phase != Phase::personal) {
    groups.push_back(&general_group_);
    numbers.counts.push_back(step.at<int64_t>(2));
  }
  if (step.kind.phase != Phase::general) {
    groups.push_back(&personal_group_);
    numbers.counts.push_back(step.at<int64_t>(3));
  }
  step.stepped = optimizer_.queue(groups, numbers);
}

// Waits for the device.
StepResult FineTuner::result_of(const Step& step) {
  std::vector<double> made(size_t(step.made()));
  const size_t bytes = made.size() * sizeof(double);
  copy_rows(made.data(), Device::cpu, bytes, step.made_at(0), step.numbers.device(), bytes, bytes,
            1);
  StepResult result;
  result.norm = made[Step::kNorm];
  double features_sum = 0;
  for (size_t j = 0; j < step.kind.valid.size(); ++j) {
    const double weight = double(step.kind.valid[j]);
    if (weight == 0) continue;
    const double ce = made[size_t(Step::kLosses) + j];
    if (!std::isfinite(ce))
      throw diverged(fmt::format("the loss is {} at step {}", ce, step.index));
    result.ce += weight * ce;
    double sum = 0;
    for (int64_t l = 0; l < step.features_layers; ++l)
      sum += made[size_t(step.features() + int64_t(j) * step.layers + l)];
    if (step.features_layers > 0) features_sum += weight * sum / double(step.features_layers);
  }
  result.images = step.images();
  const double images = double(result.images);
  result.ce /= images;
  result.loss = result.ce;
  if (step.penalised) result.loss += step.ramp * penalties_->sum(&made[size_t(step.penalties())]);
  if (step.kind.features) {
    last_features_ = features_sum / images;
    features_measured_ = true;
    result.loss += step.ramp * penalties_->features_lambda() * last_features_;
  }
  return result;
}

StepResult FineTuner::gradients(const std::vector<const Batch*>& micro_batches, double ramp,
                                Phase phase, uint64_t index, bool measure_features) {
  const OnDevice scope(model_->device());
  Step& step = prepare(micro_batches, 0, ramp, phase, index, measure_features);
  queue_gradients(step);
  StepResult result = result_of(step);
  result.norm = 0;
  return result;
}

void FineTuner::start_step(const std::vector<const Batch*>& micro_batches, double progress,
                           double ramp, Phase phase, uint64_t index, bool measure_features) {
  OF_CHECK(started_ == nullptr, "one step at a time");
  const OnDevice scope(model_->device());
  const TrainConfig& train = options_.train;
  const double factor = schedule_factor(train.schedule, train.warmup, progress);
  try {
    Step& step = prepare(micro_batches, train.lr * factor, ramp, phase, index, measure_features);
    if (graphs_ != nullptr)
      graphs_->run(step.kind.key(), [&] { queue_step(step); });
    else
      queue_step(step);
    started_ = &step;
  } catch (const OutOfMemory& e) {
    if (graphs_ != nullptr) {  // without the pool, kinds of steps share all memory there is
      graphs_.reset();
      clear_gradients();
      return start_step(micro_batches, progress, ramp, phase, index, measure_features);
    }
    const Batch& batch = *micro_batches.front();
    const int64_t images = batch.labels.size();
    const auto try_part = [&](int64_t n, int64_t pieces) {
      const auto first = [n](const Tensor& t) {
        const OnDevice host(Device::cpu);
        std::vector<double> values = t.to_vector();
        values.resize(size_t(n));
        return Tensor::of(values, {n}).to(t.dtype());
      };
      try_step([&] {
        const int64_t rows = n * (batch.patches.rows() / images);
        const Batch part{
            batch.patches.row_range(0, rows), first(batch.labels), first(batch.weights), {}, n};
        return std::vector<Batch>(size_t(pieces), part);
      });
    };
    throw UserError(memory_advice(e, images, int64_t(micro_batches.size()), try_part));
  }
}

StepResult FineTuner::finish_step() {
  OF_CHECK(started_ != nullptr, "a step was started");
  const Step& step = *std::exchange(started_, nullptr);
  const StepResult result = result_of(step);
  if (!std::isfinite(result.norm))
    throw diverged(fmt::format("the gradient norm is {} at step {}", result.norm, step.index));
  for (ParameterGroup* g : step.stepped) g->count_step();
  return result;
}

void FineTuner::try_step(const std::function<std::vector<Batch>()>& make) {
  const OnDevice scope(model_->device());
  steps_.clear();
  inputs_.clear();
  std::vector<uint64_t> indices = {0};  // of a step with the personal adapter, and one without
  while (options_.train.personal_dropout < 1 && dropped(indices[0])) ++indices[0];
  if (options_.train.personal_dropout > 0) {
    indices.push_back(0);
    while (!dropped(indices[1])) ++indices[1];
  }
  const std::vector<Batch> batches = make();
  std::vector<const Batch*> step;
  for (const Batch& batch : batches) step.push_back(&batch);
  for (const uint64_t index : indices) queue_step(prepare(step, 0, 1, Phase::joint, index, true));
}

PenaltyValues FineTuner::penalties() {
  const OnDevice scope(model_->device());
  PenaltyValues v = penalties_->measure();
  if (features_measured_) v["features"] = last_features_;
  return v;
}

Tensor FineTuner::logits(const Tensor& patches, int64_t batch, bool personal) {
  try {
    return logits_at_once(patches, batch, personal);
  } catch (const OutOfMemory& e) {
    if (batch == 1) throw UserError(fmt::format("scoring: {}", not_one_image_fits(e)));
  }
  const int64_t half = batch / 2, middle = patches.rows() / batch * half;
  const Tensor first = logits(patches.row_range(0, middle), half, personal);
  const Tensor second = logits(patches.row_range(middle, patches.rows()), batch - half, personal);
  const OnDevice host(Device::cpu);
  const Tensor z = Tensor::empty({batch, first.cols()}, first.dtype());
  z.row_range(0, half).copy_from(first);
  z.row_range(half, batch).copy_from(second);
  return z;
}

Tensor FineTuner::logits_at_once(const Tensor& patches, int64_t batch, bool personal) {
  const OnDevice scope(model_->device());
  set_active(*model_, AdapterKind::personal, personal);
  Tensor z;
  const auto compute = [&] {
    refresh_adapters();
    Tape tape(false);
    const Var features = model_->features(tape, patches.on(scope.device()), batch);
    z = heads_->logits(tape, features, personal).value().on(Device::cpu);
  };
  try {
    if (graphs_ != nullptr) {
      graphs_->lend(compute);
      return z;
    }
  } catch (const OutOfMemory&) {
    graphs_.reset();
  }
  compute();
  return z;
}

}  // namespace orthofed
