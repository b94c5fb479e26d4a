#include "federation/report/results.h"

#include <filesystem>

#include "models/adapters/adapter_file.h"
#include "models/methods/method.h"

namespace orthofed {

RunSummary write_results(const RunConfig& config, const Agreement& agreement,
                         const FederationResult& result, const std::string& folder) {
  if (!result.general.empty())
    save_adapter(folder + "/general_adapter.safetensors",
                 {AdapterKind::general, adapter_scale(config.lora, AdapterKind::general).scale(),
                  config.data.classes, agreement.base_sha256, config.method, config.rounds,
                  result.general, preprocessing_of(config.data)});
  const bool fp8 = config.train.frozen_precision == FrozenPrecision::fp8;
  const RunSummary summary = summarize(
      config, agreement, result, std::filesystem::path(config.model.weights).filename().string(),
      word(config.device),
      std::string(word(config.precision)) + (fp8 ? ", frozen weights fp8" : ""));
  write_summary(folder + "/summary.json", summary);
  return summary;
}

Recorder::Recorder(const RunConfig& config, const Agreement& agreement, const std::string& folder,
                   ServerObserver& next)
    : config_(config),
      agreement_(agreement),
      folder_(folder),
      next_(next),
      log_(folder + "/metrics.jsonl") {}

void Recorder::client_joined(const std::string& client, size_t joined, size_t expected) {
  next_.client_joined(client, joined, expected);
}

void Recorder::client_left(const std::string& client, const std::string& why) {
  next_.client_left(client, why);
}

void Recorder::client_refused(const std::string& peer, const std::string& why) {
  next_.client_refused(peer, why);
}

void Recorder::round_started(int64_t round, int64_t rounds) {
  next_.round_started(round, rounds);
}

void Recorder::update_received(const ClientRound& so_far) {
  next_.update_received(so_far);
}

void Recorder::round_aggregated(int64_t round, const TensorMap& general) {
  next_.round_aggregated(round, general);
}

void Recorder::metrics_received(const std::string& client, int64_t rounds_done,
                                const std::optional<SiteEvaluation>& evaluation) {
  next_.metrics_received(client, rounds_done, evaluation);
}

void Recorder::client_round(const ClientRound& complete) {
  log_.write(complete);
  next_.client_round(complete);
}

void Recorder::finished(const FederationResult& result) {
  summary_ = write_results(config_, agreement_, result, folder_);
  next_.finished(result);
}

}  // namespace orthofed
