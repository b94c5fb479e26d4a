// Layer normalisation of every token, forward, (frozen affine) backward with the residual's
// gradient, and the gradients of gamma and beta.
#include "kernels/layer_norm/layer_norm.h"

#include "bench/support/bench.h"
#include "bench/support/onednn.h"

namespace orthofed::bench {
namespace {

constexpr double kEps = 1e-6;

// A row's statistics, by plain sums in double.
template <class A>
struct Row {
  Row(const Array<A>& x, int64_t i, int64_t n) {
    for (int64_t j = 0; j < n; ++j) mean += x[i * n + j] / double(n);
    double variance = 0;
    for (int64_t j = 0; j < n; ++j) variance += std::pow(x[i * n + j] - mean, 2) / double(n);
    rstd = 1 / std::sqrt(variance + kEps);
  }
  double mean = 0, rstd = 0;
};

template <class T>
void forward(Bench& b, const Vit& v) {
  using A = Accum<T>;
  const int64_t rows = v.rows(), n = v.dim;
  Array<A> x(b, rows * n), gamma(b, n), beta(b, n), mean(b, rows, Fill::nan),
      rstd(b, rows, Fill::nan);
  Array<T> y(b, rows * n, Fill::nan);
  const auto call = [&](const auto& f) {
    f(x.data(), n, gamma.data(), beta.data(), y.data(), n, mean.data(), rstd.data(), rows, n, kEps);
  };
  b.shape({{"rows", rows}, {"cols", n}});
  of_time(b, layer_norm_forward, T)(call);
  of_time_versions(b, layer_norm_forward_versions, T)(call);
  if constexpr (std::is_same_v<T, A>)
    b.provider("oneDNN", onednn::layer_norm(b, x, gamma, beta, y, rows, n, kEps), 16);
  b.memcpy_peer();
  b.expect(y, rows * n, [&](int64_t i) -> Expected {
    const Row row(x, i / n, n);
    const double want = (x[i] - row.mean) * row.rstd * gamma[i % n] + beta[i % n];
    return {want, epsilon<A> * double(n / 16 + 10) * (row.rstd + 1) + epsilon<T> * std::abs(want)};
  });
  b.measure();
}

// What backward is given of the forward pass.
template <class A>
struct Statistics {
  Statistics(Bench& b, const Array<A>& x, int64_t rows, int64_t n)
      : mean(b, of_rows(x, rows, n, &Row<A>::mean)), rstd(b, of_rows(x, rows, n, &Row<A>::rstd)) {}
  Array<A> mean, rstd;

 private:
  static std::vector<A> of_rows(const Array<A>& x, int64_t rows, int64_t n,
                                double Row<A>::*number) {
    std::vector<A> all;
    for (int64_t i = 0; i < rows; ++i) all.push_back(A(Row<A>(x, i, n).*number));
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
  const auto call = [&](const auto& f) {
    f(dy.data(), n, x.data(), n, gamma.data(), of_x.mean.data(), of_x.rstd.data(), residual.data(),
      n, dx.data(), n, rows, n);
  };
  b.shape({{"rows", rows}, {"cols", n}});
  of_time(b, layer_norm_backward, T)(call);
  of_time_versions(b, layer_norm_backward_versions, T)(call);
  b.memcpy_peer();
  b.expect(dx, rows * n, [&](int64_t at) -> Expected {
    const int64_t i = at / n;
    const Row row(x, i, n);
    const auto g = [&](int64_t j) { return dy[i * n + j] * gamma[j]; };
    const auto h = [&](int64_t j) { return (x[i * n + j] - row.mean) * row.rstd; };
    double g_mean = 0, gh_mean = 0;
    for (int64_t j = 0; j < n; ++j) {
      g_mean += g(j) / double(n);
      gh_mean += g(j) * h(j) / double(n);
    }
    const double gradient = row.rstd * (g(at % n) - g_mean - h(at % n) * gh_mean);
    const double size = row.rstd * (1 + row.rstd * row.rstd);
    return {residual[at] + gradient, epsilon<A> * (4 * double(n / 16 + 8) * size + 1)};
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
  of_time(b, layer_norm_backward_affine, T)([&](const auto& f) {
    f(dy.data(), n, x.data(), n, of_x.mean.data(), of_x.rstd.data(), dgamma.data(), dbeta.data(),
      false, rows, n);
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
