#include <fmt/core.h>

#include <filesystem>
#include <iostream>

#include "cli/commands.h"
#include "cli/terminal/json.h"
#include "cli/terminal/site_view.h"
#include "engine/io/files.h"
#include "engine/io/safetensors.h"
#include "kernels/core/parallel.h"
#include "models/adapters/bundle.h"
#include "models/scoring/predict.h"
#include "models/training/make.h"

namespace orthofed::cli {

int predict_command(const PredictArguments& o) {
  Terminal terminal(o.global);
  const Device device = device_of(o.device);
  if (o.precision == Precision::automatic && device == Device::cpu && !cpu::native_bf16())
    terminal.warning("this processor does not multiply bf16 natively: computing in fp32");
  const PredictImages images = open_images(o.input);
  auto base = load_base(o.weights, o.config, device, o.precision, o.image_size);
  if (o.frozen_precision == FrozenPrecision::fp8) base->quantize();
  const Predictor predictor(std::move(base), o.adapters);
  say_left_aside(terminal, predictor.model());
  if (!o.csv.empty() && !predictor.has_head())
    throw UserError(
        "--csv: neither the weights nor an adapter has a head, so there are no classes to write; "
        "leave it out or give an adapter");
  for (const std::string& file : {o.output, o.csv})
    if (const auto folder = std::filesystem::path(file).parent_path(); !folder.empty())
      require_directory(folder.string(), "the folder of the output");
  Progress progress(terminal, "predicting", images.size());
  int64_t shown = 0;
  const Prediction p = predict(predictor, images, 16, [&](int64_t done, int64_t) {
    progress.advance(done - shown);
    shown = done;
  });
  progress.finish();
  TensorMap out = {{"features", p.features}};
  if (p.logits.defined()) out["logits"] = p.logits;
  save_safetensors(o.output, out);
  if (!o.csv.empty()) {
    std::vector<std::string> classes = predictor.classes();
    if (classes.empty()) classes = label_names(o.weights, o.config);
    if (int64_t(classes.size()) != p.logits.cols()) classes.clear();
    write_predictions_csv(o.csv, images, p, classes);
  }
  if (o.global.json) {
    std::cout << json_object({{"images", std::to_string(images.size())},
                              {"features", std::to_string(p.features.cols())},
                              {"classes", std::to_string(p.logits.defined() ? p.logits.cols() : 0)},
                              {"output", json_text(o.output)}})
              << "\n";
  } else if (!o.global.quiet) {
    std::cout << fmt::format(
        "{} images: features of width {}{} in {}\n", images.size(), p.features.cols(),
        p.logits.defined() ? fmt::format(" and {} logits", p.logits.cols()) : "", o.output);
  }
  return 0;
}

}  // namespace orthofed::cli
