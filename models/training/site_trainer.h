// One site at work: its images, its model, its optimiser, and what it keeps on disk. Rounds of
// local training and evaluation, without knowing how updates travel (federation/client/vit_site.h
// does).
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/time/stopwatch.h"
#include "models/adapters/adapter_file.h"
#include "models/methods/method.h"
#include "models/scoring/site_metrics.h"
#include "models/training/fine_tune.h"
#include "models/training/site_data.h"

namespace orthofed {

class Profile;  // engine/tensor/profile.h

// A trained model on a site's scored images.
Scores score(const Predictor& predictor, const SiteData& data, int64_t batch_size);

struct RoundReport {
  int64_t images = 0;  // training images of the site: n_i
  int64_t steps = 0;
  double loss = 0;  // mean over the round's steps, penalties included
  double seconds = 0;
  double images_per_second = 0;
  PenaltyValues penalties;
};

class SiteTrainer {
 public:
  struct Callbacks {
    Progress decoding;                                          // images decoded
    std::function<void(const std::vector<BadImage>&)> skipped;  // once, if there are any
    std::function<void(int64_t, int64_t, double)> step;         // images done, in the round, loss
    std::shared_ptr<Profile> profile;                           // sees every step; null: none
  };

  // client: whose images (empty: everybody's). state_dir: where personal state is
  // kept after every round; empty: nowhere. base: as make_fine_tuner's. time: outlives this and is
  // told when state is saved; the rest is its owner's to tell.
  SiteTrainer(const RunConfig& config, const std::string& client, const std::string& state_dir,
              Callbacks callbacks = {}, const Vit* base = nullptr, Stopwatch* time = nullptr);

  FineTuner& tuner() { return *tuner_; }
  const FineTuner& tuner() const { return *tuner_; }
  const SiteData& data() const { return data_; }
  const Method& method() const { return method_; }
  const std::string& client() const { return client_; }

  // What the site starts from before its first round: general and shared parts as the server would
  // draw them, its own personal adapter. With `resume`, personal state is read back from state_dir
  // if this run left some there.
  void start(bool resume);

  // Trains round t of T. The general part must have been loaded (or drawn) before.
  RoundReport train_round(int64_t round, int64_t rounds);
  // train.fine_tune_epochs more, at the full learning rate.
  RoundReport fine_tune(int64_t rounds);

  Scores score(bool personal);
  Scores score(const SiteData& data, bool personal);

  // Adapter files with this run's metadata, the head included wherever nobody else keeps it.
  AdapterFile general_file(int64_t round) const;
  AdapterFile personal_file(int64_t round) const;

 private:
  RoundReport train_epochs(int64_t first_epoch, int64_t epochs, int64_t steps, int64_t round,
                           int64_t rounds, bool fine_tuning);
  void save_state(int64_t round) const;
  bool load_state();

  RunConfig config_;
  std::string client_, state_dir_;
  Callbacks callbacks_;
  Stopwatch* time_;
  Method method_;
  std::unique_ptr<FineTuner> tuner_;
  SiteData data_;
  uint64_t step_ = 0;  // of the whole run
};

}  // namespace orthofed
