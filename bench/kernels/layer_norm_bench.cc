// Layer normalisation of every token, forward and (frozen affine) backward with the residual's
// gradient.
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

template <class T>
void backward(Bench& b, const Vit& v) {
  using A = Accum<T>;
  const int64_t rows = v.rows(), n = v.dim;
  Array<T> dy(b, rows * n);
  Array<A> x(b, rows * n), gamma(b, n), residual(b, rows * n), dx(b, rows * n, Fill::nan);
  std::vector<A> means, rstds;
  for (int64_t i = 0; i < rows; ++i) {
    const Row row(x, i, n);
    means.push_back(A(row.mean));
    rstds.push_back(A(row.rstd));
  }
  Array<A> mean(b, means), rstd(b, rstds);
  const auto call = [&](const auto& f) {
    f(dy.data(), n, x.data(), n, gamma.data(), mean.data(), rstd.data(), residual.data(), n,
      dx.data(), n, rows, n);
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

const bool registered = on_every_vit("layer_norm/forward", forward<float>, forward<bf16>) &&
                        on_every_vit("layer_norm/backward", backward<float>, backward<bf16>);

}  // namespace
}  // namespace orthofed::bench
