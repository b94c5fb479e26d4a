#include "models/training/site_data.h"

#include <fmt/core.h>

#include <algorithm>
#include <filesystem>
#include <map>

#include "engine/data/synthetic.h"
#include "engine/io/files.h"
#include "models/training/partition.h"

namespace orthofed {
namespace {

namespace fs = std::filesystem;

constexpr const char* kNobody = "all";  // the client of data that names none

DataFormat format_of(const DataConfig& data) {
  if (data.format != DataFormat::automatic) return data.format;
  if (!data.manifest.empty()) return DataFormat::manifest;
  if (data.root.empty()) return DataFormat::synthetic;
  return data.root.ends_with(".npz") ? DataFormat::npz : DataFormat::folder;
}

SyntheticOptions synthetic_options(const RunConfig& config) {
  const SyntheticConfig& s = config.data.synthetic;
  return {.clients = s.clients,
          .train = s.train,
          .test = s.test,
          .unseen = 0,
          .classes = int64_t(config.data.classes.size()),
          .size = s.size,
          .shift = s.shift,
          .seed = config.seed};
}

Dataset synthetic_dataset(const RunConfig& config) {
  const SyntheticSet set = make_federation(synthetic_options(config));
  std::vector<ImageArray> arrays;
  for (const SyntheticSite& site : set.sites) {
    arrays.push_back(
        {site.name + "/train", site.name, "train", site.train.images, site.train.labels});
    arrays.push_back({site.name + "/test", site.name, "test", site.test.images, site.test.labels});
  }
  return make_dataset(arrays, config.data.classes);
}

// Gives the samples of a set without sites to clients, each split by itself and by the same rule.
void partition(Dataset& set, const PartitionConfig& p, uint64_t seed) {
  std::map<std::string, std::vector<size_t>> splits;
  for (size_t i = 0; i < set.samples.size(); ++i) splits[set.samples[i].split].push_back(i);
  for (const auto& [split, members] : splits) {
    std::vector<int32_t> labels;
    for (size_t i : members) labels.push_back(set.samples[i].label);
    Partition parts;
    if (p.kind == PartitionKind::dirichlet)
      parts = partition_dirichlet(labels, p.clients, p.alpha, seed);
    else if (p.kind == PartitionKind::quantity)
      parts = partition_quantity(int64_t(labels.size()), p.clients, p.alpha, seed);
    else
      parts = partition_shards(labels, p.clients, p.shards_per_client, seed);
    for (size_t c = 0; c < parts.size(); ++c)
      for (int64_t i : parts[c])
        set.samples[members[size_t(i)]].client = fmt::format("client_{}", c + 1);
  }
}

Interpolation interpolation_named(const std::string& name) {
  return name == "bilinear" ? Interpolation::bilinear : Interpolation::bicubic;
}

CacheOptions cache_options(const DataConfig& data, const VitConfig& model) {
  OF_CHECK(data.image_size == 0 || data.image_size == model.image_size,
           "the model was loaded for data.image_size");
  return {.size = model.image_size,
          .crop_pct = data.crop_pct > 0 ? data.crop_pct : model.crop_pct,
          .interpolation = interpolation_named(data.interpolation == ImageInterpolation::of_model
                                                   ? model.interpolation
                                                   : word(data.interpolation)),
          .refuse_bad_images = data.on_bad_image == OnBadImage::refuse,
          .memory_limit = data.cache_mb << 20,
          .workers = data.workers};
}

}  // namespace

RunConfig completed(RunConfig config) {
  if (format_of(config.data) == DataFormat::synthetic && config.data.classes.empty()) {
    SyntheticOptions one;
    one.train = one.test = one.clients = 1;
    one.unseen = 0;
    config.data.classes = make_federation(one).classes;
  }
  if (config.federation.clients.empty())
    config.federation.clients = clients_of(open_dataset(config));
  return config;
}

Dataset open_dataset(const RunConfig& config) {
  const DataConfig& data = config.data;
  const DataFormat format = format_of(data);
  const ClassMap map{data.classes, data.labels};
  Dataset set;
  if (format == DataFormat::synthetic) {
    set = synthetic_dataset(config);
  } else if (format == DataFormat::manifest) {
    if (data.manifest.empty()) throw UserError("data.manifest: name the CSV file");
    const fs::path manifest = fs::path(data.manifest).is_absolute()
                                  ? fs::path(data.manifest)
                                  : fs::path(data.root) / data.manifest;
    set = read_manifest(manifest.string(), data.root,
                        {data.column_path, data.column_label, data.column_client, data.column_split,
                         data.column_group},
                        map);
  } else if (format == DataFormat::npz) {
    set = read_npz_dataset(data.root, map);
  } else {
    require_directory(data.root, "data.root");
    set = read_image_folder(data.root, map);
  }

  const bool sited = std::any_of(set.samples.begin(), set.samples.end(),
                                 [](const Sample& s) { return !s.client.empty(); });
  if (data.partition.kind != PartitionKind::none) {
    if (sited)
      throw UserError("data.partition: this data already names its clients; remove the section");
    partition(set, data.partition, config.seed);
  } else if (!sited) {
    for (Sample& s : set.samples) s.client = kNobody;
  }
  return set;
}

Dataset open_client(const RunConfig& config, const std::string& client) {
  const Dataset set = open_dataset(config);
  const bool unnamed = clients_of(set) == std::vector<std::string>{kNobody};
  Dataset mine = select(set, unnamed ? "" : client, "");
  if (unnamed && !client.empty())
    for (Sample& s : mine.samples) s.client = client;
  return mine;
}

std::vector<int64_t> SiteData::class_counts(int64_t classes) const {
  std::vector<int64_t> counts(size_t(classes), 0);
  for (int64_t i : train) ++counts[size_t(cache->samples()[size_t(i)].label)];
  return counts;
}

SiteData open_site(const RunConfig& config, const std::string& client, const VitConfig& model,
                   const Progress& progress) {
  const DataConfig& data = config.data;
  Dataset mine = open_client(config, client);
  // A set's own validation split is used where validation is asked for, and left alone otherwise.
  const bool validate = data.validation > 0;
  const bool own = std::any_of(mine.samples.begin(), mine.samples.end(),
                               [](const Sample& s) { return s.split == "val"; });
  std::erase_if(mine.samples, [&](const Sample& s) {
    return s.split != "train" && s.split != (validate ? "val" : "test");
  });

  SiteData site;
  site.cache = std::make_shared<ImageCache>(mine, cache_options(data, model), progress);
  const auto& samples = site.cache->samples();
  std::map<std::string, std::vector<int64_t>> train_of;  // [client], each is cut by itself
  for (int64_t i = 0; i < int64_t(samples.size()); ++i) {
    const Sample& s = samples[size_t(i)];
    if (s.split == "train")
      train_of[s.client].push_back(i);
    else
      site.scored.push_back(i);
  }
  for (const auto& [name, indices] : train_of) {
    if (!validate || own) {
      site.train.insert(site.train.end(), indices.begin(), indices.end());
      continue;
    }
    std::vector<int32_t> labels;
    std::vector<std::string> keys;
    for (int64_t i : indices) {
      const Sample& s = samples[size_t(i)];
      labels.push_back(s.label);
      keys.push_back(s.group.empty() ? s.id : s.group);
    }
    const ValidationCut cut = cut_validation(labels, keys, data.validation, config.seed);
    for (int64_t i : cut.train) site.train.push_back(indices[size_t(i)]);
    for (int64_t i : cut.validation) site.scored.push_back(indices[size_t(i)]);
  }
  const std::string who = client.empty() ? "the data" : "client '" + client + "'";
  const auto none = [&](const char* kind) {
    return UserError(
        fmt::format("{} has no {} images; check the split column or folder", who, kind));
  };
  if (site.train.empty()) throw none("training");
  if (site.scored.empty()) throw none(validate ? "validation" : "test");
  return site;
}

SiteData open_unseen_site(const RunConfig& config, const VitConfig& model) {
  SyntheticOptions options = synthetic_options(config);
  options.unseen = 500;
  const SyntheticSet set = make_federation(options);
  const SyntheticSite& site = set.unseen;
  SiteData data;
  data.cache = std::make_shared<ImageCache>(
      make_dataset({{site.name, site.name, "test", site.test.images, site.test.labels}},
                   config.data.classes),
      cache_options(config.data, model));
  for (int64_t i = 0; i < data.cache->count(); ++i) data.scored.push_back(i);
  return data;
}

}  // namespace orthofed
