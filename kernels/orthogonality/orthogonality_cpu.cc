// All sums are double and run in an order fixed by the shapes. Nothing of size out x in is formed:
// every penalty is a function of small Gram matrices (rank x rank, on the stack), and its gradient
// is those matrices times A or B. W0 is only ever multiplied with A or B, block by block.
#include "kernels/orthogonality/orthogonality.h"

#include <algorithm>
#include <initializer_list>
#include <string>

#include "kernels/core/check.h"
#include "kernels/core/rows.h"
#include "kernels/orthogonality/similarity.h"

namespace orthofed::cpu {
namespace {

// A matrix of up to kMaxPenaltyRank x kMaxPenaltyRank, 32 KiB of stack.
struct Small {
  double m[kMaxPenaltyRank][kMaxPenaltyRank];
  double* operator[](int64_t i) { return m[i]; }
  const double* operator[](int64_t i) const { return m[i]; }
};

template <class T>
struct Adapter {
  int64_t in, out, rank;
  const T *a, *b;  // [rank, in], [out, rank]
  T *da, *db;
};

template <class T>
Adapter<T> general(const OrthogonalityLayer<T>& l) {
  return {l.in, l.out, l.rank_g, l.a_g, l.b_g, l.da_g, l.db_g};
}
template <class T>
Adapter<T> personal(const OrthogonalityLayer<T>& l) {
  return {l.in, l.out, l.rank_p, l.a_p, l.b_p, l.da_p, l.db_p};
}

void check_ranks(std::initializer_list<int64_t> ranks) {
  for (int64_t rank : ranks)
    OF_CHECK(0 < rank && rank <= kMaxPenaltyRank,
             "rank " + std::to_string(rank) + " is not in 1.." + std::to_string(kMaxPenaltyRank));
}

// g [rx, ry] = X Y^T of X [rx, n], Y [ry, n]
template <class T>
void row_gram(const T* x, int64_t rx, const T* y, int64_t ry, int64_t n, Small& g) {
  parallel_for(rx * ry, product_grain(n), [&](int64_t begin, int64_t end) {
    for (int64_t e = begin; e < end; ++e) {
      const int64_t i = e / ry, j = e % ry;
      g[i][j] = dot(x + i * n, y + j * n, n);
    }
  });
}

// g [rx, ry] = X^T Y of X [n, rx], Y [n, ry]
template <class T>
void column_gram(const T* x, int64_t rx, const T* y, int64_t ry, int64_t n, Small& g) {
  parallel_for(rx, product_grain(n * ry), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      double sum[kMaxPenaltyRank] = {};
      for (int64_t row = 0; row < n; ++row) {
        const double xi = x[row * rx + i];
        for (int64_t j = 0; j < ry; ++j) sum[j] += xi * double(y[row * ry + j]);
      }
      std::copy(sum, sum + ry, g[i]);
    }
  });
}

Small transposed(const Small& g, int64_t rows, int64_t columns) {
  Small t;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) t[j][i] = g[i][j];
  return t;
}

// g [rows, columns] = h H
Small scaled(double h, const Small& big_h, int64_t rows, int64_t columns) {
  Small g;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) g[i][j] = h * big_h[i][j];
  return g;
}

// <G, H>_F
double inner(const Small& g, const Small& h, int64_t rows, int64_t columns) {
  double sum = 0;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) sum += g[i][j] * h[i][j];
  return sum;
}

// y [r, n] += C [r, s] X [s, n]; y null: not wanted
template <class T>
void add_left_product(const Small& c, int64_t r, int64_t s, const T* x, int64_t n, T* y) {
  if (y == nullptr) return;
  constexpr int64_t width = 256;
  const int64_t blocks = (n + width - 1) / width;
  parallel_for(blocks, product_grain(r * s * width), [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * width, columns = std::min(width, n - first);
      for (int64_t i = 0; i < r; ++i) {
        double sum[width] = {};
        for (int64_t j = 0; j < s; ++j)
          for (int64_t t = 0; t < columns; ++t) sum[t] += c[i][j] * double(x[j * n + first + t]);
        for (int64_t t = 0; t < columns; ++t)
          y[i * n + first + t] = T(y[i * n + first + t] + sum[t]);
      }
    }
  });
}

// y [n, r] += X [n, s] C [s, r]; y null: not wanted
template <class T>
void add_right_product(const T* x, int64_t n, const Small& c, int64_t s, int64_t r, T* y) {
  if (y == nullptr) return;
  parallel_for(n, product_grain(r * s), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      double sum[kMaxPenaltyRank] = {};
      for (int64_t j = 0; j < s; ++j)
        for (int64_t i = 0; i < r; ++i) sum[i] += double(x[row * s + j]) * c[j][i];
      for (int64_t i = 0; i < r; ++i) y[row * r + i] = T(y[row * r + i] + sum[i]);
    }
  });
}

// The gradient of f(..., |BA|^2): d|BA|^2/dA = 2 (B^T B) A, d|BA|^2/dB = 2 B (A A^T).
template <class T>
void add_norm_gradient(const Adapter<T>& x, double d_norm, const Small& btb, const Small& aat) {
  add_left_product(scaled(2 * d_norm, btb, x.rank, x.rank), x.rank, x.rank, x.a, x.in, x.da);
  add_right_product(x.b, x.out, scaled(2 * d_norm, aat, x.rank, x.rank), x.rank, x.rank, x.db);
}

// One adapter's half of `base`: the similarity of W0 and BA. <W0, BA> = sum((W0 A^T) o B), row by
// row; its gradients are B^T W0 (dA) and W0 A^T (dB).
template <class T>
double base_term(const Adapter<T>& x, const OrthogonalityLayer<T>& layer, PenaltyForm form,
                 double weight) {
  Small btb, aat;
  column_gram(x.b, x.rank, x.b, x.rank, x.out, btb);
  row_gram(x.a, x.rank, x.a, x.rank, x.in, aat);
  const double norm2 = inner(btb, aat, x.rank, x.rank);

  constexpr int64_t most_chunks = 64;
  const int64_t grain = std::max<int64_t>(1, (x.out + most_chunks - 1) / most_chunks);
  double partial[most_chunks] = {};
  parallel_for(x.out, grain, [&](int64_t begin, int64_t end) {
    double sum = 0;
    for (int64_t o = begin; o < end; ++o)
      for (int64_t i = 0; i < x.rank; ++i)
        sum += dot(layer.w0 + o * layer.ld_w0, x.a + i * x.in, x.in) * double(x.b[o * x.rank + i]);
    partial[begin / grain] = sum;
  });
  double z = 0;
  for (double sum : partial) z += sum;

  const Similarity f = similarity(z, layer.w0_norm2, norm2, form);
  if (weight == 0) return f.value;
  if (f.d_inner != 0 && x.db != nullptr) {
    parallel_for(x.out, grain, [&](int64_t begin, int64_t end) {
      for (int64_t o = begin; o < end; ++o)
        for (int64_t i = 0; i < x.rank; ++i) {
          const double w0_at = dot(layer.w0 + o * layer.ld_w0, x.a + i * x.in, x.in);
          x.db[o * x.rank + i] = T(x.db[o * x.rank + i] + weight * f.d_inner * w0_at);
        }
    });
  }
  if (f.d_inner != 0 && x.da != nullptr) {
    constexpr int64_t width = kMaxPenaltyRank;  // columns of B^T W0 held at a time
    parallel_for((x.in + width - 1) / width, 1, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        const int64_t first = block * width, columns = std::min(width, x.in - first);
        Small btw;  // [rank, columns]
        for (int64_t i = 0; i < x.rank; ++i) std::fill(btw[i], btw[i] + columns, 0.0);
        for (int64_t o = 0; o < x.out; ++o) {
          const T* w = layer.w0 + o * layer.ld_w0 + first;
          for (int64_t i = 0; i < x.rank; ++i) {
            const double bi = x.b[o * x.rank + i];
            for (int64_t t = 0; t < columns; ++t) btw[i][t] += bi * double(w[t]);
          }
        }
        for (int64_t i = 0; i < x.rank; ++i)
          for (int64_t t = 0; t < columns; ++t) {
            T& da = x.da[i * x.in + first + t];
            da = T(da + weight * f.d_inner * btw[i][t]);
          }
      }
    });
  }
  add_norm_gradient(x, weight * f.d_norm_y, btb, aat);
  return f.value;
}

// One adapter's half of `base_subspace`. With Z = A V_k [rank, k]:
//   |B A V_k|^2 = <B^T B, Z Z^T>,  d/dA = 2 (B^T B) Z V_k^T,  d/dB = 2 B Z Z^T
template <class T>
double base_subspace_term(const Adapter<T>& x, const T* v_k, int64_t k, double weight) {
  Small btb, aat, z, zzt, zt;
  column_gram(x.b, x.rank, x.b, x.rank, x.out, btb);
  row_gram(x.a, x.rank, x.a, x.rank, x.in, aat);
  row_gram(x.a, x.rank, v_k, k, x.in, z);
  for (int64_t i = 0; i < x.rank; ++i)
    for (int64_t j = 0; j < x.rank; ++j) zzt[i][j] = dot(z[i], z[j], k);
  const double norm2 = inner(btb, aat, x.rank, x.rank);
  if (norm2 <= kSmallestDenominator) return 0;
  const double value = inner(btb, zzt, x.rank, x.rank) / norm2;
  if (weight == 0) return value;

  const double factor = 2 * weight / norm2;
  Small btbz;  // [rank, k]
  zt = transposed(z, x.rank, k);
  for (int64_t i = 0; i < x.rank; ++i)
    for (int64_t j = 0; j < k; ++j) btbz[i][j] = factor * dot(btb[i], zt[j], x.rank);
  add_left_product(btbz, x.rank, k, v_k, x.in, x.da);
  add_right_product(x.b, x.out, scaled(factor, zzt, x.rank, x.rank), x.rank, x.rank, x.db);
  add_norm_gradient(x, -weight * value / norm2, btb, aat);
  return value;
}

// `subspace` and `subspace_l1` are sums over pairs of rows (a_i of A_g, b_j of A_p) of the
// similarity of two vectors, divided by a count.
template <class T>
double subspace(const OrthogonalityLayer<T>& layer, PenaltyForm form, double weight, double count) {
  const auto g = general(layer), p = personal(layer);
  Small gp, gg, pp;
  row_gram(g.a, g.rank, p.a, p.rank, layer.in, gp);
  double norm_g[kMaxPenaltyRank], norm_p[kMaxPenaltyRank];
  for (int64_t i = 0; i < g.rank; ++i) norm_g[i] = dot(g.a + i * g.in, g.a + i * g.in, g.in);
  for (int64_t j = 0; j < p.rank; ++j) norm_p[j] = dot(p.a + j * p.in, p.a + j * p.in, p.in);

  // dA_g = gp A_p + gg A_g and dA_p = gp^T A_g + pp A_p with diagonal gg, pp.
  for (int64_t i = 0; i < g.rank; ++i) std::fill(gg[i], gg[i] + g.rank, 0.0);
  for (int64_t j = 0; j < p.rank; ++j) std::fill(pp[j], pp[j] + p.rank, 0.0);
  double value = 0;
  for (int64_t i = 0; i < g.rank; ++i)
    for (int64_t j = 0; j < p.rank; ++j) {
      const Similarity f = similarity(gp[i][j], norm_g[i], norm_p[j], form);
      value += f.value / count;
      gp[i][j] = weight * f.d_inner / count;
      gg[i][i] += 2 * weight * f.d_norm_x / count;
      pp[j][j] += 2 * weight * f.d_norm_y / count;
    }
  if (weight == 0) return value;
  add_left_product(gp, g.rank, p.rank, p.a, g.in, g.da);
  add_left_product(gg, g.rank, g.rank, g.a, g.in, g.da);
  add_left_product(transposed(gp, g.rank, p.rank), p.rank, g.rank, g.a, p.in, p.da);
  add_left_product(pp, p.rank, p.rank, p.a, p.in, p.da);
  return value;
}

template <class T>
double update(const OrthogonalityLayer<T>& layer, PenaltyForm form, double weight) {
  const auto g = general(layer), p = personal(layer);
  Small a_gg, a_gp, a_pp, b_gg, b_gp, b_pp;
  row_gram(g.a, g.rank, g.a, g.rank, g.in, a_gg);
  row_gram(g.a, g.rank, p.a, p.rank, g.in, a_gp);
  row_gram(p.a, p.rank, p.a, p.rank, p.in, a_pp);
  column_gram(g.b, g.rank, g.b, g.rank, g.out, b_gg);
  column_gram(g.b, g.rank, p.b, p.rank, g.out, b_gp);
  column_gram(p.b, p.rank, p.b, p.rank, p.out, b_pp);
  const Similarity f = similarity(inner(b_gp, a_gp, g.rank, p.rank),         // <DeltaW_g, DeltaW_p>
                                  inner(b_gg, a_gg, g.rank, g.rank),         // |DeltaW_g|^2
                                  inner(b_pp, a_pp, p.rank, p.rank), form);  // |DeltaW_p|^2
  if (weight == 0) return f.value;

  const Small a_cross = scaled(weight * f.d_inner, a_gp, g.rank, p.rank);  // [rank_g, rank_p]
  const Small b_cross = scaled(weight * f.d_inner, b_gp, g.rank, p.rank);
  add_left_product(b_cross, g.rank, p.rank, p.a, g.in, g.da);
  add_right_product(p.b, g.out, transposed(a_cross, g.rank, p.rank), p.rank, g.rank, g.db);
  add_norm_gradient(g, weight * f.d_norm_x, b_gg, a_gg);
  add_left_product(transposed(b_cross, g.rank, p.rank), p.rank, g.rank, g.a, p.in, p.da);
  add_right_product(g.b, p.out, a_cross, g.rank, p.rank, p.db);
  add_norm_gradient(p, weight * f.d_norm_y, b_pp, a_pp);
  return f.value;
}

template <class T>
double base(const OrthogonalityLayer<T>& layer, PenaltyForm form, double weight) {
  return (base_term(general(layer), layer, form, weight / 2) +
          base_term(personal(layer), layer, form, weight / 2)) /
         2;
}

template <class T>
double base_subspace(const OrthogonalityLayer<T>& layer, double weight) {
  return (base_subspace_term(general(layer), layer.v_k, layer.k, weight / 2) +
          base_subspace_term(personal(layer), layer.v_k, layer.k, weight / 2)) /
         2;
}

template <class T>
double norm2(const Adapter<T>& x) {
  Small aat, btb;
  row_gram(x.a, x.rank, x.a, x.rank, x.in, aat);
  column_gram(x.b, x.rank, x.b, x.rank, x.out, btb);
  return inner(btb, aat, x.rank, x.rank);
}

// body(layer's index): where there are enough layers a thread takes whole ones, inside which
// parallel_for is then a plain loop, because a layer's sums are short beside the cost of waking
// threads. A few layers are cut inside. The sums are the same either way.
template <class T, class F>
void each_layer(const OrthogonalityLayer<T>* layers, int64_t count, const F& body) {
  for (int64_t l = 0; l < count; ++l) check_ranks({layers[l].rank_g, layers[l].rank_p});
  if (count < 4 * threads()) {
    for (int64_t l = 0; l < count; ++l) body(l);
    return;
  }
#pragma omp parallel for schedule(dynamic)
  for (int64_t l = 0; l < count; ++l) body(l);
}

}  // namespace

template <class T>
void orthogonality_update(const OrthogonalityPenalty<T>& a) {
  each_layer(a.layers, a.count,
             [&](int64_t l) { a.values[l] = update(a.layers[l], a.form, *a.weight); });
}

template <class T>
void orthogonality_base(const OrthogonalityPenalty<T>& a) {
  for (int64_t l = 0; l < a.count; ++l)
    OF_CHECK(a.layers[l].w0 != nullptr && a.layers[l].ld_w0 >= a.layers[l].in,
             "`base` needs W0 [out, in]");
  each_layer(a.layers, a.count,
             [&](int64_t l) { a.values[l] = base(a.layers[l], a.form, *a.weight); });
}

template <class T>
void orthogonality_subspace(const OrthogonalityPenalty<T>& a) {
  each_layer(a.layers, a.count, [&](int64_t l) {
    a.values[l] = subspace(a.layers[l], PenaltyForm::cosine2, *a.weight,
                           double(std::min(a.layers[l].rank_g, a.layers[l].rank_p)));
  });
}

template <class T>
void orthogonality_subspace_l1(const OrthogonalityPenalty<T>& a) {
  each_layer(a.layers, a.count, [&](int64_t l) {
    a.values[l] = subspace(a.layers[l], PenaltyForm::abs_cosine, *a.weight,
                           double(a.layers[l].rank_g * a.layers[l].rank_p));
  });
}

template <class T>
void orthogonality_base_subspace(const OrthogonalityPenalty<T>& a) {
  for (int64_t l = 0; l < a.count; ++l) {
    check_ranks({a.layers[l].k});
    OF_CHECK(a.layers[l].v_k != nullptr, "`base_subspace` needs V_k [k, in]");
  }
  each_layer(a.layers, a.count,
             [&](int64_t l) { a.values[l] = base_subspace(a.layers[l], *a.weight); });
}

template <class T>
void delta_norm2(const DeltaNorm2<T>& a) {
  each_layer(a.layers, a.count, [&](int64_t l) {
    a.norms2[2 * l] = norm2(general(a.layers[l]));
    a.norms2[2 * l + 1] = norm2(personal(a.layers[l]));
  });
}

// Per token, with the Grams P = B^T B':
//   z = u_g^T P_gp u_p,  n = u^T P u,  du_g = f_z P_gp u_p + 2 f_n P_gg u_g
// and summed over tokens
//   dB_g = B_p (sum f_z u_p u_g^T) + B_g (sum 2 f_n u_g u_g^T).
template <class U>
void orthogonality_features(const OrthogonalityFeatures<U>& a) {
  using A = Accum<U>;
  const int64_t rows = a.rows, rank_g = a.rank_g, rank_p = a.rank_p;
  check_ranks({rank_g, rank_p});
  OF_CHECK(a.form != PenaltyForm::raw2, "`features` has no raw2 form");
  *a.value = 0;
  if (rows == 0) return;
  const double weight = *a.weight;
  Small gg, gp, pp, s_gg, s_gp, s_pp;
  column_gram(a.b_g, rank_g, a.b_g, rank_g, a.out, gg);
  column_gram(a.b_g, rank_g, a.b_p, rank_p, a.out, gp);
  column_gram(a.b_p, rank_p, a.b_p, rank_p, a.out, pp);
  const Small pg = transposed(gp, rank_g, rank_p);
  for (int64_t i = 0; i < rank_g; ++i) std::fill(s_gg[i], s_gg[i] + rank_g, 0.0);
  for (int64_t i = 0; i < rank_g; ++i) std::fill(s_gp[i], s_gp[i] + rank_p, 0.0);
  for (int64_t i = 0; i < rank_p; ++i) std::fill(s_pp[i], s_pp[i] + rank_p, 0.0);

  // Rows go in blocks whose per-token factors fit on the stack: first each token by itself, then
  // the sums over tokens, one row of a sum to a thread.
  constexpr int64_t most_rows = 2048;
  double values[most_rows], f_z[most_rows], f_g[most_rows], f_p[most_rows];
  const double share = weight / double(rows);
  for (int64_t first = 0; first < rows; first += most_rows) {
    const int64_t count = std::min(most_rows, rows - first);
    const U *block_g = a.u_g + first * a.ld_g, *block_p = a.u_p + first * a.ld_p;
    const int64_t token_cost = (rank_g + rank_p) * (rank_g + rank_p);
    parallel_for(count, product_grain(token_cost), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const U *ug = block_g + row * a.ld_g, *up = block_p + row * a.ld_p;
        double gg_ug[kMaxPenaltyRank] = {}, gp_up[kMaxPenaltyRank] = {},
               pp_up[kMaxPenaltyRank] = {}, pg_ug[kMaxPenaltyRank] = {};
        for (int64_t j = 0; j < rank_g; ++j) {
          const double u = A(ug[j]);
          for (int64_t i = 0; i < rank_g; ++i) gg_ug[i] += u * gg[j][i];
          for (int64_t i = 0; i < rank_p; ++i) pg_ug[i] += u * gp[j][i];
        }
        for (int64_t j = 0; j < rank_p; ++j) {
          const double u = A(up[j]);
          for (int64_t i = 0; i < rank_p; ++i) pp_up[i] += u * pp[j][i];
          for (int64_t i = 0; i < rank_g; ++i) gp_up[i] += u * pg[j][i];
        }
        double z = 0, norm_g = 0, norm_p = 0;
        for (int64_t i = 0; i < rank_g; ++i) z += double(A(ug[i])) * gp_up[i];
        for (int64_t i = 0; i < rank_g; ++i) norm_g += double(A(ug[i])) * gg_ug[i];
        for (int64_t i = 0; i < rank_p; ++i) norm_p += double(A(up[i])) * pp_up[i];
        const Similarity f = similarity(z, norm_g, norm_p, a.form);
        values[row] = f.value;
        f_z[row] = share * f.d_inner;
        f_g[row] = 2 * share * f.d_norm_x;
        f_p[row] = 2 * share * f.d_norm_y;
        if (weight != 0 && a.du_g != nullptr) {
          A* du = a.du_g + (first + row) * a.ldd_g;
          for (int64_t i = 0; i < rank_g; ++i)
            du[i] = A(du[i] + (f_z[row] * gp_up[i] + f_g[row] * gg_ug[i]));
        }
        if (weight != 0 && a.du_p != nullptr) {
          A* du = a.du_p + (first + row) * a.ldd_p;
          for (int64_t i = 0; i < rank_p; ++i)
            du[i] = A(du[i] + (f_z[row] * pg_ug[i] + f_p[row] * pp_up[i]));
        }
      }
    });
    for (int64_t row = 0; row < count; ++row) *a.value += values[row] / double(rows);
    if (weight == 0) continue;

    // s [r, s] += sum over tokens of f u u'^T
    const auto add_outer = [&](const double* f, const U* u, int64_t ldu, int64_t ru, const U* v,
                               int64_t ldv, int64_t rv, Small& s) {
      parallel_for(ru, product_grain(count * rv), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
          for (int64_t row = 0; row < count; ++row) {
            const double fu = f[row] * double(A(u[row * ldu + i]));
            for (int64_t j = 0; j < rv; ++j) s[i][j] += fu * double(A(v[row * ldv + j]));
          }
      });
    };
    if (a.db_g != nullptr) add_outer(f_g, block_g, a.ld_g, rank_g, block_g, a.ld_g, rank_g, s_gg);
    if (a.db_p != nullptr) add_outer(f_p, block_p, a.ld_p, rank_p, block_p, a.ld_p, rank_p, s_pp);
    if (a.db_g != nullptr || a.db_p != nullptr)
      add_outer(f_z, block_g, a.ld_g, rank_g, block_p, a.ld_p, rank_p, s_gp);
  }
  if (weight == 0) return;
  add_right_product(a.b_p, a.out, transposed(s_gp, rank_g, rank_p), rank_p, rank_g, a.db_g);
  add_right_product(a.b_g, a.out, s_gg, rank_g, rank_g, a.db_g);
  add_right_product(a.b_g, a.out, s_gp, rank_g, rank_p, a.db_p);
  add_right_product(a.b_p, a.out, s_pp, rank_p, rank_p, a.db_p);
}

#define OF_INSTANTIATE(T)                                                    \
  template void orthogonality_update(const OrthogonalityPenalty<T>&);        \
  template void orthogonality_base(const OrthogonalityPenalty<T>&);          \
  template void orthogonality_subspace(const OrthogonalityPenalty<T>&);      \
  template void orthogonality_subspace_l1(const OrthogonalityPenalty<T>&);   \
  template void orthogonality_base_subspace(const OrthogonalityPenalty<T>&); \
  template void delta_norm2(const DeltaNorm2<T>&);
OF_INSTANTIATE(double)
OF_INSTANTIATE(float)
#undef OF_INSTANTIATE

template void orthogonality_features(const OrthogonalityFeatures<double>&);
template void orthogonality_features(const OrthogonalityFeatures<float>&);
template void orthogonality_features(const OrthogonalityFeatures<bf16>&);

}  // namespace orthofed::cpu
