#include "kernels/orthogonality/singular_vectors.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "kernels/core/check.h"
#include "kernels/core/philox.h"
#include "kernels/core/rows.h"

namespace orthofed::cpu {
namespace {

// Rows first..end-1 of x [end, n] made orthonormal to all rows before them, by Gram-Schmidt done
// twice ("twice is enough", Parlett). A row that the others span is replaced by a random one.
void orthonormalise(double* x, int64_t first, int64_t end, int64_t n, const Philox& rng,
                    uint64_t& draws) {
  for (int64_t i = first; i < end; ++i) {
    double* row = x + i * n;
    for (;;) {
      const double before = std::sqrt(dot(row, row, n));
      for (int pass = 0; pass < 2; ++pass)
        for (int64_t j = 0; j < i; ++j) {
          const double* other = x + j * n;
          const double along = dot(row, other, n);
          for (int64_t t = 0; t < n; ++t) row[t] -= along * other[t];
        }
      const double after = std::sqrt(dot(row, row, n));
      if (after > 1e-12 * before) {
        for (int64_t t = 0; t < n; ++t) row[t] /= after;
        break;
      }
      for (int64_t t = 0; t < n; ++t) row[t] = normal(rng, draws++);
    }
  }
}

// Eigenvalues (descending, into h's diagonal) and eigenvectors (rows of q) of a symmetric h [p, p],
// by cyclic Jacobi rotations.
void symmetric_eigen(std::vector<double>& h, std::vector<double>& q, int64_t p) {
  std::fill(q.begin(), q.end(), 0.0);
  for (int64_t i = 0; i < p; ++i) q[i * p + i] = 1;
  for (int sweep = 0; sweep < 60; ++sweep) {
    double off = 0, total = 0;
    for (int64_t i = 0; i < p; ++i)
      for (int64_t j = 0; j < p; ++j) {
        total += h[i * p + j] * h[i * p + j];
        if (i != j) off += h[i * p + j] * h[i * p + j];
      }
    if (off <= 1e-28 * total) break;
    const double negligible = 1e-14 * std::sqrt(total) / double(p);
    for (int64_t i = 0; i < p; ++i)
      for (int64_t j = i + 1; j < p; ++j) {
        if (std::abs(h[i * p + j]) <= negligible) continue;
        const double theta = (h[j * p + j] - h[i * p + i]) / (2 * h[i * p + j]);
        const double t = (theta < 0 ? -1 : 1) / (std::abs(theta) + std::sqrt(theta * theta + 1));
        const double c = 1 / std::sqrt(t * t + 1), s = t * c;
        for (int64_t l = 0; l < p; ++l) {  // columns of h
          const double hi = h[l * p + i], hj = h[l * p + j];
          h[l * p + i] = c * hi - s * hj;
          h[l * p + j] = s * hi + c * hj;
        }
        for (int64_t l = 0; l < p; ++l) {  // rows of h, and of q
          const double hi = h[i * p + l], hj = h[j * p + l];
          h[i * p + l] = c * hi - s * hj;
          h[j * p + l] = s * hi + c * hj;
          const double qi = q[i * p + l], qj = q[j * p + l];
          q[i * p + l] = c * qi - s * qj;
          q[j * p + l] = s * qi + c * qj;
        }
      }
  }
  for (int64_t i = 0; i < p; ++i) {
    int64_t best = i;
    for (int64_t j = i + 1; j < p; ++j)
      if (h[j * p + j] > h[best * p + best]) best = j;
    std::swap(h[i * p + i], h[best * p + best]);
    for (int64_t l = 0; l < p; ++l) std::swap(q[i * p + l], q[best * p + l]);
  }
}

// y [p, out] = x W^T
template <class T>
void times_transposed(const double* x, int64_t p, const T* w, int64_t ldw, int64_t out, int64_t in,
                      double* y) {
  parallel_for(out, product_grain(p * in), [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o)
      for (int64_t i = 0; i < p; ++i) y[i * out + o] = dot(x + i * in, w + o * ldw, in);
  });
}

// z [p, in] = y W
template <class T>
void times(const double* y, int64_t p, const T* w, int64_t ldw, int64_t out, int64_t in,
           double* z) {
  constexpr int64_t width = 128;
  parallel_for((in + width - 1) / width, 1, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * width, last = std::min(in, end * width);
    for (int64_t i = 0; i < p; ++i) std::fill(z + i * in + first, z + i * in + last, 0.0);
    for (int64_t o = 0; o < out; ++o)
      for (int64_t i = 0; i < p; ++i) {
        const double yi = y[i * out + o];
        for (int64_t t = first; t < last; ++t) z[i * in + t] += yi * double(w[o * ldw + t]);
      }
  });
}

}  // namespace

// Block Krylov iteration with Rayleigh-Ritz and restarts (Golub, Underwood, "The block Lanczos
// method", 1977; Musco, Musco, arXiv 1504.05477): the eigenvectors of G = W^T W within the span of
// x, Gx, G^2 x, ..., then again from the best of them. The singular values of a trained weight lie
// close together, and the plain power G^j x converges too slowly to be of use.
template <class T>
void top_right_singular_vectors(const T* w, int64_t ldw, int64_t out, int64_t in, int64_t k,
                                T* v_k) {
  OF_CHECK(0 < k && k <= in && k <= out, "k must be in 1..min(in, out)");
  constexpr int64_t blocks = 5;
  const int64_t p = std::min(in, k + 8), m = std::min(in, blocks * p);
  const Philox rng = PhiloxKey(0).with("top_right_singular_vectors");
  uint64_t draws = 0;
  std::vector<double> x(m * in), y(m * out), gx(p * in), ritz(p * in);
  std::vector<double> h(m * m), q(m * m);
  for (int64_t e = 0; e < p * in; ++e) x[e] = normal(rng, draws++);

  constexpr int most_restarts = 1000;
  constexpr double tolerance = 1e-10;
  for (int restart = 0;; ++restart) {
    OF_CHECK(restart < most_restarts, "the singular vectors do not converge");
    orthonormalise(x.data(), 0, p, in, rng, draws);
    for (int64_t first = 0; first < m; first += p) {
      const int64_t rows = std::min(p, m - first), next = std::min(p, m - first - rows);
      double* yb = y.data() + first * out;
      times_transposed(x.data() + first * in, rows, w, ldw, out, in, yb);
      if (next <= 0) break;
      times(yb, next, w, ldw, out, in, x.data() + (first + rows) * in);
      orthonormalise(x.data(), first + rows, first + rows + next, in, rng, draws);
    }
    // x G x^T = (x W^T)(x W^T)^T
    parallel_for(m, product_grain(m * out), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        for (int64_t j = 0; j < m; ++j)
          h[i * m + j] = dot(y.data() + i * out, y.data() + j * out, out);
    });
    run_cloned([&] { symmetric_eigen(h, q, m); });
    const double largest = h[0];
    OF_CHECK(std::isfinite(largest), "the weight is not finite");

    std::fill(ritz.begin(), ritz.end(), 0.0);
    parallel_for(p, product_grain(m * in), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        for (int64_t j = 0; j < m; ++j)
          for (int64_t t = 0; t < in; ++t) ritz[i * in + t] += q[i * m + j] * x[j * in + t];
    });
    std::copy(ritz.begin(), ritz.end(), x.begin());

    // |G v - lambda v| bounds how far v is from an eigenvector, also where eigenvalues coincide.
    times_transposed(x.data(), k, w, ldw, out, in, y.data());
    times(y.data(), k, w, ldw, out, in, gx.data());
    double residual = 0;
    for (int64_t i = 0; i < k; ++i) {
      double sum = 0;
      for (int64_t t = 0; t < in; ++t) {
        const double r = gx[i * in + t] - h[i * m + i] * x[i * in + t];
        sum += r * r;
      }
      residual = std::max(residual, std::sqrt(sum));
    }
    if (residual <= tolerance * largest) break;
  }
  for (int64_t e = 0; e < k * in; ++e) v_k[e] = T(x[e]);
}

template void top_right_singular_vectors(const double*, int64_t, int64_t, int64_t, int64_t,
                                         double*);
template void top_right_singular_vectors(const float*, int64_t, int64_t, int64_t, int64_t, float*);

}  // namespace orthofed::cpu
