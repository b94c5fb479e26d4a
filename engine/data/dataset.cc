#include "engine/data/dataset.h"

#include <fmt/core.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <set>

#include "engine/data/csv.h"
#include "engine/io/dense.h"
#include "engine/io/files.h"
#include "engine/io/image.h"
#include "engine/io/nearest.h"
#include "engine/io/npz.h"
#include "engine/io/sha256.h"

namespace orthofed {
namespace {

namespace fs = std::filesystem;

class FileImages : public ImageSource {
 public:
  explicit FileImages(std::vector<std::string> paths) : paths_(std::move(paths)) {}
  Tensor load(int64_t index) const override { return load_image(paths_[size_t(index)]); }
  std::string sha256(int64_t index) const override { return sha256_of_file(paths_[size_t(index)]); }

 private:
  std::vector<std::string> paths_;
};

class ArrayImages : public ImageSource {
 public:
  // Blocks [N, H, W, channels], one after the other.
  explicit ArrayImages(std::vector<Tensor> blocks) : blocks_(std::move(blocks)) {
    first_.push_back(0);
    for (const Tensor& block : blocks_) first_.push_back(first_.back() + block.dim(0));
  }

  Tensor load(int64_t index) const override {
    const auto [block, pixels, bytes] = find(index);
    const int64_t height = block->dim(1), width = block->dim(2);
    Tensor image = dense_tensor({height, width, 3}, DType::u8);
    if (block->dim(3) == 3) {
      std::memcpy(image.raw(), pixels, bytes);
    } else {
      for (size_t i = 0; i < bytes; ++i) std::fill_n(image.data<uint8_t>() + 3 * i, 3, pixels[i]);
    }
    return image;
  }
  std::string sha256(int64_t index) const override {
    const auto [block, pixels, bytes] = find(index);
    return orthofed::sha256(std::string_view(reinterpret_cast<const char*>(pixels), bytes));
  }

 private:
  struct Place {
    const Tensor* block;
    const uint8_t* pixels;
    size_t bytes;
  };
  Place find(int64_t index) const {
    const auto after = std::upper_bound(first_.begin(), first_.end(), index);
    const auto b = size_t(after - first_.begin() - 1);
    const Tensor& block = blocks_[b];
    const int64_t bytes = block.dim(1) * block.dim(2) * block.dim(3);
    return {&block, block.data<uint8_t>() + (index - first_[b]) * bytes, size_t(bytes)};
  }

  std::vector<Tensor> blocks_;
  std::vector<int64_t> first_;  // index of each block's first image; the total at the end
};

// u8 [N, H, W], [N, H, W, 1] or [N, H, W, 3] -> four dimensions.
Tensor image_block(const Tensor& images, const std::string& name) {
  const int rank = images.rank();
  const bool colour = rank == 4 && images.dim(3) == 3;
  if (images.dtype() != DType::u8 || !(rank == 3 || colour || (rank == 4 && images.dim(3) == 1)))
    throw UserError(
        fmt::format("{}: images are {} {}; expected u8 [N, H, W], [N, H, W, 1] or "
                    "[N, H, W, 3]",
                    name, name_of(images.dtype()), images.shape().str()));
  OF_CHECK(images.dense(), "rows of images have no padding");
  return images.reshape({images.dim(0), images.dim(1), images.dim(2), colour ? 3 : 1});
}

// Names of labels to indices of classes.
class Labels {
 public:
  explicit Labels(const ClassMap& map) : classes_(map.classes), own_(map.labels) {
    const std::set<std::string> unique(classes_.begin(), classes_.end());
    if (unique.size() != classes_.size())
      throw UserError("data.classes: a class appears twice; every class has its own name");
    if (!classes_.empty())
      for (const auto& [name, target] : own_)
        if (!unique.count(target))
          throw UserError(fmt::format("data.labels: '{}' is mapped to '{}', which is not a class{}",
                                      name, target, suggestion(target, classes_)));
  }

  // Without configured classes, those that occur: call for every label before any index().
  void define(const std::set<std::string>& names) {
    if (!classes_.empty()) return;
    std::set<std::string> mapped;
    for (const std::string& name : names) mapped.insert(federation_name(name));
    classes_.assign(mapped.begin(), mapped.end());
  }

  // -1 where the name is no class.
  int32_t find(const std::string& name) const {
    const auto it = std::find(classes_.begin(), classes_.end(), federation_name(name));
    return it == classes_.end() ? -1 : int32_t(it - classes_.begin());
  }
  int32_t index(const std::string& name, const std::string& where) const {
    const int32_t found = find(name);
    if (found < 0)
      throw UserError(
          fmt::format("{}: label '{}' is not among the classes{} (data.labels maps a "
                      "site's own names)",
                      where, name, suggestion(name, classes_)));
    return found;
  }
  const std::vector<std::string>& classes() const { return classes_; }

 private:
  const std::string& federation_name(const std::string& name) const {
    const auto it = own_.find(name);
    return it == own_.end() ? name : it->second;
  }

  std::vector<std::string> classes_;
  std::map<std::string, std::string> own_;
};

const std::vector<std::string> kSplits{"train", "val", "test"};

std::string canonical_split(const std::string& name, const std::string& where) {
  static const std::map<std::string, std::string> aliases{
      {"train", "train"},    {"training", "train"}, {"val", "val"},     {"valid", "val"},
      {"validation", "val"}, {"test", "test"},      {"testing", "test"}};
  const auto it = aliases.find(name);
  if (it == aliases.end())
    throw UserError(
        fmt::format("{}: unknown split '{}'{}", where, name, suggestion(name, kSplits)));
  return it->second;
}

// Directories and files directly below, sorted by name; hidden ones left out.
std::vector<fs::path> children(const fs::path& directory, bool directories) {
  std::error_code error;
  const fs::directory_iterator entries(directory, error);
  if (error)
    throw UserError(fmt::format("{}: cannot read the directory: {}; check the permissions",
                                directory.string(), error.message()));
  std::vector<fs::path> found;
  for (const auto& entry : entries) {
    if (entry.path().filename().string().front() == '.') continue;
    if (directories ? entry.is_directory() : entry.is_regular_file()) found.push_back(entry.path());
  }
  std::sort(found.begin(), found.end());
  return found;
}

bool take_suffix(std::string& text, const std::string& suffix) {
  if (!text.ends_with(suffix)) return false;
  text.resize(text.size() - suffix.size());
  return true;
}

}  // namespace

Dataset read_manifest(const std::string& manifest, const std::string& root,
                      const ManifestColumns& columns, const ClassMap& map) {
  require_file(manifest, "the manifest");
  const CsvTable table = parse_csv(read_text(manifest), manifest);
  const auto column = [&](const std::string& name, const std::string& purpose) -> int64_t {
    if (name.empty()) return -1;
    const auto it = std::find(table.header.begin(), table.header.end(), name);
    if (it == table.header.end())
      throw UserError(fmt::format("{}: has no column '{}'{} (data.columns.{} names it)", manifest,
                                  name, suggestion(name, table.header), purpose));
    return it - table.header.begin();
  };
  OF_CHECK(!columns.path.empty() && !columns.label.empty() && !columns.split.empty(),
           "path, label and split are columns of every manifest");
  const int64_t path = column(columns.path, "path"), label = column(columns.label, "label"),
                client = column(columns.client, "client"), split = column(columns.split, "split"),
                group = column(columns.group, "group");
  const auto value = [](const CsvTable::Row& row, int64_t at) {
    return at < 0 ? std::string() : row.fields[size_t(at)];
  };

  Labels labels(map);
  std::set<std::string> names;
  for (const CsvTable::Row& row : table.rows) names.insert(value(row, label));
  labels.define(names);

  Dataset dataset;
  std::vector<std::string> paths;
  std::string first_missing;
  int64_t missing = 0;
  for (const CsvTable::Row& row : table.rows) {
    const std::string where = fmt::format("{} line {}", manifest, row.line);
    const std::string id = value(row, path);
    if (id.empty()) throw UserError(fmt::format("{}: the path is empty", where));
    const std::string file = (fs::path(root) / id).string();
    std::error_code error;
    if (!fs::is_regular_file(file, error)) {
      if (missing++ == 0) first_missing = fmt::format("{}: {} does not exist", where, file);
    }
    dataset.samples.push_back({id, labels.index(value(row, label), where), value(row, client),
                               canonical_split(value(row, split), where), value(row, group),
                               int64_t(paths.size())});
    paths.push_back(file);
  }
  if (missing > 0)
    throw UserError(fmt::format("{}{}; is data.root right?", first_missing,
                                missing > 1 ? fmt::format(", nor do {} others", missing - 1) : ""));
  if (dataset.samples.empty()) throw UserError(manifest + ": lists no images");
  dataset.classes = labels.classes();
  dataset.source = std::make_shared<FileImages>(std::move(paths));
  return dataset;
}

Dataset read_image_folder(const std::string& root, const ClassMap& map) {
  require_directory(root, "the image folder");
  struct Found {
    std::string client, split, label;
    fs::path path;
  };
  std::vector<Found> found;
  std::set<std::string> names;
  for (const fs::path& client : children(root, true)) {
    for (const fs::path& split : children(client, true)) {
      const std::string name = canonical_split(split.filename(), split.string());
      for (const fs::path& label : children(split, true)) {
        names.insert(label.filename());
        for (const fs::path& file : children(label, false))
          if (has_image_suffix(file.string()))
            found.push_back({client.filename(), name, label.filename(), file});
      }
    }
  }
  if (found.empty())
    throw UserError(
        fmt::format("{}: holds no images; expected {}/CLIENT/SPLIT/CLASS/image.png", root, root));
  Labels labels(map);
  labels.define(names);
  Dataset dataset;
  std::vector<std::string> paths;
  for (const Found& f : found) {
    dataset.samples.push_back({f.path.lexically_relative(root).generic_string(),
                               labels.index(f.label, f.path.parent_path().string()), f.client,
                               f.split, "", int64_t(paths.size())});
    paths.push_back(f.path.string());
  }
  dataset.classes = labels.classes();
  dataset.source = std::make_shared<FileImages>(std::move(paths));
  return dataset;
}

Dataset read_npz_dataset(const std::string& path, const ClassMap& map) {
  const NpzFile file(path);
  std::vector<std::string> bases;  // <split> or <client>_<split>
  for (std::string name : file.names())
    if (take_suffix(name, "_images")) bases.push_back(name);
  std::sort(bases.begin(), bases.end());
  if (bases.empty())
    throw UserError(
        fmt::format("{}: has no array named <split>_images or <client>_<split>_images; "
                    "it holds {}",
                    path, fmt::join(file.names(), ", ")));

  Labels labels(map);
  std::vector<ImageArray> arrays;
  int32_t largest = -1;
  for (const std::string& base : bases) {
    const std::string where = fmt::format("{}: array '{}_labels'", path, base);
    const size_t cut = base.rfind('_');
    ImageArray array;
    array.name = base;
    array.client = cut == std::string::npos ? "" : base.substr(0, cut);
    array.split = canonical_split(cut == std::string::npos ? base : base.substr(cut + 1),
                                  fmt::format("{}: array '{}_images'", path, base));
    array.images = image_block(file.read(base + "_images"), fmt::format("{}: {}", path, base));
    const Tensor numbers = file.read(base + "_labels");
    const bool integers = numbers.dtype() == DType::u8 || numbers.dtype() == DType::i32;
    if (!integers || numbers.rank() < 1 || numbers.size() != numbers.dim(0))
      throw UserError(fmt::format("{} is {} {}; expected one integer an image, [N] or [N, 1]",
                                  where, name_of(numbers.dtype()), numbers.shape().str()));
    if (numbers.size() != array.images.dim(0))
      throw UserError(fmt::format("{} has {} labels for {} images", where, numbers.size(),
                                  array.images.dim(0)));
    for (const double number : numbers.to_vector()) {
      if (number < 0) throw UserError(fmt::format("{}: label {} is negative", where, number));
      array.labels.push_back(int32_t(number));
      largest = std::max(largest, array.labels.back());
    }
    arrays.push_back(std::move(array));
  }

  const bool named = !map.classes.empty();
  std::vector<std::string> classes = map.classes;
  if (!named) {
    if (!map.labels.empty())
      throw UserError(
          "data.labels: give data.classes too, so that the mapped classes have an order");
    constexpr int32_t kMostClasses = 1 << 16;
    if (largest >= kMostClasses)
      throw UserError(fmt::format(
          "{}: label {} is no class index; give data.classes and data.labels", path, largest));
    for (int32_t i = 0; i <= largest; ++i) classes.push_back(std::to_string(i));
  }
  for (ImageArray& array : arrays) {
    for (size_t i = 0; i < array.labels.size() && named; ++i) {
      int32_t& label = array.labels[i];
      const std::string name = std::to_string(label);
      if (labels.find(name) < 0 && size_t(label) < classes.size()) continue;  // a class's index
      label = labels.index(name, fmt::format("{}: array '{}_labels' row {}", path, array.name, i));
    }
  }
  return make_dataset(arrays, std::move(classes));
}

Dataset make_dataset(const std::vector<ImageArray>& arrays, std::vector<std::string> classes) {
  Dataset dataset;
  std::vector<Tensor> blocks;
  for (const ImageArray& array : arrays) {
    const Tensor block = image_block(array.images, array.name);
    OF_CHECK(block.dim(0) == int64_t(array.labels.size()), "one label per image");
    for (size_t i = 0; i < array.labels.size(); ++i) {
      OF_CHECK(array.labels[i] >= 0 && size_t(array.labels[i]) < classes.size(),
               "a label is the index of a class");
      dataset.samples.push_back({fmt::format("{}/{}", array.name, i), array.labels[i], array.client,
                                 canonical_split(array.split, array.name), "",
                                 int64_t(dataset.samples.size())});
    }
    blocks.push_back(block);
  }
  dataset.classes = std::move(classes);
  dataset.source = std::make_shared<ArrayImages>(std::move(blocks));
  return dataset;
}

std::shared_ptr<const ImageSource> array_images(const Tensor& images, const std::string& name) {
  return std::make_shared<ArrayImages>(std::vector{image_block(images, name)});
}

Dataset select(const Dataset& dataset, const std::string& client, const std::string& split) {
  const std::string wanted = split.empty() ? "" : canonical_split(split, "split");
  const std::vector<std::string> clients = clients_of(dataset);
  if (!client.empty() && std::find(clients.begin(), clients.end(), client) == clients.end())
    throw UserError(
        fmt::format("client '{}' has no images{}", client, suggestion(client, clients)));
  Dataset chosen{{}, dataset.classes, dataset.source};
  for (const Sample& sample : dataset.samples)
    if ((client.empty() || sample.client == client) && (wanted.empty() || sample.split == wanted))
      chosen.samples.push_back(sample);
  if (chosen.samples.empty())
    throw UserError(
        fmt::format("{} no {}images; check the split column or folder",
                    client.empty() ? "there are" : fmt::format("client '{}' has", client),
                    wanted.empty() ? "" : wanted + " "));
  return chosen;
}

std::vector<std::string> clients_of(const Dataset& dataset) {
  std::set<std::string> names;
  for (const Sample& sample : dataset.samples) names.insert(sample.client);
  return {names.begin(), names.end()};
}

}  // namespace orthofed
