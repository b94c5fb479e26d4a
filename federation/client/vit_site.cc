#include "federation/client/vit_site.h"

#include <nlohmann/json.hpp>

#include "engine/io/files.h"
#include "federation/wire/messages.h"
#include "models/methods/method.h"
#include "models/scoring/metrics.h"
#include "models/training/make.h"

namespace orthofed {
namespace {

Agreement agreement_of(const RunConfig& config, const FineTuner& tuner) {
  return {config.method, tuner.model().sha256, config.data.classes,
          schema_of(exchanged(tuner.general(), method_named(config.method).up))};
}

}  // namespace

InitialState initial_state(const RunConfig& config) {
  const auto tuner = make_fine_tuner(config, "");
  tuner->draw_general();
  return {agreement_of(config, *tuner),
          exchanged(tuner->general(), method_named(config.method).down)};
}

VitSite::VitSite(const RunConfig& config, const std::string& client, const std::string& state_dir,
                 SiteTrainer::Callbacks callbacks, const Vit* base)
    : config_(config),
      state_dir_(state_dir),
      trainer_(config, client, state_dir, std::move(callbacks), base, &time()) {
  time().turn_to(Activity::joining);
}

Agreement VitSite::agreement() const {
  return agreement_of(config_, trainer_.tuner());
}

void VitSite::take(const TensorMap& broadcast) {
  if (!trainer_.method().federated()) return;
  TensorMap general = broadcast;
  if (trainer_.method().keeps_of_general()) general.merge(trainer_.tuner().general());
  trainer_.tuner().load_general(general);
}

SiteUpdate VitSite::train(const TensorMap& broadcast, int64_t round, int64_t rounds) {
  // A site that joins later reads back what an earlier life of it left, or starts afresh.
  if (!started_) trainer_.start(round > 0);
  started_ = true;
  take(broadcast);
  const RoundReport report = trainer_.train_round(round, rounds);
  if (round + 1 == rounds) {
    const Spending evaluation(&time(), Activity::evaluation);
    local_ = metrics_of(trainer_.score(true), int64_t(config_.data.classes.size()));
  }
  SiteUpdate update;
  const Exchange& up = trainer_.method().up;
  if (up != kNothing) update.tensors = exchanged(trainer_.tuner().general(), up);
  update.samples = report.images;
  update.images_per_second = report.images_per_second;
  update.train_loss = report.loss;
  update.penalties = report.penalties;
  return update;
}

SiteEvaluation VitSite::evaluate(const TensorMap& broadcast) {
  const Method& method = trainer_.method();
  const int64_t classes = int64_t(config_.data.classes.size());
  if (!started_) trainer_.start(true);
  started_ = true;
  take(broadcast);
  SiteEvaluation e;
  if (method.general) {
    e.general = metrics_of(trainer_.score(false), classes);
  } else {
    // Nothing general exists: no score of it either.
    e.general.confusion.assign(size_t(classes), std::vector<int64_t>(size_t(classes), 0));
  }
  if (!fine_tuned_.empty()) trainer_.tuner().load_general(fine_tuned_);
  const bool same = method.general && !method.personal && fine_tuned_.empty() &&
                    config_.model.head != HeadKind::both;
  e.personal = same ? e.general : metrics_of(trainer_.score(true), classes);
  write_metrics(e);
  return e;
}

// What the site knows about itself, whatever it shares: the scores after aggregation, and of its
// own model right after its last local training.
void VitSite::write_metrics(const SiteEvaluation& e) {
  if (state_dir_.empty()) return;
  const Spending saving(&time(), Activity::saving);
  using json = nlohmann::ordered_json;  // NaN is written null
  auto scores = [](const SiteMetrics& m) -> json {
    if (m.samples == 0) return nullptr;
    return {{"samples", m.samples},
            {"accuracy", m.accuracy},
            {"balanced_accuracy", m.balanced_accuracy},
            {"auroc", m.auroc},
            {"classes_scored", m.classes_scored},
            {"recall", recall_per_class(m.confusion)},
            {"confusion", m.confusion}};
  };
  const json document = {
      {"client", trainer_.client()},     {"method", config_.method},
      {"classes", config_.data.classes}, {"personal", scores(e.personal)},
      {"general", scores(e.general)},    {"local_after_training", scores(local_)}};
  make_directories(state_dir_);
  write_file(state_dir_ + "/metrics.json", document.dump(2) + "\n");
}

void VitSite::finish(const TensorMap& broadcast) {
  const Method& method = trainer_.method();
  if (!method.federated()) return;
  take(broadcast);
  save_general("general_adapter");
  if (!method.fine_tunes) return;
  trainer_.fine_tune(config_.rounds);
  fine_tuned_ = trainer_.tuner().general();
  save_general("fine_tuned_adapter");
}

void VitSite::save_general(const std::string& name) {
  if (state_dir_.empty()) return;
  const Spending saving(&time(), Activity::saving);
  make_directories(state_dir_);
  save_adapter(state_dir_ + "/" + name + ".safetensors", trainer_.general_file(config_.rounds));
}

}  // namespace orthofed
