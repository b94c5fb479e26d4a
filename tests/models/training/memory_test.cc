// A device that is too small for the batch: the message names a batch that fits, and it does fit.
#include <gtest/gtest.h>

#include <cstdlib>
#include <random>

#include "engine/data/loader.h"
#include "engine/tensor/allocator.h"
#include "kernels/simt/memory.h"
#include "models/training/demo_base.h"
#include "models/training/fine_tune.h"
#include "models/training/site_trainer.h"
#include "tests/support/files.h"

namespace orthofed {
namespace {

VitConfig tiny() {
  return {.image_size = 8, .patch = 4, .dim = 12, .depth = 2, .heads = 2, .mlp_dim = 24};
}

std::unique_ptr<FineTuner> tuner_on_simt() {
  const OnDevice scope(Device::simt);
  FineTuneOptions options;
  options.classes = 3;
  options.lora.rank = 2;
  options.penalty.update = 2;
  options.train.personal_dropout = 0.5;
  auto model = std::make_unique<Vit>(
      Vit::from_tensors(tiny(), Vit::create(tiny(), DType::f32, 1).tensors(), DType::f32, false));
  auto tuner = std::make_unique<FineTuner>(std::move(model), options);
  tuner->draw_general();
  tuner->draw_personal();
  return tuner;
}

Batch random_batch(int64_t images) {
  std::mt19937_64 engine(7);
  std::normal_distribution<double> normal;
  std::vector<double> pixels(size_t(images * 4 * 48));
  for (double& x : pixels) x = normal(engine);
  std::vector<double> labels(static_cast<size_t>(images));
  for (size_t i = 0; i < labels.size(); ++i) labels[i] = double(i % 3);
  return {Tensor::of(pixels, {images * 4, 48}).to(DType::f32),
          Tensor::of(labels, {images}).to(DType::i32),
          Tensor::full({images}, DType::f32, 1),
          {},
          images};
}

// Steps until the personal adapter has been on, so that every buffer of a step has existed.
void steps(FineTuner& tuner, int64_t images) {
  const Batch batch = random_batch(images);
  for (uint64_t index = 0; index < 4; ++index)
    tuner.step({&batch}, 0.5, 1, Phase::joint, index, true);
}

int64_t number_after(const std::string& text, const std::string& mark) {
  const size_t at = text.find(mark);
  return at == std::string::npos ? -1 : std::strtoll(text.c_str() + at + mark.size(), nullptr, 10);
}

// What it says of a step of so many times 16 images where memory does for `room` images, cached
// blocks included.
std::string refusal(int64_t room, size_t micro_batches) {
  simt::limit_memory(0);
  release_cached(Device::simt);
  steps(*tuner_on_simt(), room);
  const int64_t enough = allocator_stats(Device::simt).bytes_reserved;
  release_cached(Device::simt);
  simt::limit_memory(size_t(enough));
  auto tuner = tuner_on_simt();
  const Batch batch = random_batch(16);
  std::string message;
  try {
    tuner->step(std::vector<const Batch*>(micro_batches, &batch), 0.5, 1, Phase::joint, 0);
  } catch (const UserError& e) {
    message = e.what();
  }
  for (const char* part : {"train.batch_size: 16 images do not fit", "device simt is out of memory",
                           "more were needed", "are in use", "are free"})
    EXPECT_NE(message.find(part), std::string::npos) << message;
  const int64_t fits = number_after(message, "train.batch_size = ");
  EXPECT_GE(fits, 2) << message;
  EXPECT_LT(fits, 16) << message;
  return message;
}

TEST(Memory, ABatchThatDoesNotFitNamesOneThatDoes) {
  const auto reserved = [] { return allocator_stats(Device::simt).bytes_reserved; };
  std::string message = refusal(10, 1);
  EXPECT_EQ(number_after(message, "train.accumulate = "),
            16 / number_after(message, "train.batch_size = "))
      << message;
  // The inputs of 32 images do not fit where the rest is for four.
  message = refusal(4, 2);
  EXPECT_EQ(number_after(message, "train.accumulate = "), -1) << message;
  const int64_t fits = number_after(message, "train.batch_size = ");
  release_cached(Device::simt);
  auto tuner = tuner_on_simt();
  steps(*tuner, fits);

  // Nothing at all fits beside the weights.
  tuner.reset();
  release_cached(Device::simt);
  tuner = tuner_on_simt();
  simt::limit_memory(size_t(reserved()));
  EXPECT_THROW(
      {
        try {
          steps(*tuner, 16);
        } catch (const UserError& e) {
          EXPECT_NE(std::string(e.what()).find("not even one image fits"), std::string::npos)
              << e.what();
          throw;
        }
      },
      UserError);
  simt::limit_memory(0);
  steps(*tuner, 2);
}

TEST(Memory, ScoringTakesWhatFitsAtATime) {
  simt::limit_memory(0);
  const auto reserved = [] { return size_t(allocator_stats(Device::simt).bytes_reserved); };
  auto tuner = tuner_on_simt();
  const Batch batch = random_batch(64);
  const std::vector<double> want = tuner->logits(batch.patches, 64).to_vector();
  const size_t all = reserved();
  release_cached(Device::simt);
  const size_t weights = reserved();

  simt::limit_memory(weights + (all - weights) / 4);
  EXPECT_EQ(tuner->logits(batch.patches, 64).to_vector(), want);
  release_cached(Device::simt);
  simt::limit_memory(weights);
  EXPECT_THROW(tuner->logits(batch.patches, 64), UserError);
  simt::limit_memory(0);
  EXPECT_EQ(tuner->logits(batch.patches, 64).to_vector(), want);
}

// The batch is the loader's first: its memory runs out before there is a step.
TEST(Memory, ALoaderThatDoesNotFitNamesTheSameBatch) {
  const test::TemporaryDirectory directory;
  VitConfig vit = tiny();
  vit.image_size = 16;
  RunConfig config;
  config.model.weights = save_base(Vit::create(vit, DType::f32, 3), directory / "base");
  config.device = DeviceChoice::simt;
  config.precision = Precision::f32;
  config.lora.rank = 2;
  config.train.epochs = 1;
  config.data.format = DataFormat::synthetic;
  config.data.synthetic = {.train = 19, .test = 4, .clients = 1, .shift = 1, .size = 16};
  config = completed(config);
  const std::string client = config.federation.clients.front();
  const auto train = [&](int64_t batch) {
    config.train.batch_size = batch;
    SiteTrainer trainer(config, client, "");
    trainer.start(false);
    trainer.train_round(0, 1);
  };
  // By the emulator's own account, which rounds every block up.
  const size_t plenty = size_t{1} << 30;
  const auto held = [&] {
    simt::limit_memory(plenty);
    return plenty - simt::free_memory();
  };
  release_cached(Device::simt);
  train(4);
  const size_t enough = held();
  release_cached(Device::simt);
  const size_t before = held();
  simt::limit_memory(enough);
  std::string message;
  try {
    train(4096);  // 4 KiB an image and more
  } catch (const UserError& e) {
    message = e.what();
  }
  for (const char* part :
       {"train.batch_size: 4096 images do not fit", "device simt is out of memory", "are free"})
    EXPECT_NE(message.find(part), std::string::npos) << message;
  const int64_t fits = number_after(message, "train.batch_size = ");
  EXPECT_GE(fits, 2) << message;
  EXPECT_LT(fits, 4096) << message;
  // Nor do 4096 images in small batches, and nobody says so.
  EXPECT_EQ(message.find("train.accumulate"), std::string::npos) << message;
  release_cached(Device::simt);
  // Another process would not have the scratch memory that this thread needed for larger batches.
  simt::limit_memory(enough + held() - before);
  train(fits);
  simt::limit_memory(0);
}

}  // namespace
}  // namespace orthofed
