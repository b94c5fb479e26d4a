// Every penalty of orthogonality.h in double, by its definition: DeltaW = B A as a dense matrix. Its
// test and its benchmark compare with it.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/orthogonality/orthogonality.h"

namespace orthofed::reference {

using Matrix = std::vector<double>;  // row-major, dense

// x [r, n] times y [n, c].
inline Matrix product(const Matrix& x, const Matrix& y, int64_t r, int64_t n, int64_t c) {
  Matrix z(size_t(r * c), 0.0);
  for (int64_t i = 0; i < r; ++i)
    for (int64_t l = 0; l < n; ++l)
      for (int64_t j = 0; j < c; ++j) z[i * c + j] += x[i * n + l] * y[l * c + j];
  return z;
}

inline double inner(const Matrix& x, const Matrix& y) {
  double sum = 0;
  for (size_t i = 0; i < x.size(); ++i) sum += x[i] * y[i];
  return sum;
}

inline constexpr double kSmallestNorm = 1e-30;

inline double similarity(const Matrix& x, const Matrix& y, PenaltyForm form) {
  const double z = inner(x, y), denominator = inner(x, x) * inner(y, y);
  if (form == PenaltyForm::raw2) return z * z;
  if (denominator <= kSmallestNorm) return 0;
  return form == PenaltyForm::cosine2 ? z * z / denominator : std::abs(z) / std::sqrt(denominator);
}

struct Orthogonality {
  int64_t in = 0, out = 0, rank_g = 0, rank_p = 0, k = 0;
  Matrix a_g, b_g, a_p, b_p, w0, v_k;

  Matrix delta_g() const { return product(b_g, a_g, out, rank_g, in); }
  Matrix delta_p() const { return product(b_p, a_p, out, rank_p, in); }

  double update(PenaltyForm form) const { return similarity(delta_g(), delta_p(), form); }

  double base(PenaltyForm form) const {
    return (similarity(w0, delta_g(), form) + similarity(w0, delta_p(), form)) / 2;
  }

  double base_subspace() const {
    Matrix v(size_t(in * k));  // [in, k]
    for (int64_t i = 0; i < k; ++i)
      for (int64_t j = 0; j < in; ++j) v[j * k + i] = v_k[i * in + j];
    const auto share = [&](const Matrix& delta) {
      if (inner(delta, delta) <= kSmallestNorm) return 0.0;
      const Matrix inside = product(delta, v, out, in, k);
      return inner(inside, inside) / inner(delta, delta);
    };
    return (share(delta_g()) + share(delta_p())) / 2;
  }

  double subspace() const {
    return over_pairs(PenaltyForm::cosine2) / double(std::min(rank_g, rank_p));
  }
  double subspace_l1() const {
    return over_pairs(PenaltyForm::abs_cosine) / double(rank_g * rank_p);
  }

 private:
  // The sum over pairs of rows of A_g and A_p.
  double over_pairs(PenaltyForm form) const {
    double sum = 0;
    const auto row = [&](const Matrix& a, int64_t i) {
      return Matrix(a.begin() + i * in, a.begin() + (i + 1) * in);
    };
    for (int64_t i = 0; i < rank_g; ++i)
      for (int64_t j = 0; j < rank_p; ++j) sum += similarity(row(a_g, i), row(a_p, j), form);
    return sum;
  }
};

// `features`: h = B u for every token, then the mean of the similarity of two vectors.
struct Features {
  int64_t rows = 0, out = 0, rank_g = 0, rank_p = 0;
  Matrix u_g, u_p, b_g, b_p;  // [rows, rank], [out, rank]

  double mean(PenaltyForm form) const {
    const auto token = [](const Matrix& u, int64_t row, int64_t rank) {
      return Matrix(u.begin() + row * rank, u.begin() + (row + 1) * rank);
    };
    double sum = 0;
    for (int64_t r = 0; r < rows; ++r)
      sum += similarity(product(b_g, token(u_g, r, rank_g), out, rank_g, 1),
                        product(b_p, token(u_p, r, rank_p), out, rank_p, 1), form);
    return rows == 0 ? 0 : sum / double(rows);
  }
};

}  // namespace orthofed::reference
