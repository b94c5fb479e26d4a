// The sum of all of a model's activations at one place.
#include "kernels/reduction/reduction.h"

#include "bench/support/bench.h"
#include "bench/support/onednn.h"

namespace orthofed::bench {
namespace {

template <class T>
void sum(Bench& b, const Vit& v) {
  using A = Accum<T>;
  const int64_t n = v.rows() * v.dim;
  Array<T> x(b, n);
  Array<A> out(b, 1, Fill::nan);
  b.scratch(gpu::reduction_sum_scratch(n));
  b.shape({{"n", n}});
  const auto arguments = [&] { return ReductionSum<T>{.x = x.data(), .n = n, .out = out.data()}; };
  OF_TIME(b, reduction_sum, arguments);
  OF_TIME_VERSIONS(b, arguments, reduction_sum_versions, T);
  if constexpr (std::is_same_v<T, float>)
    b.provider("oneDNN", onednn::sum(b, x, out, n), 1e4);  // it adds up in one go
  b.expect(out, 1, [&](int64_t) -> Expected {
    double want = 0, size = 0;
    for (int64_t i = 0; i < n; ++i) {
      want += x[i];
      size += std::abs(x[i]);
    }
    return {want, epsilon<A> * 135 * size};
  });
  b.measure();
}

const bool registered = on_every_vit("reduction/sum", sum<float>, sum<bf16>);

}  // namespace
}  // namespace orthofed::bench
