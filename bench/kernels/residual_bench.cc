// LayerScale and residual sum behind a projection, its backward, and the sum over tokens that a
// bias needs.
#include "kernels/residual/residual.h"

#include "bench/support/bench.h"

namespace orthofed::bench {
namespace {

template <class T>
void forward(Bench& b, const Vit& v) {
  using A = Accum<T>;
  const int64_t rows = v.rows(), n = v.dim;
  Array<A> x(b, rows * n), gamma(b, n), y(b, rows * n, Fill::nan);
  Array<T> z(b, rows * n);
  b.shape({{"rows", rows}, {"cols", n}});
  of_time(b, residual_forward, T)(
      [&](const auto& f) { f(x.data(), n, z.data(), n, gamma.data(), y.data(), n, rows, n); });
  b.memcpy_peer();
  b.expect(y, rows * n, [&](int64_t i) -> Expected {
    return {x[i] + gamma[i % n] * z[i], 2 * epsilon<A>};  // all within [-1, 1]
  });
  b.measure();
}

template <class T>
void backward(Bench& b, const Vit& v) {
  using A = Accum<T>;
  const int64_t rows = v.rows(), n = v.dim;
  Array<A> dy(b, rows * n), gamma(b, n);
  Array<T> dz(b, rows * n, Fill::nan);
  b.shape({{"rows", rows}, {"cols", n}});
  of_time(b, residual_backward,
          T)([&](const auto& f) { f(dy.data(), n, gamma.data(), dz.data(), n, rows, n); });
  b.memcpy_peer();
  b.expect(dz, rows * n, [&](int64_t i) -> Expected {
    const double want = gamma[i % n] * dy[i];
    return {want, epsilon<T> * std::abs(want)};
  });
  b.measure();
}

template <class T>
void bias(Bench& b, const Vit& v) {
  using A = Accum<T>;
  const int64_t rows = v.rows(), n = v.dim;
  Array<T> dy(b, rows * n);
  Array<A> db(b, n, Fill::nan);
  b.scratch(gpu::bias_backward_scratch(rows, n));
  b.shape({{"rows", rows}, {"cols", n}});
  of_time(b, bias_backward, T)([&](const auto& f) { f(dy.data(), n, db.data(), false, rows, n); });
  b.expect(db, n, [&](int64_t j) -> Expected {
    double sum = 0, size = 0;
    for (int64_t i = 0; i < rows; ++i) {
      sum += dy[i * n + j];
      size += std::abs(dy[i * n + j]);
    }
    return {sum, epsilon<A> * 66 * size};
  });
  b.measure();
}

const bool registered = on_every_vit("residual/forward", forward<float>, forward<bf16>) &&
                        on_every_vit("residual/backward", backward<float>, backward<bf16>) &&
                        on_every_vit("residual/bias_backward", bias<float>, bias<bf16>);

}  // namespace
}  // namespace orthofed::bench
