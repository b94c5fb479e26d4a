#include "federation/local/alone.h"

#include <fmt/core.h>

#include <chrono>
#include <map>

#include "engine/io/files.h"
#include "federation/client/vit_site.h"

namespace orthofed {
namespace {

// The scores of each client's images apart.
std::map<std::string, Scores> by_client(const Scores& all, int64_t classes) {
  std::map<std::string, Scores> parts;
  for (size_t i = 0; i < all.labels.size(); ++i) {
    Scores& part = parts[all.clients[i]];
    part.labels.push_back(all.labels[i]);
    part.clients.push_back(all.clients[i]);
    const auto row = all.probabilities.begin() + int64_t(i) * classes;
    part.probabilities.insert(part.probabilities.end(), row, row + classes);
  }
  return parts;
}

}  // namespace

FederationResult run_alone(const RunConfig& config, const std::string& client,
                           const std::string& state_dir, SiteTrainer::Callbacks callbacks,
                           const std::function<void(int64_t, int64_t)>& round,
                           const std::function<void(int64_t, const RoundReport&)>& report,
                           const Stopwatch& started) {
  Stopwatch time = started;
  SiteTrainer trainer(config, client, state_dir, std::move(callbacks), nullptr, &time);
  if (trainer.method().federated())
    throw UserError(fmt::format("method: '{}' is a federation's; alone there are {} and {}",
                                config.method, method_alone(false).name, method_alone(true).name));
  trainer.start(false);
  time.turn_to(Activity::training);
  const auto begin = std::chrono::steady_clock::now();
  double images_per_second = 0;
  for (int64_t t = 0; t < config.rounds; ++t) {
    round(t, config.rounds);
    const RoundReport r = trainer.train_round(t, config.rounds);
    images_per_second += r.images_per_second / double(config.rounds);
    report(t, r);
  }

  time.turn_to(Activity::evaluation);
  FederationResult result;
  const int64_t classes = int64_t(config.data.classes.size());
  std::map<std::string, int64_t> trained;
  for (int64_t i : trainer.data().train)
    ++trained[trainer.data().cache->samples()[size_t(i)].client];
  for (const auto& [name, scores] : by_client(trainer.score(true), classes)) {
    ClientResult c;
    c.client = name;
    c.samples = trained[name];
    c.evaluation.emplace();
    c.evaluation->personal = metrics_of(scores, classes);
    if (trainer.method().general) {
      c.evaluation->general = c.evaluation->personal;
    } else {
      c.evaluation->general.confusion.assign(size_t(classes),
                                             std::vector<int64_t>(size_t(classes), 0));
    }
    c.images_per_second = images_per_second;
    result.clients.push_back(std::move(c));
  }
  result.wall_seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  time.turn_to(Activity::saving);
  if (trainer.method().general) {
    result.general = trainer.tuner().general();
    if (!state_dir.empty()) {
      make_directories(state_dir);
      save_adapter(state_dir + "/general_adapter.safetensors", trainer.general_file(config.rounds));
    }
  }
  result.time = time.split();
  return result;
}

}  // namespace orthofed
