// A data set lists labelled images: which there are, where they lie, and what their classes are
// called in the federation. Reading it checks names, labels and files; pixels are decoded
// later (image_cache.h).
//
// A site names its classes as it likes: ClassMap::labels maps its names to the federation's. Splits
// are train, val and test (also: training, valid, validation, testing). Every fault is a UserError
// that names file and row and, for a misspelt name, the nearest known one.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine/tensor/tensor.h"

namespace orthofed {

// Where the pixels come from. Thread-safe.
class ImageSource {
 public:
  virtual ~ImageSource() = default;
  // u8 [H, W, 3], dense. Throws UserError naming the image if it cannot be read.
  virtual Tensor load(int64_t index) const = 0;
  // The digest of the file's bytes, or of the pixels of an image without a file: equal for
  // exact copies.
  virtual std::string sha256(int64_t index) const = 0;
};

struct Sample {
  std::string id;  // path as the manifest has it, path below the folder, or array and row
  int32_t label = 0;
  std::string client, split, group;  // client and group may be empty
  int64_t image = 0;                 // index into the source
};

struct Dataset {
  std::vector<Sample> samples;
  std::vector<std::string> classes;
  std::shared_ptr<const ImageSource> source;
};

// The federation's classes in order (empty: the names that occur, sorted) and a site's own names.
struct ClassMap {
  std::vector<std::string> classes;
  std::map<std::string, std::string> labels;  // own name -> class
};

// The columns of a manifest. An empty name says that the manifest has no such column
// (client, group).
struct ManifestColumns {
  std::string path = "path", label = "label", client = "client", split = "split", group;
};

// Reads a CSV with one image per row; relative paths start at `root`. Every file must exist.
Dataset read_manifest(const std::string& manifest, const std::string& root,
                      const ManifestColumns& columns, const ClassMap& map);

// Reads root/client/split/class/image.{jpg,png,...}. Other files and hidden directories
// are ignored.
Dataset read_image_folder(const std::string& root, const ClassMap& map);

// Reads arrays <split>_images and <split>_labels (MedMNIST; no client), or <client>_<split>_images
// and _labels. Images are u8 [N, H, W] or [N, H, W, 1] (grey) or [N, H, W, 3]; labels are integers
// [N] or [N, 1]. The label 3 is called "3" in the map; unmapped it is the fourth class.
Dataset read_npz_dataset(const std::string& path, const ClassMap& map);

// Images in memory: u8 [N, H, W, 3], [N, H, W, 1] or [N, H, W], dense. Ids are name/0, name/1, ...
struct ImageArray {
  std::string name, client, split;
  Tensor images;
  std::vector<int32_t> labels;  // [N]
};
Dataset make_dataset(const std::vector<ImageArray>& arrays, std::vector<std::string> classes);
// The same images without labels; `name` is what messages call them.
std::shared_ptr<const ImageSource> array_images(const Tensor& images, const std::string& name);

// Selects the samples of one client (empty: every client) and split (empty: every split). Throws
// UserError if there are none.
Dataset select(const Dataset& dataset, const std::string& client, const std::string& split);

std::vector<std::string> clients_of(const Dataset& dataset);  // sorted

}  // namespace orthofed
