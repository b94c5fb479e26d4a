// Penalties between two adapters of rank 8, with gradients: on every linear layer of a model in one
// call; `base`, which reads the frozen weights, on those of one block, and `features` on the tokens
// of one layer. Besides, the norms that the log shows.
#include "kernels/orthogonality/orthogonality.h"

#include "bench/support/bench.h"
#include "tests/kernels/orthogonality_reference.h"

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
  OrthogonalityPenalty<float> arguments() {
    return {.layers = list.data(),
            .count = list.size(),
            .weight = weight.data(),
            .values = values.data()};
  }
  // The first layer, in double.
  reference::Orthogonality first() const {
    const Linear l = at.layers[0];
    const auto part = [](const Array<float>& from, int64_t n) {
      return reference::Matrix(from.host().begin(), from.host().begin() + std::min(n, from.size()));
    };
    return {.in = l.in,
            .out = l.out,
            .rank_g = kHalf,
            .rank_p = kHalf,
            .k = kVectors,
            .a_g = part(a_g, kHalf * l.in),
            .b_g = part(b_g, kHalf * l.out),
            .a_p = part(a_p, kHalf * l.in),
            .b_p = part(b_p, kHalf * l.out),
            .w0 = part(w, l.in * l.out),
            .v_k = part(v_k, kVectors * l.in)};
  }
  Layout at;
  Array<float> a_g, b_g, a_p, b_p, da_g, db_g, da_p, db_p, w, v_k;
  Array<double> weight, values;
  Array<OrthogonalityLayer<float>> list;
};

// What a value may differ by.
Expected within(double value) {
  return {value, 1e-9 * value};
}

void update(Bench& bench, const Vit& v) {
  Problem o(bench, v, v.depth, Frozen::none);
  OF_TIME(bench, orthogonality_update, [&] { return o.arguments(); });
  bench.expect(o.values, 1,
               [&](int64_t) { return within(o.first().update(PenaltyForm::cosine2)); });
  bench.measure();
}

void base(Bench& bench, const Vit& v) {
  Problem o(bench, v, 1, Frozen::weights);
  bench.scratch(gpu::orthogonality_base_scratch(o.list.size()));
  OF_TIME(bench, orthogonality_base, [&] { return o.arguments(); });
  bench.expect(o.values, 1, [&](int64_t) { return within(o.first().base(PenaltyForm::cosine2)); });
  bench.measure();
}

void subspace(Bench& bench, const Vit& v) {
  Problem o(bench, v, v.depth, Frozen::none);
  OF_TIME(bench, orthogonality_subspace, [&] { return o.arguments(); });
  bench.expect(o.values, 1, [&](int64_t) { return within(o.first().subspace()); });
  bench.measure();
}

void subspace_l1(Bench& bench, const Vit& v) {
  Problem o(bench, v, v.depth, Frozen::none);
  OF_TIME(bench, orthogonality_subspace_l1, [&] { return o.arguments(); });
  bench.expect(o.values, 1, [&](int64_t) { return within(o.first().subspace_l1()); });
  bench.measure();
}

// The vectors are random here: the formula holds for any.
void base_subspace(Bench& bench, const Vit& v) {
  Problem o(bench, v, v.depth, Frozen::vectors);
  OF_TIME(bench, orthogonality_base_subspace, [&] { return o.arguments(); });
  bench.expect(o.values, 1, [&](int64_t) { return within(o.first().base_subspace()); });
  bench.measure();
}

void delta(Bench& bench, const Vit& v) {
  Problem o(bench, v, v.depth, Frozen::none);
  Array<double> norms2(bench, 2 * o.list.size(), Fill::nan);
  OF_TIME(bench, delta_norm2, [&] {
    return DeltaNorm2<float>{
        .layers = o.list.data(), .count = o.list.size(), .norms2 = norms2.data()};
  });
  bench.expect(norms2, 2, [&](int64_t i) {
    const reference::Matrix d = i == 0 ? o.first().delta_g() : o.first().delta_p();
    return within(reference::inner(d, d));
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
  OF_TIME(bench, orthogonality_features, [&] {
    return OrthogonalityFeatures<T>{.u_g = u_g.data(),
                                    .ld_g = kHalf,
                                    .u_p = u_p.data(),
                                    .ld_p = kHalf,
                                    .b_g = b_g.data(),
                                    .b_p = b_p.data(),
                                    .rows = rows,
                                    .out = out,
                                    .rank_g = kHalf,
                                    .rank_p = kHalf,
                                    .form = PenaltyForm::cosine2,
                                    .weight = weight.data(),
                                    .du_g = du_g.data(),
                                    .ldd_g = kHalf,
                                    .du_p = du_p.data(),
                                    .ldd_p = kHalf,
                                    .db_g = db_g.data(),
                                    .db_p = db_p.data(),
                                    .value = value.data()};
  });
  bench.expect(value, 1, [&](int64_t) {
    const auto all = [](const auto& array) {
      return reference::Matrix(array.host().begin(), array.host().end());
    };
    const reference::Features f{rows, out, kHalf, kHalf, all(u_g), all(u_p), all(b_g), all(b_p)};
    return within(f.mean(PenaltyForm::cosine2));
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
