// A device that is too small for the batch: the message names a batch that fits, and it does fit.
#include <gtest/gtest.h>

#include <cstdlib>
#include <random>

#include "engine/data/loader.h"
#include "engine/tensor/allocator.h"
#include "kernels/simt/memory.h"
#include "models/fine_tune.h"

namespace orthofed {
namespace {

VitConfig tiny() {
  VitConfig c;
  c.image_size = 8;
  c.patch = 4;
  c.dim = 12;
  c.depth = 2;
  c.heads = 2;
  c.mlp_dim = 24;
  return c;
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

TEST(Memory, ABatchThatDoesNotFitNamesOneThatDoes) {
  // What four images need, cached blocks included: 16 will not fit, 2 will, beside what 16 left.
  const auto reserved = [] { return allocator_stats(Device::simt).bytes_reserved; };
  steps(*tuner_on_simt(), 4);
  const int64_t enough = reserved();
  release_cached(Device::simt);
  simt::limit_memory(size_t(enough));

  auto tuner = tuner_on_simt();
  const Batch batch = random_batch(16);
  std::string message;
  try {
    tuner->step({&batch, &batch}, 0.5, 1, Phase::joint, 0);
  } catch (const UserError& e) {
    message = e.what();
  }
  const int64_t fits = number_after(message, "train.batch_size = ");
  EXPECT_GE(fits, 2) << message;
  EXPECT_LT(fits, 16) << message;
  EXPECT_EQ(number_after(message, "train.accumulate = "), 32 / fits) << message;
  for (const char* part : {"train.batch_size: 16 images do not fit", "device simt is out of memory",
                           "more were needed", "are in use", "are free"})
    EXPECT_NE(message.find(part), std::string::npos) << message;
  tuner.reset();
  release_cached(Device::simt);
  tuner = tuner_on_simt();
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

}  // namespace
}  // namespace orthofed
