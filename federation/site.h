// What the federation asks of a client, apart from how it trains: the boundary between the round
// protocol (this folder) and fine-tuning (models/). Tests put small arithmetic sites behind it.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "engine/tensor/tensor_map.h"
#include "engine/time/stopwatch.h"
#include "models/scoring/site_metrics.h"

namespace orthofed {

// What client and server must agree on before the first round.
struct Agreement {
  std::string method;
  std::string base_sha256;                    // of the base model's file
  std::vector<std::string> classes;           // in order; sent as a hash
  std::map<std::string, std::string> schema;  // exchanged tensor -> "f32[8, 192]"
};

struct SiteUpdate {
  TensorMap tensors;    // general adapter and shared head after local training
  int64_t samples = 0;  // n_i: training images used
  double images_per_second = 0;
  double train_loss = 0;
  std::map<std::string, double> penalties;  // logged values of each kind, |DeltaW_g|, |DeltaW_p|
};

class Site {
 public:
  virtual ~Site() = default;
  virtual const std::string& name() const = 0;
  virtual Agreement agreement() const = 0;
  // One round of local training from the broadcast. The personal state is on the site's disk before
  // this returns.
  virtual SiteUpdate train(const TensorMap& broadcast, int64_t round, int64_t rounds) = 0;
  // Metrics on the site's test (or validation) images with the broadcast and its personal adapter.
  virtual SiteEvaluation evaluate(const TensorMap& broadcast) = 0;
  // After the last broadcast: a method that fine-tunes trains its extra epochs here.
  virtual void finish(const TensorMap& broadcast) = 0;

  // Of this client's time, from when the site is made to the end of join(), which charges what a
  // site does not itself.
  Stopwatch& time() { return time_; }

 private:
  Stopwatch time_{Activity::set_up};
};

}  // namespace orthofed
