// Layer normalisation of every token, forward, (frozen affine) backward with the residual's
// gradient, and the gradients of gamma and beta.
#include "kernels/layer_norm/layer_norm.h"

#include "bench/support/bench.h"
#include "bench/support/onednn.h"
#include "tests/kernels/layer_norm_reference.h"

namespace orthofed::bench {
namespace {

constexpr double kEps = 1e-6;

template <class A>
reference::LayerNormRow row_of(const Array<A>& x, int64_t i, int64_t n) {
  return reference::layer_norm_row(n, kEps, [&](int64_t j) { return x[i * n + j]; });
}

template <class T>
void forward(Bench& b, const Vit& v) {
  using A = Accum<T>;
  const int64_t rows = v.rows(), n = v.dim;
  Array<A> x(b, rows * n), gamma(b, n), beta(b, n), mean(b, rows, Fill::nan),
      rstd(b, rows, Fill::nan);
  Array<T> y(b, rows * n, Fill::nan);
  const auto arguments = [&] {
    return LayerNormForward<T>{.x = x.data(),
                               .ldx = n,
                               .gamma = gamma.data(),
                               .beta = beta.data(),
                               .y = y.data(),
                               .ldy = n,
                               .mean = mean.data(),
                               .rstd = rstd.data(),
                               .rows = rows,
                               .cols = n,
                               .eps = kEps};
  };
  b.shape({{"rows", rows}, {"cols", n}});
  OF_TIME(b, layer_norm_forward, arguments);
  OF_TIME_VERSIONS(b, arguments, layer_norm_forward_versions, T);
  if constexpr (std::is_same_v<T, A>)
    b.provider("oneDNN", onednn::layer_norm(b, x, gamma, beta, y, rows, n, kEps), 16);
  b.memcpy_peer();
  b.expect(y, rows * n, [&](int64_t i) -> Expected {
    const auto row = row_of(x, i / n, n);
    const double want = row.h[size_t(i % n)] * gamma[i % n] + beta[i % n];
    return {want, epsilon<A> * double(n / 16 + 10) * (row.rstd + 1) + epsilon<T> * std::abs(want)};
  });
  b.measure();
}

// What backward is given of the forward pass.
template <class A>
struct Statistics {
  Statistics(Bench& b, const Array<A>& x, int64_t rows, int64_t n)
      : mean(b, of_rows(x, rows, n, &reference::LayerNormRow::mean)),
        rstd(b, of_rows(x, rows, n, &reference::LayerNormRow::rstd)) {}
  Array<A> mean, rstd;

 private:
  static std::vector<A> of_rows(const Array<A>& x, int64_t rows, int64_t n,
                                double reference::LayerNormRow::*number) {
    std::vector<A> all;
    for (int64_t i = 0; i < rows; ++i) all.push_back(A(row_of(x, i, n).*number));
    return all;
  }
};

template <class T>
void backward(Bench& b, const Vit& v) {
  using A = Accum<T>;
  const int64_t rows = v.rows(), n = v.dim;
  Array<T> dy(b, rows * n);
  Array<A> x(b, rows * n), gamma(b, n), residual(b, rows * n), dx(b, rows * n, Fill::nan);
  Statistics<A> of_x(b, x, rows, n);
  const auto arguments = [&] {
    return LayerNormBackward<T>{.dy = dy.data(),
                                .lddy = n,
                                .x = x.data(),
                                .ldx = n,
                                .gamma = gamma.data(),
                                .mean = of_x.mean.data(),
                                .rstd = of_x.rstd.data(),
                                .residual = residual.data(),
                                .ldr = n,
                                .dx = dx.data(),
                                .lddx = n,
                                .rows = rows,
                                .cols = n};
  };
  b.shape({{"rows", rows}, {"cols", n}});
  OF_TIME(b, layer_norm_backward, arguments);
  OF_TIME_VERSIONS(b, arguments, layer_norm_backward_versions, T);
  b.memcpy_peer();
  b.expect(dx, rows * n, [&](int64_t at) -> Expected {
    const int64_t i = at / n;
    const auto row = row_of(x, i, n);
    const auto dx_row =
        reference::layer_norm_gradient(row, [&](int64_t j) { return dy[i * n + j] * gamma[j]; });
    const double size = row.rstd * (1 + row.rstd * row.rstd);
    return {residual[at] + dx_row[size_t(at % n)],
            epsilon<A> * (4 * double(n / 16 + 8) * size + 1)};
  });
  b.measure();
}

template <class T>
void backward_affine(Bench& b, const Vit& v) {
  using A = Accum<T>;
  const int64_t rows = v.rows(), n = v.dim;
  Array<T> dy(b, rows * n);
  Array<A> x(b, rows * n), dgamma(b, n, Fill::nan), dbeta(b, n, Fill::nan);
  Statistics<A> of_x(b, x, rows, n);
  b.scratch(gpu::layer_norm_backward_affine_scratch(rows, n));
  b.shape({{"rows", rows}, {"cols", n}});
  OF_TIME(b, layer_norm_backward_affine, [&] {
    return LayerNormBackwardAffine<T>{.dy = dy.data(),
                                      .lddy = n,
                                      .x = x.data(),
                                      .ldx = n,
                                      .mean = of_x.mean.data(),
                                      .rstd = of_x.rstd.data(),
                                      .dgamma = dgamma.data(),
                                      .dbeta = dbeta.data(),
                                      .accumulate = false,
                                      .rows = rows,
                                      .cols = n};
  });
  const auto sum = [&](int64_t j, const auto& factor) -> Expected {
    double total = 0, size = 0;
    for (int64_t i = 0; i < rows; ++i) {
      const double term = dy[i * n + j] * factor(i);
      total += term;
      size += std::abs(term);
    }
    return {total, epsilon<A> * (66 * size + 8 * double(rows))};  // of the sum, and of a term
  };
  b.expect(dgamma, n, [&](int64_t j) {
    return sum(j, [&](int64_t i) { return (x[i * n + j] - of_x.mean[i]) * of_x.rstd[i]; });
  });
  b.expect(dbeta, n, [&](int64_t j) { return sum(j, [](int64_t) { return 1.0; }); });
  b.measure();
}

const bool registered =
    on_every_vit("layer_norm/forward", forward<float>, forward<bf16>) &&
    on_every_vit("layer_norm/backward", backward<float>, backward<bf16>) &&
    on_every_vit("layer_norm/backward_affine", backward_affine<float>, backward_affine<bf16>);

}  // namespace
}  // namespace orthofed::bench
