// One LoRA training step, the job that bench/peers/lora_step.py does in PyTorch: general and
// personal adapter of rank 8 on qkv, proj, fc1, fc2, a trained head, cross-entropy, AdamW, clip 1;
// random pixels already in memory, or with --job what that script left: the same model, adapters
// and images. It prints one JSON line. A process runs one model, so that the peak memory is its
// own. With --profile it tells afterwards where the step's time goes and the least that each part
// can take.
#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "bench/support/process.h"
#include "engine/data/loader.h"
#include "engine/io/safetensors.h"
#include "engine/tensor/allocator.h"
#include "engine/tensor/profile.h"
#ifdef OF_HAVE_CUDA
#include "kernels/core/cuda_device.h"
#endif
#include "kernels/core/parallel.h"
#include "kernels/core/philox.h"
#include "kernels/matmul/matmul.h"
#include "models/training/fine_tune.h"
#include "models/training/make.h"

namespace orthofed {
namespace {

using Clock = std::chrono::steady_clock;

VitConfig geometry(const std::string& name) {
  VitConfig c;
  c.dim = name == "tiny" ? 192 : name == "small" ? 384 : name == "base" ? 768 : 1024;
  c.heads = c.dim / 64;
  c.mlp_dim = 4 * c.dim;
  if (name == "large")
    c.depth = 24;
  else if (name != "tiny" && name != "small" && name != "base")
    throw UserError("unknown model " + name + "; known: tiny, small, base, large");
  return c;
}

template <class F>
std::vector<double> milliseconds(int warmup, int steps, const F& body) {
  std::vector<double> times;
  for (int i = 0; i < warmup + steps; ++i) {
    const auto begin = Clock::now();
    body(i);
    const double ms = std::chrono::duration<double, std::milli>(Clock::now() - begin).count();
    if (i >= warmup) times.push_back(ms);
  }
  return times;
}

// The rows of a Profile of more steps as JSON: ms of each kernel in each place, and least_ms, what
// the nearer ceiling allows it.
template <class F>
std::string parts(DType compute, const F& step) {
  constexpr int kSteps = 3;
  const Ceilings ceilings = measure_ceilings(compute);
  Profile profile(queue(), ceilings, kSteps);
  for (int i = 0; i < Profile::kWarmUp + kSteps; ++i) {
    profile.step();
    step();
  }
  profile.finish();
  std::string rows;
  for (const Profile::Row& r : profile.rows())
    rows += fmt::format(
        "{}{{\"kernel\": \"{}\", \"in\": \"{}\", \"ms\": {:.3f}, \"least_ms\": {:.3f}}}",
        rows.empty() ? "" : ", ", r.name, r.where, 1e3 * r.seconds, 1e3 * ceilings.seconds(r.cost));
  return fmt::format(
      ", \"ceilings\": {{\"gflops\": {:.1f}, \"gbs\": {:.1f}}}, \"profiled_ms\": {:.1f}, "
      "\"parts\": [{}]",
      1e-9 * ceilings.flops, 1e-9 * ceilings.bytes, 1e3 * profile.step_seconds(), rows);
}

struct Options {
  std::string model = "tiny", precision = cpu::native_bf16() ? "bf16" : "f32", job;
  AdapterStrategy strategy = AdapterStrategy::unmerged;
  FrozenPrecision frozen = FrozenPrecision::same;
  Device device = Device::cpu;
  int threads = 2, steps = 5;
  int64_t batch = 16;
  bool profile = false;
};

// The fine-tuner and the batch that it steps on.
struct Work {
  std::unique_ptr<FineTuner> tuner;
  Batch batch;
};

FineTuneOptions fine_tuning(const Options& o) {
  FineTuneOptions options;
  options.lora.strategy = o.strategy;
  options.train.frozen_precision = o.frozen;
  options.classes = 5;
  options.train.warmup = 0;
  return options;
}

Work random_work(const Options& o, DType compute) {
  const VitConfig c = geometry(o.model);
  // Weights are made as a trainable model makes them, then frozen as a loaded one is.
  const TensorMap weights = Vit::create(c, DType::f32, 1).tensors();
  const OnDevice scope(o.device);
  auto vit = std::make_unique<Vit>(Vit::from_tensors(c, weights, compute, false));
  Work work{std::make_unique<FineTuner>(std::move(vit), fine_tuning(o)), {}};
  work.tuner->draw_general();
  work.tuner->draw_personal();
  const OnDevice host(Device::cpu);
  Batch& b = work.batch;
  b.patches = Tensor::empty({o.batch * c.patches(), 3 * c.patch * c.patch}, compute);
  const Philox rng{7};
  dispatch(compute, [&]<class T>(Tag<T>) {
    uint64_t n = 0;
    for (int64_t r = 0; r < b.patches.rows(); ++r)
      for (int64_t k = 0; k < b.patches.cols(); ++k)
        b.patches.row<T>(r)[k] = T(float(normal(rng, n++)));
  });
  std::vector<int32_t> labels;
  for (int64_t i = 0; i < o.batch; ++i) labels.push_back(int32_t(i % 5));
  b.labels = Tensor::of(labels, {o.batch});
  return work;
}

// What bench/peers/lora_step.py --job left in a folder.
Work work_of(const Options& o, DType compute) {
  const TensorMap step = load_safetensors(o.job + "/step.safetensors").tensors;
  const OnDevice scope(o.device);
  auto vit = std::make_unique<Vit>(Vit::load(o.job + "/weights.safetensors", "", compute));
  const auto at = [&](const std::string& name) -> const Tensor& {
    const auto it = step.find(name);
    if (it == step.end()) throw UserError(o.job + "/step.safetensors: no tensor " + name);
    return it->second;
  };
  const auto under = [&](const std::string& prefix) {
    TensorMap part;
    for (const auto& [name, t] : step)
      if (name.starts_with(prefix)) part[name.substr(prefix.size())] = t;
    return part;
  };
  Work work{std::make_unique<FineTuner>(std::move(vit), fine_tuning(o)), {}};
  work.tuner->load_general(under("general."));
  work.tuner->load_personal(under("personal."));
  const OnDevice host(Device::cpu);
  work.batch.patches = at("patches").to(compute).clone();
  work.batch.labels = at("labels").clone();
  return work;
}

int run(const Options& o) {
  cpu::set_threads(o.threads);
  const DType compute = o.precision == "bf16" ? DType::bf16 : DType::f32;
  Work work = o.job.empty() ? random_work(o, compute) : work_of(o, compute);
  FineTuner& tuner = *work.tuner;
  Batch& b = work.batch;
  const int64_t batch = b.labels.size();
  b.weights = Tensor::full({batch}, DType::f32, 1);
  b.valid = batch;
  const OnDevice scope(o.device);
  b.patches = b.patches.on(o.device);  // in memory before the step, as the loader's are

  const StepResult first = tuner.step({&b}, 0.5, 1, Phase::joint, 0);
  StepResult last;
  const std::vector<double> train = milliseconds(
      1, o.steps, [&](int i) { last = tuner.step({&b}, 0.5, 1, Phase::joint, uint64_t(i + 1)); });
  const double peak = peak_mib();
  const int64_t before = allocator_stats(o.device).heap_allocations;
  tuner.step({&b}, 0.5, 1, Phase::joint, 99);
  const int64_t allocations = allocator_stats(o.device).heap_allocations - before;
  const std::vector<double> infer =
      milliseconds(1, o.steps, [&](int) { tuner.logits(b.patches, batch); });
  const std::string profiled =
      o.profile ? parts(compute, [&] { tuner.step({&b}, 0.5, 1, Phase::joint, 0); }) : "";
  if (!(std::isfinite(last.loss) && last.norm > 0))
    throw Error("the step did no work: no gradient");

  std::string gpu;
#ifdef OF_HAVE_CUDA
  if (o.device == Device::cuda)
    gpu = fmt::format("\"device\": \"{}\", \"peak_gpu_mb\": {}, ", cuda::gpus().at(0).name,
                      allocator_stats(o.device).peak_bytes_in_use >> 20);
#endif
  double load = 0;
  std::ifstream("/proc/loadavg") >> load;
  fmt::print(
      "{{\"provider\": \"orthofed\", \"model\": \"vit_{}_patch16_224\", \"mode\": \"{}{}{}\", "
      "\"batch\": {}, \"threads\": {}, \"isa\": \"{}\", \"matmul\": \"{}\", "
      "\"step_ms\": {:.1f}, \"step_ms_min\": {:.1f}, \"step_ms_max\": {:.1f}, "
      "\"images_per_second\": {:.2f}, \"inference_images_per_second\": {:.2f}, "
      "\"peak_rss_mb\": {:.0f}, \"warm_step_allocations\": {}, {}\"first_loss\": {:.8g}, "
      "\"first_gradient_norm\": {:.8g}, \"load_average\": {:.2f}{}}}\n",
      o.model, o.precision,
      o.strategy == AdapterStrategy::unmerged ? "" : std::string("-") + word(o.strategy),
      o.frozen == FrozenPrecision::same ? "" : std::string("-") + word(o.frozen), batch, o.threads,
      cpu::name_of(cpu::isa()), cpu::matmul_backend(), median(train),
      *std::min_element(train.begin(), train.end()), *std::max_element(train.begin(), train.end()),
      1e3 * double(batch) / median(train), 1e3 * double(batch) / median(infer), peak, allocations,
      gpu, first.loss, first.norm, load, profiled);
  return 0;
}

}  // namespace
}  // namespace orthofed

// The value of E that an option names.
template <class E>
E chosen(const std::string& option, const std::string& text) {
  const auto value = orthofed::value_of<E>(text);
  if (!value) throw orthofed::UserError(option + " " + text + ": no such choice, see --help");
  return *value;
}

int main(int argc, char** argv) {
  try {
    orthofed::Options o;
    for (int i = 1; i < argc; ++i) {
      const std::string option = argv[i];
      if (option == "--help") {
        std::puts(
            "usage: lora_step_bench [--model tiny|small|base|large] [--precision f32|bf16]\n"
            "                       [--threads N] [--batch N] [--steps N] [--profile] [--job DIR]\n"
            "                       [--strategy unmerged|extended|merged] [--frozen same|fp8]\n"
            "                       [--device cpu|cuda|simt]\n"
            "--job: the model, adapters and images that bench/peers/lora_step.py --job left");
        return 0;
      }
      if (option == "--profile") {
        o.profile = true;
        continue;
      }
      if (i + 1 == argc) throw orthofed::UserError(option + ": a value is missing, see --help");
      const std::string value = argv[++i];
      if (option == "--model")
        o.model = value;
      else if (option == "--precision")
        o.precision = value;
      else if (option == "--job")
        o.job = value;
      else if (option == "--device")
        o.device = orthofed::device_of(chosen<orthofed::DeviceChoice>(option, value));
      else if (option == "--strategy")
        o.strategy = chosen<orthofed::AdapterStrategy>(option, value);
      else if (option == "--frozen")
        o.frozen = chosen<orthofed::FrozenPrecision>(option, value);
      else if (option == "--threads")
        o.threads = std::atoi(value.c_str());
      else if (option == "--batch")
        o.batch = std::atoll(value.c_str());
      else if (option == "--steps")
        o.steps = std::atoi(value.c_str());
      else
        throw orthofed::UserError("unknown option " + option + ", see --help");
    }
    if (o.precision != "f32" && o.precision != "bf16")
      throw orthofed::UserError("--precision " + o.precision + ": f32 or bf16");
    if (o.threads < 1 || o.batch < 1 || o.steps < 1)
      throw orthofed::UserError("--threads, --batch and --steps take positive numbers");
    return orthofed::run(o);
  } catch (const orthofed::UserError& e) {
    fmt::print(stderr, "lora_step_bench: {}\n", e.what());
    return 2;
  }
}
