// Matrix products of a ViT training step, batch 16 at 224 pixels (3152 rows): the frozen ones with
// packed weights, the same without packing, by the blocked loop, and LoRA's skinny ones.
#include "kernels/matmul/matmul.h"

#include <benchmark/benchmark.h>

#include <cmath>
#include <vector>

#include "kernels/core/check.h"
#include "kernels/core/philox.h"

namespace orthofed {
namespace {

constexpr int64_t rows = 16 * 197;

template <class T>
std::vector<T> random_values(int64_t n, uint64_t stream) {
  const Philox rng = PhiloxKey(1).with(stream);
  std::vector<T> v(static_cast<size_t>(n));
  for (size_t i = 0; i < v.size(); ++i) v[i] = T(2 * uniform01(rng(i)[0]) - 1);
  return v;
}

// y [m, n] = x [m, k] W^T, W [n, k] as a linear layer keeps it.
template <class T>
struct Problem {
  int64_t m, n, k;
  std::vector<T> x, w, y;
  std::vector<Accum<T>> bias;
  MatmulShape shape;

  explicit Problem(const benchmark::State& state)
      : m(state.range(0)),
        n(state.range(1)),
        k(state.range(2)),
        x(random_values<T>(m * k, 1)),
        w(random_values<T>(n * k, 2)),
        y(static_cast<size_t>(m * n)),
        bias(random_values<Accum<T>>(n, 3)),
        shape{m, n, k, k, k, n, Op::none, Op::transpose} {}

  template <class Run>
  void measure(benchmark::State& state, const Run& run) {
    run();
    check();
    for (auto _ : state) {
      run();
      benchmark::ClobberMemory();
    }
    state.counters["GFLOP/s"] = benchmark::Counter(2e-9 * double(m) * double(n) * double(k),
                                                   benchmark::Counter::kIsIterationInvariantRate);
  }

 private:
  // Some elements against sums in double, before anything is timed.
  void check() const {
    for (int64_t s = 0; s < 256; ++s) {
      const int64_t i = s * 7919 % m, j = s * 104729 % n;
      double sum = bias[size_t(j)], size = std::abs(sum);
      for (int64_t p = 0; p < k; ++p) {
        const double term = double(x[size_t(i * k + p)]) * double(w[size_t(j * k + p)]);
        sum += term;
        size += std::abs(term);
      }
      const double eps = sizeof(T) == 8 ? 0x1p-53 : 0x1p-24,
                   rounding = sizeof(T) == 2 ? 0x1p-8 : eps;
      const double error = std::abs(double(y[size_t(i * n + j)]) - sum);
      OF_CHECK(error <= 2 * double(k + 2) * eps * size + rounding * std::abs(sum), "wrong product");
    }
  }
};

template <class T>
void packed(benchmark::State& state) {
  Problem<T> p(state);
  const cpu::PackedMatrix<T> w(p.w.data(), p.k, Op::transpose, p.k, p.n);
  p.measure(state,
            [&] { w.multiply(p.x.data(), p.k, p.y.data(), p.n, p.bias.data(), false, p.m); });
}
template <class T>
void unpacked(benchmark::State& state) {
  Problem<T> p(state);
  p.measure(state, [&] {
    cpu::matmul(p.x.data(), p.w.data(), p.y.data(), p.bias.data(), false, p.shape);
  });
}
template <class T>
void blocked(benchmark::State& state) {
  Problem<T> p(state);
  p.measure(state, [&] {
    cpu::matmul_blocked(p.x.data(), p.w.data(), p.y.data(), p.bias.data(), false, p.shape);
  });
}

void vit_shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"m", "n", "k"})->UseRealTime()->Unit(benchmark::kMillisecond);
  for (const int64_t dim : {192, 384, 768}) {
    b->Args({rows, 3 * dim, dim});  // qkv
    b->Args({rows, dim, dim});      // proj
    b->Args({rows, 4 * dim, dim});  // fc1
    b->Args({rows, dim, 4 * dim});  // fc2
  }
}
void lora_shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"m", "n", "k"})->UseRealTime()->Unit(benchmark::kMillisecond);
  for (const int64_t dim : {192, 384, 768}) {
    b->Args({rows, 16, dim});      // u = x A^T
    b->Args({rows, 3 * dim, 16});  // y += u B^T
    b->Args({16, dim, rows});      // dA = du^T x
  }
}

BENCHMARK(packed<float>)->Name("matmul/packed/f32")->Apply(vit_shapes);
BENCHMARK(unpacked<float>)->Name("matmul/plain/f32")->Apply(vit_shapes)->Apply(lora_shapes);
BENCHMARK(blocked<float>)->Name("matmul/blocked/f32")->Apply(vit_shapes)->Apply(lora_shapes);
BENCHMARK(packed<bf16>)->Name("matmul/packed/bf16")->Apply(vit_shapes);
BENCHMARK(blocked<bf16>)->Name("matmul/blocked/bf16")->Apply(vit_shapes)->Apply(lora_shapes);

}  // namespace
}  // namespace orthofed

BENCHMARK_MAIN();
