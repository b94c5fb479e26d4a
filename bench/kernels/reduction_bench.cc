// The sum of a long vector on the CPU: bytes read a second, in cache and from memory.
#include "kernels/reduction/reduction.h"

#include <benchmark/benchmark.h>

#include <cmath>
#include <vector>

#include "kernels/core/check.h"
#include "kernels/core/philox.h"

namespace orthofed {
namespace {

template <class T>
void sum(benchmark::State& state) {
  const int64_t n = state.range(0);
  const Philox rng = PhiloxKey(1).with(1);
  std::vector<T> x(static_cast<size_t>(n));
  double want = 0, size = 0;
  for (size_t j = 0; j < x.size(); ++j) {
    x[j] = T(2 * uniform01(rng(j)[0]) - 1);
    want += double(x[j]);
    size += std::abs(double(x[j]));
  }
  Accum<T> got = 0;
  cpu::reduction_sum(x.data(), n, &got);
  OF_CHECK(std::abs(double(got) - want) <= 0x1p-16 * size, "the sum is wrong");
  for (auto _ : state) {
    cpu::reduction_sum(x.data(), n, &got);
    benchmark::DoNotOptimize(got);
  }
  state.SetBytesProcessed(state.iterations() * n * int64_t{sizeof(T)});
}
BENCHMARK(sum<float>)
    ->Name("reduction/sum/f32")
    ->Arg(1 << 14)
    ->Arg(1 << 20)
    ->Arg(1 << 26)
    ->UseRealTime();
BENCHMARK(sum<bf16>)
    ->Name("reduction/sum/bf16")
    ->Arg(1 << 14)
    ->Arg(1 << 20)
    ->Arg(1 << 26)
    ->UseRealTime();

}  // namespace
}  // namespace orthofed

BENCHMARK_MAIN();
