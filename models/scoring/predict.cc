#include "models/scoring/predict.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "engine/data/dataset.h"
#include "engine/data/image_feed.h"
#include "engine/io/files.h"
#include "engine/io/image.h"
#include "engine/io/npz.h"
#include "engine/io/resize.h"
#include "kernels/softmax/softmax.h"

namespace orthofed {
namespace {

namespace fs = std::filesystem;

PredictImages from_npz(const std::string& path) {
  const NpzFile file(path);
  if (!file.contains("images"))
    throw UserError(fmt::format("{}: no array 'images' (u8 [N, H, W, 3])", path));
  const Tensor all = file.read("images");
  const std::shared_ptr<const ImageSource> source = array_images(all, path);
  if (all.size() == 0) throw UserError(fmt::format("{}: 'images' holds no image", path));
  PredictImages images;
  for (int64_t i = 0; i < all.dim(0); ++i) images.names.push_back(fmt::format("{}#{}", path, i));
  images.load = [source](int64_t i) { return source->load(i); };
  return images;
}

std::string csv_field(const std::string& text) {
  if (text.find_first_of(",\"\n\r") == std::string::npos) return text;
  std::string quoted = "\"";
  for (char c : text) quoted += c == '"' ? "\"\"" : std::string(1, c);
  return quoted + "\"";
}

ImageFeed feed_for(const Vit& model, int64_t batch) {
  const OnDevice scope(model.device());
  const VitConfig& c = model.config;
  return ImageFeed({batch, c.image_size, c.image_size, c.image_size, c.patch}, c.mean, c.std,
                   model.compute);
}

Tensor to_patches(const std::vector<Tensor>& images, ImageFeed& feed,
                  const ImageFeed::Stage& stage) {
  const auto count = int64_t(images.size());
  for (int64_t i = 0; i < count; ++i) {
    const Tensor& image = images[size_t(i)];
    OF_CHECK(image.size() == stage.pixels.cols() && image.dense(), "images of the model's size");
    std::copy_n(image.data<uint8_t>(), image.size(), stage.pixels.row<uint8_t>(i));
  }
  return feed.patches_of(stage, count);
}

}  // namespace

PredictImages open_images(const std::vector<std::string>& inputs) {
  if (inputs.size() == 1 && inputs[0].ends_with(".npz")) return from_npz(inputs[0]);
  PredictImages images;
  for (const std::string& input : inputs) {
    if (!fs::is_directory(input)) {
      require_file(input, "the image");
      images.names.push_back(input);
      continue;
    }
    std::vector<std::string> found;
    for (const auto& entry : fs::recursive_directory_iterator(input))
      if (entry.is_regular_file() && has_image_suffix(entry.path().string()))
        found.push_back(entry.path().string());
    if (found.empty()) throw UserError(fmt::format("{}: no image in this folder", input));
    std::sort(found.begin(), found.end());
    images.names.insert(images.names.end(), found.begin(), found.end());
  }
  if (images.names.empty()) throw UserError("no image to predict; give an .npz, a folder or files");
  images.load = [names = images.names](int64_t i) { return load_image(names[size_t(i)]); };
  return images;
}

Tensor to_patches(const std::vector<Tensor>& images, const Vit& model) {
  ImageFeed feed = feed_for(model, int64_t(images.size()));
  return to_patches(images, feed, feed.stage());
}

Prediction predict(const Predictor& predictor, const PredictImages& images, int64_t batch_size,
                   const std::function<void(int64_t, int64_t)>& progress) {
  const VitConfig& c = predictor.model().config;
  const Interpolation interpolation =
      c.interpolation == "bilinear" ? Interpolation::bilinear : Interpolation::bicubic;
  const int64_t n = images.size();
  Prediction result{Tensor::empty({n, c.feature_dim()}, DType::f32), {}, {}};
  ImageFeed feed = feed_for(predictor.model(), std::min(n, batch_size));
  const ImageFeed::Stage stage = feed.stage();
  for (int64_t begin = 0; begin < n; begin += batch_size) {
    const int64_t end = std::min(n, begin + batch_size);
    std::vector<Tensor> batch;
    for (int64_t i = begin; i < end; ++i) {
      Tensor image = images.load(i);
      if (image.dim(0) != c.image_size || image.dim(1) != c.image_size)
        image = resize_to_square(image, c.image_size, c.crop_pct, interpolation);
      batch.push_back(image.contiguous());
    }
    const Predictor::Output out = predictor.predict(to_patches(batch, feed, stage), end - begin);
    result.features.row_range(begin, end).copy_from(out.features);
    if (out.logits.defined()) {
      if (!result.logits.defined())
        result.logits = Tensor::empty({n, out.logits.cols()}, DType::f32);
      result.logits.row_range(begin, end).copy_from(out.logits);
    }
    if (progress) progress(end, n);
  }
  if (result.logits.defined()) {
    result.probabilities = Tensor::empty(result.logits.shape(), DType::f32);
    cpu::softmax_forward(SoftmaxForward<float>{.x = result.logits.data<float>(),
                                               .ldx = result.logits.pitch(),
                                               .y = result.probabilities.data<float>(),
                                               .ldy = result.probabilities.pitch(),
                                               .rows = n,
                                               .cols = result.logits.cols()});
  }
  return result;
}

void write_predictions_csv(const std::string& path, const PredictImages& images,
                           const Prediction& prediction, const std::vector<std::string>& classes) {
  if (!prediction.logits.defined())
    throw UserError(path + ": these weights have no head, so there are no classes to write");
  const Tensor& p = prediction.probabilities;
  auto class_name = [&](int64_t c) {
    return size_t(c) < classes.size() ? classes[size_t(c)] : std::to_string(c);
  };
  std::string text = "path,class";
  for (int64_t c = 0; c < p.cols(); ++c) text += fmt::format(",{}", csv_field(class_name(c)));
  text += "\n";
  for (int64_t i = 0; i < images.size(); ++i) {
    const float* row = p.row<float>(i);
    text += csv_field(images.names[size_t(i)]) + "," +
            csv_field(class_name(std::max_element(row, row + p.cols()) - row));
    for (int64_t c = 0; c < p.cols(); ++c) text += fmt::format(",{:.6g}", row[c]);
    text += "\n";
  }
  write_file(path, text);
}

}  // namespace orthofed
