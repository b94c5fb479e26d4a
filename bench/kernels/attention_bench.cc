// Attention of ViT-Tiny, -Small and -Base at 224 pixels, batch 16, forward and backward.
#include "kernels/attention/attention.h"

#include <benchmark/benchmark.h>

#include <cmath>
#include <vector>

#include "kernels/core/check.h"
#include "kernels/core/philox.h"

namespace orthofed {
namespace {

template <class T>
struct Problem {
  AttentionShape s;
  double scale;
  std::vector<T> qkv, out, dout, dqkv;
  std::vector<Accum<T>> lse;

  explicit Problem(const benchmark::State& state) {
    s = {16, state.range(0), state.range(1), state.range(2), 0, 0};
    s.ld_out = s.heads * s.head_dim;
    s.ld_qkv = 3 * s.ld_out;
    scale = 1 / std::sqrt(double(s.head_dim));
    const Philox rng = PhiloxKey(1);
    qkv.resize(size_t(s.batch * s.tokens * s.ld_qkv));
    dqkv.resize(qkv.size());
    for (size_t i = 0; i < qkv.size(); ++i) qkv[i] = T(4 * uniform01(rng(i)[0]) - 2);
    out.resize(size_t(s.batch * s.tokens * s.ld_out));
    dout.resize(out.size());
    for (size_t i = 0; i < dout.size(); ++i) dout[i] = T(2 * uniform01(rng(i)[1]) - 1);
    lse.resize(size_t(s.batch * s.heads * s.tokens));
  }

  void forward() { cpu::attention_forward(qkv.data(), out.data(), lse.data(), s, scale); }
  void backward() {
    cpu::attention_backward(qkv.data(), out.data(), dout.data(), lse.data(), dqkv.data(), s, scale);
  }

  // One query of the last (image, head) against plain softmax in double, before anything is timed.
  void check() const {
    const int64_t d = s.head_dim, n = s.tokens, i = n / 2;
    const T* q = qkv.data() + (s.batch - 1) * n * s.ld_qkv + (s.heads - 1) * d;
    std::vector<double> p(static_cast<size_t>(n));
    double sum = 0;
    for (int64_t j = 0; j < n; ++j) {
      double dot = 0;
      for (int64_t c = 0; c < d; ++c) {
        dot += double(q[i * s.ld_qkv + c]) * double(q[j * s.ld_qkv + s.ld_out + c]);
      }
      p[size_t(j)] = std::exp(scale * dot);
      sum += p[size_t(j)];
    }
    for (int64_t c = 0; c < d; ++c) {
      double want = 0;
      for (int64_t j = 0; j < n; ++j) {
        want += p[size_t(j)] / sum * double(q[j * s.ld_qkv + 2 * s.ld_out + c]);
      }
      const double got = out[size_t(((s.batch - 1) * n + i) * s.ld_out + (s.heads - 1) * d + c)];
      OF_CHECK(std::abs(got - want) <= (sizeof(T) == 2 ? 1e-2 : 1e-4), "wrong attention");
    }
  }

  void report(benchmark::State& state, double products) const {
    state.counters["GFLOP/s"] = benchmark::Counter(
        products * 2e-9 * double(s.batch * s.heads * s.tokens * s.tokens * s.head_dim),
        benchmark::Counter::kIsIterationInvariantRate);
  }
};

template <class T>
void forward(benchmark::State& state) {
  Problem<T> p(state);
  p.forward();
  p.check();
  for (auto _ : state) p.forward();
  p.report(state, 2);
}
template <class T>
void backward(benchmark::State& state) {
  Problem<T> p(state);
  p.forward();
  p.check();
  for (auto _ : state) p.backward();
  p.report(state, 5);
}

void vit_shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"tokens", "heads", "head_dim"})->UseRealTime()->Unit(benchmark::kMillisecond);
  for (const int64_t heads : {3, 6, 12}) b->Args({197, heads, 64});
  b->Args({257, 6, 64});  // DINOv2, 224 pixels in patches of 14
  b->Args({65, 4, 24});   // the demo's model
}

BENCHMARK(forward<float>)->Name("attention/forward/f32")->Apply(vit_shapes);
BENCHMARK(backward<float>)->Name("attention/backward/f32")->Apply(vit_shapes);
BENCHMARK(forward<bf16>)->Name("attention/forward/bf16")->Apply(vit_shapes);
BENCHMARK(backward<bf16>)->Name("attention/backward/bf16")->Apply(vit_shapes);

}  // namespace
}  // namespace orthofed

BENCHMARK_MAIN();
