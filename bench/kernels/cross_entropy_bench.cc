// Loss and gradient of a batch, with as many classes as the model is wide.
#include "kernels/cross_entropy/cross_entropy.h"

#include "bench/support/bench.h"

namespace orthofed::bench {
namespace {

template <class T>
void both(Bench& b, const Vit& v) {
  const int64_t batch = v.batch, n = v.dim;
  Array<T> logits(b, batch * n), weights(b, std::vector<T>(size_t(batch), T(1)));
  Array<T> loss(b, 1, Fill::nan), losses(b, batch, Fill::nan), dlogits(b, batch * n, Fill::nan);
  std::vector<int32_t> drawn;
  for (int64_t i = 0; i < batch; ++i) drawn.push_back(int32_t(i * 7919 % n));
  Array<int32_t> labels(b, drawn);
  const T* none = nullptr;
  b.scratch(gpu::cross_entropy_scratch(batch));
  b.shape({{"batch", batch}, {"classes", n}});
  of_time(b, cross_entropy, T)([&](const auto& f) {
    f(logits.data(), n, labels.data(), weights.data(), none, none, loss.data(), losses.data(),
      dlogits.data(), n, batch, n, CrossEntropyOptions{});
  });
  const auto log_sum = [&](int64_t i) {
    double sum = 0;
    for (int64_t j = 0; j < n; ++j) sum += std::exp(logits[i * n + j]);
    return std::log(sum);
  };
  const double unit = 4 * epsilon<T> * (double(n) / 16 + 40);
  b.expect(losses, batch, [&](int64_t i) -> Expected {
    return {log_sum(i) - logits[i * n + int64_t(labels[i])], unit};
  });
  b.expect(dlogits, batch * n, [&](int64_t at) -> Expected {
    const double target = at % n == int64_t(labels[at / n]) ? 1 : 0;
    const double q = std::exp(logits[at] - log_sum(at / n));
    return {(q - target) / double(batch), unit / double(batch)};
  });
  b.measure();
}

const bool registered = on_every_vit("cross_entropy", both<float>);

}  // namespace
}  // namespace orthofed::bench
