#include "models/config/check.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <optional>

#include "engine/io/nearest.h"
#include "engine/io/text.h"
#include "kernels/core/check.h"
#include "models/config/keys.h"
#include "models/config/names.h"
#include "models/methods/method.h"

namespace orthofed {

namespace {

using Strings = std::vector<std::string>;

// Throws with the place where `key` was set, if it was.
using Fail = std::function<void(const std::string& key, const std::string& message)>;

template <class T>
std::optional<T> duplicate(std::vector<T> list) {
  std::sort(list.begin(), list.end());
  const auto twice = std::adjacent_find(list.begin(), list.end());
  return twice == list.end() ? std::nullopt : std::optional<T>(*twice);
}

bool has(const Strings& list, const std::string& word) {
  return std::find(list.begin(), list.end(), word) != list.end();
}

void check_lora(const LoraConfig& lora, const Fail& fail) {
  if (lora.targets.empty())
    fail("lora.targets", "no weight is adapted; name at least one, as in [\"qkv\"]");
  if (const auto twice = duplicate(lora.targets))
    fail("lora.targets", string_literal(*twice) + " is named twice");
  for (const char* part : {"q", "k", "v"})
    if (has(lora.targets, "qkv") && has(lora.targets, part))
      fail("lora.targets", fmt::format("\"qkv\" already adapts \"{}\"; name one of the two", part));
  if (const auto twice = duplicate(lora.layers))
    fail("lora.layers", fmt::format("{} is named twice", *twice));
}

void check_penalty(const RunConfig& config, const Fail& fail) {
  const PenaltyConfig& p = config.penalty;
  const Method& method = method_named(config.method);
  if (p.any() && method.two_adapters())
    for (const auto& [key, rank] : {std::pair{"lora.rank", config.lora.rank},
                                    std::pair{"lora.personal_rank", config.lora.personal_rank}})
      if (rank > kMaxPenaltyRank)
        fail(key, fmt::format("a penalty takes adapters of rank up to {}, found {}; set a smaller "
                              "rank, or no weight in [penalty]",
                              kMaxPenaltyRank, rank));
  if (method.penalty_update == 0 || p.any()) return;
  const Method* without = without_penalty(method);
  fail("penalty.update",
       without == nullptr
           ? "every penalty weight is 0; set one"
           : fmt::format("every penalty weight is 0, which is method = {}; set that or a weight",
                         string_literal(without->name)));
}

void check_train(const RunConfig& config, const Fail& fail) {
  const TrainConfig& train = config.train;
  if (train.epochs == 0 && train.steps == 0)
    fail("train.epochs", "train.epochs and train.steps are both 0; set one of them");
  if (train.frozen_precision == FrozenPrecision::fp8 && config.precision == Precision::f32)
    fail("train.frozen_precision",
         "\"fp8\" goes with activations in bf16; set precision = \"bf16\"");
}

void check_compatible(const LoraConfig& lora, const PenaltyConfig& penalty,
                      const TrainConfig& train, const Fail& fail) {
  if (train.frozen_precision == FrozenPrecision::fp8 && lora.strategy != AdapterStrategy::unmerged)
    fail(
        "train.frozen_precision",
        fmt::format("\"fp8\" does not go with lora.strategy = \"{}\", which puts the adapters into "
                    "the products with the weights; set lora.strategy = \"unmerged\"",
                    word(lora.strategy)));
  if (lora.strategy == AdapterStrategy::merged && penalty.features > 0)
    fail("lora.strategy",
         "\"merged\" does not go with penalty.features, whose gradient has to pass through the "
         "adapters' own products; set lora.strategy = \"extended\" or \"unmerged\"");
  if (penalty.form == PenaltyForm::raw2 && (penalty.subspace > 0 || penalty.subspace_l1 > 0 ||
                                            penalty.features > 0 || penalty.base_subspace > 0))
    fail(
        "penalty.form",
        "\"raw2\" is defined for penalty.update and penalty.base only; set the other weights to 0");
}

void check_data(const DataConfig& data, const Fail& fail) {
  if (data.classes.empty() && data.format != DataFormat::synthetic)
    fail("data.classes",
         "not set; list the federation's classes, as in classes = [\"benign\", \"malignant\"]");
  if (data.classes.size() == 1)
    fail("data.classes", "one class alone leaves nothing to tell apart");
  if (has(data.classes, "")) fail("data.classes", "a class has an empty name");
  if (const auto twice = duplicate(data.classes))
    fail("data.classes", string_literal(*twice) + " is named twice");
  for (const auto& [name, label] : data.labels) {
    if (has(data.classes, label)) continue;
    const std::string near = nearest_name(label, data.classes);
    fail("data.labels",
         fmt::format("{} = {}: no such class in data.classes ({}){}", string_literal(name),
                     string_literal(label), joined(data.classes),
                     near.empty() ? "" : "; did you mean '" + near + "'?"));
  }
  if (data.format == DataFormat::manifest && data.manifest.empty())
    fail("data.manifest", "not set, but data.format is \"manifest\"; name the CSV file");
  if (data.column_path.empty())
    fail("data.columns.path", "a manifest needs a column with the image files");
  if (data.column_label.empty())
    fail("data.columns.label", "a manifest needs a column with the labels");
  if (data.partition.kind != PartitionKind::none &&
      (data.format == DataFormat::manifest || data.format == DataFormat::synthetic))
    fail("data.partition.kind",
         fmt::format("data.format \"{}\" has clients of its own", word(data.format)));
}

void check_federation(const RunConfig& config, const Fail& fail) {
  const FederationConfig& federation = config.federation;
  const size_t colon = federation.address.rfind(':');
  const std::string port = colon == std::string::npos ? "" : federation.address.substr(colon + 1);
  const bool digits = !port.empty() && port.size() <= 5 &&
                      port.find_first_not_of("0123456789") == std::string::npos;
  if (colon == 0 || !digits || std::stoi(port) > 65535)
    fail("federation.address", fmt::format("expected host:port, as in \"127.0.0.1:7733\", found {}",
                                           string_literal(federation.address)));
  for (const std::string& name : federation.clients)
    if (!is_client_name(name))
      fail("federation.clients",
           fmt::format("{}: a client's name is 1 to 64 of a-z A-Z 0-9 _ - . and starts with no dot",
                       string_literal(name)));
  if (const auto twice = duplicate(federation.clients))
    fail("federation.clients", string_literal(*twice) + " is named twice");
  const DataConfig& data = config.data;
  const bool synthetic = data.format == DataFormat::synthetic;
  if (synthetic || data.partition.kind != PartitionKind::none) {
    const std::string key = synthetic ? "data.synthetic.clients" : "data.partition.clients";
    const int64_t split = synthetic ? data.synthetic.clients : data.partition.clients;
    const auto named = static_cast<int64_t>(federation.clients.size());
    if (named > 0 && named != split)
      fail("federation.clients", fmt::format("names {} clients, but {} is {}", named, key, split));
  }
}

constexpr const char* penalty_weights[] = {"penalty.update",   "penalty.base",
                                           "penalty.subspace", "penalty.subspace_l1",
                                           "penalty.features", "penalty.base_subspace"};

}  // namespace

Strings apply_method(const ConfigOrigins& origins, RunConfig& config) {
  const Method& method = method_named(config.method);
  Strings notes;
  if (method.penalty_update == 0) {
    if (config.penalty.any())
      notes.push_back("method " + config.method +
                      " has no penalty: the weights in [penalty] are set to 0");
    for (const char* key : penalty_weights)
      *std::get<double*>(find_config_key(key)->field(config)) = 0;
  } else if (std::none_of(std::begin(penalty_weights), std::end(penalty_weights),
                          [&](const char* key) { return origins.count(key) > 0; })) {
    config.penalty.update = method.penalty_update;
  }
  if (!method.two_adapters()) {
    config.lora.personal_rank = LoraConfig{}.personal_rank;
    config.lora.personal_alpha = LoraConfig{}.personal_alpha;
  }
  return notes;
}

void require_compatible(const LoraConfig& lora, const PenaltyConfig& penalty,
                        const TrainConfig& train) {
  check_compatible(lora, penalty, train, [](const std::string& key, const std::string& message) {
    throw UserError(key + ": " + message);
  });
}

void check_config(const RunConfig& config, const ConfigOrigins& origins, const std::string& file) {
  const Fail fail = [&](const std::string& key, const std::string& message) {
    const auto origin = origins.find(key);
    throw UserError(
        fmt::format("{}: {}: {}", origin == origins.end() ? file : origin->second, key, message));
  };
  check_lora(config.lora, fail);
  check_penalty(config, fail);
  check_train(config, fail);
  check_compatible(config.lora, config.penalty, config.train, fail);
  check_data(config.data, fail);
  check_federation(config, fail);
}

}  // namespace orthofed
