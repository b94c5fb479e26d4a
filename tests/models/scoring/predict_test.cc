// A real pretrained ViT-Tiny against features and logits computed in float64 (needs OF_DATA), and
// predictions with adapters from files.
#include "models/scoring/predict.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>

#include "engine/io/npz.h"
#include "engine/io/resize.h"
#include "models/training/pretrain.h"
#include "tests/support/files.h"
#include "tests/support/graph.h"

namespace orthofed {
namespace {

using test::relative_norm;
using test::TemporaryDirectory;
using test::user_error;

std::string vit_tiny() {
  const char* data = std::getenv("OF_DATA");
  return data == nullptr ? "" : std::string(data) + "/vit_tiny_pretrained/";
}

int64_t argmax(const Tensor& t, int64_t row) {
  const float* r = t.row<float>(row);
  return std::max_element(r, r + t.cols()) - r;
}

class RealWeights : public testing::TestWithParam<DType> {};

TEST_P(RealWeights, FeaturesAndLogitsAgree) {
  if (vit_tiny().empty()) GTEST_SKIP() << "OF_DATA is not set: no real weights to check";
  const DType compute = GetParam();
  const Predictor predictor(std::make_unique<Vit>(Vit::load(
                                vit_tiny() + "vit_tiny_patch16_224.safetensors", "", compute)),
                            {});
  const std::string reference = vit_tiny() + "reference_io.npz";
  const Prediction got = predict(predictor, open_images({reference}), 2, {});
  const NpzFile npz(reference);
  const Tensor features = npz.read("features"), logits = npz.read("logits");
  const double tolerance = compute == DType::f32 ? 1e-4 : 2e-2;
  EXPECT_LE(relative_norm(got.features, features), tolerance);
  EXPECT_LE(relative_norm(got.logits, logits), tolerance);
  for (int64_t i = 0; i < features.rows(); ++i)
    EXPECT_EQ(argmax(got.logits, i), argmax(logits.to(DType::f32), i));
}

INSTANTIATE_TEST_SUITE_P(ComputeTypes, RealWeights, testing::Values(DType::f32, DType::bf16),
                         [](const auto& param) { return std::string(name_of(param.param)); });

// The same weights at 160 px, the middle of two of those images: timm's position embedding
// resampled to 10 x 10. Norms of features and logits and the first four of each, by timm 1.0.31 in
// float64 (dynamic_img_size=True).
TEST(RealWeights160, FeaturesAndLogitsAgree) {
  if (vit_tiny().empty()) GTEST_SKIP() << "OF_DATA is not set: no real weights to check";
  const std::vector<std::vector<double>> features = {
      {58.7559766, 3.5478293, 4.2054937, 1.7364070, 12.0732972},
      {41.3313006, -0.1727339, -1.1948608, 0.8982366, 3.0678916}};
  const std::vector<std::vector<double>> logits = {
      {73.9912190, -1.4299283, 2.0630470, -0.9890734, -0.4521255},
      {65.5860386, 0.1103258, 3.9993485, -0.7341363, -0.2556217}};
  const Vit model = Vit::load(vit_tiny() + "vit_tiny_patch16_224.safetensors", "", DType::f32, 160);
  const PredictImages all = open_images({vit_tiny() + "reference_io.npz"});
  const Tensor patches =
      to_patches({centre_crop(all.load(0), 160, 160), centre_crop(all.load(1), 160, 160)}, model);
  Tape tape(false);
  const Var f = model.features(tape, patches, 2), z = model.logits(tape, f);
  const auto compare = [](const Tensor& got, const std::vector<std::vector<double>>& want) {
    for (int64_t i = 0; i < 2; ++i) {
      const float* row = got.row<float>(i);
      double norm = 0;
      for (int64_t j = 0; j < got.cols(); ++j) norm += double(row[j]) * double(row[j]);
      std::vector<double> values = {std::sqrt(norm), row[0], row[1], row[2], row[3]};
      EXPECT_LE(relative_norm(Tensor::of(values, {5}), Tensor::of(want[size_t(i)], {5})), 1e-4);
      // Against the norm alone the four would not count.
      for (size_t j = 1; j < 5; ++j)
        EXPECT_NEAR(values[j], want[size_t(i)][j], 1e-4 * want[size_t(i)][0]);
    }
  };
  compare(f.value(), features);
  compare(z.value(), logits);
}

VitConfig tiny() {
  return {
      .image_size = 16, .patch = 8, .dim = 12, .depth = 2, .heads = 3, .mlp_dim = 24, .classes = 3};
}

Tensor some_image(uint64_t seed) {
  std::vector<uint8_t> pixels(16 * 16 * 3);
  for (size_t i = 0; i < pixels.size(); ++i) pixels[i] = uint8_t(Philox{seed}(i)[0]);
  return Tensor::of(pixels, {16 * 16 * 3}).reshape({16, 16, 3});
}

TEST(Predictor, AdaptersFromFiles) {
  const TemporaryDirectory dir;
  auto model = [] { return std::make_unique<Vit>(Vit::create(tiny(), DType::f32, 1)); };
  LoraConfig lora;
  lora.rank = 2;
  lora.targets = {"q", "v", "fc1"};
  auto trained = model();
  attach_adapters(*trained, lora, AdapterKind::general);
  draw_adapters(*trained, lora, AdapterKind::general, 7, "");
  for (AdapterSlice* s : adapter_slices(*trained))
    adapter_of(*s, AdapterKind::general)->b.value().fill(0.1);
  for (Linear* layer : adapted_layers(*trained)) layer->refresh_adapters();
  AdapterFile file{AdapterKind::general,
                   2.0,
                   {"a", "b", "c"},
                   "",
                   "opal",
                   1,
                   adapter_tensors(*trained, AdapterKind::general)};
  file.tensors["head.weight"] = test::random_tensor({3, 12}, DType::f32, 3);
  file.tensors["head.bias"] = test::random_tensor({3}, DType::f32, 4);
  file.preprocessing = {0, 0.75, "bilinear"};
  save_adapter(dir / "general.safetensors", file);

  const Predictor plain(model(), {}), adapted(model(), {dir / "general.safetensors"});
  EXPECT_TRUE(plain.classes().empty());
  EXPECT_EQ(adapted.classes(), file.classes);
  // Images are prepared as those it was trained on.
  EXPECT_EQ(adapted.model().config.crop_pct, 0.75);
  EXPECT_EQ(adapted.model().config.interpolation, "bilinear");
  EXPECT_EQ(plain.model().config.crop_pct, tiny().crop_pct);
  file.preprocessing.image_size = 2 * plain.model().config.image_size;
  save_adapter(dir / "larger.safetensors", file);
  EXPECT_TRUE(user_error([&] { Predictor(model(), {dir / "larger.safetensors"}); },
                         {"trained on images of", "set its image size to"}));
  file.preprocessing.image_size = 0;
  const Tensor patches = to_patches({some_image(1), some_image(2)}, plain.model());
  const auto a = plain.predict(patches, 2), b = adapted.predict(patches, 2);
  EXPECT_GT(relative_norm(b.features, a.features), 1e-3);  // the adapter does something
  Tape tape(false);
  EXPECT_LE(relative_norm(b.features, trained->features(tape, patches, 2).value()), 1e-6);
  EXPECT_EQ(b.logits.cols(), 3);

  EXPECT_TRUE(user_error(
      [&] {
        Predictor(model(), {dir / "general.safetensors", dir / "general.safetensors"});
      },
      {"second general adapter"}));
  file.tensors["head.weight"] = test::random_tensor({3, 11}, DType::f32, 3);
  save_adapter(dir / "bad.safetensors", file);
  EXPECT_TRUE(
      user_error([&] { Predictor(model(), {dir / "bad.safetensors"}); }, {"head", "width 12"}));
  file.tensors["blocks.9.attn.q.lora_A.weight"] = Tensor::zeros({2, 12}, DType::f32);
  save_adapter(dir / "layer.safetensors", file);
  EXPECT_TRUE(
      user_error([&] { Predictor(model(), {dir / "layer.safetensors"}); }, {"blocks.9.attn.q"}));
}

TEST(Vit, WrongWeightsAreNamed) {
  const Vit good = Vit::create(tiny(), DType::f32, 1);
  auto load = [&](TensorMap t) { Vit::from_tensors(good.config, t, DType::f32, false); };
  TensorMap t = good.tensors();
  EXPECT_NO_THROW(load(t));
  t.erase("blocks.1.mlp.fc2.bias");
  EXPECT_NO_THROW(load(t));  // biases are optional
  t.erase("blocks.1.mlp.fc2.weight");
  EXPECT_TRUE(user_error([&] { load(t); }, {"'blocks.1.mlp.fc2.weight' is missing"}));
  t = good.tensors();
  t["blocks.0.attn.qkv.weight"] = Tensor::zeros({7, 12}, DType::f32);
  EXPECT_TRUE(user_error([&] { load(t); }, {"blocks.0.attn.qkv.weight", "[7, 12]", "[36, 12]"}));
  t = good.tensors();
  t["norm.weight"] = Tensor::full({12}, DType::f32, NAN);
  EXPECT_TRUE(user_error([&] { load(t); }, {"norm.weight", "NaN"}));
  t = good.tensors();
  t["blocks.0.attn.q_norm.weight"] = Tensor::zeros({4}, DType::f32);
  EXPECT_TRUE(user_error([&] { load(t); }, {"blocks.0.attn.q_norm.bias", "missing"}));
  t = good.tensors();
  t["blocks.0.attn.rel_pos"] = Tensor::zeros({4}, DType::f32);
  EXPECT_TRUE(user_error([&] { load(t); }, {"blocks.0.attn.rel_pos", "timm", "not supported"}));
  EXPECT_TRUE(user_error([&] { Vit::load("/nonexistent.safetensors", "", DType::f32); },
                         {"/nonexistent.safetensors"}));
}

TEST(Predict, CsvHoldsPathClassAndProbabilities) {
  const TemporaryDirectory dir;
  const Predictor predictor(std::make_unique<Vit>(Vit::create(tiny(), DType::f32, 1)), {});
  PredictImages images;
  images.names = {"a,b.png", "c.png"};
  images.load = [](int64_t i) { return some_image(uint64_t(i)); };
  const Prediction p = predict(predictor, images, 2, {});
  write_predictions_csv(dir / "p.csv", images, p, {"x", "y", "z"});
  std::ifstream in(dir / "p.csv");
  std::string header, first;
  std::getline(in, header);
  std::getline(in, first);
  EXPECT_EQ(header, "path,class,x,y,z");
  EXPECT_TRUE(first.starts_with("\"a,b.png\","));
  EXPECT_TRUE(user_error([] { open_images({"/nonexistent.png"}); }, {"/nonexistent.png"}));
}

// The GPU's kernels, emulated, from pixels to gradients of every parameter. AdamW would make the
// order of a sum into a step, so the losses are compared and not the weights.
TEST(Predict, ImagesFromAnArchive) {
  const TemporaryDirectory folder;
  const std::string path = folder / "images.npz";
  const auto open = [&](const Tensor& images) {
    save_npz(path, {{"images", images}});
    return open_images({path});
  };
  const Tensor grey = Tensor::of(std::vector<uint8_t>{1, 2, 3, 4}, {2, 1, 2}).contiguous();
  for (const Tensor& images : {grey, grey.reshape({2, 1, 2, 1})}) {
    const PredictImages got = open(images);
    ASSERT_EQ(got.size(), 2);
    EXPECT_EQ(got.names[1], path + "#1");
    EXPECT_EQ(got.load(1).shape(), Shape({1, 2, 3}));
    EXPECT_EQ(got.load(1).to_vector(), (std::vector<double>{3, 3, 3, 4, 4, 4}));
  }
  const Tensor colour = Tensor::of(std::vector<uint8_t>{1, 2, 3, 4, 5, 6}, {2, 1, 1, 3});
  EXPECT_EQ(open(colour).load(1).to_vector(), (std::vector<double>{4, 5, 6}));
  EXPECT_TRUE(user_error(
      [&] {
        open(Tensor::zeros({2, 2, 2}, DType::f32));
      },
      {path, "f32 [2, 2, 2]", "expected u8 [N, H, W]"}));
  EXPECT_TRUE(user_error([&] { open(Tensor::zeros({0, 2, 2}, DType::u8)); }, {path, "no image"}));
  save_npz(path, {{"pictures", grey}});
  EXPECT_TRUE(user_error([&] { open_images({path}); }, {path, "no array 'images'"}));
}

TEST(Pretrain, TheEmulatedDeviceComputesTheSameLosses) {
  PretrainOptions options;
  options.vit = tiny();
  options.head_classes = {3};
  options.steps = 2;
  options.batch_size = 3;
  const int64_t side = tiny().image_size;
  std::vector<uint8_t> pixels;
  for (uint64_t i = 0; i < 4; ++i)
    for (const double v : some_image(i).to_vector()) pixels.push_back(uint8_t(v));
  const MultiHeadImages images{
      Tensor::of(pixels, {int64_t(pixels.size())}).reshape({4, side, side, 3}), {{0, 1, 2, 0}}};
  const auto losses_on = [&](Device device) {
    const OnDevice scope(device);
    std::vector<double> losses;
    pretrain(images, images, options,
             [&](int64_t, int64_t, double loss) { losses.push_back(loss); });
    return losses;
  };
  const std::vector<double> want = losses_on(Device::cpu), got = losses_on(Device::simt);
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < want.size(); ++i) EXPECT_NEAR(got[i], want[i], 1e-4 * want[i]) << i;
}

}  // namespace
}  // namespace orthofed
