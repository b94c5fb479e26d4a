// Softmax of attention maps: four images' heads, a row for each token.
#include "kernels/softmax/softmax.h"

#include "bench/support/bench.h"
#include "bench/support/onednn.h"

namespace orthofed::bench {
namespace {

template <class T>
void forward(Bench& b, const Vit& v) {
  const int64_t n = v.tokens, rows = 4 * v.heads * n;
  Array<T> x(b, rows * n), y(b, rows * n, Fill::nan);
  b.shape({{"rows", rows}, {"cols", n}});
  OF_TIME(b, softmax_forward, [&] {
    return SoftmaxForward<T>{
        .x = x.data(), .ldx = n, .y = y.data(), .ldy = n, .rows = rows, .cols = n};
  });
  if constexpr (std::is_same_v<T, float>)
    b.provider("oneDNN", onednn::softmax(b, x, y, rows, n), 16);
  b.memcpy_peer();
  b.expect(y, rows * n, [&](int64_t i) -> Expected {
    double sum = 0;
    for (int64_t j = 0; j < n; ++j) sum += std::exp(x[i / n * n + j]);
    const double want = std::exp(x[i]) / sum;
    return {want, (epsilon<Accum<T>> * double(n / 16 + 10) + epsilon<T>)*want};
  });
  b.measure();
}

template <class T>
void backward(Bench& b, const Vit& v) {
  const int64_t n = v.tokens, rows = 4 * v.heads * n;
  Array<T> dy(b, rows * n), y(b, rows * n), dx(b, rows * n, Fill::nan);
  b.shape({{"rows", rows}, {"cols", n}});
  OF_TIME(b, softmax_backward, [&] {
    return SoftmaxBackward<T>{.dy = dy.data(),
                              .lddy = n,
                              .y = y.data(),
                              .ldy = n,
                              .dx = dx.data(),
                              .lddx = n,
                              .rows = rows,
                              .cols = n};
  });
  b.memcpy_peer();
  b.expect(dx, rows * n, [&](int64_t i) -> Expected {
    double sum = 0, size = 0;
    for (int64_t j = i / n * n; j < i / n * n + n; ++j) {
      sum += dy[j] * y[j];
      size += std::abs(dy[j] * y[j]);
    }
    const double want = y[i] * (dy[i] - sum), k = double(n / 16 + 8);
    return {want, epsilon<Accum<T>> * k * std::abs(y[i]) * (std::abs(dy[i]) + size) +
                      epsilon<T> * std::abs(want)};
  });
  b.measure();
}

const bool registered = on_every_vit("softmax/forward", forward<float>, forward<bf16>) &&
                        on_every_vit("softmax/backward", backward<float>, backward<bf16>);

}  // namespace
}  // namespace orthofed::bench
