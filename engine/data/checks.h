// A site checks its data before it joins: every image is decoded and hashed.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "engine/data/dataset.h"
#include "engine/data/image_cache.h"
#include "engine/data/workers.h"

namespace orthofed {

// Something that appears in more than one split, which makes a test score look better than it is.
struct Crossing {
  std::string name;  // the path, "client: group", or the digest
  // For a group the splits, for a path or exact copies "split: id" of every occurrence; sorted.
  std::vector<std::string> places;
};

struct DataReport {
  std::map<std::string, std::map<std::string, std::vector<int64_t>>>
      counts;                        // [client][split][class]
  std::vector<BadImage> unreadable;  // in the data set's order
  std::vector<Crossing> samples;     // the same id in several splits
  std::vector<Crossing> groups;      // the same group (patient, slide) of a client
  std::vector<Crossing> duplicates;  // images of different names that are equal byte for byte

  bool clean() const {
    return unreadable.empty() && samples.empty() && groups.empty() && duplicates.empty();
  }
};

DataReport check_data(const Dataset& dataset, int64_t workers = 1, const Progress& progress = {});

}  // namespace orthofed
