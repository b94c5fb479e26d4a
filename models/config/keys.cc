#include "models/config/keys.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <type_traits>

#include "engine/io/nearest.h"
#include "engine/io/text.h"
#include "kernels/core/check.h"

namespace orthofed {

namespace {

using Strings = std::vector<std::string>;
using Integers = std::vector<int64_t>;
using StringMap = std::map<std::string, std::string>;

// 2^53: a reader of summary.json may hold numbers as doubles. It also stands clear of 2^63 - 1,
// which toml11 3 silently makes of anything larger.
constexpr double kLargestExact = 9007199254740992;

ConfigRule anything() {
  return {};
}
ConfigRule path() {
  return {.is_path = true};
}
template <class... Words>
ConfigRule one_of(Words... words) {
  return {.words = {words...}};
}
ConfigRule at_least(double low) {
  return {.range = {.low = low}};
}
ConfigRule above(double low) {
  return {.range = {.low = low, .low_open = true}};
}
ConfigRule between(double low, double high) {
  return {.range = {.low = low, .high = high}};
}
ConfigRule from_below(double low, double high) {
  return {.range = {.low = low, .high = high, .high_open = true}};
}
ConfigRule from_above(double low, double high) {
  return {.range = {.low = low, .high = high, .low_open = true}};
}
ConfigRule or_automatic(ConfigRule rule, double value) {
  rule.range.automatic = value;
  return rule;
}

template <class T>
ConfigField field_of(T* value) {
  if constexpr (std::is_enum_v<T>)
    return WordField::of(value);
  else
    return value;
}

// What `text` says of each method, where it says something.
std::string of_methods(const char* separator, std::string (*text)(const Method&)) {
  Strings texts;
  for (const Method& method : methods())
    if (std::string said = text(method); !said.empty()) texts.push_back(std::move(said));
  return joined(texts, separator);
}

// Words for people: the empty one is shown as "".
Strings shown(Strings words) {
  std::replace(words.begin(), words.end(), std::string(), std::string("\"\""));
  return words;
}

// The key or the section's keys of this name, or all.
std::vector<ConfigKey> keys_in(const std::string& name) {
  std::vector<ConfigKey> keys;
  for (const ConfigKey& key : config_keys())
    if (name.empty() || key.name == name || key.name.rfind(name + '.', 0) == 0) keys.push_back(key);
  if (!keys.empty()) return keys;
  const std::string near = nearest_config_key(name);
  throw UserError(fmt::format(
      "no configuration key or section '{}'; {}", name,
      near.empty() ? "docs/configuration.md lists all" : "did you mean '" + near + "'?"));
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  for (size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size())
    text.replace(at, from.size(), to);
  return text;
}

}  // namespace

#define FIELD(path) [](RunConfig& c) -> ConfigField { return field_of(&c.path); }
#define KEY(path) #path, FIELD(path)

const std::vector<ConfigKey>& config_keys() {
  static const std::vector<ConfigKey> table = {
      {KEY(method),
       {.words = method_names()},
       of_methods("; ", [](const Method& m) { return fmt::format("{}: {}", m.name, m.help); })},
      {KEY(rounds), between(1, 1000000), "communication rounds"},
      {KEY(seed), between(0, kLargestExact), "all random numbers follow from it"},
      {KEY(device), anything(),
       "what computes; auto: a GPU where there is one, else the CPU; simt: the GPU's kernels, "
       "emulated "
       "on the CPU (slow: for tests and for stepping through them)"},
      {KEY(precision), anything(),
       "of the frozen model; auto: bf16 where the processor multiplies it natively. Adapters are "
       "f32"},
      {KEY(threads), between(1, 1024),
       "of each process; results depend on it, so it is never guessed"},

      {KEY(model.weights), path(), "safetensors file with timm names"},
      {KEY(model.config), path(), "config.json; empty: the one beside the weights"},
      {KEY(model.head), anything(),
       "shared: averaged; personal: stays home; both: the sum of a shared and a personal one"},

      {KEY(lora.rank), at_least(1), "of the general adapter, or of the only one"},
      {KEY(lora.personal_rank), or_automatic(at_least(1), -1),
       "of the personal adapter; -1: as rank"},
      {KEY(lora.alpha), or_automatic(above(0), -1),
       "the adapter's scale is alpha / rank; -1: 2 * rank"},
      {KEY(lora.personal_alpha), or_automatic(above(0), -1),
       "-1: such that both adapters have the same scale"},
      {KEY(lora.targets), one_of("qkv", "q", "k", "v", "proj", "fc1", "fc2"),
       "adapted weights of each block; qkv is one adapter for all three, or q, k, v one each"},
      {KEY(lora.layers), at_least(0), "adapted blocks, from 0; empty: all"},
      {KEY(lora.init), anything(), "of A, while B = 0; normal: N(0, 1/in); peft: U(+-1/sqrt(in))"},
      {KEY(lora.init_orthogonal), anything(), "the personal A starts orthogonal to the general A"},
      {KEY(lora.strategy), anything(),
       "unmerged: adapters have products of their own; extended: in bf16 on a GPU they are summed "
       "in the layers' products, else as unmerged; merged: before each step they are added into a "
       "copy of W in the compute type, which is for GPUs and large batches, and does not go with "
       "penalty.features"},

      {KEY(penalty.update), at_least(0),
       fmt::format("squared cosine between the two updates B A; {} unless a weight is set",
                   of_methods(", ",
                              [](const Method& m) {
                                return m.penalty_update > 0
                                           ? fmt::format("{}: {:g}", m.name, m.penalty_update)
                                           : "";
                              }))},
      {KEY(penalty.base), at_least(0), "between each update and the frozen weight"},
      {KEY(penalty.subspace), at_least(0), "between the row spaces of the two A"},
      {KEY(penalty.subspace_l1), at_least(0), "the same with absolute values, as O-LoRA"},
      {KEY(penalty.features), at_least(0), "between the two adapters' outputs, token by token"},
      {KEY(penalty.base_subspace), at_least(0),
       "share of each update in the frozen weight's leading right singular vectors"},
      {KEY(penalty.form), anything(),
       "cosine2: squared cosine; abs_cosine; raw2: squared inner product (update and base only)"},
      {KEY(penalty.detach), anything(), "general: the penalty moves the personal adapter only"},
      {KEY(penalty.base_subspace_k), between(1, kMaxPenaltyRank), "how many singular vectors"},

      {KEY(train.epochs), at_least(0), "local epochs a round; this or steps"},
      {KEY(train.steps), at_least(0), "local steps a round instead"},
      {KEY(train.batch_size), at_least(1), "images a batch"},
      {KEY(train.accumulate), at_least(1), "batches an optimiser step"},
      {KEY(train.lr), above(0), "learning rate"},
      {KEY(train.schedule), anything(), "of the learning rate over the whole run"},
      {KEY(train.warmup), from_below(0, 1), "share of the run in which the learning rate rises"},
      {KEY(train.optimizer), anything(), ""},
      {KEY(train.momentum), from_below(0, 1), "of sgd"},
      {KEY(train.weight_decay), at_least(0), "decoupled; not on biases"},
      {KEY(train.clip), at_least(0), "global gradient norm; 0: off"},
      {KEY(train.class_weights), anything(),
       "inverse: by class frequency at the client; logit_adjust: log prior added in training"},
      {KEY(train.label_smoothing), from_below(0, 1), ""},
      {KEY(train.focal), at_least(0), "gamma of the focal loss; 0: cross-entropy"},
      {KEY(train.alternation), anything(),
       "joint: one backward pass updates both adapters; alternate: one epoch each, at twice the "
       "cost"},
      {KEY(train.personal_dropout), from_below(0, 1),
       "probability that a step leaves the personal adapter off"},
      {KEY(train.state), anything(), "the optimiser's state across rounds"},
      {KEY(train.fine_tune_epochs), at_least(1),
       fmt::format(
           "local epochs after {}'s last round",
           of_methods("'s and ",
                      [](const Method& m) { return std::string(m.fine_tunes ? m.name : ""); }))},
      {KEY(train.frozen_precision), anything(),
       "of the products with the blocks' frozen weights; same: as precision; fp8: both factors "
       "e4m3 with a scale a row, for GPUs of compute capability 8.9 on (on a CPU slower than "
       "bf16); needs precision bf16 and lora.strategy unmerged"},
      {KEY(train.graph), anything(),
       "on: a GPU captures a step's kernels once and replays them, with the same results; auto: on "
       "for cuda, off for simt; a CPU has nothing to capture"},

      {KEY(data.root), path(), "folder or .npz file with the images"},
      {KEY(data.format), anything(), "auto: by what data.root and data.manifest are"},
      {KEY(data.manifest), anything(), "CSV, relative to data.root"},
      {KEY(data.classes), anything(), "the federation's classes, in order; the same everywhere"},
      {KEY(data.client), anything(), "site whose images train and eval use; empty: all"},
      {KEY(data.validation), from_below(0, 1),
       "share cut from the training images, on which metrics are then computed"},
      {KEY(data.image_size), or_automatic(at_least(8), 0),
       "pixels, a multiple of the patch; 0: the model's"},
      {KEY(data.crop_pct), or_automatic(from_above(0, 1), -1),
       "centre crop; 1: the whole image; -1: the model's"},
      {KEY(data.interpolation), anything(), "empty: the model's"},
      {KEY(data.on_bad_image), anything(), "what to do with a file that is no image"},
      {KEY(data.workers), between(1, 1024), "threads that decode and augment"},
      {KEY(data.cache_mb), at_least(0), "memory for decoded images; more goes to a mapped file"},
      {"data.columns.path", FIELD(data.column_path), anything(),
       "the manifest's column with the image file, relative to data.root"},
      {"data.columns.label", FIELD(data.column_label), anything(), "with the class"},
      {"data.columns.client", FIELD(data.column_client), anything(), "with the site"},
      {"data.columns.split", FIELD(data.column_split), anything(), "with train or test"},
      {"data.columns.group", FIELD(data.column_group), anything(),
       "with the patient or slide, which no split may cut; empty: none"},
      {KEY(data.labels), anything(), "own label name = federation class, one line each"},
      {KEY(data.augment.flip), anything(), "horizontally and vertically"},
      {KEY(data.augment.rotate90), anything(), "by multiples of 90 degrees"},
      {KEY(data.augment.crop_scale_min), from_above(0, 1),
       "smallest area of a random crop; 1: off"},
      {KEY(data.augment.brightness), from_below(0, 1), "factor in 1 +- x"},
      {KEY(data.augment.contrast), from_below(0, 1), "factor in 1 +- x"},
      {KEY(data.augment.saturation), from_below(0, 1), "factor in 1 +- x"},
      {KEY(data.augment.stain), from_below(0, 1), "factor of each colour channel in 1 +- x"},
      {KEY(data.partition.kind), anything(),
       "how a set without sites is split among clients: by class skew, size or label; empty: not"},
      {KEY(data.partition.clients), at_least(1), ""},
      {KEY(data.partition.alpha), above(0),
       "concentration of dirichlet and quantity; small: very unequal"},
      {KEY(data.partition.shards_per_client), at_least(1), "of shards"},
      {KEY(data.synthetic.clients), between(1, 4), "of the generated set"},
      {KEY(data.synthetic.train), at_least(1), "training images a client"},
      {KEY(data.synthetic.test), at_least(1), "test images a client"},
      {KEY(data.synthetic.shift), between(0, 1),
       "strength of what differs between sites; 0: nothing"},
      {KEY(data.synthetic.size), at_least(8), "pixels"},

      {KEY(federation.address), anything(), "the server's host:port"},
      {KEY(federation.clients), anything(), "names; the server waits for exactly these"},
      {KEY(federation.weights), anything(),
       "of the average: by training images, or the same for all"},
      {KEY(federation.share_metrics), anything(), "what a client sends of its results"},
      {KEY(federation.timeout_seconds), above(0), "longest wait for a client's answer"},
      {KEY(federation.join_timeout_seconds), above(0), "longest wait for all clients to join"},
      {KEY(federation.max_frame_mb), between(1, kMaxFrameMb), "longest message that is accepted"},
      {KEY(federation.state_dir), path(),
       "where a client keeps its personal adapter; empty: in the output folder"},
      {KEY(federation.evaluate_every_round), anything(),
       "clients evaluate after each broadcast, not only after the last"},
  };
  return table;
}

#undef KEY
#undef FIELD

const std::vector<std::pair<std::string, std::string>>& config_sections() {
  static const std::vector<std::pair<std::string, std::string>> list = {
      {"", "The run"},
      {"model", "The frozen base model and the classifier on top"},
      {"lora", "The adapters"},
      {"penalty", "Weights of the orthogonality penalties, added to the loss (docs/method.md)"},
      {"train", "Local training"},
      {"data", "Images and labels"},
      {"data.columns", "Column names of the manifest"},
      {"data.augment", "Random changes to training images"},
      {"data.partition", "Splitting one data set among simulated clients"},
      {"data.synthetic", "Generated images, which need no file"},
      {"federation", "Server and clients"},
  };
  return list;
}

bool ConfigRange::contains(double x) const {
  if (automatic && x == *automatic) return true;
  return std::isfinite(x) && (low_open ? x > low : x >= low) && (high_open ? x < high : x <= high);
}

std::string ConfigRange::text() const {
  std::string range;
  if (std::isfinite(low)) range = fmt::format("{} {}", low_open ? ">" : ">=", low);
  if (std::isfinite(high))
    range += fmt::format("{}{} {}", range.empty() ? "" : " and ", high_open ? "<" : "<=", high);
  return automatic ? fmt::format("{}, or {}", range, *automatic) : range;
}

std::string ConfigKey::section() const {
  const size_t dot = name.rfind('.');
  return dot == std::string::npos ? "" : name.substr(0, dot);
}

std::string ConfigKey::last() const {
  return name.substr(name.rfind('.') + 1);
}

std::string ConfigKey::type() const {
  RunConfig any;
  return std::visit(
      Overloaded{[](std::string*) { return "string"; }, [](const WordField&) { return "string"; },
                 [](int64_t*) { return "integer"; }, [](uint64_t*) { return "integer"; },
                 [](double*) { return "number"; }, [](bool*) { return "boolean"; },
                 [](Strings*) { return "list of strings"; },
                 [](Integers*) { return "list of integers"; },
                 [](StringMap*) { return "table of strings"; }},
      field(any));
}

std::string ConfigKey::default_value() const {
  RunConfig defaults;
  return toml_value(field(defaults));
}

Strings ConfigKey::words() const {
  RunConfig any;
  const ConfigField value = field(any);
  const auto* one_of_few = std::get_if<WordField>(&value);
  return one_of_few ? Strings(one_of_few->words.begin(), one_of_few->words.end()) : rule.words;
}

std::string ConfigKey::allowed() const {
  const Strings list = words();
  return list.empty() ? rule.range.text() : joined(shown(list), " | ");
}

const ConfigKey* find_config_key(const std::string& name) {
  for (const ConfigKey& key : config_keys())
    if (key.name == name) return &key;
  return nullptr;
}

bool is_config_section(const std::string& name) {
  const auto& list = config_sections();
  return std::any_of(list.begin(), list.end(),
                     [&](const auto& section) { return section.first == name; });
}

std::string nearest_config_key(const std::string& name) {
  const std::string last = name.substr(name.rfind('.') + 1);
  Strings names;
  std::string moved;  // the same key in another section
  for (const ConfigKey& key : config_keys()) {
    names.push_back(key.name);
    if (moved.empty() && key.last() == last) moved = key.name;
  }
  for (const auto& [section, title] : config_sections())
    if (!section.empty()) names.push_back(section);
  const std::string near = nearest_name(name, names);
  const int distance = edit_distance(near, name);
  const bool misspelt = distance <= 2 && 3 * distance <= static_cast<int>(name.size());
  return misspelt || moved.empty() ? near : moved;
}

std::map<std::string, std::string> shared_settings(const RunConfig& config) {
  // What a machine allows, not what is trained.
  static const std::set<std::string> own = {"lora.strategy", "train.batch_size", "train.accumulate",
                                            "train.frozen_precision", "train.graph"};
  static const std::set<std::string> others = {"seed", "model.head", "data.image_size"};
  RunConfig copy = config;
  std::map<std::string, std::string> settings;
  for (const ConfigKey& key : config_keys()) {
    const std::string section = key.section();
    const bool training = section == "lora" || section == "penalty" || section == "train";
    if ((training && !own.count(key.name)) || others.count(key.name))
      settings[key.name] = toml_value(key.field(copy));
  }
  return settings;
}

std::string toml_value(const ConfigField& field) {
  return std::visit(
      Overloaded{[](const std::string* text) { return string_literal(*text); },
                 [](const WordField& choice) { return string_literal(choice.word()); },
                 [](const int64_t* number) { return fmt::format("{}", *number); },
                 [](const uint64_t* number) { return fmt::format("{}", *number); },
                 [](const double* number) { return number_literal(*number); },
                 [](const bool* flag) { return std::string(*flag ? "true" : "false"); },
                 [](const Strings* list) {
                   Strings literals;
                   for (const std::string& text : *list) literals.push_back(string_literal(text));
                   return '[' + joined(literals) + ']';
                 },
                 [](const Integers* list) { return fmt::format("[{}]", fmt::join(*list, ", ")); },
                 [](const StringMap* map) {
                   Strings pairs;
                   for (const auto& [name, text] : *map)
                     pairs.push_back(string_literal(name) + " = " + string_literal(text));
                   return map->empty() ? "{}" : "{ " + joined(pairs) + " }";
                 }},
      field);
}

std::string config_listing(const std::string& section) {
  std::string out;
  for (const ConfigKey& key : keys_in(section)) {
    const std::string allowed = key.allowed();
    out += fmt::format("{} = {}\n    {}{}\n", key.name, key.default_value(), key.type(),
                       allowed.empty() ? "" : ": " + allowed);
    if (!key.help.empty()) out += "    " + key.help + '\n';
  }
  return out;
}

std::string config_json(const std::string& section) {
  Strings objects;
  for (const ConfigKey& key : keys_in(section))
    objects.push_back(fmt::format(
        "{{\"key\": {}, \"type\": {}, \"default\": {}, \"allowed\": {}, \"help\": {}}}",
        string_literal(key.name), string_literal(key.type()), string_literal(key.default_value()),
        string_literal(key.allowed()), string_literal(key.help)));
  return fmt::format("[{}]\n", joined(objects, ",\n"));
}

std::string config_markdown() {
  std::string out =
      R"(<!-- Written by `orthofed config --markdown`. Change models/config/keys.cc instead. -->
# Configuration

A run is described by a TOML file; [configs/](../configs) holds some to start from. Every key has a
default, and any of them can be overridden on the command line, as often as needed:

```
orthofed run configs/wbc_sites.toml --set data.root=/data/wbc --set train.lr=3e-4 --out runs/wbc
```

A value after `--set` is TOML, or a bare word (`precision=bf16`), or words between commas where the key
holds a list (`lora.targets=q,v`). Unknown keys are errors that name the nearest known one.

A relative path in a file means the one beside the file if that exists, else the one in the working
directory; in `--set` always the latter. `~` is the home folder.

One file serves all methods: )";
  out += of_methods(", ", [](const Method& m) {
    return m.penalty_update > 0
               ? fmt::format("`{}` uses `penalty.update = {:g}`", m.name, m.penalty_update)
               : "";
  });
  out += R"( unless a penalty weight is set; the other
methods have no penalty, and those with one adapter no `personal_rank` and `personal_alpha`, whatever
the file says. A run writes the settings it used to `config.toml` in its output folder, from which it
can be repeated exactly.
)";
  for (const auto& [section, title] : config_sections()) {
    out += section.empty() ? fmt::format("\n## {}\n\n", title)
                           : fmt::format("\n## `[{}]`\n\n{}.\n\n", section, title);
    out += "| key | type | default | allowed | meaning |\n|---|---|---|---|---|\n";
    for (const ConfigKey& key : config_keys()) {
      if (key.section() != section) continue;
      out += fmt::format("| `{}` | {} | `{}` | {} | {} |\n", key.last(), key.type(),
                         key.default_value(), replaced(key.allowed(), "|", "\\|"),
                         replaced(replaced(key.help, "|", "\\|"), "*", "\\*"));
    }
  }
  return out;
}

}  // namespace orthofed
