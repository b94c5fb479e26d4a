#include "engine/data/synthetic.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "kernels/core/parallel.h"

namespace orthofed {
namespace {

constexpr uint64_t kSeed = 20251;

std::vector<uint8_t> bytes(const Tensor& images) {
  EXPECT_TRUE(images.dense());
  const uint8_t* p = images.data<uint8_t>();
  return {p, p + images.size()};
}

// Image i of a batch as a string: comparable, and a key.
std::string image_at(const Tensor& images, int64_t i) {
  const int64_t size = images.dim(1) * images.dim(2) * images.dim(3);
  return {reinterpret_cast<const char*>(images.data<uint8_t>()) + i * size, size_t(size)};
}

std::array<double, 3> mean_colour(const Tensor& images) {
  std::array<double, 3> sum{};
  const uint8_t* p = images.data<uint8_t>();
  for (int64_t i = 0; i < images.size(); ++i) sum[size_t(i % 3)] += p[i];
  for (double& s : sum) s /= double(images.size() / 3);
  return sum;
}

double distance(const std::array<double, 3>& a, const std::array<double, 3>& b) {
  double worst = 0;
  for (size_t c = 0; c < 3; ++c) worst = std::max(worst, std::abs(a[c] - b[c]));
  return worst;
}

SyntheticOptions options(double shift) {
  SyntheticOptions o;
  o.shift = shift;
  o.seed = kSeed;
  return o;
}

void expect_same(const SyntheticSet& a, const SyntheticSet& b) {
  ASSERT_EQ(a.sites.size(), b.sites.size());
  for (size_t k = 0; k < a.sites.size(); ++k) {
    EXPECT_EQ(bytes(a.sites[k].train.images), bytes(b.sites[k].train.images));
    EXPECT_EQ(bytes(a.sites[k].test.images), bytes(b.sites[k].test.images));
    EXPECT_EQ(a.sites[k].train.labels, b.sites[k].train.labels);
    EXPECT_EQ(a.sites[k].test.labels, b.sites[k].test.labels);
  }
  EXPECT_EQ(bytes(a.unseen.test.images), bytes(b.unseen.test.images));
  EXPECT_EQ(a.unseen.test.labels, b.unseen.test.labels);
}

TEST(Federation, IsAFunctionOfItsOptionsAndNotOfThreads) {
  const int before = cpu::threads();
  cpu::set_threads(1);
  const SyntheticSet one = make_federation(options(1));
  cpu::set_threads(3);
  const SyntheticSet three = make_federation(options(1));
  cpu::set_threads(before);
  expect_same(one, three);
}

TEST(Federation, SitesDoNotDependOnHowManyThereAreNorOnTheNumberOfImages) {
  SyntheticOptions fewer = options(1);
  fewer.clients = 2;
  const SyntheticSet all = make_federation(options(1)), some = make_federation(fewer);
  ASSERT_EQ(some.sites.size(), 2u);
  for (size_t k = 0; k < 2; ++k)
    EXPECT_EQ(bytes(all.sites[k].train.images), bytes(some.sites[k].train.images));
  EXPECT_EQ(bytes(all.unseen.test.images), bytes(some.unseen.test.images));
}

TEST(Federation, HasTheShapesItWasAskedFor) {
  SyntheticOptions o = options(1);
  o.train = 7;
  o.test = 11;
  o.unseen = 0;
  o.size = 13;
  o.classes = 3;
  const SyntheticSet set = make_federation(o);
  EXPECT_EQ(set.classes, (std::vector<std::string>{"neutrophil", "lymphocyte", "monocyte"}));
  EXPECT_EQ(set.factors.size(), 3u);
  EXPECT_EQ(set.sites[0].name, "site_a");
  EXPECT_EQ(set.sites[3].train.images.shape(), (Shape{7, 13, 13, 3}));
  EXPECT_EQ(set.sites[3].test.images.shape(), (Shape{11, 13, 13, 3}));
  EXPECT_EQ(set.unseen.test.images.shape(), (Shape{0, 13, 13, 3}));
  for (const SyntheticSite& site : set.sites) {
    EXPECT_EQ(site.train.labels.size(), 7u);
    EXPECT_EQ(site.test.labels.size(), 11u);
    for (int32_t label : site.test.labels) EXPECT_TRUE(0 <= label && label < 3);
  }
}

TEST(Federation, NoImageOccursTwice) {
  std::set<std::string> seen;
  size_t count = 0;
  const auto add = [&](const Tensor& images) {
    for (int64_t i = 0; i < images.dim(0); ++i) seen.insert(image_at(images, i));
    count += size_t(images.dim(0));
  };
  SyntheticOptions other_seed = options(0);
  other_seed.seed = kSeed + 1;
  for (const auto& set : {make_federation(options(0)), make_federation(other_seed)}) {
    for (const SyntheticSite& site : set.sites) {
      add(site.train.images);
      add(site.test.images);
    }
    add(set.unseen.test.images);
  }
  EXPECT_EQ(count, size_t(2 * (4 * 320 + 500)));
  EXPECT_EQ(seen.size(), count);
}

std::vector<int64_t> histogram(const std::vector<int32_t>& labels, size_t classes) {
  std::vector<int64_t> counts(classes);
  for (int32_t label : labels) ++counts[size_t(label)];
  return counts;
}

TEST(Federation, BalanceFollowsShift) {
  const SyntheticSet alike = make_federation(options(0)), skewed = make_federation(options(1));
  for (size_t k = 0; k < 4; ++k) {
    EXPECT_EQ(histogram(alike.sites[k].train.labels, 5), std::vector<int64_t>(5, 24));
    EXPECT_EQ(histogram(alike.sites[k].test.labels, 5), std::vector<int64_t>(5, 40));
    const auto counts = histogram(skewed.sites[k].train.labels, 5);
    EXPECT_GE(*std::min_element(counts.begin(), counts.end()), 5);   // every class is everywhere
    EXPECT_GE(*std::max_element(counts.begin(), counts.end()), 40);  // and one prevails
    for (size_t other = 0; other < k; ++other)
      EXPECT_NE(counts, histogram(skewed.sites[other].train.labels, 5));
  }
  EXPECT_EQ(histogram(skewed.sites[0].train.labels, 5), (std::vector<int64_t>{48, 30, 18, 14, 10}));
  EXPECT_EQ(histogram(skewed.unseen.test.labels, 5), std::vector<int64_t>(5, 100));
}

TEST(Federation, LabelsAreShuffled) {
  const auto labels = make_federation(options(0)).sites[0].train.labels;
  EXPECT_FALSE(std::is_sorted(labels.begin(), labels.end()));
  int changes = 0;  // 24 of each of 5 labels: 96 changes are expected, deviation below 5
  for (size_t i = 1; i < labels.size(); ++i) changes += labels[i] != labels[i - 1];
  EXPECT_GT(changes, 75);
}

TEST(Federation, AppearanceFollowsShift) {
  for (double shift : {0.0, 1.0}) {
    const SyntheticSet set = make_federation(options(shift));
    std::vector<std::array<double, 3>> colours{mean_colour(set.unseen.test.images)};
    for (const SyntheticSite& site : set.sites) colours.push_back(mean_colour(site.test.images));
    for (size_t a = 0; a < colours.size(); ++a)
      for (size_t b = 0; b < a; ++b) {
        const double apart = distance(colours[a], colours[b]);
        if (shift == 0) {
          EXPECT_LT(apart, 3.0) << a << " and " << b;
        } else {
          EXPECT_GT(apart, 6.0) << a << " and " << b;
        }
      }
  }
}

// Share of `queries` whose nearest neighbour among `known` (squared distance of pixels) has their
// label.
double nearest_neighbour_accuracy(const LabelledImages& known, const LabelledImages& queries) {
  const int64_t size = known.images.size() / known.images.dim(0);
  int64_t right = 0;
  for (int64_t q = 0; q < queries.images.dim(0); ++q) {
    const uint8_t* query = queries.images.data<uint8_t>() + q * size;
    int64_t best = INT64_MAX, at = 0;
    for (int64_t k = 0; k < known.images.dim(0); ++k) {
      const uint8_t* other = known.images.data<uint8_t>() + k * size;
      int64_t sum = 0;
      for (int64_t i = 0; i < size; ++i) {
        const int d = int(query[i]) - int(other[i]);
        sum += d * d;
      }
      if (sum < best) {
        best = sum;
        at = k;
      }
    }
    right += known.labels[size_t(at)] == queries.labels[size_t(q)];
  }
  return double(right) / double(queries.images.dim(0));
}

TEST(Federation, ClassesAreLearnableAndSitesMatter) {
  SyntheticOptions o = options(1);
  o.train = 400;
  o.test = 100;
  const SyntheticSet set = make_federation(o);
  double at_home = 0, abroad = 0;
  for (size_t k = 0; k < 4; ++k) {
    at_home += nearest_neighbour_accuracy(set.sites[k].train, set.sites[k].test) / 4;
    abroad += nearest_neighbour_accuracy(set.sites[k].train, set.sites[(k + 1) % 4].test) / 4;
  }
  std::printf("nearest neighbour: %.3f at home, %.3f at the next site\n", at_home, abroad);
  EXPECT_GT(at_home, .45);  // the most frequent class alone would give .38 to .40
  EXPECT_LT(abroad, at_home - .10);
}

TEST(DrawCell, LightFollowsBeerAndLambert) {
  SiteStyle thin;
  thin.blur = thin.noise = 0;
  SiteStyle thick = thin;
  for (size_t c = 0; c < 3; ++c) {
    thick.azure[c] *= 2;
    thick.eosin[c] *= 2;
  }
  const Philox rng = PhiloxKey(kSeed);
  const int64_t size = 64;
  const Tensor a = draw_cell({2, 2, 1}, thin, size, rng);
  const Tensor b = draw_cell({2, 2, 1}, thick, size, rng);
  const uint8_t *pa = a.data<uint8_t>(), *pb = b.data<uint8_t>();
  // Inside one material (equal to the neighbours) twice the density squares the transmittance.
  std::set<uint8_t> greens;
  for (int64_t i = 1; i + 1 < size; ++i)
    for (int64_t j = 1; j + 1 < size; ++j) {
      const int64_t at = (i * size + j) * 3;
      bool inside = true;
      for (int64_t di = -1; di <= 1; ++di)
        for (int64_t dj = -1; dj <= 1; ++dj)
          inside = inside && std::memcmp(pa + at, pa + at + (di * size + dj) * 3, 3) == 0;
      if (!inside) continue;
      greens.insert(pa[at + 1]);
      for (int64_t c = 0; c < 3; ++c) {
        const double full = 255.0 * double(thin.lamp[size_t(c)]);
        const double expected = double(pa[at + c]) * double(pa[at + c]) / full;
        // half a level in each image, the first one's amplified by 2 v / full <= 2
        EXPECT_TRUE(std::abs(pb[at + c] - expected) <= 1.6) << i << " " << j << " " << c;
      }
    }
  EXPECT_GE(greens.size(), 4u);  // slide, red cell, cytoplasm, nucleus at least
}

TEST(DrawCell, EachFactorChangesThePictureAsItSays) {
  SiteStyle clean;
  clean.blur = clean.noise = 0;
  // Mean over cells of the share of dark (nuclear) pixels, and of red minus blue.
  const auto measure = [&](const CellFactors& f) {
    double dark = 0, warm = 0;
    for (uint64_t i = 0; i < 40; ++i) {
      const Tensor cell = draw_cell(f, clean, 32, PhiloxKey(kSeed).with(i));
      const uint8_t* p = cell.data<uint8_t>();
      for (int64_t k = 0; k < 32 * 32; ++k) {
        dark += p[3 * k] < 110;
        warm += double(p[3 * k]) - double(p[3 * k + 2]);
      }
    }
    return std::pair(dark / (40 * 1024), warm / (40 * 1024));
  };
  const auto [area_one, warm_clear] = measure({1, 0, 0});
  for (int lobes = 2; lobes <= 4; ++lobes) {
    const double area = measure({lobes, 0, 0}).first;  // the count, not the area, is the signal
    EXPECT_TRUE(std::abs(area / area_one - 1) < .25) << lobes << " lobes: " << area / area_one;
  }
  EXPECT_GT(measure({1, 0, 1}).second, warm_clear + 1);  // pink
  EXPECT_LT(measure({1, 0, 2}).second, warm_clear - 1);  // blue
  EXPECT_GT(measure({1, 1, 0}).first, area_one);         // fine granules are dark specks
  EXPECT_GT(measure({1, 2, 2}).first, measure({1, 1, 2}).first);
}

TEST(DrawCell, StyleMovesNothingButTheStyle) {
  SiteStyle plain, lit;
  plain.noise = lit.noise = 0;
  lit.gradient_x = .2f;
  const Philox rng = PhiloxKey(kSeed).with("gradient");
  const Tensor a = draw_cell({3, 1, 1}, plain, 32, rng), b = draw_cell({3, 1, 1}, lit, 32, rng);
  const uint8_t *pa = a.data<uint8_t>(), *pb = b.data<uint8_t>();
  for (int64_t i = 0; i < 32; ++i)
    for (int64_t j = 0; j < 32; ++j)
      for (int64_t c = 0; c < 3; ++c) {
        const double factor = 1 + .2 * ((2.0 * double(j) + 1) / 32 - 1);
        const double expected = std::min(255.0, factor * pa[(i * 32 + j) * 3 + c]);
        // rounding, and the blur that sees the gradient's slope
        EXPECT_TRUE(std::abs(pb[(i * 32 + j) * 3 + c] - expected) <= 2.5) << i << " " << j;
      }
}

TEST(DrawCell, TakesOddSizesAndRefusesNonsense) {
  for (int64_t size : {8, 13, 31, 97}) {
    const Tensor cell = draw_cell({4, 2, 2}, SiteStyle(), size, PhiloxKey(kSeed));
    EXPECT_EQ(cell.shape(), (Shape{size, size, 3}));
    EXPECT_EQ(bytes(cell), bytes(draw_cell({4, 2, 2}, SiteStyle(), size, PhiloxKey(kSeed))));
  }
  SiteStyle far;  // shapes that leave the picture on every side
  far.scale = 4;
  far.blur = 20;
  draw_cell({1, 2, 0}, far, 32, PhiloxKey(kSeed));
  EXPECT_THROW(draw_cell({0, 0, 0}, SiteStyle(), 32, Philox()), Error);
  EXPECT_THROW(draw_cell({5, 0, 0}, SiteStyle(), 32, Philox()), Error);
  EXPECT_THROW(draw_cell({1, 3, 0}, SiteStyle(), 32, Philox()), Error);
  EXPECT_THROW(draw_cell({1, 0, -1}, SiteStyle(), 32, Philox()), Error);
  EXPECT_THROW(draw_cell({1, 0, 0}, SiteStyle(), 7, Philox()), UserError);
}

TEST(Pool, IsOnePrefixOfAnEndlessPool) {
  PoolOptions whole;
  whole.count = 40;
  whole.seed = kSeed;
  PoolOptions part = whole;
  part.first = 17;
  part.count = 9;
  const PretrainingPool a = make_pretraining_pool(whole), b = make_pretraining_pool(part);
  for (int64_t i = 0; i < 9; ++i) {
    EXPECT_EQ(image_at(a.images, 17 + i), image_at(b.images, i));
    EXPECT_EQ(a.lobes[size_t(17 + i)], b.lobes[size_t(i)]);
    EXPECT_EQ(a.granules[size_t(17 + i)], b.granules[size_t(i)]);
    EXPECT_EQ(a.hues[size_t(17 + i)], b.hues[size_t(i)]);
  }
}

TEST(Pool, ShowsEveryKindOfCellButTheFederations) {
  PoolOptions o;
  o.count = 4000;
  o.size = 8;
  o.seed = kSeed;
  const PretrainingPool pool = make_pretraining_pool(o);
  std::map<std::tuple<int, int, int>, int> seen;
  for (size_t i = 0; i < 4000; ++i)
    ++seen[std::tuple(pool.lobes[i] + 1, pool.granules[i], pool.hues[i])];
  for (const CellFactors& f : make_federation(options(0)).factors)
    EXPECT_EQ(seen.count({f.lobes, f.granules, f.hue}), 0u) << f.lobes << f.granules << f.hue;
  EXPECT_EQ(seen.size(), size_t(4 * 3 * 3 - 5));
  for (const auto& [factors, count] : seen) EXPECT_TRUE(count > 80 && count < 180) << count;
}

TEST(ContactSheet, PutsCellsWhereItSays) {
  SyntheticOptions o = options(1);
  o.clients = 2;
  o.size = 9;
  const Tensor sheet = contact_sheet(o, 2, 3);
  const int64_t side = 9 * 3, gap = 12;
  ASSERT_EQ(sheet.shape(), (Shape{gap + 5 * (side + gap), gap + 3 * (2 * side + gap), 3}));
  const SyntheticSet set = make_federation(o);
  const uint8_t* p = sheet.data<uint8_t>();
  const auto at = [&](int64_t i, int64_t j) { return p + (i * sheet.dim(1) + j) * 3; };
  EXPECT_EQ(*at(gap - 1, gap), 255);
  // class 4 at the second site, second example
  const Tensor cell = draw_cell(set.factors[4], set.sites[1].style, 9,
                                PhiloxKey(kSeed).with("sheet").with(uint64_t{1}));
  const int64_t top = gap + 4 * (side + gap), left = gap + (2 * side + gap) + side;
  for (int64_t i = 0; i < side; ++i)
    for (int64_t j = 0; j < side; ++j)
      ASSERT_EQ(
          std::memcmp(at(top + i, left + j), cell.data<uint8_t>() + (i / 3 * 9 + j / 3) * 3, 3), 0);
}

TEST(Options, OutOfRangeIsTheUsersMistake) {
  const auto refused = [](auto change) {
    SyntheticOptions o;
    change(o);
    EXPECT_THROW(make_federation(o), UserError);
    EXPECT_THROW(contact_sheet(o), UserError);
  };
  refused([](SyntheticOptions& o) { o.clients = 0; });
  refused([](SyntheticOptions& o) { o.clients = 5; });
  refused([](SyntheticOptions& o) { o.classes = 1; });
  refused([](SyntheticOptions& o) { o.classes = 6; });
  refused([](SyntheticOptions& o) { o.train = -1; });
  refused([](SyntheticOptions& o) { o.shift = 1.5; });
  refused([](SyntheticOptions& o) { o.shift = NAN; });
  refused([](SyntheticOptions& o) { o.size = 4; });
  PoolOptions p;
  p.count = -1;
  EXPECT_THROW(make_pretraining_pool(p), UserError);
}

}  // namespace
}  // namespace orthofed
