// The gated activation of an MLP as wide as GELU's.
#include "kernels/swiglu/swiglu.h"

#include "bench/support/bench.h"
#include "tests/kernels/gelu_reference.h"

namespace orthofed::bench {
namespace {

template <class T>
void forward(Bench& b, const Vit& v) {
  const int64_t rows = v.rows(), n = v.mlp();
  Array<T> x(b, rows * 2 * n), y(b, rows * n, Fill::nan);
  b.shape({{"rows", rows}, {"cols", n}});
  OF_TIME(b, swiglu_forward, [&] {
    return SwigluForward<T>{
        .x = x.data(), .ldx = 2 * n, .y = y.data(), .ldy = n, .rows = rows, .cols = n};
  });
  b.memcpy_peer();
  b.expect(y, rows * n, [&](int64_t i) -> Expected {
    const double g = x[i / n * 2 * n + i % n], u = x[i / n * 2 * n + n + i % n];
    const double want = g * reference::sigmoid(g) * u;
    return {want, 4 * epsilon<Accum<T>> * std::abs(g * u) + epsilon<T> * std::abs(want)};
  });
  b.measure();
}

template <class T>
void backward(Bench& b, const Vit& v) {
  const int64_t rows = v.rows(), n = v.mlp();
  Array<T> dy(b, rows * n), x(b, rows * 2 * n), dx(b, rows * 2 * n, Fill::nan);
  b.shape({{"rows", rows}, {"cols", n}});
  OF_TIME(b, swiglu_backward, [&] {
    return SwigluBackward<T>{.dy = dy.data(),
                             .lddy = n,
                             .x = x.data(),
                             .ldx = 2 * n,
                             .dx = dx.data(),
                             .lddx = 2 * n,
                             .rows = rows,
                             .cols = n};
  });
  b.memcpy_peer();
  b.expect(dx, rows * 2 * n, [&](int64_t at) -> Expected {
    const int64_t i = at / (2 * n), j = at % n;
    const double g = x[i * 2 * n + j], u = x[i * 2 * n + n + j], d = dy[i * n + j];
    const double s = reference::sigmoid(g);
    const double want = at % (2 * n) < n ? d * u * s * (1 + g * (1 - s)) : d * g * s;
    return {want,
            4 * epsilon<Accum<T>> * std::abs(d) * (1 + std::abs(g)) + epsilon<T> * std::abs(want)};
  });
  b.measure();
}

const bool registered = on_every_vit("swiglu/forward", forward<float>, forward<bf16>) &&
                        on_every_vit("swiglu/backward", backward<float>, backward<bf16>);

}  // namespace
}  // namespace orthofed::bench
