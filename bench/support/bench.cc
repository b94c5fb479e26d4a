#include "bench/support/bench.h"

#include <benchmark/benchmark.h>
#include <malloc.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <limits>
#include <set>

#include "bench/support/record.h"
#include "kernels/core/parallel.h"

namespace orthofed::bench {
namespace {

double seconds_a_mode = 0.1;  // of one provider
bool failed = false;
constexpr size_t kFewest = 5, kMost = 300;  // samples
constexpr int64_t kElements = 64;           // checked of each result

int64_t cache_of(Device device) {
#ifdef OF_HAVE_CUDA
  if (device == Device::cuda) return cuda::level2_cache();
#endif
  (void)device;
  return last_level_cache();
}

double quantile(const std::vector<double>& sorted, double q) {
  return sorted[size_t(std::lround(q * double(sorted.size() - 1)))];
}

Times times_of(std::vector<double> samples) {
  std::sort(samples.begin(), samples.end());
  return {quantile(samples, 0.2), quantile(samples, 0.5), quantile(samples, 0.8),
          int64_t(samples.size())};
}

std::string gpu_name(const Queue& queue) {
#ifdef OF_HAVE_CUDA
  if (queue.device == Device::cuda) return cuda::gpus().at(0).name;
#endif
  (void)queue;
  return "";
}

void record(const std::string& kernel, const std::string& provider, DType dtype, const Vit& vit,
            const Bench::Sizes& sizes, const Queue& queue, const Cost& cost, double worst,
            int64_t elements, const Times& t, bool cold) {
  const char* commit = std::getenv("OF_COMMIT");
  const Ceilings ceilings = ceilings_of(queue.device, dtype);
  const double compute = cost.flops / (1e9 * ceilings.gflops);
  const double memory = cost.bytes / (1e9 * ceilings.gbs);
  Json out, shape, limits, time, check;
  for (const auto& [name, size] : sizes) shape.number(name, double(size));
  limits.number("gflops", ceilings.gflops).number("gbs", ceilings.gbs);
  time.number("p20", 1e6 * t.p20).number("p50", 1e6 * t.p50).number("p80", 1e6 * t.p80);
  time.number("n", double(t.samples));
  check.number("worst", worst < 0 ? double(NAN) : worst).number("elements", double(elements));
  out.text("schema", "orthofed-bench/1").text("time", utc_time());
  commit != nullptr ? out.text("commit", commit) : out.null("commit");
  out.object("host", host_record(gpu_name(queue)))
      .object("ceilings", limits)
      .text("device", name_of(queue.device))
      .text("kernel", kernel)
      .text("provider", provider)
      .text("model", vit.name)
      .object("shape", shape)
      .text("dtype", name_of(dtype))
      .text("mode", cold ? "cold" : "hot")
      .number("flops", cost.flops)
      .number("bytes", cost.bytes)
      .object("time_us", time)
      .number("gflops", 1e-9 * cost.flops / t.p50)
      .number("gbs", 1e-9 * cost.bytes / t.p50)
      .text("bound", compute > memory    ? "compute"
                     : memory >= compute ? "memory"
                                         : "unknown")
      .number("ceiling_percent", cold ? 100 * std::max(compute, memory) / t.p50 : double(NAN))
      .object("check", check);
  write_record(out);
}

}  // namespace

Bench::~Bench() {
#ifdef OF_HAVE_CUDA
  cuda::release(scratch_);
#endif
}

void Bench::scratch([[maybe_unused]] size_t bytes) {
#ifdef OF_HAVE_CUDA
  if (!on_gpu()) return;
  scratch_ = cuda::allocate(bytes);
  queue_.cuda.scratch = {scratch_, bytes};
#endif
}

void Bench::provider(const std::string& name, Run run, double slack) {
  if (run) providers_.push_back({name, std::move(run), slack, -1, {}});
}

void Bench::missing(const std::string& peer, const char* variable) {
  static std::set<std::string> said;
  if (said.insert(peer).second)
    std::fprintf(stderr, "peer missing: %s (%s can name its folder)\n", peer.c_str(), variable);
}

void Bench::select(int64_t turn) {
  for (Rotating* array : arrays_) array->select(turn % copies_);
}

// Takes one sample, the seconds of a run as the mean of `repeats`. A GPU is timed by its own clock,
// so that what a launch costs the host is hidden as it is in a training step.
double Bench::seconds_of(const Run& run, int64_t repeats, bool rotate) {
  const auto all = [&] {
    for (int64_t i = 0; i < repeats; ++i) {
      if (rotate) select(++turn_);
      run();
    }
  };
#ifdef OF_HAVE_CUDA
  if (on_gpu()) return cuda::seconds_of(queue_.cuda, all) / double(repeats);
#endif
  const auto begin = std::chrono::steady_clock::now();
  all();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() /
         double(repeats);
}

void Bench::check(Provider& provider) {
  select(0);
  for (Rotating* array : arrays_) array->reset();
  provider.run();
  const Philox rng = PhiloxKey(2);
  for (const Expectation& e : expectations_) {
    for (int64_t n = 0; n < std::min(kElements, e.count); ++n) {
      const int64_t last = e.count - 1;  // the ends, and others at random
      const int64_t k = n == 0   ? 0
                        : n == 1 ? last
                                 : int64_t(rng(uint64_t(n))[0] % uint64_t(e.count));
      const Expected want = e.what(k);
      const double got = e.array->read(e.at(k)), error = std::abs(got - want.value);
      const double worst = got == want.value ? 0 : error / want.budget;
      if (!(worst <= provider.slack))
        throw Error(provider.name + " is wrong: element " + std::to_string(k) + " is " +
                    std::to_string(got) + ", not " + std::to_string(want.value) + " +- " +
                    std::to_string(want.budget));
      provider.worst = std::max(provider.worst, worst);
    }
  }
}

void Bench::sample(bool cold) {
  select(turn_ = 0);
  std::vector<int64_t> repeats;
  double seconds = 0;  // of a run, of all providers together
  for (Provider& p : providers_) {
    p.samples.clear();
    const double once = seconds_of(p.run, 1, cold);
    seconds += once;
    // Long enough for the clock; on a GPU for what the first launch costs to be hidden.
    repeats.push_back(std::clamp<int64_t>(int64_t(50e-6 / once) + 1, on_gpu() ? 20 : 1, 10000));
  }
  const double enough = seconds_a_mode * double(providers_.size());
  const auto begin = std::chrono::steady_clock::now();
  for (size_t round = 0; round < kMost; ++round) {
    const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - begin;
    if (round >= kFewest && spent.count() >= enough) break;
    for (size_t i = 0; i < providers_.size(); ++i) {
      const Provider& p = providers_[i];
      if (!cold) p.run();  // the others' data leave the cache
      providers_[i].samples.push_back(seconds_of(p.run, repeats[i], cold));
    }
  }
}

void Bench::measure() {
  OF_CHECK(!providers_.empty() && !expectations_.empty(),
           kernel_ + ": nothing is timed or checked");
  size_t bytes = 1;
  for (const Rotating* array : arrays_) bytes += array->bytes();
  const int64_t cache = cache_of(queue_.device);
  copies_ = std::max<int64_t>(1, (2 * cache + int64_t(bytes) - 1) / int64_t(bytes));
  for (Rotating* array : arrays_) array->allocate(copies_);
  for (int64_t copy = copies_ - 1; copy >= 0; --copy) {  // the first copy is left selected
    select(copy);
    for (Rotating* array : arrays_) array->reset();
  }
  pricing_ = true;
  cost_ = cost_of_();
  pricing_ = false;

  std::vector<char> from, to;  // memcpy's
  size_t part = 0;
  if (with_memcpy_ && !on_gpu()) {
    part = size_t(cost_.bytes / 2);
    from.assign(part * size_t(copies_), 1);
    to.assign(from.size(), 2);
    const size_t copies = size_t(copies_);
    provider("memcpy", [&from, &to, part, copies, this] {
      const size_t at = size_t(turn_) % copies * part;
      constexpr int64_t grain = 1 << 17;
      cpu::parallel_for(int64_t(part), grain, [&](int64_t begin, int64_t end) {
        std::memcpy(to.data() + at + begin, from.data() + at + begin, size_t(end - begin));
      });
    });
  }
  for (Provider& p : providers_)
    if (p.name != "memcpy") check(p);

  for (const bool cold : {true, false}) {
    if (!cold && int64_t(bytes) > cache) break;
    sample(cold);
    for (const Provider& p : providers_) {
      const Times t = times_of(p.samples);
      record(kernel_, p.name, dtype_, *vit_, sizes_, queue_, cost_, p.worst,
             kElements * int64_t(expectations_.size()), t, cold);
      if (!cold) continue;
      if (&p == &providers_.front()) {
        ours_ = t;
        worst_error_ = p.worst;
        continue;
      }
      char text[80];
      std::snprintf(text, sizeof text, "%s%s %.2fx", summary_.empty() ? "" : ", ", p.name.c_str(),
                    t.p50 / ours_.p50);
      summary_ += text;
    }
  }
}

namespace {

void run(benchmark::State& state, const std::string& name, Body body, DType dtype,
         const Queue& queue, const Vit& vit) {
  try {
    Bench bench(name, dtype, queue, vit);
    body(bench, vit);
    for (auto _ : state) state.SetIterationTime(bench.ours().p50);
    state.counters["GB/s"] = bench.gigabytes_per_second();
    state.counters["GFLOP/s"] = bench.gigaflops();
    state.counters["error"] = bench.worst_error();
    state.SetLabel(bench.summary());
  } catch (const std::exception& e) {
    failed = true;
    state.SkipWithError(e.what());
  }
}

}  // namespace

bool on_every_vit(const std::string& name, Body f32, Body bf16, bool gpu_alone) {
  std::vector<Device> devices;
  if (!gpu_alone) devices.push_back(Device::cpu);
#ifdef OF_HAVE_CUDA
  if (cuda::device_count() > 0) devices.push_back(Device::cuda);
#endif
  for (const Device device : devices) {
    for (const auto& [dtype, body] : {std::pair(DType::f32, f32), std::pair(DType::bf16, bf16)}) {
      for (const Vit& vit : kVits) {
        if (body == nullptr) continue;
        Queue queue;
        queue.device = device;
        const std::string full =
            name + '/' + name_of(dtype) + '/' + name_of(device) + '/' + vit.name;
        benchmark::RegisterBenchmark(
            full.c_str(),
            [=, &vit, body = body, dtype = dtype](benchmark::State& state) {
              run(state, name, body, dtype, queue, vit);
            })
            ->Iterations(1)
            ->UseManualTime()
            ->Unit(benchmark::kMicrosecond);
      }
    }
  }
  return true;
}

}  // namespace orthofed::bench

// Every bench program of kernels has this main().
int main(int argc, char** argv) {
  using namespace orthofed;
  // Memory stays with the program from one case to the next: fetching the pages of such large
  // arrays from the system anew each time would take longer than what is measured.
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
  try {
    if (const char* file = std::getenv("OF_BENCH_JSON")) bench::set_record_file(file);
    std::vector<char*> rest;
    for (int i = 0; i < argc; ++i) {
      const std::string option = argv[i];
      if ((option == "--json" || option == "--seconds") && i + 1 == argc)
        throw UserError(option + " needs a value");
      if (option == "--json")
        bench::set_record_file(argv[++i]);
      else if (option == "--seconds")
        bench::seconds_a_mode = std::atof(argv[++i]);
      else
        rest.push_back(argv[i]);
    }
    int count = int(rest.size());
    rest.push_back(nullptr);
    benchmark::Initialize(&count, rest.data());
    if (benchmark::ReportUnrecognizedArguments(count, rest.data())) return 2;
    benchmark::RunSpecifiedBenchmarks();
    benchmark::Shutdown();
    return bench::failed ? 1 : 0;
  } catch (const UserError& e) {
    std::fprintf(stderr, "bench: %s\n", e.what());
    return 2;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "bench: %s\n", e.what());
    return 1;
  }
}
