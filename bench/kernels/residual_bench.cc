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
  OF_TIME(b, residual_forward, [&] {
    return ResidualForward<T>{.x = x.data(),
                              .ldx = n,
                              .z = z.data(),
                              .ldz = n,
                              .gamma = gamma.data(),
                              .y = y.data(),
                              .ldy = n,
                              .rows = rows,
                              .cols = n};
  });
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
  OF_TIME(b, residual_backward, [&] {
    return ResidualBackward<T>{.dy = dy.data(),
                               .lddy = n,
                               .gamma = gamma.data(),
                               .dz = dz.data(),
                               .lddz = n,
                               .rows = rows,
                               .cols = n};
  });
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
  OF_TIME(b, bias_backward, [&] {
    return BiasBackward<T>{.dy = dy.data(), .lddy = n, .db = db.data(), .rows = rows, .cols = n};
  });
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
