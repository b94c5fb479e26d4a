// What a run is: the configuration file's sections as plain structs (docs/configuration.md), and the
// words that a setting may have. Every default is here; models/config/toml.h reads the file.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "engine/ops/adapter_strategy.h"
#include "engine/optim/optimizer.h"
#include "kernels/orthogonality/orthogonality.h"
#include "models/config/words.h"
#include "models/methods/method.h"

namespace orthofed {

// What a setting of a few words may be; docs/configuration.md says what each means.
enum class DeviceChoice : uint8_t { automatic, cpu, cuda, simt };
enum class Precision : uint8_t { automatic, f32, bf16 };
enum class HeadKind : uint8_t { shared, personal, both };
enum class LoraInit : uint8_t { normal, peft };
enum class PenaltyDetach : uint8_t { none, general };
enum class OptimizerKind : uint8_t { adamw, sgd };
enum class ClassWeights : uint8_t { none, inverse, logit_adjust };
enum class Alternation : uint8_t { joint, alternate };
enum class OptimizerState : uint8_t { keep, reset, keep_personal };
enum class FrozenPrecision : uint8_t { same, fp8 };
enum class GraphUse : uint8_t { automatic, on, off };
enum class DataFormat : uint8_t { automatic, manifest, folder, npz, synthetic };
enum class ImageInterpolation : uint8_t { of_model, bicubic, bilinear };
enum class OnBadImage : uint8_t { skip, refuse };
enum class PartitionKind : uint8_t { none, dirichlet, quantity, shards };
enum class Weighting : uint8_t { samples, uniform };
enum class ShareMetrics : uint8_t { confusion, scalars, none };

OF_WORDS(DeviceChoice, "auto", "cpu", "cuda", "simt");
OF_WORDS(Precision, "auto", "f32", "bf16");
OF_WORDS(HeadKind, "shared", "personal", "both");
OF_WORDS(LoraInit, "normal", "peft");
OF_WORDS(AdapterStrategy, "unmerged", "extended", "merged");
OF_WORDS(PenaltyForm, "cosine2", "abs_cosine", "raw2");
OF_WORDS(PenaltyDetach, "none", "general");
OF_WORDS(OptimizerKind, "adamw", "sgd");
OF_WORDS(Schedule, "constant", "cosine");
OF_WORDS(ClassWeights, "none", "inverse", "logit_adjust");
OF_WORDS(Alternation, "joint", "alternate");
OF_WORDS(OptimizerState, "keep", "reset", "keep_personal");
OF_WORDS(FrozenPrecision, "same", "fp8");
OF_WORDS(GraphUse, "auto", "on", "off");
OF_WORDS(DataFormat, "auto", "manifest", "folder", "npz", "synthetic");
OF_WORDS(ImageInterpolation, "", "bicubic", "bilinear");
OF_WORDS(OnBadImage, "skip", "refuse");
OF_WORDS(PartitionKind, "", "dirichlet", "quantity", "shards");
OF_WORDS(Weighting, "samples", "uniform");
OF_WORDS(ShareMetrics, "confusion", "scalars", "none");

// [model]
struct ModelConfig {
  std::string weights;  // safetensors (docs/backbones.md)
  std::string config;   // config.json; empty: the one beside the weights, if any
  HeadKind head = HeadKind::shared;
};

// [lora]
struct LoraConfig {
  int64_t rank = 8;            // of the general adapter
  int64_t personal_rank = -1;  // of the personal adapter; -1: as rank
  double alpha = -1;           // scale s = alpha / rank; -1: alpha = 2 * rank
  double personal_alpha = -1;  // -1: alpha * personal_rank / rank, so that both scales are equal
  std::vector<std::string> targets = {"qkv", "proj", "fc1", "fc2"};  // or q, k, v
  std::vector<int64_t> layers;       // blocks that are adapted; empty: all
  LoraInit init = LoraInit::normal;  // normal: A ~ N(0, 1/in); peft: U(+-1/sqrt(in))
  bool init_orthogonal = false;      // A_p starts orthogonal to A_g
  AdapterStrategy strategy = AdapterStrategy::unmerged;
};

// [penalty]: one weight a kind; a kind that is absent has weight 0 and is only logged.
struct PenaltyConfig {
  double update = 0, base = 0, subspace = 0, subspace_l1 = 0, features = 0, base_subspace = 0;
  PenaltyForm form = PenaltyForm::cosine2;
  PenaltyDetach detach = PenaltyDetach::none;  // general: moves the personal adapter only
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
  Schedule schedule = Schedule::constant;
  double warmup = 0.03;  // share of the whole run
  OptimizerKind optimizer = OptimizerKind::adamw;
  double momentum = 0.9;  // sgd
  double weight_decay = 0.01;
  double clip = 1.0;  // global gradient norm; 0: off
  ClassWeights class_weights = ClassWeights::none;
  double label_smoothing = 0;
  double focal = 0;
  Alternation alternation = Alternation::joint;
  double personal_dropout = 0;
  OptimizerState state = OptimizerState::keep;  // across rounds
  int64_t fine_tune_epochs = 2;                 // after the last round, of methods that do so
  FrozenPrecision frozen_precision = FrozenPrecision::same;  // of the products with frozen weights
  GraphUse graph = GraphUse::automatic;  // capture steps and replay them (engine/tensor/graph.h)
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
  PartitionKind kind = PartitionKind::none;
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
  DataFormat format = DataFormat::automatic;
  std::string manifest;  // CSV, relative to root
  std::string column_path = "path", column_label = "label", column_client = "client",
              column_split = "split", column_group;  // [data.columns]
  std::vector<std::string> classes;                  // the federation's classes, in order
  std::map<std::string, std::string> labels;         // [data.labels]: own name -> federation class
  std::string client;      // `train`, `eval`: the site whose rows are used; empty: all rows
  double validation = 0;   // share cut from train; metrics are then computed on it
  int64_t image_size = 0;  // 0: the model's
  double crop_pct = -1;    // centre crop; -1: the model's; 1: resize to a square
  ImageInterpolation interpolation = ImageInterpolation::of_model;
  OnBadImage on_bad_image = OnBadImage::skip;
  int64_t workers = 1;      // decoding and augmenting threads
  int64_t cache_mb = 1024;  // above it the decoded images live in a mapped file
  AugmentConfig augment;
  PartitionConfig partition;
  SyntheticConfig synthetic;
};

constexpr int64_t kMaxFrameMb = 4096;

// [federation]
struct FederationConfig {
  std::string address = "127.0.0.1:7733";
  std::vector<std::string> clients;  // names; the server waits for exactly these
  Weighting weights = Weighting::samples;
  ShareMetrics share_metrics = ShareMetrics::confusion;
  double timeout_seconds = 3600;      // longest wait for one client's answer
  double join_timeout_seconds = 600;  // longest wait for all clients to join
  int64_t max_frame_mb = 256;
  std::string state_dir;  // where a client keeps its personal adapter; empty: DIR/clients
  bool evaluate_every_round = false;
};

struct RunConfig {
  std::string method = methods().front().name;  // a row of models/methods/method.h
  int64_t rounds = 10;
  uint64_t seed = 0;
  DeviceChoice device = DeviceChoice::automatic;
  Precision precision = Precision::automatic;
  int64_t threads = 2;  // of each process; a recorded setting, never the core count
  ModelConfig model;
  LoraConfig lora;
  PenaltyConfig penalty;
  TrainConfig train;
  DataConfig data;
  FederationConfig federation;
};

}  // namespace orthofed
