// A step over all adapters of a model, rank 16, in one call.
#include "kernels/optimizer/optimizer.h"

#include "bench/support/bench.h"
#include "tests/kernels/optimizer_reference.h"

namespace orthofed::bench {
namespace {

// Adapters A and B of every linear layer, one behind the other.
std::vector<int64_t> sizes_of(const Vit& v) {
  std::vector<int64_t> sizes;
  for (const Linear l : linears(v, v.depth)) {
    sizes.push_back(kRank * l.in);
    sizes.push_back(kRank * l.out);
  }
  return sizes;
}

constexpr double kRate = 1e-3, kScale = 0.5, kDecay = 0.01;

struct Problem {
  Problem(Bench& b, const Vit& v)
      : sizes(sizes_of(v)),
        n(number_of_elements()),
        p(b, n),
        g(b, n),
        m(b, n),
        second(b, std::vector<float>(size_t(n), 0.5F)),
        numbers(b, std::vector<double>{kRate, kScale}),
        step(b, std::vector<int64_t>{10}),
        list(b, int64_t(sizes.size()), [this](int64_t k) {
          int64_t first = 0, chunk = 0;
          for (int64_t i = 0; i < k; ++i) {
            first += sizes[size_t(i)];
            chunk += (sizes[size_t(i)] + kChunk - 1) / kChunk;
          }
          return OptimizedTensor<float>{p.data() + first,
                                        g.data() + first,
                                        m.data() + first,
                                        second.data() + first,
                                        sizes[size_t(k)],
                                        kDecay,
                                        chunk};
        }) {
    for (const int64_t size : sizes) chunks += (size + kChunk - 1) / kChunk;
    b.shape({{"tensors", int64_t(sizes.size())}, {"parameters", n}});
  }
  int64_t number_of_elements() const {
    int64_t all = 0;
    for (const int64_t size : sizes) all += size;
    return all;
  }
  std::vector<int64_t> sizes;
  int64_t n, chunks = 0;
  Array<float> p, g, m, second;
  Array<double> numbers;
  Array<int64_t> step;
  Array<OptimizedTensor<float>> list;
};

void adamw(Bench& b, const Vit& v) {
  Problem o(b, v);
  OF_TIME(b, adamw, [&] {
    return AdamW<float>{.tensors = o.list.data(),
                        .count = o.list.size(),
                        .chunks = o.chunks,
                        .step = {.learning_rate = o.numbers.data(),
                                 .gradient_scale = o.numbers.data() + 1,
                                 .step = o.step.data()}};
  });
  b.memcpy_peer();
  const int64_t step = o.step.host()[0];
  const AdamWStep on_host{.learning_rate = &kRate, .gradient_scale = &kScale, .step = &step};
  b.expect(o.p, o.n, [&](int64_t i) -> Expected {
    double p = o.p[i], m = o.m[i], second = o.second[i];
    reference::adamw(p, o.g[i], m, second, kDecay, on_host);
    return {p, epsilon<float> * (2 + 8 * kRate)};
  });
  b.measure();
}

void sgd(Bench& b, const Vit& v) {
  Problem o(b, v);
  OF_TIME(b, sgd, [&] {
    return Sgd<float>{
        .tensors = o.list.data(),
        .count = o.list.size(),
        .chunks = o.chunks,
        .step = {.learning_rate = o.numbers.data(), .gradient_scale = o.numbers.data() + 1}};
  });
  b.memcpy_peer();
  const SgdStep on_host{.learning_rate = &kRate, .gradient_scale = &kScale};
  b.expect(o.p, o.n, [&](int64_t i) -> Expected {
    double p = o.p[i], m = o.m[i];
    reference::sgd(p, o.g[i], m, kDecay, on_host);
    return {p, epsilon<float> * (2 + 8 * kRate)};
  });
  b.measure();
}

const bool registered =
    on_every_vit("optimizer/adamw", adamw) && on_every_vit("optimizer/sgd", sgd);

}  // namespace
}  // namespace orthofed::bench
