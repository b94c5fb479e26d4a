// A Site that fine-tunes a ViT: models/training/site_trainer.h behind the round protocol.
#pragma once
#include <memory>
#include <string>

#include "federation/site.h"
#include "models/training/site_trainer.h"

namespace orthofed {

class VitSite : public Site {
 public:
  // state_dir: the client's own folder; after every round it holds its personal adapter and
  // optimiser state, after the last its final adapters. Loads model and images, which may take a
  // while. base: as make_fine_tuner's, for sites in one process.
  VitSite(const RunConfig& config, const std::string& client, const std::string& state_dir,
          SiteTrainer::Callbacks callbacks = {}, const Vit* base = nullptr);

  const std::string& name() const override { return trainer_.client(); }
  Agreement agreement() const override;
  SiteUpdate train(const TensorMap& broadcast, int64_t round, int64_t rounds) override;
  SiteEvaluation evaluate(const TensorMap& broadcast) override;
  void finish(const TensorMap& broadcast) override;

  SiteTrainer& trainer() { return trainer_; }
  // Before aggregation: the site's own model right after its last local training, METHOD's
  // `local_after_training`. Stays at the site.
  const SiteMetrics& local_after_training() const { return local_; }

 private:
  void take(const TensorMap& broadcast);
  void write_metrics(const SiteEvaluation& evaluation);
  void save_general(const std::string& name);  // the trainer's present general part

  RunConfig config_;
  std::string state_dir_;
  SiteTrainer trainer_;
  bool started_ = false;
  TensorMap fine_tuned_;  // the general part after extra epochs; empty: the method has none
  SiteMetrics local_;
};

// What server and clients of this configuration agree on, and theta^0.
struct InitialState {
  Agreement agreement;
  TensorMap general;
};
InitialState initial_state(const RunConfig& config);

}  // namespace orthofed
