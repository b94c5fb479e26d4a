// What a run is: the configuration file's sections as plain structs (docs/configuration.md).
// Parsing is the command line's (models/config/toml.h); every default is here.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace orthofed {

// [model]
struct ModelConfig {
  std::string weights;          // safetensors (docs/backbones.md)
  std::string config;           // config.json; empty: the one beside the weights, if any
  std::string head = "shared";  // shared | personal | both
};

// [lora]
struct LoraConfig {
  int64_t rank = 8;            // of the general adapter
  int64_t personal_rank = -1;  // of the personal adapter; -1: as rank
  double alpha = -1;           // scale s = alpha / rank; -1: alpha = 2 * rank
  double personal_alpha = -1;  // -1: alpha * personal_rank / rank, so that both scales are equal
  std::vector<std::string> targets = {"qkv", "proj", "fc1", "fc2"};  // or q, k, v
  std::vector<int64_t> layers;        // blocks that are adapted; empty: all
  std::string init = "normal";        // normal: A ~ N(0, 1/in); peft: U(+-1/sqrt(in))
  bool init_orthogonal = false;       // A_p starts orthogonal to A_g
  std::string strategy = "unmerged";  // unmerged | extended | merged (engine/ops/linear.h)
};

// [penalty]: one weight a kind; a kind that is absent has weight 0 and is only logged.
struct PenaltyConfig {
  double update = 0, base = 0, subspace = 0, subspace_l1 = 0, features = 0, base_subspace = 0;
  std::string form = "cosine2";  // cosine2 | abs_cosine | raw2
  std::string detach = "none";   // none | general
  int64_t base_subspace_k = 16;
  bool any() const {
    return update > 0 || base > 0 || subspace > 0 || subspace_l1 > 0 || features > 0 ||
           base_subspace > 0;
  }
};

// [train]
struct TrainConfig {
  int64_t epochs = 1;  // local epochs a round; exactly one of epochs and steps is set
  int64_t steps = 0;
  int64_t batch_size = 16;
  int64_t accumulate = 1;  // batches whose gradients are summed before one optimiser step
  double lr = 1e-3;
  std::string schedule = "constant";  // constant | cosine
  double warmup = 0.03;               // share of the whole run
  std::string optimizer = "adamw";    // adamw | sgd
  double momentum = 0.9;              // sgd
  double weight_decay = 0.01;
  double clip = 1.0;                   // global gradient norm; 0: off
  std::string class_weights = "none";  // none | inverse | logit_adjust
  double label_smoothing = 0;
  double focal = 0;
  std::string alternation = "joint";  // joint | alternate
  double personal_dropout = 0;
  std::string state = "keep";    // keep | reset | keep_personal: optimiser state across rounds
  int64_t fine_tune_epochs = 2;  // fedavg_ft
  std::string frozen_precision = "same";  // same | fp8: of the products with frozen weights
  std::string graph = "auto";  // auto | on | off: capture steps and replay them (graph.h)
};

// [data.augment]
struct AugmentConfig {
  bool flip = true;             // horizontally and vertically, each with probability 1/2
  bool rotate90 = true;         // a multiple of 90 degrees
  double crop_scale_min = 0.8;  // random resized crop: area in [min, 1]; 1: off
  double brightness = 0.1, contrast = 0.1, saturation = 0.1;  // factor in 1 +- x
  double stain = 0.05;                                        // each channel's factor in 1 +- x
};

// [data.partition]: how a set without sites (MedMNIST) is split among clients
struct PartitionConfig {
  std::string kind;  // "" (none) | dirichlet | quantity | shards
  int64_t clients = 4;
  double alpha = 0.5;
  int64_t shards_per_client = 2;
};

// [data.synthetic]: the procedural cell images of the demo
struct SyntheticConfig {
  int64_t train = 120, test = 200;  // images a client
  int64_t clients = 4;
  double shift = 1.0;  // strength of the site factors; 0: all sites alike
  int64_t size = 32;
};

// [data]
struct DataConfig {
  std::string root;
  std::string format = "auto";  // auto | manifest | folder | npz | synthetic
  std::string manifest;         // CSV, relative to root
  std::string column_path = "path", column_label = "label", column_client = "client",
              column_split = "split", column_group;  // [data.columns]
  std::vector<std::string> classes;                  // the federation's classes, in order
  std::map<std::string, std::string> labels;         // [data.labels]: own name -> federation class
  std::string client;         // `train`, `eval`: the site whose rows are used; empty: all rows
  double validation = 0;      // share cut from train; metrics are then computed on it
  int64_t image_size = 0;     // 0: the model's
  double crop_pct = -1;       // centre crop; -1: the model's; 1: resize to a square
  std::string interpolation;  // bicubic | bilinear; empty: the model's
  std::string on_bad_image = "skip";  // skip | refuse
  int64_t workers = 1;                // decoding and augmenting threads
  int64_t cache_mb = 1024;            // above it the decoded images live in a mapped file
  AugmentConfig augment;
  PartitionConfig partition;
  SyntheticConfig synthetic;
};

// [federation]
struct FederationConfig {
  std::string address = "127.0.0.1:7733";
  std::vector<std::string> clients;         // names; the server waits for exactly these
  std::string weights = "samples";          // samples | uniform
  std::string share_metrics = "confusion";  // confusion | scalars | none
  double timeout_seconds = 3600;            // longest wait for one client's answer
  double join_timeout_seconds = 600;        // longest wait for all clients to join
  int64_t max_frame_mb = 256;
  std::string state_dir;  // where a client keeps its personal adapter; empty: DIR/clients
  bool evaluate_every_round = false;
};

struct RunConfig {
  std::string method = "opal";  // opal | dual | fedavg | fedavg_ft | local | pooled
  int64_t rounds = 10;
  uint64_t seed = 0;
  std::string device = "auto";     // auto | cpu | cuda | simt
  std::string precision = "auto";  // auto | f32 | bf16
  int64_t threads = 2;             // of each process; a recorded setting, never the core count
  ModelConfig model;
  LoraConfig lora;
  PenaltyConfig penalty;
  TrainConfig train;
  DataConfig data;
  FederationConfig federation;
};

}  // namespace orthofed
