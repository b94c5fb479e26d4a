#include "models/training/site_trainer.h"

#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <filesystem>

#include "engine/data/loader.h"
#include "engine/io/files.h"
#include "engine/io/safetensors.h"
#include "engine/tensor/profile.h"
#include "kernels/core/parallel.h"
#include "kernels/softmax/softmax.h"
#include "models/training/make.h"
#include "models/training/memory_advice.h"

namespace orthofed {
namespace {

LoaderOptions loader_options(const RunConfig& config, const Vit& model, bool training) {
  const VitConfig& c = model.config;
  LoaderOptions o;
  o.batch_size = config.train.batch_size;
  o.patch = c.patch;
  std::copy(std::begin(c.mean), std::end(c.mean), o.mean.begin());
  std::copy(std::begin(c.std), std::end(c.std), o.std.begin());
  o.dtype = model.compute;
  o.device = model.device();
  o.seed = config.seed;
  o.workers = config.data.workers;
  o.shuffle = training;
  if (training) {
    const AugmentConfig& a = config.data.augment;
    o.augment = AugmentOptions{a.flip,     a.rotate90,   a.crop_scale_min, a.brightness,
                               a.contrast, a.saturation, a.stain};
  }
  return o;
}

// Appends the softmax of logits z [batch, classes] for the batch's real images.
void append(Scores& scores, const Tensor& z, const Batch& batch,
            const std::vector<Sample>& samples) {
  const Tensor p = Tensor::empty(z.shape(), DType::f32);
  cpu::softmax_forward(SoftmaxForward<float>{.x = z.data<float>(),
                                             .ldx = z.pitch(),
                                             .y = p.data<float>(),
                                             .ldy = p.pitch(),
                                             .rows = z.rows(),
                                             .cols = z.cols()});
  for (int64_t i = 0; i < batch.valid; ++i) {
    const Sample& s = samples[size_t(batch.indices[size_t(i)])];
    scores.labels.push_back(s.label);
    scores.clients.push_back(s.client);
    scores.probabilities.insert(scores.probabilities.end(), p.row<float>(i),
                                p.row<float>(i) + p.cols());
  }
}

// A batch that outlives the loader's next one.
Batch copy_of(const Batch& b) {
  return {b.patches.clone(), b.labels.clone(), b.weights.clone(), b.indices, b.valid};
}

}  // namespace

SiteTrainer::SiteTrainer(const RunConfig& config, const std::string& client,
                         const std::string& state_dir, Callbacks callbacks, const Vit* base,
                         Stopwatch* time)
    : config_(config),
      client_(client),
      state_dir_(state_dir),
      callbacks_(std::move(callbacks)),
      time_(time),
      method_(method_named(config.method)) {
  cpu::set_threads(int(config.threads));
  // A profile measures ordinary steps, so that those before it had better be ordinary, too.
  if (callbacks_.profile != nullptr) config_.train.graph = GraphUse::off;
  tuner_ = make_fine_tuner(config_, client, base);
  data_ = open_site(config, client, tuner_->model().config, callbacks_.decoding);
  if (callbacks_.skipped && !data_.cache->skipped().empty())
    callbacks_.skipped(data_.cache->skipped());
  tuner_->set_class_counts(data_.class_counts(int64_t(config.data.classes.size())));
}

void SiteTrainer::start(bool resume) {
  tuner_->draw_general();
  tuner_->draw_personal();
  tuner_->reset_optimizer(true, true);
  step_ = 0;
  if (resume) load_state();
}

RoundReport SiteTrainer::train_round(int64_t round, int64_t rounds) {
  if (config_.train.state == OptimizerState::reset) tuner_->reset_optimizer(true, true);
  if (config_.train.state == OptimizerState::keep_personal) tuner_->reset_optimizer(true, false);
  const int64_t epochs = config_.train.epochs;
  const RoundReport report = train_epochs(round * std::max<int64_t>(epochs, 1), epochs,
                                          config_.train.steps, round, rounds, false);
  save_state(round + 1);
  return report;
}

RoundReport SiteTrainer::fine_tune(int64_t rounds) {
  const int64_t first = rounds * std::max<int64_t>(config_.train.epochs, 1);
  return train_epochs(first, config_.train.fine_tune_epochs, 0, rounds, rounds, true);
}

RoundReport SiteTrainer::train_epochs(int64_t first_epoch, int64_t epochs, int64_t steps,
                                      int64_t round, int64_t rounds, bool fine_tuning) try {
  using Clock = std::chrono::steady_clock;
  cpu::set_threads(int(config_.threads));
  Loader loader(data_.cache, loader_options(config_, tuner_->model(), true), data_.train);
  const int64_t accumulate = std::max<int64_t>(1, config_.train.accumulate);
  const int64_t per_epoch = (loader.batches() + accumulate - 1) / accumulate;
  const int64_t total = steps > 0 ? steps : epochs * per_epoch;
  const bool alternate =
      config_.train.alternation == Alternation::alternate && method_.two_adapters() && !fine_tuning;
  const int64_t passes = alternate ? 2 : 1;
  const int64_t images_total = passes * (steps > 0 ? steps * accumulate * config_.train.batch_size
                                                   : epochs * loader.samples());

  RoundReport report;
  report.images = loader.samples();
  double loss = 0;
  int64_t images = 0, done = 0;
  const auto begin = Clock::now();
  for (int64_t epoch = 0; done < total; ++epoch) {
    int64_t counted = 0;  // optimiser steps of this epoch; both passes see the same batches
    for (int64_t pass = 0; pass < passes; ++pass) {
      const Phase phase = !alternate ? Phase::joint : pass == 0 ? Phase::general : Phase::personal;
      loader.start(first_epoch + epoch);
      counted = 0;
      const Batch* batch = loader.next();
      while (batch != nullptr && done + counted < total) {
        if (callbacks_.profile != nullptr) callbacks_.profile->step();
        std::vector<Batch> kept;
        std::vector<const Batch*> micro = {batch};
        if (accumulate > 1) {
          kept.push_back(copy_of(*batch));
          while (int64_t(kept.size()) < accumulate && (batch = loader.next()) != nullptr)
            kept.push_back(copy_of(*batch));
          micro.clear();
          for (const Batch& b : kept) micro.push_back(&b);
        }
        const int64_t index = done + counted;
        const double u =
            rounds > 0 ? (double(round) + double(index) / double(total)) / double(rounds) : 1.0;
        const double ramp = std::min(1.0, u * double(rounds));
        // The features penalty is logged from the round's last step.
        const bool measure = index + 1 == total;
        tuner_->start_step(micro, fine_tuning ? config_.train.warmup : u, ramp, phase, step_++,
                           measure);
        {
          const Span waiting("wait for images", Profile::Kind::work);
          batch = loader.next();  // while a GPU computes
        }
        const StepResult r = tuner_->finish_step();
        loss += r.loss;
        images += r.images;
        ++report.steps;
        ++counted;
        if (callbacks_.step) callbacks_.step(images, images_total, r.loss);
      }
    }
    done += counted;
  }
  if (callbacks_.profile != nullptr) callbacks_.profile->finish();
  report.seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  report.loss = report.steps > 0 ? loss / double(report.steps) : 0;
  report.images_per_second = report.seconds > 0 ? double(images) / report.seconds : 0;
  report.penalties = tuner_->penalties();
  return report;
} catch (const OutOfMemory& e) {
  // The loader's memory, or that of copies of its batches: start_step speaks for its own.
  LoaderOptions options = loader_options(config_, tuner_->model(), true);
  std::unique_ptr<Loader> loader;
  const auto try_step = [&](int64_t images, int64_t micro_batches) {
    tuner_->try_step([&] {
      loader.reset();
      options.batch_size = images;
      loader = std::make_unique<Loader>(data_.cache, options, data_.train);
      loader->start(0);
      const Batch* const batch = loader->next();
      OF_CHECK(batch != nullptr, "there is an image to train on");
      if (micro_batches == 1) return std::vector<Batch>{*batch};
      std::vector<Batch> copies;
      for (int64_t i = 0; i < micro_batches; ++i) copies.push_back(copy_of(*batch));
      return copies;
    });
  };
  throw UserError(memory_advice(e, config_.train.batch_size,
                                std::max<int64_t>(1, config_.train.accumulate), try_step));
}

Scores SiteTrainer::score(bool personal) {
  return score(data_, personal);
}

Scores SiteTrainer::score(const SiteData& data, bool personal) {
  cpu::set_threads(int(config_.threads));
  const int64_t batch_size = config_.train.batch_size;
  Loader loader(data.cache, loader_options(config_, tuner_->model(), false), data.scored);
  Scores scores;
  loader.start(0);
  while (const Batch* batch = loader.next())
    append(scores, tuner_->logits(batch->patches, batch_size, personal).to(DType::f32), *batch,
           data.cache->samples());
  return scores;
}

Scores score(const Predictor& predictor, const SiteData& data, int64_t batch_size) {
  if (!predictor.has_head())
    throw UserError("these weights have no head: give an adapter that has one");
  RunConfig config;
  config.train.batch_size = batch_size;
  Loader loader(data.cache, loader_options(config, predictor.model(), false), data.scored);
  Scores scores;
  loader.start(0);
  while (const Batch* batch = loader.next())
    append(scores, predictor.predict(batch->patches, batch_size).logits, *batch,
           data.cache->samples());
  return scores;
}

AdapterFile SiteTrainer::general_file(int64_t round) const {
  const LoraConfig& lora = config_.lora;
  return {AdapterKind::general, adapter_scale(lora, AdapterKind::general).scale(),
          config_.data.classes, tuner_->model().sha256,
          config_.method,       round,
          tuner_->general(),    preprocessing_of(config_.data)};
}

AdapterFile SiteTrainer::personal_file(int64_t round) const {
  AdapterFile file{
      AdapterKind::personal, adapter_scale(config_.lora, AdapterKind::personal).scale(),
      config_.data.classes,  tuner_->model().sha256,
      config_.method,        round,
      tuner_->personal(),    preprocessing_of(config_.data)};
  // Without a server the head is nobody else's.
  if (!method_.federated() && config_.model.head != HeadKind::personal) {
    const TensorMap general = tuner_->general();
    for (const char* name : {"head.weight", "head.bias"}) file.tensors[name] = general.at(name);
  }
  return file;
}

void SiteTrainer::save_state(int64_t round) const {
  if (state_dir_.empty()) return;
  const Spending saving(time_, Activity::saving);
  make_directories(state_dir_);
  const AdapterFile personal = personal_file(round);
  if (!personal.tensors.empty())
    save_adapter(state_dir_ + "/personal_adapter.safetensors", personal);
  if (method_.keeps_of_general())
    save_adapter(state_dir_ + "/general_adapter.safetensors", general_file(round));
  save_safetensors(state_dir_ + "/optimizer.safetensors", tuner_->optimizer_state(),
                   {{"format", "orthofed-optimizer/1"},
                    {"round", std::to_string(round)},
                    {"step", std::to_string(step_)},
                    {"seed", std::to_string(config_.seed)},
                    {"method", config_.method}});
}

bool SiteTrainer::load_state() {
  const std::string optimizer = state_dir_ + "/optimizer.safetensors";
  if (state_dir_.empty() || !std::filesystem::exists(optimizer)) return false;
  const Safetensors state = load_safetensors(optimizer);
  auto is = [&](const char* key, const std::string& value) {
    const auto it = state.metadata.find(key);
    return it != state.metadata.end() && it->second == value;
  };
  if (!is("seed", std::to_string(config_.seed)) || !is("method", config_.method))
    throw UserError(
        fmt::format("{}: left by a run with another seed or method; name another "
                    "federation.state_dir",
                    optimizer));
  tuner_->load_optimizer_state(state.tensors);
  if (const auto it = state.metadata.find("step"); it != state.metadata.end())
    step_ = std::stoull(it->second);
  const std::string personal = state_dir_ + "/personal_adapter.safetensors";
  if (std::filesystem::exists(personal)) {
    TensorMap tensors = load_adapter(personal).tensors;
    tuner_->load_personal(tensors);
  }
  if (method_.keeps_of_general())
    tuner_->load_general(load_adapter(state_dir_ + "/general_adapter.safetensors").tensors);
  return true;
}

}  // namespace orthofed
