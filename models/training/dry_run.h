// What a round will cost a site, measured on random images before it joins.
#pragma once
#include "models/config/config.h"

namespace orthofed {

struct DryRun {
  double seconds_per_step = 0;
  int64_t steps_per_round = 0;
  double seconds_per_round = 0;
  int64_t peak_bytes = 0;  // tensors; the image cache comes on top
  int64_t bytes_sent = 0;  // of tensors, a round
  int64_t bytes_received = 0;
};

// Loads the base model, runs two training steps and times the second. train: the site's images.
DryRun dry_run(const RunConfig& config, int64_t train);

}  // namespace orthofed
