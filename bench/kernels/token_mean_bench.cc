// Average pooling over a model's tokens.
#include "kernels/token_mean/token_mean.h"

#include "bench/support/bench.h"

namespace orthofed::bench {
namespace {

void forward(Bench& b, const Vit& v) {
  const int64_t n = v.dim;
  const TokenMeanShape s{v.batch, v.tokens, 1, n};
  Array<float> x(b, v.rows() * n), y(b, v.batch * n, Fill::nan);
  b.shape({{"batch", v.batch}, {"tokens", v.tokens}, {"dim", n}});
  OF_TIME(b, token_mean_forward, [&] {
    return TokenMeanForward<float>{.x = x.data(), .ldx = n, .y = y.data(), .ldy = n, .shape = s};
  });
  b.memcpy_peer();
  b.expect(y, y.size(), [&](int64_t i) -> Expected {
    double sum = 0, absolute = 0;
    for (int64_t t = 1; t < v.tokens; ++t) {
      const double term = x[(i / n * v.tokens + t) * n + i % n];
      sum += term;
      absolute += std::abs(term);
    }
    return {sum / double(v.tokens - 1), epsilon<float> * absolute};
  });
  b.measure();
}

void backward(Bench& b, const Vit& v) {
  const int64_t n = v.dim;
  const TokenMeanShape s{v.batch, v.tokens, 1, n};
  Array<float> dy(b, v.batch * n), dx(b, v.rows() * n, Fill::nan);
  b.shape({{"batch", v.batch}, {"tokens", v.tokens}, {"dim", n}});
  OF_TIME(b, token_mean_backward, [&] {
    return TokenMeanBackward<float>{
        .dy = dy.data(), .lddy = n, .dx = dx.data(), .lddx = n, .shape = s};
  });
  b.memcpy_peer();
  b.expect(dx, dx.size(), [&](int64_t i) -> Expected {
    const double want =
        i / n % v.tokens == 0 ? 0 : dy[i / n / v.tokens * n + i % n] / double(v.tokens - 1);
    return {want, 2 * epsilon<float> * std::abs(want)};
  });
  b.measure();
}

const bool registered =
    on_every_vit("token_mean/forward", forward) && on_every_vit("token_mean/backward", backward);

}  // namespace
}  // namespace orthofed::bench
