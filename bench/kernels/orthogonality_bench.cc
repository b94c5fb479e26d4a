// Penalties between two adapters of rank 8, with gradients: on every linear layer of a model in one
// call; `base`, which reads the frozen weights, on those of one block.
#include "kernels/orthogonality/orthogonality.h"

#include "bench/support/bench.h"

namespace orthofed::bench {
namespace {

constexpr int64_t kHalf = kRank / 2;  // of the general adapter, and of the personal one

// Where the adapters and weights of each layer begin in arrays that hold all of them, and the sums.
struct Layout {
  Layout(const Vit& v, int64_t depth) : layers(linears(v, depth)), a{0}, b{0}, w{0} {
    for (const Linear l : layers) {
      a.push_back(a.back() + kHalf * l.in);
      b.push_back(b.back() + kHalf * l.out);
      w.push_back(w.back() + l.in * l.out);
    }
  }
  std::vector<Linear> layers;
  std::vector<int64_t> a, b, w;
};

struct Problem {
  Problem(Bench& bench, const Vit& v, int64_t depth, bool weights)
      : at(v, depth),
        a_g(bench, at.a.back()),
        b_g(bench, at.b.back()),
        a_p(bench, at.a.back()),
        b_p(bench, at.b.back()),
        da_g(bench, at.a.back()),
        db_g(bench, at.b.back()),
        da_p(bench, at.a.back()),
        db_p(bench, at.b.back()),
        w(bench, weights ? at.w.back() : 0),
        weight(bench, std::vector<double>{0.1}),
        values(bench, int64_t(at.layers.size()), Fill::nan),
        list(bench, values.size(), [this](int64_t k) { return layer(size_t(k)); }) {
    bench.shape({{"layers", list.size()}, {"rank", kHalf}, {"dim", v.dim}});
  }
  OrthogonalityLayer<float> layer(size_t k) {
    OrthogonalityLayer<float> l;
    l.in = l.ld_w0 = at.layers[k].in;
    l.out = at.layers[k].out;
    l.rank_g = l.rank_p = kHalf;
    l.a_g = a_g.data() + at.a[k], l.da_g = da_g.data() + at.a[k];
    l.b_g = b_g.data() + at.b[k], l.db_g = db_g.data() + at.b[k];
    l.a_p = a_p.data() + at.a[k], l.da_p = da_p.data() + at.a[k];
    l.b_p = b_p.data() + at.b[k], l.db_p = db_p.data() + at.b[k];
    if (w.size() == 0) return l;
    l.w0 = w.data() + at.w[k];
    l.w0_norm2 = 0;
    for (int64_t i = at.w[k]; i < at.w[k + 1]; ++i) l.w0_norm2 += w[i] * w[i];
    return l;
  }
  // (B A)[o, i] of the first layer.
  double delta(const Array<float>& b, const Array<float>& a, int64_t o, int64_t i) const {
    double sum = 0;
    for (int64_t r = 0; r < kHalf; ++r) sum += b[o * kHalf + r] * a[r * at.layers[0].in + i];
    return sum;
  }
  Layout at;
  Array<float> a_g, b_g, a_p, b_p, da_g, db_g, da_p, db_p, w;
  Array<double> weight, values;
  Array<OrthogonalityLayer<float>> list;
};

// The first layer's value, from the dense matrices: the squared cosine of x and y.
template <class X, class Y>
Expected cosine2(const Linear& l, const X& x, const Y& y) {
  double xx = 0, xy = 0, yy = 0;
  for (int64_t o = 0; o < l.out; ++o) {
    for (int64_t i = 0; i < l.in; ++i) {
      const double a = x(o, i), b = y(o, i);
      xx += a * a, xy += a * b, yy += b * b;
    }
  }
  const double value = xy * xy / (xx * yy);
  return {value, 1e-9 * value};
}

void update(Bench& bench, const Vit& v) {
  Problem o(bench, v, v.depth, false);
  of_time(bench, orthogonality_update, float)([&](const auto& f) {
    f(o.list.data(), o.list.size(), PenaltyForm::cosine2, o.weight.data(), o.values.data());
  });
  bench.expect(o.values, 1, [&](int64_t) {
    return cosine2(
        o.at.layers[0], [&](int64_t i, int64_t j) { return o.delta(o.b_g, o.a_g, i, j); },
        [&](int64_t i, int64_t j) { return o.delta(o.b_p, o.a_p, i, j); });
  });
  bench.measure();
}

void base(Bench& bench, const Vit& v) {
  Problem o(bench, v, 1, true);
  bench.scratch(gpu::orthogonality_base_scratch(o.list.size()));
  of_time(bench, orthogonality_base, float)([&](const auto& f) {
    f(o.list.data(), o.list.size(), PenaltyForm::cosine2, o.weight.data(), o.values.data());
  });
  bench.expect(o.values, 1, [&](int64_t) -> Expected {
    const Linear l = o.at.layers[0];
    const auto w0 = [&](int64_t i, int64_t j) { return o.w[i * l.in + j]; };
    const double g =
        cosine2(l, w0, [&](int64_t i, int64_t j) { return o.delta(o.b_g, o.a_g, i, j); }).value;
    const double p =
        cosine2(l, w0, [&](int64_t i, int64_t j) { return o.delta(o.b_p, o.a_p, i, j); }).value;
    return {(g + p) / 2, 1e-9 * (g + p)};
  });
  bench.measure();
}

void subspace(Bench& bench, const Vit& v) {
  Problem o(bench, v, v.depth, false);
  of_time(bench, orthogonality_subspace, float)(
      [&](const auto& f) { f(o.list.data(), o.list.size(), o.weight.data(), o.values.data()); });
  bench.expect(o.values, 1, [&](int64_t) -> Expected {
    const int64_t in = o.at.layers[0].in;
    double sum = 0;
    for (int64_t r = 0; r < kHalf; ++r)
      for (int64_t s = 0; s < kHalf; ++s)
        sum += cosine2(
                   {in, 1}, [&](int64_t, int64_t i) { return o.a_g[r * in + i]; },
                   [&](int64_t, int64_t i) { return o.a_p[s * in + i]; })
                   .value;
    return {sum / double(kHalf), 1e-9 * sum};
  });
  bench.measure();
}

const bool registered = on_every_vit("orthogonality/update", update) &&
                        on_every_vit("orthogonality/base", base) &&
                        on_every_vit("orthogonality/subspace", subspace);

}  // namespace
}  // namespace orthofed::bench
