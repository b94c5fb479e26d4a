// Times kernels on the devices that are meant to be fast: cpu, and cuda where there is a GPU.
//
//   template <class T>
//   void forward(Bench& b, const Vit& v) {
//     const int64_t rows = v.rows(), n = v.dim;
//     Array<T> x(b, rows * n), y(b, rows * n, Fill::nan);
//     b.shape({{"rows", rows}, {"cols", n}});
//     OF_TIME(b, square_forward, [&] {
//       return SquareForward<T>{.x = x.data(), .ldx = n, .y = y.data(), .ldy = n, ...};
//     });
//     b.expect(y, [&](int64_t i) -> Expected { return {x[i] * x[i], 1e-6 * x[i] * x[i]}; });
//     b.measure();
//   }
//   const bool registered = on_every_vit("square/forward", forward<float>, forward<bf16>);
//
// measure() first runs every provider once and compares sampled elements with what is expected:
// nothing wrong is timed. Then, by turns, each provider is timed
//
//   cold   on copies of the arrays in rotation, which together are twice the last-level cache,
//   hot    right after itself on the same arrays, if these fit into that cache,
//
// and one record per provider and mode goes to the file of --json (or OF_BENCH_JSON): record.h. A
// bench program takes Google Benchmark's options as well (--benchmark_filter=...), and --seconds,
// the time for each provider and mode.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "bench/support/vit.h"
#include "kernels/core/cost.h"
#include "kernels/core/cuda_device.h"
#include "kernels/core/device.h"
#include "kernels/core/philox.h"
#include "kernels/core/version.h"

namespace orthofed::bench {

struct Expected {
  double value = 0, budget = 0;  // the element may differ from `value` by `budget`
};

// An array as the harness sees it.
class Rotating {
 public:
  virtual ~Rotating() = default;
  virtual size_t bytes() const = 0;           // of one copy
  virtual void allocate(int64_t copies) = 0;  // on the device
  virtual void select(int64_t copy) = 0;      // data() is this one from now on
  virtual void reset() = 0;                   // the selected copy holds what it held at first
  virtual double read(int64_t i) = 0;         // an element of the selected copy
};

struct Times {
  double p20 = 0, p50 = 0, p80 = 0;  // seconds of one run
  int64_t samples = 0;
};

class Bench {
 public:
  using Run = std::function<void()>;
  using Sizes = std::vector<std::pair<const char*, int64_t>>;

  Bench(std::string kernel, DType dtype, const Queue& queue, const Vit& vit)
      : kernel_(std::move(kernel)), dtype_(dtype), queue_(queue), vit_(&vit) {}
  ~Bench();
  Bench(const Bench&) = delete;
  Bench& operator=(const Bench&) = delete;

  const Queue& queue() const { return queue_; }
  // Says on standard error, once per program, that a peer's library was not found.
  static void missing(const std::string& peer, const char* variable);
  bool on_gpu() const { return queue_.device == Device::cuda; }
  void shape(Sizes sizes) { sizes_ = std::move(sizes); }
  void scratch(size_t bytes);  // what the kernel needs on a GPU
  // of_a_run is called when the arrays have their addresses.
  void cost(std::function<Cost()> of_a_run) { cost_of_ = std::move(of_a_run); }

  // Adds a provider of the work; the first one is ours. It may err by `slack` times the budget of
  // expect(). A peer without a run is left out.
  void provider(const std::string& name, Run run, double slack = 1);
  // Versions of a kernel on a GPU; arguments() gives the contract's struct.
  template <class Args, class Stream, class Arguments>
  void versions(Ladder<Args, Stream> versions, const Arguments& arguments) {
    if (!on_gpu()) return;
    for (const auto& version : versions) {
      if (version.applies != nullptr && !version.applies(arguments(), queue_.cuda)) continue;
      provider("version " + std::to_string(version.number) + ", " + version.name,
               [this, &version, arguments] { version.run(arguments(), queue_.cuda); });
    }
  }
  // Adds memcpy by all threads as a peer, with as much traffic as the cost's bytes.
  void memcpy_peer() { with_memcpy_ = true; }

  // Compares some elements of y with what(i) after a run of each provider.
  void expect(Rotating& y, int64_t size, std::function<Expected(int64_t)> what) {
    expect_at(
        y, size, [](int64_t i) { return i; }, std::move(what));
  }
  // Does so for some of y's elements at(0) to at(count - 1).
  void expect_at(Rotating& y, int64_t count, std::function<int64_t(int64_t)> at,
                 std::function<Expected(int64_t)> what) {
    expectations_.push_back({&y, count, std::move(at), std::move(what)});
  }

  void measure();

  // What measure() found, for the console.
  const Times& ours() const { return ours_; }
  double gigabytes_per_second() const { return 1e-9 * cost_.bytes / ours_.p50; }
  double gigaflops() const { return 1e-9 * cost_.flops / ours_.p50; }
  double worst_error() const { return worst_error_; }  // in units of the budget
  const std::string& summary() const { return summary_; }

  void add(Rotating* array) { arrays_.push_back(array); }
  bool pricing() const { return pricing_; }  // cost() reads lists in host memory
  uint64_t number_of_arrays() const { return arrays_.size(); }

 private:
  struct Provider {
    std::string name;
    Run run;
    double slack;
    double worst = -1;  // not checked
    std::vector<double> samples;
  };
  struct Expectation {
    Rotating* array;
    int64_t count;
    std::function<int64_t(int64_t)> at;
    std::function<Expected(int64_t)> what;
  };

  void select(int64_t turn);
  double seconds_of(const Run& run, int64_t repeats, bool rotate);
  void check(Provider& provider);
  void sample(bool cold);

  std::string kernel_;
  DType dtype_;
  Queue queue_;
  const Vit* vit_;
  Sizes sizes_;
  std::function<Cost()> cost_of_;
  Cost cost_;
  bool with_memcpy_ = false, pricing_ = false;
  std::vector<Rotating*> arrays_;
  std::vector<Provider> providers_;
  std::vector<Expectation> expectations_;
  int64_t turn_ = 0, copies_ = 1;
  void* scratch_ = nullptr;
  Times ours_;
  double worst_error_ = 0;
  std::string summary_;
};

enum class Fill { uniform, nan };

// An Array's elements are in the device's memory. At first they are as given, uniform random
// numbers in [-1, 1), or NaN where results go.
template <class T>
class Array final : public Rotating {
 public:
  Array(Bench& bench, std::vector<T> values)
      : bench_(&bench), queue_(bench.queue()), host_(std::move(values)) {
    bench.add(this);
  }
  Array(Bench& bench, int64_t n, Fill fill = Fill::uniform)
      : Array(bench, std::vector<T>(size_t(n))) {
    if (fill == Fill::nan) {
      std::memset(static_cast<void*>(host_.data()), 0xff, bytes());
      return;
    }
    const Philox rng = PhiloxKey(1).with(bench.number_of_arrays());
    for (size_t i = 0; i < host_.size(); i += 4) {
      const auto bits = rng(i);
      for (size_t j = i; j < i + 4 && j < host_.size(); ++j)
        host_[j] = T(2 * uniform01(bits[j - i]) - 1);
    }
  }
  // One that holds addresses of other arrays, constructed before it.
  Array(Bench& bench, int64_t n, std::function<T(int64_t)> element)
      : Array(bench, std::vector<T>(size_t(n))) {
    element_ = std::move(element);
  }
  ~Array() override { release(); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;

  T* data() { return bench_->pricing() ? host_.data() : selected_; }
  int64_t size() const { return int64_t(host_.size()); }
  // What it held at first.
  double operator[](int64_t i) const { return double(host_[size_t(i)]); }
  const std::vector<T>& host() const { return host_; }

  size_t bytes() const override { return host_.size() * sizeof(T); }
  void allocate(int64_t copies) override {
    release();
    const size_t all = stride() * size_t(copies);
#ifdef OF_HAVE_CUDA
    if (on_gpu()) {
      base_ = cuda::allocate(all);
      OF_CHECK(base_ != nullptr, "the GPU has no " + std::to_string(all) + " bytes free");
      return;
    }
#endif
    base_ = ::operator new(all, kAlignment);
  }
  void select(int64_t copy) override {
    selected_ = reinterpret_cast<T*>(static_cast<std::byte*>(base_) + size_t(copy) * stride());
  }
  void reset() override {
    for (int64_t i = 0; element_ && i < size(); ++i) host_[size_t(i)] = element_(i);
    move(selected_, host_.data(), bytes());
  }
  double read(int64_t i) override {
    if constexpr (std::is_convertible_v<T, double>) {
      T value;
      move(&value, selected_ + i, sizeof value);
      return double(value);
    }
    return double(NAN);
  }

 private:
  static constexpr std::align_val_t kAlignment{256};
  // A few lines more than it needs, so that arrays of one size do not share their cache sets.
  size_t stride() const {
    return (bytes() / 256 + 3) * 256;
  }
  bool on_gpu() const {
    return queue_.device == Device::cuda;
  }
  void move(void* to, const void* from, size_t n) {
#ifdef OF_HAVE_CUDA
    if (on_gpu()) return cuda::copy_rows(to, n, from, n, n, 1, queue_.cuda);
#endif
    std::memcpy(to, from, n);
  }
  void release() {
#ifdef OF_HAVE_CUDA
    if (on_gpu()) return cuda::release(std::exchange(base_, nullptr));
#endif
    ::operator delete(std::exchange(base_, nullptr), kAlignment);
  }

  Bench* bench_;
  Queue queue_;
  std::vector<T> host_;
  std::function<T(int64_t)> element_;
  void* base_ = nullptr;
  T* selected_ = nullptr;
};

// Registers NAME/f32/DEVICE/VIT and NAME/bf16/... for every device and kVits. bf16 null: the kernel
// has none; f32 null likewise. gpu_alone: for what a CPU never does.
using Body = void (*)(Bench&, const Vit&);
bool on_every_vit(const std::string& name, Body f32, Body bf16 = nullptr, bool gpu_alone = false);

// OF_TIME expands to this.
template <class Run, class CostOf, class Arguments>
void time_kernel(Bench& bench, const Run& run, const CostOf& cost_of, const Arguments& arguments) {
  bench.provider("orthofed", [&bench, run, arguments] { run(bench.queue(), arguments()); });
  bench.cost([cost_of, arguments] { return cost_of(arguments()); });
}

}  // namespace orthofed::bench

// OF_TIME(bench, kernel, arguments) times `kernel` on the bench's device; its cost:: twin says what
// that takes. arguments() gives the contract's struct anew for each run, on the arrays of its turn.
#define OF_TIME(the_bench, kernel, ...)                    \
  ::orthofed::bench::time_kernel(                          \
      the_bench,                                           \
      [](const auto& of_queue, const auto& of_arguments) { \
        OF_RUN(of_queue, kernel, of_arguments);            \
      },                                                   \
      [](const auto& of_args) { return ::orthofed::cost::kernel(of_args); }, __VA_ARGS__)

// OF_TIME_VERSIONS(bench, arguments, kernel_versions, T...) times all kernel_versions<T...>, on a GPU.
#ifdef OF_HAVE_CUDA
#define OF_TIME_VERSIONS(bench, arguments, kernel_versions, ...)                              \
  (bench).versions(::orthofed::gpu::kernel_versions<__VA_ARGS__, ::orthofed::cuda::Stream>(), \
                   arguments)
#else
#define OF_TIME_VERSIONS(bench, arguments, kernel_versions, ...) static_cast<void>(arguments)
#endif
