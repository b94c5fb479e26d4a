// GELU (the erf form) of an MLP's hidden activations.
#include "kernels/gelu/gelu.h"

#include "bench/support/bench.h"
#include "bench/support/onednn.h"
#include "tests/kernels/gelu_reference.h"

namespace orthofed::bench {
namespace {

constexpr GeluKind kKind = GeluKind::erf;

template <class T>
void forward(Bench& b, const Vit& v) {
  const int64_t rows = v.rows(), cols = v.mlp();
  Array<T> x(b, rows * cols), y(b, rows * cols, Fill::nan);
  b.shape({{"rows", rows}, {"cols", cols}});
  OF_TIME(b, gelu_forward, [&] {
    return GeluForward<T>{.x = x.data(),
                          .ldx = cols,
                          .y = y.data(),
                          .ldy = cols,
                          .rows = rows,
                          .cols = cols,
                          .kind = kKind};
  });
  if constexpr (std::is_same_v<T, float>)
    b.provider("oneDNN", onednn::gelu(b, x, y, rows * cols), 16);
  b.memcpy_peer();
  b.expect(y, rows * cols, [&](int64_t i) -> Expected {
    const double want = reference::gelu(x[i], kKind);
    return {want, 4 * epsilon<Accum<T>> * std::abs(x[i]) + epsilon<T> * std::abs(want)};
  });
  b.measure();
}

template <class T>
void backward(Bench& b, const Vit& v) {
  const int64_t rows = v.rows(), cols = v.mlp();
  Array<T> dy(b, rows * cols), x(b, rows * cols), dx(b, rows * cols, Fill::nan);
  b.shape({{"rows", rows}, {"cols", cols}});
  OF_TIME(b, gelu_backward, [&] {
    return GeluBackward<T>{.dy = dy.data(),
                           .lddy = cols,
                           .x = x.data(),
                           .ldx = cols,
                           .dx = dx.data(),
                           .lddx = cols,
                           .rows = rows,
                           .cols = cols,
                           .kind = kKind};
  });
  if constexpr (std::is_same_v<T, float>)
    b.provider("oneDNN", onednn::gelu_backward(b, dy, x, dx, rows * cols), 16);
  b.memcpy_peer();
  b.expect(dx, rows * cols, [&](int64_t i) -> Expected {
    const double want = dy[i] * reference::gelu_derivative(x[i], kKind);
    return {want, 4 * epsilon<Accum<T>> * std::abs(dy[i]) * (1 + std::abs(x[i])) +
                      epsilon<T> * std::abs(want)};
  });
  b.measure();
}

const bool registered = on_every_vit("gelu/forward", forward<float>, forward<bf16>) &&
                        on_every_vit("gelu/backward", backward<float>, backward<bf16>);

}  // namespace
}  // namespace orthofed::bench
