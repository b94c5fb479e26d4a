// Penalties between two adapters of rank 8, with gradients: on every linear layer of a model in one
// call; `base`, which reads the frozen weights, on those of one block, and `features` on the tokens
// of one layer. Besides, the norms that the log shows.
#include "kernels/orthogonality/orthogonality.h"

#include "bench/support/bench.h"

namespace orthofed::bench {
namespace {

constexpr int64_t kHalf = kRank / 2;  // of the general adapter, and of the personal one
constexpr int64_t kVectors = 16;      // of a frozen weight, for `base_subspace`: the default

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

enum class Frozen { none, weights, vectors };

struct Problem {
  Problem(Bench& bench, const Vit& v, int64_t depth, Frozen frozen)
      : at(v, depth),
        a_g(bench, at.a.back()),
        b_g(bench, at.b.back()),
        a_p(bench, at.a.back()),
        b_p(bench, at.b.back()),
        da_g(bench, at.a.back()),
        db_g(bench, at.b.back()),
        da_p(bench, at.a.back()),
        db_p(bench, at.b.back()),
        w(bench, frozen == Frozen::weights ? at.w.back() : 0),
        v_k(bench, frozen == Frozen::vectors ? kVectors * at.a.back() / kHalf : 0),
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
    if (v_k.size() > 0) {
      l.v_k = v_k.data() + kVectors * at.a[k] / kHalf;
      l.k = kVectors;
    }
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
  Array<float> a_g, b_g, a_p, b_p, da_g, db_g, da_p, db_p, w, v_k;
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
  Problem o(bench, v, v.depth, Frozen::none);
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
  Problem o(bench, v, 1, Frozen::weights);
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

// The sum over pairs of the first layer's rows of A, of what f makes of the squared cosine.
template <class F>
double over_pairs(const Problem& o, const F& f) {
  const int64_t in = o.at.layers[0].in;
  double sum = 0;
  for (int64_t r = 0; r < kHalf; ++r)
    for (int64_t s = 0; s < kHalf; ++s)
      sum += f(cosine2(
                   {in, 1}, [&](int64_t, int64_t i) { return o.a_g[r * in + i]; },
                   [&](int64_t, int64_t i) { return o.a_p[s * in + i]; })
                   .value);
  return sum;
}

void subspace(Bench& bench, const Vit& v) {
  Problem o(bench, v, v.depth, Frozen::none);
  of_time(bench, orthogonality_subspace, float)(
      [&](const auto& f) { f(o.list.data(), o.list.size(), o.weight.data(), o.values.data()); });
  bench.expect(o.values, 1, [&](int64_t) -> Expected {
    const double sum = over_pairs(o, [](double c) { return c; });
    return {sum / double(kHalf), 1e-9 * sum};
  });
  bench.measure();
}

void subspace_l1(Bench& bench, const Vit& v) {
  Problem o(bench, v, v.depth, Frozen::none);
  of_time(bench, orthogonality_subspace_l1, float)(
      [&](const auto& f) { f(o.list.data(), o.list.size(), o.weight.data(), o.values.data()); });
  bench.expect(o.values, 1, [&](int64_t) -> Expected {
    const double sum = over_pairs(o, [](double c) { return std::sqrt(c); });
    return {sum / double(kHalf * kHalf), 1e-9 * sum};
  });
  bench.measure();
}

// |B A|_F^2 of an adapter of the first layer, from the dense product.
double norm2(const Problem& o, const Array<float>& b, const Array<float>& a) {
  double sum = 0;
  for (int64_t i = 0; i < o.at.layers[0].out; ++i)
    for (int64_t j = 0; j < o.at.layers[0].in; ++j) sum += std::pow(o.delta(b, a, i, j), 2);
  return sum;
}

// The vectors are random here: the formula holds for any.
void base_subspace(Bench& bench, const Vit& v) {
  Problem o(bench, v, v.depth, Frozen::vectors);
  of_time(bench, orthogonality_base_subspace, float)(
      [&](const auto& f) { f(o.list.data(), o.list.size(), o.weight.data(), o.values.data()); });
  bench.expect(o.values, 1, [&](int64_t) -> Expected {
    const Linear l = o.at.layers[0];
    const auto share = [&](const Array<float>& b, const Array<float>& a) {
      double inside = 0;  // |B A V|_F^2, a vector at a time
      for (int64_t k = 0; k < kVectors; ++k) {
        double av[kHalf] = {};
        for (int64_t r = 0; r < kHalf; ++r)
          for (int64_t i = 0; i < l.in; ++i) av[r] += a[r * l.in + i] * o.v_k[k * l.in + i];
        for (int64_t i = 0; i < l.out; ++i) {
          double bav = 0;
          for (int64_t r = 0; r < kHalf; ++r) bav += b[i * kHalf + r] * av[r];
          inside += bav * bav;
        }
      }
      return inside / norm2(o, b, a);
    };
    const double sum = share(o.b_g, o.a_g) + share(o.b_p, o.a_p);
    return {sum / 2, 1e-9 * sum};
  });
  bench.measure();
}

void delta(Bench& bench, const Vit& v) {
  Problem o(bench, v, v.depth, Frozen::none);
  Array<double> norms2(bench, 2 * o.list.size(), Fill::nan);
  of_time(bench, delta_norm2,
          float)([&](const auto& f) { f(o.list.data(), o.list.size(), norms2.data()); });
  bench.expect(norms2, 2, [&](int64_t i) -> Expected {
    const double want = i == 0 ? norm2(o, o.b_g, o.a_g) : norm2(o, o.b_p, o.a_p);
    return {want, 1e-9 * want};
  });
  bench.measure();
}

template <class T>
void features(Bench& bench, const Vit& v) {
  using A = Accum<T>;
  const int64_t rows = v.rows(), out = v.dim;
  Array<T> u_g(bench, rows * kHalf), u_p(bench, rows * kHalf);
  Array<A> b_g(bench, out * kHalf), b_p(bench, out * kHalf), du_g(bench, rows * kHalf),
      du_p(bench, rows * kHalf), db_g(bench, out * kHalf), db_p(bench, out * kHalf);
  Array<double> weight(bench, std::vector<double>{0.1}), value(bench, 1, Fill::nan);
  bench.scratch(gpu::orthogonality_features_scratch(rows, kHalf, kHalf));
  bench.shape({{"rows", rows}, {"rank", kHalf}, {"out", out}});
  of_time(bench, orthogonality_features, T)([&](const auto& f) {
    f(u_g.data(), kHalf, u_p.data(), kHalf, b_g.data(), b_p.data(), rows, out, kHalf, kHalf,
      PenaltyForm::cosine2, weight.data(), du_g.data(), kHalf, du_p.data(), kHalf, db_g.data(),
      db_p.data(), value.data());
  });
  bench.expect(value, 1, [&](int64_t) -> Expected {
    double sum = 0;
    for (int64_t i = 0; i < rows; ++i) {
      const auto h = [&](const auto& b, const auto& u, int64_t o) {
        double x = 0;
        for (int64_t r = 0; r < kHalf; ++r) x += b[o * kHalf + r] * u[i * kHalf + r];
        return x;
      };
      sum += cosine2(
                 {1, out}, [&](int64_t o, int64_t) { return h(b_g, u_g, o); },
                 [&](int64_t o, int64_t) { return h(b_p, u_p, o); })
                 .value;
    }
    return {sum / double(rows), 1e-9 * sum / double(rows)};
  });
  bench.measure();
}

const bool registered = on_every_vit("orthogonality/update", update) &&
                        on_every_vit("orthogonality/base", base) &&
                        on_every_vit("orthogonality/subspace", subspace) &&
                        on_every_vit("orthogonality/subspace_l1", subspace_l1) &&
                        on_every_vit("orthogonality/base_subspace", base_subspace) &&
                        on_every_vit("orthogonality/delta_norm2", delta) &&
                        on_every_vit("orthogonality/features", features<float>, features<bf16>);

}  // namespace
}  // namespace orthofed::bench
