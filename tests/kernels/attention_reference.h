// Dense attention of one head in double, as the formulas of attention.h say, with the error that
// each number may have. Its test and its benchmark compare with it.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "kernels/core/types.h"

namespace orthofed::reference {

// Numbers and, beside each, the error that rounding in Accum<T> and T may cause: an inner product of
// k terms errs by k eps/2 sum |a b|, an error e of a score is one of e p in its probability p.
struct AttentionNumbers {
  std::vector<double> value, budget;
};
struct AttentionHead {
  AttentionNumbers lse;              // [tokens]
  AttentionNumbers out, dq, dk, dv;  // [tokens, head_dim]
};

// With n tokens of d columns, q(i, c), k(i, c) and v(i, c), forward's out o(i, c) and its gradient
// g(i, c). p_rounding: the error of rounding P and dS before the products that read them (tensor
// cores read bf16), relatively.
template <class T, class Q, class K, class V, class O, class G>
AttentionHead attention_head(int64_t n, int64_t d, double scale, const Q& q, const K& k, const V& v,
                             const O& o, const G& g, double p_rounding) {
  const double half = 0.5 * epsilon<Accum<T>>, rounding = 0.5 * epsilon<T>;
  // exp_ errs by 2 ulp; a handful of roundings surround each sum. In double the reference errs too.
  const double few = 8 * half, own = std::is_same_v<T, double> ? 2 : 1;
  const auto add = [&](AttentionNumbers& to, double value, double error, double round) {
    to.value.push_back(value);
    to.budget.push_back(own * error + round * (std::abs(value) + error));
  };
  AttentionHead r;
  std::vector<double> p(size_t(n * n)), p_error(p), ds(p), ds_error(p);
  for (int64_t i = 0; i < n; ++i) {
    std::vector<double> score(static_cast<size_t>(n));
    double top = -INFINITY, sum = 0, score_error = 0;
    for (int64_t j = 0; j < n; ++j) {
      double dot = 0, size = 0;
      for (int64_t c = 0; c < d; ++c) {
        dot += q(i, c) * k(j, c);
        size += std::abs(q(i, c) * k(j, c));
      }
      score[size_t(j)] = scale * dot;
      top = std::max(top, score[size_t(j)]);
      score_error = std::max(score_error, half * double(d + 4) * scale * size);
    }
    for (double x : score) sum += std::exp(x - top);
    const double lse = top + std::log(sum);
    const double lse_error = score_error + half * double(n) + few * (1 + std::abs(lse));
    add(r.lse, lse, lse_error, 0);
    double row_dot = 0, row_dot_size = 0;
    for (int64_t c = 0; c < d; ++c) {
      row_dot += g(i, c) * o(i, c);
      row_dot_size += std::abs(g(i, c) * o(i, c));
    }
    for (int64_t j = 0; j < n; ++j) {
      const auto at = size_t(i * n + j);
      p[at] = std::exp(score[size_t(j)] - lse);
      p_error[at] = p[at] * (score_error + lse_error);
      double dp = 0, dp_size = 0;
      for (int64_t c = 0; c < d; ++c) {
        dp += g(i, c) * v(j, c);
        dp_size += std::abs(g(i, c) * v(j, c));
      }
      ds[at] = p[at] * (dp - row_dot);
      ds_error[at] = p_error[at] * std::abs(dp - row_dot) +
                     p[at] * half * double(d + 4) * (dp_size + row_dot_size);
    }
    for (int64_t c = 0; c < d; ++c) {
      double value = 0, error = 0;
      for (int64_t j = 0; j < n; ++j) {
        const auto at = size_t(i * n + j);
        value += p[at] * v(j, c);
        error +=
            (2 * p_error[at] + (half * double(n) + few + p_rounding) * p[at]) * std::abs(v(j, c));
      }
      add(r.out, value, error, rounding);
    }
  }
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t c = 0; c < d; ++c) {
      double dq = 0, dk = 0, dv = 0, dq_error = 0, dk_error = 0, dv_error = 0, dq_peak = 0;
      const double sums = half * double(n) + few + p_rounding;
      for (int64_t j = 0; j < n; ++j) {
        const auto ij = size_t(i * n + j), ji = size_t(j * n + i);
        dq += scale * ds[ij] * k(j, c);
        dq_peak = std::max(dq_peak, std::abs(dq));
        dq_error += scale * (ds_error[ij] + sums * std::abs(ds[ij])) * std::abs(k(j, c));
        dk += scale * ds[ji] * q(j, c);
        dk_error += scale * (ds_error[ji] + sums * std::abs(ds[ji])) * std::abs(q(j, c));
        dv += p[ji] * g(j, c);
        dv_error += (p_error[ji] + sums * p[ji]) * std::abs(g(j, c));
      }
      // dQ is rounded after each part of the keys; here there are two at most.
      add(r.dq, dq, dq_error + rounding * dq_peak, rounding);
      add(r.dk, dk, dk_error, rounding);
      add(r.dv, dv, dv_error, rounding);
    }
  }
  return r;
}

}  // namespace orthofed::reference
