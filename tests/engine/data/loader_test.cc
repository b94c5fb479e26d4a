#include "engine/data/loader.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <numeric>
#include <set>
#include <thread>

#include "engine/io/dense.h"
#include "engine/tensor/allocator.h"
#include "kernels/simt/memory.h"
#include "tests/support/files.h"
#include "tests/support/random.h"

namespace orthofed {
namespace {

using test::user_error;

// The workers have no business in the emulated device's memory.
const bool guarded = (simt::guard_memory(), true);

// n images of noise; image i has label i % 3, and images whose index is in `bad` cannot be read.
class NoiseImages : public ImageSource {
 public:
  explicit NoiseImages(std::set<int64_t> bad = {}) : bad_(std::move(bad)) {}
  Tensor load(int64_t index) const override {
    if (bad_.count(index)) throw UserError("noise/" + std::to_string(index) + ": is not an image");
    const Tensor image = dense_tensor({20 + index % 3, 17, 3}, DType::u8);
    const Philox rng = PhiloxKey(test::seed()).with(uint64_t(index));
    for (int64_t i = 0; i < image.size(); ++i)
      image.data<uint8_t>()[i] = uint8_t(rng(uint64_t(i))[0]);
    return image;
  }
  std::string sha256(int64_t index) const override { return std::to_string(index); }

 private:
  std::set<int64_t> bad_;
};

Dataset noise(int64_t n, std::set<int64_t> bad = {}) {
  Dataset d{{}, {"a", "b", "c"}, std::make_shared<NoiseImages>(std::move(bad))};
  for (int64_t i = 0; i < n; ++i)
    d.samples.push_back({"noise/" + std::to_string(i), int32_t(i % 3), "x", "train", "", i});
  return d;
}

CacheOptions small_cache(int64_t workers = 1) {
  CacheOptions options;
  options.size = 12;
  options.workers = workers;
  return options;
}

std::shared_ptr<const ImageCache> cache_of(int64_t n) {
  return std::make_shared<const ImageCache>(noise(n), small_cache());
}

LoaderOptions training(int64_t workers, Device device = Device::cpu) {
  LoaderOptions options;
  options.device = device;
  options.batch_size = 4;
  options.patch = 6;
  options.shuffle = true;
  options.augment = AugmentOptions{};
  options.seed = 7;
  options.workers = workers;
  return options;
}

// What a batch holds, byte for byte.
std::string bytes_of(const Batch& batch) {
  std::string bytes;
  for (const Tensor& given : {batch.patches, batch.labels, batch.weights}) {
    const Tensor t = given.on(Device::cpu);
    for (int64_t r = 0; r < t.rows(); ++r)
      bytes.append(static_cast<const char*>(t.raw()) + size_t(r * t.pitch()) * size_of(t.dtype()),
                   size_t(t.cols()) * size_of(t.dtype()));
  }
  bytes.append(reinterpret_cast<const char*>(batch.indices.data()),
               batch.indices.size() * sizeof(int64_t));
  return bytes + std::to_string(batch.valid);
}

std::vector<std::string> epoch_of(Loader& loader, int64_t epoch) {
  std::vector<std::string> batches;
  loader.start(epoch);
  while (const Batch* batch = loader.next()) batches.push_back(bytes_of(*batch));
  return batches;
}

TEST(ImageCache, MappedFileEqualsMemory) {
  CacheOptions options = small_cache();
  const ImageCache memory(noise(11), options);
  options.memory_limit = 11 * 12 * 12 * 3 - 1;
  options.workers = 3;
  const ImageCache file(noise(11), options);
  EXPECT_TRUE(memory.in_memory());
  EXPECT_FALSE(file.in_memory());
  for (int64_t i = 0; i < 11; ++i)
    EXPECT_EQ(std::memcmp(memory.image(i), file.image(i), 12 * 12 * 3), 0) << i;
}

TEST(ImageCache, NoRoomForTheFileIsAUserError) {
  CacheOptions options = small_cache();
  options.memory_limit = 0;
  const char* before = std::getenv("TMPDIR");
  const std::string kept = before == nullptr ? "" : before;
  ::setenv("TMPDIR", "/nowhere", 1);
  EXPECT_TRUE(user_error([&] { ImageCache(noise(2), options); }, {"/nowhere", "TMPDIR"}));
  if (before == nullptr)
    ::unsetenv("TMPDIR");
  else
    ::setenv("TMPDIR", kept.c_str(), 1);
}

TEST(ImageCache, BadImagesAreSkippedAndNamedOrRefused) {
  CacheOptions options = small_cache(2);
  const ImageCache cache(noise(7, {1, 5}), options);
  const ImageCache whole(noise(7), options);
  ASSERT_EQ(cache.count(), 5);
  ASSERT_EQ(cache.skipped().size(), 2U);
  EXPECT_EQ(cache.skipped()[0].id, "noise/1");
  EXPECT_EQ(cache.skipped()[1].reason, "noise/5: is not an image");
  EXPECT_EQ(cache.samples()[1].id, "noise/2");
  EXPECT_EQ(std::memcmp(cache.image(4), whole.image(6), 12 * 12 * 3), 0);

  EXPECT_TRUE(user_error(
      [&] {
        ImageCache(noise(2, {0, 1}), options);
      },
      {"none of 2 images", "noise/0"}));
  options.refuse_bad_images = true;
  EXPECT_TRUE(user_error([&] { ImageCache(noise(7, {5}), options); }, {"noise/5"}));
}

TEST(ImageCache, LinesOfPixelsAreNoImages) {
  const Tensor line = dense_tensor({1, 1, 65, 3}, DType::u8);
  const Dataset d = make_dataset({{"line", "x", "train", line, {0}}}, {"a"});
  EXPECT_TRUE(user_error([&] { ImageCache(d, small_cache()); }, {"line/0", "65 x 1", "64 times"}));
}

TEST(ImageCache, ReportsProgress) {
  std::vector<int64_t> seen;
  const ImageCache cache(noise(9), small_cache(3), [&](int64_t done, int64_t total) {
    EXPECT_EQ(total, 9);
    seen.push_back(done);
  });
  std::vector<int64_t> want(9);
  std::iota(want.begin(), want.end(), 1);
  EXPECT_EQ(seen, want);
}

TEST(Loader, DoesNotDependOnTheNumberOfWorkers) {
  const auto cache = cache_of(27);
  Loader one(cache, training(1));
  const auto first = epoch_of(one, 0), second = epoch_of(one, 1);
  ASSERT_EQ(first.size(), 7U);
  EXPECT_NE(first, second);
  EXPECT_EQ(epoch_of(one, 0), first);
  for (const int64_t workers : {2, 4}) {
    Loader loader(cache, training(workers));
    EXPECT_EQ(epoch_of(loader, 0), first) << workers;
    EXPECT_EQ(epoch_of(loader, 1), second) << workers;
  }
  Loader simt_one(cache, training(1, Device::simt)), simt_three(cache, training(3, Device::simt));
  EXPECT_EQ(epoch_of(simt_one, 0), epoch_of(simt_three, 0));
}

// Both err by as much as the kernel's contract allows, for values below 4.
TEST(Loader, ADeviceMakesThePatchesThatTheCpuMakes) {
  const auto cache = cache_of(11);
  for (const DType dtype : {DType::f32, DType::bf16}) {
    LoaderOptions options = training(3);
    options.dtype = dtype;
    Loader cpu(cache, options);
    options.device = Device::simt;
    Loader simt(cache, options);
    cpu.start(1);
    simt.start(1);
    while (const Batch* want = cpu.next()) {
      const Batch* got = simt.next();
      ASSERT_NE(got, nullptr);
      for (const Tensor& t : {got->patches, got->labels, got->weights})
        EXPECT_EQ(t.device(), Device::simt);
      EXPECT_EQ(got->patches.dtype(), dtype);
      EXPECT_EQ(got->indices, want->indices);
      EXPECT_EQ(got->valid, want->valid);
      EXPECT_EQ(got->labels.to_vector(), want->labels.to_vector());
      EXPECT_EQ(got->weights.to_vector(), want->weights.to_vector());
      const std::vector<double> p = got->patches.to_vector(), q = want->patches.to_vector();
      ASSERT_EQ(p.size(), q.size());
      for (size_t i = 0; i < p.size(); ++i) {
        const double rounded = dtype == DType::bf16 ? 0x1p-7 * std::abs(q[i]) : 0;
        ASSERT_TRUE(std::abs(p[i] - q[i]) <= 2 * 6 * 0x1p-23 * 4 + rounded) << p[i] << ' ' << q[i];
      }
    }
    EXPECT_EQ(simt.next(), nullptr);
  }
}

TEST(Loader, DoesNotDependOnTheOrderOfTheManifest) {
  Dataset reversed = noise(10);
  std::reverse(reversed.samples.begin(), reversed.samples.end());
  Loader a(cache_of(10), training(1));
  Loader b(std::make_shared<const ImageCache>(reversed, small_cache()), training(1));
  a.start(3);
  b.start(3);
  while (const Batch* x = a.next()) {
    const Batch* y = b.next();
    ASSERT_NE(y, nullptr);
    EXPECT_EQ(x->patches.to_vector(), y->patches.to_vector());
    EXPECT_EQ(x->labels.to_vector(), y->labels.to_vector());
  }
}

TEST(Loader, EveryEpochIsAPermutation) {
  Loader loader(cache_of(10), training(1));
  std::set<std::vector<int64_t>> orders;
  for (int64_t epoch = 0; epoch < 5; ++epoch) {
    std::vector<int64_t> seen;
    loader.start(epoch);
    while (const Batch* batch = loader.next())
      seen.insert(seen.end(), batch->indices.begin(), batch->indices.begin() + batch->valid);
    EXPECT_EQ(seen, loader.order(epoch));
    orders.insert(seen);
    std::sort(seen.begin(), seen.end());
    for (int64_t i = 0; i < 10; ++i) ASSERT_EQ(seen[size_t(i)], i);
  }
  EXPECT_EQ(orders.size(), 5U);
}

TEST(Loader, TheLastBatchIsFilledWithWeightZero) {
  for (const auto& [device, dtype] : {std::pair(Device::cpu, DType::f64),
                                      {Device::cpu, DType::f32},
                                      {Device::cpu, DType::bf16},
                                      {Device::simt, DType::f32},
                                      {Device::simt, DType::bf16}}) {
    LoaderOptions options = training(2, device);
    options.dtype = dtype;
    Loader loader(cache_of(6), options);
    EXPECT_EQ(loader.batches(), 2);
    for (int64_t epoch = 0; epoch < 2; ++epoch) {  // buffers are used again
      loader.start(epoch);
      ASSERT_EQ(loader.next()->valid, 4);
      const Batch* last = loader.next();
      EXPECT_EQ(last->valid, 2);
      EXPECT_EQ(last->patches.shape(), (Shape{4 * 4, 3 * 6 * 6}));
      EXPECT_EQ(last->patches.dtype(), dtype);
      EXPECT_EQ(last->weights.dtype(), accum(dtype));
      EXPECT_EQ(last->weights.to_vector(), (std::vector<double>{1, 1, 0, 0}));
      EXPECT_EQ(last->indices[2], -1);
      EXPECT_EQ(last->labels.to_vector()[3], 0);
      const std::vector<double> filler = last->patches.row_range(8, 16).to_vector();
      EXPECT_EQ(filler, std::vector<double>(filler.size(), 0.0));
      EXPECT_TRUE(last->patches.all_finite());
      EXPECT_EQ(loader.next(), nullptr);
      EXPECT_EQ(loader.next(), nullptr);
    }
  }
}

TEST(Loader, EvaluationIsSequentialAndUnchanged) {
  const auto cache = cache_of(5);
  LoaderOptions options;
  options.batch_size = 2;
  options.patch = 12;
  options.mean = {0.1F, 0.2F, 0.3F};
  options.std = {0.5F, 0.25F, 1.0F};
  Loader loader(cache, options, {4, 0, 2});
  EXPECT_EQ(loader.samples(), 3);
  loader.start(9);
  std::vector<int64_t> seen;
  while (const Batch* batch = loader.next()) {
    for (int64_t i = 0; i < batch->valid; ++i) {
      const int64_t index = batch->indices[size_t(i)];
      seen.push_back(index);
      EXPECT_EQ(batch->labels.data<int32_t>()[i], cache->samples()[size_t(index)].label);
      const std::vector<double> row = batch->patches.row_range(i, i + 1).to_vector();  // [3 * 144]
      for (size_t c = 0; c < 3; ++c)
        for (size_t p = 0; p < 144; ++p) {
          const double pixel = cache->image(index)[3 * p + c] / 255.0;
          ASSERT_NEAR(row[c * 144 + p], (pixel - double(options.mean[c])) / double(options.std[c]),
                      1e-5);
        }
    }
  }
  EXPECT_EQ(seen, (std::vector<int64_t>{4, 0, 2}));
}

TEST(Loader, AnEmptySelectionHasNoBatches) {
  Loader loader(cache_of(3), training(1), {});
  loader.start(0);
  EXPECT_EQ(loader.batches(), 0);
  EXPECT_EQ(loader.next(), nullptr);
}

TEST(Loader, MayBeLeftOrRestartedAnywhere) {
  const auto cache = cache_of(33);
  for (const Device device : {Device::cpu, Device::simt}) {
    Loader reference(cache, training(1, device));
    const auto want = epoch_of(reference, 2);
    for (int64_t taken = 0; taken < 8; taken += device == Device::cpu ? 1 : 7) {
      Loader loader(cache, training(3, device));
      if (taken > 0) loader.start(1);
      for (int64_t i = 1; i < taken; ++i) ASSERT_NE(loader.next(), nullptr);
      EXPECT_EQ(epoch_of(loader, 2), want);
      loader.start(3);  // and destroyed in the middle of an epoch
    }
  }
}

TEST(Loader, ABatchStaysUntilTheNextIsAskedFor) {
  for (const Device device : {Device::cpu, Device::simt}) {
    Loader loader(cache_of(40), training(4, device));
    loader.start(0);
    const Batch* batch = loader.next();
    const std::string before = bytes_of(*batch);
    std::this_thread::sleep_for(std::chrono::milliseconds(30));  // workers run as far as they may
    EXPECT_EQ(bytes_of(*batch), before);
  }
}

// What is sent ahead is copied as late as it may be, while workers run as far as they may.
TEST(Loader, WhatIsOnItsWayIsNotOverwritten) {
  const auto cache = cache_of(33);
  Loader on_cpu(cache, training(1)), on_simt(cache, training(1, Device::simt));
  on_cpu.start(0);
  on_simt.start(0);
  while (const Batch* want = on_cpu.next()) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    const Batch* got = on_simt.next();
    ASSERT_NE(got, nullptr);
    EXPECT_EQ(got->labels.to_vector(), want->labels.to_vector());
    EXPECT_NEAR(got->patches.row_range(0, 1).to_vector()[0],
                want->patches.row_range(0, 1).to_vector()[0], 1e-5);
  }
}

TEST(Loader, AllocatesNothingAfterConstruction) {
  for (const Device device : {Device::cpu, Device::simt}) {
    Loader loader(cache_of(20), training(2, device));
    epoch_of(loader, 0);  // a device's scratch memory is the thread's, and grows once
    const auto allocations = [&] {
      return allocator_stats(Device::cpu).heap_allocations +
             allocator_stats(device).heap_allocations;
    };
    const int64_t before = allocations();
    for (int64_t epoch = 1; epoch < 3; ++epoch) epoch_of(loader, epoch);
    EXPECT_EQ(allocations(), before);
  }
}

TEST(Loader, BrokenContractsAreRefused) {
  LoaderOptions options = training(1);
  options.patch = 5;
  EXPECT_THROW(Loader(cache_of(3), options), Error);
  EXPECT_THROW(Loader(cache_of(3), training(1), {3}), Error);
  options = training(0);
  EXPECT_THROW(Loader(cache_of(3), options), Error);
  // A worker's error reaches the consumer, again and again; f16 is no compute type.
  options = training(2);
  options.dtype = DType::f16;
  Loader loader(cache_of(9), options);
  loader.start(0);
  EXPECT_THROW(loader.next(), Error);
  EXPECT_THROW(loader.next(), Error);
  loader.start(1);
  EXPECT_THROW(loader.next(), Error);
}

TEST(Augment, DrawsStayInTheirRanges) {
  AugmentOptions options;
  options.crop_scale_min = 0.3;
  int flips = 0, turns = 0;
  double least_area = 1, most_bright = 1;
  constexpr int n = 4000;
  for (uint64_t i = 0; i < n; ++i) {
    const ImageAugment a = draw_augment(options, PhiloxKey(test::seed()).with(i));
    flips += a.flip_horizontal;
    turns += a.quarter_turns == 3;
    ASSERT_TRUE(a.crop_x >= 0 && a.crop_y >= 0);
    ASSERT_LE(a.crop_x + a.crop_w, 1.0F + 1e-6F);
    ASSERT_LE(a.crop_y + a.crop_h, 1.0F + 1e-6F);
    const double area = double(a.crop_w) * double(a.crop_h);
    ASSERT_GE(area, 0.3 * std::sqrt(0.75) * 0.99);  // an extreme ratio may cut a side off
    ASSERT_NEAR(a.brightness, 1, 0.1 + 1e-6);
    for (const float c : a.channel) ASSERT_NEAR(c, 1, 0.05 + 1e-6);
    least_area = std::min(least_area, area);
    most_bright = std::max(most_bright, double(a.brightness));
  }
  // Five standard deviations of a binomial.
  EXPECT_NEAR(flips, n / 2, 5 * std::sqrt(n / 4.0));
  EXPECT_NEAR(turns, n / 4, 5 * std::sqrt(n * 3 / 16.0));
  EXPECT_LT(least_area, 0.33);
  EXPECT_GT(most_bright, 1.095);
}

TEST(Augment, OffMeansTheImageItself) {
  AugmentOptions options{false, false, 1, 0, 0, 0, 0};
  const ImageAugment a = draw_augment(options, PhiloxKey(1).with("x"));
  EXPECT_FALSE(a.flip_horizontal || a.flip_vertical);
  EXPECT_EQ(a.quarter_turns, 0);
  EXPECT_EQ(a.crop_w, 1);
  EXPECT_EQ(a.brightness, 1);
  EXPECT_EQ(a.channel[2], 1);
}

}  // namespace
}  // namespace orthofed
