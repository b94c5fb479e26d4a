// The norm of all adapters' gradients, rank 16, and the factor that clips them.
#include "kernels/grad_norm/grad_norm.h"

#include "bench/support/bench.h"

namespace orthofed::bench {
namespace {

void norm(Bench& b, const Vit& v) {
  std::vector<int64_t> begins = {0}, chunks = {0};  // of each tensor, and of the next
  for (const Linear l : linears(v, v.depth)) {
    for (const int64_t size : {kRank * l.in, kRank * l.out}) {
      begins.push_back(begins.back() + size);
      chunks.push_back(chunks.back() + (size + kChunk - 1) / kChunk);
    }
  }
  Array<float> g(b, begins.back());
  Array<double> scale(b, std::vector<double>{0.5}), norm(b, 1, Fill::nan), factor(b, 1, Fill::nan);
  Array<GradientSpan<float>> list(b, int64_t(begins.size()) - 1, [&](int64_t k) {
    const auto i = size_t(k);
    return GradientSpan<float>{g.data() + begins[i], begins[i + 1] - begins[i], chunks[i]};
  });
  b.scratch(gpu::grad_norm_scratch(chunks.back()));
  b.shape({{"tensors", list.size()}, {"parameters", g.size()}});
  OF_TIME(b, grad_norm, [&] {
    return GradNorm<float>{.gradients = list.data(),
                           .count = list.size(),
                           .chunks = chunks.back(),
                           .scale = scale.data(),
                           .max_norm = 1.0,
                           .norm = norm.data(),
                           .factor = factor.data()};
  });
  double squares = 0;
  for (const float x : g.host()) squares += double(x) * double(x);
  const double want = 0.5 * std::sqrt(squares);
  b.expect(norm, 1, [&](int64_t) -> Expected { return {want, 1e-9 * want}; });
  b.expect(factor, 1, [&](int64_t) -> Expected {
    const double clipped = gradient_factor(want, 0.5, 1.0);
    return {clipped, 2e-9 * clipped};
  });
  b.measure();
}

const bool registered = on_every_vit("grad_norm", norm);

}  // namespace
}  // namespace orthofed::bench
