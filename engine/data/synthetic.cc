#include "engine/data/synthetic.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>

namespace orthofed {
namespace {

// ---------------------------------------------------------------------------------------------
// Every constant of the generator. Fixed by eye on contact sheets, before any training. Lengths are
// pixels of a 32-pixel image.

// Cartoons of the white blood cells that the classes are named after. Each shares two of its three
// factors with another class, so no factor alone tells them apart.
struct ClassRow {
  const char* name;
  CellFactors factors;  // lobes, granules, hue
};
constexpr ClassRow kClasses[] = {
    {"neutrophil", {3, 1, 1}},  //
    {"lymphocyte", {1, 0, 2}},  //
    {"monocyte", {1, 1, 2}},    //
    {"eosinophil", {2, 2, 1}},  //
    {"basophil", {2, 2, 2}},
};
constexpr int64_t kMaxClasses = std::size(kClasses);

// The laboratories at shift 1, and their shares of the classes above.
struct SiteRow {
  const char* name;
  SiteStyle style;
  std::array<double, kMaxClasses> shares;
};
const SiteRow kSites[] = {
    // A fresh stain, sharp optics.
    {"site_a",
     {.azure = {1.05f, .85f, .22f}, .eosin = {.10f, 1.0f, .30f}, .blur = .30f, .noise = .010f},
     {.40, .25, .15, .12, .08}},
    // Acid buffer: eosin takes over and azure reddens; a warm lamp from the left.
    {"site_b",
     {.azure = {.60f, .80f, .12f},
      .eosin = {.14f, 1.25f, .55f},
      .lamp = {1.0f, .93f, .80f},
      .gradient_x = -.20f,
      .blur = .45f,
      .scale = 1.08f,
      .noise = .015f},
     {.12, .40, .08, .30, .10}},
    // Alkaline buffer: azure takes over and eosin turns bluish; a cool lamp, lower magnification.
    {"site_c",
     {.azure = {1.30f, .85f, .10f},
      .eosin = {.30f, .70f, .12f},
      .lamp = {.86f, .94f, 1.0f},
      .gradient_y = .12f,
      .blur = .35f,
      .scale = .80f,
      .noise = .020f},
     {.20, .10, .38, .08, .24}},
    // A faded slide, slightly out of focus, magnified.
    {"site_d",
     {.azure = {.55f, .50f, .20f},
      .eosin = {.06f, .55f, .25f},
      .lamp = {.90f, .88f, .80f},
      .gradient_x = .12f,
      .gradient_y = -.18f,
      .blur = .85f,
      .scale = 1.20f,
      .noise = .030f},
     {.30, .08, .12, .12, .38}},
};
const SiteRow kUnseen = {"site_x",
                         {.azure = {.75f, .95f, .40f},
                          .eosin = {.05f, .75f, .60f},
                          .lamp = {.93f, .97f, .90f},
                          .gradient_x = .10f,
                          .gradient_y = .10f,
                          .blur = .60f,
                          .scale = .92f,
                          .noise = .022f},
                         {.2, .2, .2, .2, .2}};

// Half-widths of the pool's styles around the neutral one, at their widest.
constexpr float kPoolDye = .55f, kPoolLamp = .12f, kPoolGradient = .22f, kPoolBlur = .60f,
                kPoolScale = .25f, kPoolNoise = .020f;

// Dye that each material binds.
enum Material : uint8_t { slide, red_cell, red_pallor, cytoplasm, granule, nucleus, kMaterials };
struct Dye {
  float azure, eosin;
};
constexpr Dye kSlide{.02f, .03f}, kRedCell{.04f, .42f}, kRedPallor{.03f, .22f},
    kNucleus{1.20f, .55f}, kFineGranule{.85f, .50f};
constexpr Dye kCytoplasm[CellFactors::kHues] = {{.10f, .08f}, {.06f, .38f}, {.42f, .10f}};
constexpr Dye kCoarseGranule[CellFactors::kHues] = {{.45f, .60f}, {.05f, 1.10f}, {1.05f, .35f}};
// Each cell's staining varies by this factor in either direction.
constexpr float kDyeSpread = .12f;

constexpr float kRadius[2] = {8.6f, 11.0f};  // of the cell, uniform
constexpr float kCentre = 2.2f;              // its distance from the middle, in x and in y, at most
constexpr float kAspect[2] = {.88f, 1.14f};  // of its ellipse
constexpr float kLobeRadius[] = {.54f, .385f, .318f,
                                 .278f};                 // for 1..4 lobes, of the cell's radius
constexpr float kLobeRing[] = {.16f, .42f, .50f, .56f};  // distance of the lobes from the centre
constexpr float kLobeTurn = .22f;                        // jitter of their angles, radians
constexpr int kGranuleCount[CellFactors::kGranules][2] = {{0, 0}, {26, 36}, {17, 24}};
constexpr float kGranuleRadius[] = {0, .70f, 1.30f};
constexpr int kRedCells[2] = {2, 4};
constexpr float kRedRadius[2] = {4.8f, 6.2f};
constexpr float kPallor = .45f;  // of the red cell's radius
// ---------------------------------------------------------------------------------------------

constexpr int kSamples = 3;  // a pixel's light is the mean of 3 x 3 samples
constexpr float kTau = 6.2831853f;

// Numbers in the order of the calls; one counter a stream.
class Draws {
 public:
  explicit Draws(Philox rng) : rng_(rng) {}
  float uniform(float low, float high) { return low + (high - low) * uniform01(next()); }
  float uniform(const float (&range)[2]) { return uniform(range[0], range[1]); }
  int below(int n) { return int((uint64_t{next()} * uint64_t(n)) >> 32); }
  int between(const int (&range)[2]) { return range[0] + below(range[1] - range[0] + 1); }
  // Mean 0 and deviation 1, the sum of two uniform numbers: bounded, and far cheaper than
  // a Gaussian.
  float triangular() {
    const uint32_t bits = next();
    return (float(bits & 0xffff) + float(bits >> 16) - 65535.f) * (2.4494897f / 65535.f);
  }

 private:
  uint32_t next() {
    if (used_ == 4) {
      block_ = rng_(counter_++);
      used_ = 0;
    }
    return block_[used_++];
  }
  Philox rng_;
  uint64_t counter_ = 0;
  std::array<uint32_t, 4> block_{};
  size_t used_ = 4;
};

struct Ellipse {
  float x, y, radius_x, radius_y, angle;
};

// The samples of an image: which material each one hits. Shapes are painted from the back to
// the front.
class Canvas {
 public:
  explicit Canvas(int64_t size) : side_(size * kSamples), cells_(size_t(side_ * side_), slide) {}

  // `only_on`: paint nothing but samples of that material (granules stay in the cytoplasm).
  void paint(const Ellipse& e, Material material, Material only_on = kMaterials) {
    const float unit = float(side_) / 32;
    const float reach = std::max(e.radius_x, e.radius_y) * unit;
    const float x = e.x * unit, y = e.y * unit;
    const float c = std::cos(e.angle) / unit, s = std::sin(e.angle) / unit;
    const auto clip = [&](float v) { return std::clamp(int64_t(v), int64_t{0}, side_); };
    for (int64_t i = clip(y - reach); i < clip(y + reach + 1); ++i)
      for (int64_t j = clip(x - reach); j < clip(x + reach + 1); ++j) {
        const float dx = float(j) + .5f - x, dy = float(i) + .5f - y;
        const float u = (c * dx + s * dy) / e.radius_x, v = (c * dy - s * dx) / e.radius_y;
        uint8_t& cell = cells_[size_t(i * side_ + j)];
        if (u * u + v * v < 1 && (only_on == kMaterials || cell == only_on)) cell = material;
      }
  }
  const uint8_t* row(int64_t i) const { return cells_.data() + i * side_; }

 private:
  int64_t side_;
  std::vector<uint8_t> cells_;
};

void paint_red_cells(Canvas& canvas, Draws& draws, float scale) {
  for (int n = draws.between(kRedCells); n > 0; --n) {
    const float x = draws.uniform(0, 32), y = draws.uniform(0, 32);
    const float radius = draws.uniform(kRedRadius) * scale;
    canvas.paint({x, y, radius, radius, 0}, red_cell);
    canvas.paint({x, y, radius * kPallor, radius * kPallor, 0}, red_pallor);
  }
}

void paint_cell(Canvas& canvas, Draws& draws, const CellFactors& factors, float scale) {
  const float radius = draws.uniform(kRadius) * scale, aspect = draws.uniform(kAspect);
  const float x = 16 + draws.uniform(-kCentre, kCentre), y = 16 + draws.uniform(-kCentre, kCentre);
  const float turn = draws.uniform(0, kTau);
  canvas.paint({x, y, radius * aspect, radius / aspect, turn}, cytoplasm);

  const int granules = draws.between(kGranuleCount[factors.granules]);
  const float granule_radius = kGranuleRadius[factors.granules] * scale;
  for (int n = 0; n < granules; ++n) {
    const float angle = draws.uniform(0, kTau);
    const float distance = .95f * radius * std::sqrt(draws.uniform(.05f, 1));
    canvas.paint({x + distance * std::cos(angle), y + distance * std::sin(angle), granule_radius,
                  granule_radius, 0},
                 granule, cytoplasm);
  }

  const int shape = factors.lobes - 1;
  for (int n = 0; n < factors.lobes; ++n) {
    const float angle =
        turn + kTau * float(n) / float(factors.lobes) + draws.uniform(-kLobeTurn, kLobeTurn);
    const float lobe = kLobeRadius[shape] * radius, ring = kLobeRing[shape] * radius;
    const float stretch = draws.uniform(kAspect);
    canvas.paint({x + ring * std::cos(angle), y + ring * std::sin(angle), lobe * stretch,
                  lobe / stretch, angle},
                 nucleus);
  }
}

// Beer and Lambert: the light that each material lets through at this site.
using Palette = std::array<std::array<float, 3>, kMaterials>;
Palette light_through(const CellFactors& factors, const SiteStyle& style, Draws& draws) {
  std::array<Dye, kMaterials> dyes{};
  dyes[slide] = kSlide;
  dyes[red_cell] = kRedCell;
  dyes[red_pallor] = kRedPallor;
  dyes[cytoplasm] = kCytoplasm[factors.hue];
  dyes[granule] = factors.granules == 2 ? kCoarseGranule[factors.hue] : kFineGranule;
  dyes[nucleus] = kNucleus;
  Palette light;
  for (size_t m = 0; m < kMaterials; ++m) {
    const float azure = dyes[m].azure * (1 + draws.uniform(-kDyeSpread, kDyeSpread));
    const float eosin = dyes[m].eosin * (1 + draws.uniform(-kDyeSpread, kDyeSpread));
    for (size_t c = 0; c < 3; ++c)
      light[m][c] = style.lamp[c] * std::exp(-(azure * style.azure[c] + eosin * style.eosin[c]));
  }
  return light;
}

// Separable Gaussian over rows of `size` pixels with 3 channels; the border repeats.
void blur(std::vector<float>& image, int64_t size, float sigma) {
  const int64_t reach = int64_t(std::ceil(3 * sigma));
  std::vector<float> weights(size_t(2 * reach + 1));
  for (int64_t k = -reach; k <= reach; ++k)
    weights[size_t(k + reach)] = std::exp(-float(k * k) / (2 * sigma * sigma));
  const float sum = std::accumulate(weights.begin(), weights.end(), 0.f);
  for (float& w : weights) w /= sum;

  std::vector<float> pass(image.size());
  for (const auto& [step, other] :
       {std::pair(int64_t{3}, 3 * size), std::pair(3 * size, int64_t{3})}) {
    std::fill(pass.begin(), pass.end(), 0.f);
    for (int64_t along = 0; along < size; ++along)
      for (int64_t k = -reach; k <= reach; ++k) {
        const float w = weights[size_t(k + reach)];
        const float* from = image.data() + std::clamp(along + k, int64_t{0}, size - 1) * step;
        float* to = pass.data() + along * step;
        for (int64_t i = 0; i < size; ++i)
          for (int64_t c = 0; c < 3; ++c) to[i * other + c] += w * from[i * other + c];
      }
    image.swap(pass);
  }
}

void draw(const CellFactors& factors, const SiteStyle& style, int64_t size, Philox rng,
          uint8_t* pixels) {
  Draws draws(rng);
  Canvas canvas(size);
  paint_red_cells(canvas, draws, style.scale);
  paint_cell(canvas, draws, factors, style.scale);
  const Palette light = light_through(factors, style, draws);

  std::vector<float> image(size_t(size * size * 3));
  for (int64_t i = 0; i < size; ++i)
    for (int64_t j = 0; j < size; ++j) {
      std::array<float, 3> sum{};
      for (int64_t a = 0; a < kSamples; ++a)
        for (int64_t b = 0; b < kSamples; ++b) {
          const auto& sample = light[canvas.row(i * kSamples + a)[j * kSamples + b]];
          for (size_t c = 0; c < 3; ++c) sum[c] += sample[c];
        }
      const float x = 2 * (float(j) + .5f) / float(size) - 1;
      const float y = 2 * (float(i) + .5f) / float(size) - 1;
      const float lit = (1 + style.gradient_x * x + style.gradient_y * y) / (kSamples * kSamples);
      for (size_t c = 0; c < 3; ++c) image[size_t((i * size + j) * 3) + c] = sum[c] * lit;
    }
  if (style.blur > 0) blur(image, size, style.blur * float(size) / 32);
  for (size_t i = 0; i < image.size(); ++i) {
    const float value = image[i] + style.noise * draws.triangular();
    pixels[i] = uint8_t(std::clamp(255 * value + .5f, 0.f, 255.f));
  }
}

Tensor dense_images(std::vector<int64_t> dims) {
  const Shape shape(dims.data(), int(dims.size()));
  auto bytes = std::make_shared<std::vector<uint8_t>>(size_t(shape.size()));
  return Tensor::view(bytes, bytes->data(), shape, DType::u8);
}

// f(i) for every image. Plain code for the oldest processor, without the instruction-set clones of
// the kernels: their fused multiply-adds would make pixels depend on the machine.
template <class F>
void for_each_image(int64_t count, const F& f) {
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < count; ++i) f(i);
}

SiteStyle between(const SiteStyle& from, const SiteStyle& to, float t) {
  const auto mix = [t](float a, float b) { return a + t * (b - a); };
  SiteStyle s;
  for (size_t c = 0; c < 3; ++c) {
    s.azure[c] = mix(from.azure[c], to.azure[c]);
    s.eosin[c] = mix(from.eosin[c], to.eosin[c]);
    s.lamp[c] = mix(from.lamp[c], to.lamp[c]);
  }
  s.gradient_x = mix(from.gradient_x, to.gradient_x);
  s.gradient_y = mix(from.gradient_y, to.gradient_y);
  s.blur = mix(from.blur, to.blur);
  s.scale = mix(from.scale, to.scale);
  s.noise = mix(from.noise, to.noise);
  return s;
}

SiteStyle random_style(Draws& draws) {
  const float width = draws.uniform(0, 1);
  const auto around = [&](float centre, float spread) {
    return centre + width * draws.uniform(-spread, spread);
  };
  SiteStyle s;
  for (size_t c = 0; c < 3; ++c) {
    s.azure[c] *= around(1, kPoolDye);
    s.eosin[c] *= around(1, kPoolDye);
    s.lamp[c] = std::min(1.f, around(s.lamp[c], kPoolLamp));
  }
  s.gradient_x = around(0, kPoolGradient);
  s.gradient_y = around(0, kPoolGradient);
  s.blur = std::max(.25f, around(s.blur, kPoolBlur));
  s.scale = around(1, kPoolScale);
  s.noise = std::max(.005f, around(s.noise, kPoolNoise));
  return s;
}

// How many of `count` images each class gets: shares moved towards equality as shift goes to 0, and
// rounded by largest remainder.
std::vector<int64_t> class_counts(const SiteRow& site, int64_t classes, int64_t count,
                                  double shift) {
  std::vector<double> exact(static_cast<size_t>(classes));
  double sum = 0;
  for (size_t c = 0; c < exact.size(); ++c) sum += site.shares[c];
  std::vector<int64_t> counts(exact.size());
  for (size_t c = 0; c < exact.size(); ++c) {
    const double equal = 1.0 / double(classes);
    exact[c] = double(count) * (equal + shift * (site.shares[c] / sum - equal));
    counts[c] = int64_t(exact[c]);
  }
  std::vector<size_t> order(exact.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return exact[a] - double(counts[a]) > exact[b] - double(counts[b]);
  });
  const int64_t given = std::accumulate(counts.begin(), counts.end(), int64_t{0});
  for (size_t i = 0; i < size_t(count - given); ++i) ++counts[order[i]];
  return counts;
}

LabelledImages make_split(const SiteRow& site, const SiteStyle& style, const std::string& split,
                          int64_t count, const SyntheticOptions& options) {
  LabelledImages out;
  const auto counts = class_counts(site, options.classes, count, options.shift);
  for (size_t c = 0; c < counts.size(); ++c)
    out.labels.insert(out.labels.end(), size_t(counts[c]), int32_t(c));
  Draws shuffle(PhiloxKey(options.seed).with(site.name).with(split).with("order"));
  for (size_t i = out.labels.size(); i > 1; --i)
    std::swap(out.labels[i - 1], out.labels[size_t(shuffle.below(int(i)))]);

  out.images = dense_images({count, options.size, options.size, 3});
  for_each_image(count, [&](int64_t i) {
    const Philox rng = PhiloxKey(options.seed).with(site.name).with(split).with(uint64_t(i));
    draw(kClasses[out.labels[size_t(i)]].factors, style, options.size, rng,
         static_cast<uint8_t*>(out.images.raw()) + i * options.size * options.size * 3);
  });
  return out;
}

void check(bool holds, const std::string& message) {
  if (!holds) throw UserError("synthetic images: " + message);
}

void check_size(int64_t size) {
  check(8 <= size && size <= 1024, "size must be in 8..1024");
}

void check_options(const SyntheticOptions& o) {
  const int64_t most = int64_t(std::size(kSites));
  check(1 <= o.clients && o.clients <= most, "clients must be in 1.." + std::to_string(most));
  check(2 <= o.classes && o.classes <= kMaxClasses,
        "classes must be in 2.." + std::to_string(kMaxClasses));
  check(o.train >= 0 && o.test >= 0 && o.unseen >= 0, "a number of images is negative");
  check(0 <= o.shift && o.shift <= 1, "shift must be in [0, 1]");
  check_size(o.size);
}

SiteStyle style_of(const SiteRow& site, double shift) {
  return between(SiteStyle(), site.style, float(shift));
}

}  // namespace

Tensor draw_cell(const CellFactors& factors, const SiteStyle& style, int64_t size, Philox rng) {
  check_size(size);
  OF_CHECK(1 <= factors.lobes && factors.lobes <= CellFactors::kLobes, "lobes out of range");
  OF_CHECK(0 <= factors.granules && factors.granules < CellFactors::kGranules,
           "granules out of range");
  OF_CHECK(0 <= factors.hue && factors.hue < CellFactors::kHues, "hue out of range");
  const Tensor image = dense_images({size, size, 3});
  draw(factors, style, size, rng, static_cast<uint8_t*>(image.raw()));
  return image;
}

SyntheticSet make_federation(const SyntheticOptions& options) {
  check_options(options);
  SyntheticSet set;
  for (int64_t c = 0; c < options.classes; ++c) {
    set.classes.push_back(kClasses[c].name);
    set.factors.push_back(kClasses[c].factors);
  }
  for (int64_t k = 0; k < options.clients; ++k) {
    const SiteRow& site = kSites[k];
    const SiteStyle style = style_of(site, options.shift);
    set.sites.push_back({site.name, style, make_split(site, style, "train", options.train, options),
                         make_split(site, style, "test", options.test, options)});
  }
  set.unseen.name = kUnseen.name;
  set.unseen.style = style_of(kUnseen, options.shift);
  set.unseen.test = make_split(kUnseen, set.unseen.style, "test", options.unseen, options);
  return set;
}

PretrainingPool make_pretraining_pool(const PoolOptions& options) {
  check_size(options.size);
  check(options.first >= 0 && options.count >= 0, "a number of images is negative");
  PretrainingPool pool;
  const size_t count = size_t(options.count);
  pool.images = dense_images({options.count, options.size, options.size, 3});
  pool.lobes.resize(count);
  pool.granules.resize(count);
  pool.hues.resize(count);
  for_each_image(options.count, [&](int64_t i) {
    PhiloxKey key(options.seed);
    key.with("pool").with(uint64_t(options.first + i));
    Draws draws(PhiloxKey(key).with("style"));
    CellFactors f;
    const auto of_a_class = [&](const ClassRow& row) { return row.factors == f; };
    do {
      f.lobes = 1 + draws.below(CellFactors::kLobes);
      f.granules = draws.below(CellFactors::kGranules);
      f.hue = draws.below(CellFactors::kHues);
    } while (std::any_of(std::begin(kClasses), std::end(kClasses), of_a_class));
    pool.lobes[size_t(i)] = f.lobes - 1;
    pool.granules[size_t(i)] = f.granules;
    pool.hues[size_t(i)] = f.hue;
    draw(f, random_style(draws), options.size, key,
         static_cast<uint8_t*>(pool.images.raw()) + i * options.size * options.size * 3);
  });
  return pool;
}

Tensor contact_sheet(const SyntheticOptions& options, int64_t examples, int64_t zoom) {
  check_options(options);
  OF_CHECK(examples > 0 && zoom > 0, "a contact sheet shows something");
  std::vector<SiteStyle> styles;
  for (int64_t k = 0; k < options.clients; ++k)
    styles.push_back(style_of(kSites[k], options.shift));
  styles.push_back(style_of(kUnseen, options.shift));

  const int64_t side = options.size * zoom, gap = 4 * zoom;  // white between the fields
  const int64_t columns = int64_t(styles.size());
  const int64_t height = gap + options.classes * (side + gap);
  const int64_t width = gap + columns * (examples * side + gap);
  const Tensor sheet = dense_images({height, width, 3});
  uint8_t* out = static_cast<uint8_t*>(sheet.raw());
  std::memset(out, 255, size_t(height * width * 3));
  for (int64_t c = 0; c < options.classes; ++c)
    for (int64_t k = 0; k < columns; ++k)
      for (int64_t e = 0; e < examples; ++e) {
        const Philox rng = PhiloxKey(options.seed).with("sheet").with(uint64_t(e));
        const Tensor cell = draw_cell(kClasses[c].factors, styles[size_t(k)], options.size, rng);
        const uint8_t* from = cell.data<uint8_t>();
        const int64_t top = gap + c * (side + gap);
        const int64_t left = gap + k * (examples * side + gap) + e * side;
        for (int64_t i = 0; i < side; ++i)
          for (int64_t j = 0; j < side; ++j)
            std::memcpy(out + ((top + i) * width + left + j) * 3,
                        from + (i / zoom * options.size + j / zoom) * 3, 3);
      }
  return sheet;
}

}  // namespace orthofed
