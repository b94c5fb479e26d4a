// Loss and gradient of a batch, with as many classes as the model is wide.
#include "kernels/cross_entropy/cross_entropy.h"

#include "bench/support/bench.h"
#include "tests/kernels/cross_entropy_reference.h"

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
  b.scratch(gpu::cross_entropy_scratch(batch));
  b.shape({{"batch", batch}, {"classes", n}});
  OF_TIME(b, cross_entropy, [&] {
    return CrossEntropy<T>{.logits = logits.data(),
                           .ld = n,
                           .labels = labels.data(),
                           .weights = weights.data(),
                           .loss = loss.data(),
                           .losses = losses.data(),
                           .dlogits = dlogits.data(),
                           .ldd = n,
                           .batch = batch,
                           .classes = n};
  });
  const auto sample = [&](int64_t i) {
    return reference::cross_entropy_sample(n, int64_t(labels[i]), {},
                                           [&](int64_t j) { return logits[i * n + j]; });
  };
  const double unit = 4 * epsilon<T> * (double(n) / 16 + 40);
  b.expect(losses, batch, [&](int64_t i) -> Expected { return {sample(i).loss, unit}; });
  b.expect(dlogits, batch * n, [&](int64_t at) -> Expected {
    return {sample(at / n).gradient[size_t(at % n)] / double(batch), unit / double(batch)};
  });
  b.measure();
}

const bool registered = on_every_vit("cross_entropy", both<float>);

}  // namespace
}  // namespace orthofed::bench
