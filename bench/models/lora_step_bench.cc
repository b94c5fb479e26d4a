// One LoRA training step, the job that bench/peers/lora_step.py does in PyTorch: general and
// personal adapter of rank 8 on qkv, proj, fc1, fc2, a trained head, cross-entropy, AdamW, clip 1;
// random pixels already in memory. One JSON line; one model a process, so that peak memory is its
// own. With --profile, afterwards, where the step's time goes and the least that each part can
// take.
#include <fmt/core.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "engine/data/loader.h"
#include "engine/tensor/allocator.h"
#include "engine/tensor/profile.h"
#include "kernels/core/parallel.h"
#include "kernels/core/philox.h"
#include "kernels/matmul/matmul.h"
#include "models/fine_tune.h"

namespace orthofed {
namespace {

using Clock = std::chrono::steady_clock;

VitConfig geometry(const std::string& name) {
  VitConfig c;
  c.dim = name == "tiny" ? 192 : name == "small" ? 384 : 768;
  c.heads = c.dim / 64;
  c.mlp_dim = 4 * c.dim;
  if (name != "tiny" && name != "small" && name != "base")
    throw UserError("unknown model " + name + "; known: tiny, small, base");
  return c;
}

double peak_mib() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return double(usage.ru_maxrss) / 1024;
}

double median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return v[v.size() / 2];
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

int run(const std::string& name, const std::string& precision, int threads, int64_t batch,
        int steps, bool profile) {
  cpu::set_threads(threads);
  const DType compute = precision == "bf16" ? DType::bf16 : DType::f32;
  const VitConfig c = geometry(name);
  // Weights are made as a trainable model makes them, then frozen as a loaded one is.
  auto vit = std::make_unique<Vit>(
      Vit::from_tensors(c, Vit::create(c, DType::f32, 1).tensors(), compute, false));
  FineTuneOptions options;
  options.classes = 5;
  FineTuner tuner(std::move(vit), options);
  tuner.draw_general();
  tuner.draw_personal();

  Batch b;
  b.patches = Tensor::empty({batch * c.patches(), 3 * c.patch * c.patch}, compute);
  const Philox rng{7};
  dispatch(compute, [&]<class T>(Tag<T>) {
    uint64_t n = 0;
    for (int64_t r = 0; r < b.patches.rows(); ++r)
      for (int64_t k = 0; k < b.patches.cols(); ++k)
        b.patches.row<T>(r)[k] = T(float(normal(rng, n++)));
  });
  std::vector<int32_t> labels;
  for (int64_t i = 0; i < batch; ++i) labels.push_back(int32_t(i % 5));
  b.labels = Tensor::of(labels, {batch});
  b.weights = Tensor::full({batch}, DType::f32, 1);
  b.valid = batch;

  double loss = 0, norm = 0;
  const std::vector<double> train = milliseconds(2, steps, [&](int i) {
    const StepResult r = tuner.step({&b}, 0.5, 1, Phase::joint, uint64_t(i));
    loss = r.loss;
    norm = r.norm;
  });
  const double peak = peak_mib();
  const int64_t before = allocator_stats(Device::cpu).heap_allocations;
  tuner.step({&b}, 0.5, 1, Phase::joint, 99);
  const int64_t allocations = allocator_stats(Device::cpu).heap_allocations - before;
  const std::vector<double> infer =
      milliseconds(1, steps, [&](int) { tuner.logits(b.patches, batch); });
  const std::string profiled =
      profile ? parts(compute, [&] { tuner.step({&b}, 0.5, 1, Phase::joint, 0); }) : "";
  if (!(std::isfinite(loss) && norm > 0)) throw Error("the step did no work: no gradient");

  double load = 0;
  std::ifstream("/proc/loadavg") >> load;
  fmt::print(
      "{{\"provider\": \"orthofed\", \"model\": \"vit_{}_patch16_224\", \"mode\": \"{}\", "
      "\"batch\": {}, "
      "\"threads\": {}, \"isa\": \"{}\", \"matmul\": \"{}\", \"step_ms\": {:.1f}, \"step_ms_min\": "
      "{:.1f}, \"step_ms_max\": {:.1f}, \"images_per_second\": {:.2f}, "
      "\"inference_images_per_second\": {:.2f}, \"peak_rss_mb\": {:.0f}, "
      "\"warm_step_allocations\": {}, "
      "\"loss\": {:.4f}, \"gradient_norm\": {:.4f}, \"load_average\": {:.2f}{}}}\n",
      name, precision, batch, threads, cpu::name_of(cpu::isa()), cpu::matmul_backend(),
      median(train), *std::min_element(train.begin(), train.end()),
      *std::max_element(train.begin(), train.end()), 1e3 * double(batch) / median(train),
      1e3 * double(batch) / median(infer), peak, allocations, loss, norm, load, profiled);
  return 0;
}

}  // namespace
}  // namespace orthofed

int main(int argc, char** argv) {
  std::string model = "tiny", precision = orthofed::cpu::native_bf16() ? "bf16" : "f32";
  int threads = 2, steps = 5;
  int64_t batch = 16;
  bool profile = false;
  for (int i = 1; i < argc; ++i) {
    const std::string option = argv[i];
    if (option == "--profile") profile = true;
    if (option == "--profile" || i + 1 == argc) continue;
    const std::string value = argv[++i];
    if (option == "--model") model = value;
    if (option == "--precision") precision = value;
    if (option == "--threads") threads = std::atoi(value.c_str());
    if (option == "--batch") batch = std::atoll(value.c_str());
    if (option == "--steps") steps = std::atoi(value.c_str());
  }
  if (argc > 1 && std::strcmp(argv[1], "--help") == 0) {
    std::puts(
        "usage: lora_step_bench [--model tiny|small|base] [--precision f32|bf16] [--threads N]\n"
        "                       [--batch N] [--steps N] [--profile]");
    return 0;
  }
  try {
    return orthofed::run(model, precision, threads, batch, steps, profile);
  } catch (const orthofed::UserError& e) {
    fmt::print(stderr, "lora_step_bench: {}\n", e.what());
    return 2;
  }
}
