// A site's images as the configuration describes them: which file or generator, whose rows, which
// are trained on and which are scored.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "engine/data/image_cache.h"
#include "models/config/config.h"
#include "models/vit/vit.h"

namespace orthofed {

// The configuration with what its data tells: the generator's classes, and the clients' names where
// [federation] lists none. Reads the data's index, not its pixels.
RunConfig completed(RunConfig config);

// Every sample of every client that the [data] section names. Sets without clients are partitioned
// (data.partition; its clients are "client_1", "client_2", ...) or are one client, "all".
Dataset open_dataset(const RunConfig& config);

// Those of one client (empty: everybody's). Data that names no clients is the asking client's: a
// site's own manifest need not repeat the site's name. UserError if there are none.
Dataset open_client(const RunConfig& config, const std::string& client);

struct SiteData {
  std::shared_ptr<const ImageCache> cache;
  std::vector<int64_t> train;   // indices into cache->samples()
  std::vector<int64_t> scored;  // the test split, or with data.validation > 0 the validation images
  std::vector<int64_t> class_counts(int64_t classes) const;  // of train
};

// One client's images (client empty: everybody's), decoded and resized for the model. Throws
// UserError where a split is empty. progress(done, total) of decoding.
SiteData open_site(const RunConfig& config, const std::string& client, const VitConfig& model,
                   const Progress& progress = {});

// The images the unseen site of the demo's generator holds, for scoring only.
SiteData open_unseen_site(const RunConfig& config, const VitConfig& model);

}  // namespace orthofed
