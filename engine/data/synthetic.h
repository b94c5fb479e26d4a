// Images of stained cells are drawn by a program for the demo and for tests, which then need no
// download and no data file.
//
// A cell is drawn from class factors (what it is), nuisance (how this one happens to lie) and a
// site's style (how that laboratory stains and photographs). The picture follows the optics of a
// stained slide: every material binds two dyes, azure (blue: nuclei) and eosin (pink: haemoglobin,
// granules), and light through it is attenuated by Beer and Lambert's law,
//   light[c] = lamp[c] * exp(-(a * azure[c] + e * eosin[c])),
// with a, e the amounts bound and azure[c], eosin[c] the dyes' optical densities in channel c
// (Ruifrok and Johnston, "Quantification of histochemical staining by color deconvolution", 2001).
// A site's dyes differ from another's, so the same cell has another hue there.
//
// Every image is a function of (seed, site or pool, split, index) alone: its bytes are the same in
// any order, on any number of threads, at any instruction level. The cells do not claim to be real:
// their factors are known, which is what a demonstration and a test need.
#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "engine/tensor/tensor.h"
#include "kernels/core/philox.h"

namespace orthofed {

// The factors say what a cell is. They are independent of each other in the pretraining pool; a
// federation's class is one combination of them.
struct CellFactors {
  int lobes = 1;     // of the nucleus, 1..kLobes
  int granules = 0;  // 0 none, 1 fine, 2 coarse
  int hue = 0;       // of the cytoplasm: 0 clear, 1 pink, 2 blue
  bool operator==(const CellFactors&) const = default;

  static constexpr int kLobes = 4, kGranules = 3, kHues = 3;
};

// A style says how a site stains and photographs. The default is the neutral style.
struct SiteStyle {
  std::array<float, 3> azure{.90f, .75f, .22f};  // optical density per unit of dye, R G B
  std::array<float, 3> eosin{.10f, .95f, .30f};
  std::array<float, 3> lamp{.97f, .96f, .95f};  // light through an empty slide, of full scale 1
  float gradient_x = 0, gradient_y = 0;         // relative change of light from centre to edge
  float blur = .35f;                            // Gaussian sigma, pixels of a 32-pixel image
  float scale = 1;                              // magnification
  float noise = .015f;                          // standard deviation, of full scale 1
};

// Draws one cell, uint8 [size, size, 3] with dense rows; size >= 8. The same rng gives the same
// cell, so two calls that differ in the style alone show one cell at two sites.
Tensor draw_cell(const CellFactors& factors, const SiteStyle& style, int64_t size, Philox rng);

struct LabelledImages {
  Tensor images;                // uint8 [N, size, size, 3], dense
  std::vector<int32_t> labels;  // [N], index of the class
};

struct SyntheticSite {
  std::string name;
  SiteStyle style;
  LabelledImages train, test;  // both with the site's own class shares
};

struct SyntheticSet {
  std::vector<std::string> classes;
  std::vector<CellFactors> factors;  // of each class
  std::vector<SyntheticSite> sites;
  SyntheticSite unseen;  // test only; a style and a class balance (equal) that no client has
};

struct SyntheticOptions {
  int64_t clients = 4;              // 1..4
  int64_t train = 120, test = 200;  // images per client
  int64_t unseen = 500;             // images of the unseen site
  int64_t classes = 5;              // 2..5
  int64_t size = 32;
  double shift = 1;  // strength of the site factors in [0, 1]; 0: sites look alike, same balance
  uint64_t seed = 0;
};

// Draws the federation's images. Class counts are the site's shares rounded by largest remainder,
// so two seeds differ in the cells and not in the balance. Throws UserError on an option out
// of range.
SyntheticSet make_federation(const SyntheticOptions& options);

// A public pool to pretrain on. Every image has a style of its own, anywhere from neutral to beyond
// the sites'. The labels are the factors; no image shows the factors of a federation's class, so
// the pool shares no label and no kind of cell with the federation.
struct PretrainingPool {
  Tensor images;  // uint8 [N, size, size, 3], dense
  // Labels of the three heads, each [N]: lobes - 1, granules, hue.
  std::vector<int32_t> lobes, granules, hues;
};

struct PoolOptions {
  int64_t first = 0, count = 4096;  // images first .. first + count of an endless pool
  int64_t size = 32;
  uint64_t seed = 0;
};

PretrainingPool make_pretraining_pool(const PoolOptions& options);

// Draws a picture of the federation, uint8 [H, W, 3]: one row per class, one column per site, the
// unseen one last. A field shows `examples` cells side by side, the same cells at every site, with
// each pixel enlarged `zoom` times.
Tensor contact_sheet(const SyntheticOptions& options, int64_t examples = 3, int64_t zoom = 2);

}  // namespace orthofed
