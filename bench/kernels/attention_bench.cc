// Attention of a batch, forward and backward; on a GPU by every version and cuDNN.
#include "kernels/attention/attention.h"

#include "bench/support/bench.h"
#ifdef OF_HAVE_CUDNN
#include "kernels/attention/attention_cudnn.h"
#endif

namespace orthofed::bench {
namespace {

AttentionShape shape_of(const Vit& v) {
  return {v.batch, v.tokens, v.heads, v.head_dim(), 3 * v.dim, v.dim};
}

// The last head of the last image, by plain loops in double.
template <class T>
struct Head {
  const Array<T>& qkv;
  AttentionShape s;
  double scale;
  int64_t first = (s.batch - 1) * s.tokens, column = (s.heads - 1) * s.head_dim;

  double at(int part, int64_t token, int64_t d) const {  // of q, k, v
    return qkv[(first + token) * s.ld_qkv + part * s.ld_out + column + d];
  }
  double score(int64_t i, int64_t j) const {
    double dot = 0;
    for (int64_t d = 0; d < s.head_dim; ++d) dot += at(0, i, d) * at(1, j, d);
    return scale * dot;
  }
  std::vector<double> probabilities(int64_t i) const {  // [tokens]
    std::vector<double> p;
    double sum = 0;
    for (int64_t j = 0; j < s.tokens; ++j) sum += p.emplace_back(std::exp(score(i, j)));
    for (double& x : p) x /= sum;
    return p;
  }
  double out(const std::vector<double>& p, int64_t d) const {
    double sum = 0;
    for (int64_t j = 0; j < s.tokens; ++j) sum += p[size_t(j)] * at(2, j, d);
    return sum;
  }
};

// A score errs by (head_dim + 4) eps/2 scale sum |q k|, and all numbers are within [-1, 1].
template <class T>
double unit(const Head<T>& h) {
  const double d = double(h.s.head_dim);
  return epsilon<Accum<T>> * ((d + 4) * h.scale * d / 2 + double(h.s.tokens));
}

template <class T>
void forward(Bench& b, const Vit& v) {
  const AttentionShape s = shape_of(v);
  const double scale = 1 / std::sqrt(double(s.head_dim));
  Array<T> qkv(b, v.rows() * s.ld_qkv), out(b, v.rows() * s.ld_out, Fill::nan);
  Array<Accum<T>> lse(b, v.batch * v.heads * v.tokens, Fill::nan);
  const auto call = [&](const auto& f) { f(qkv.data(), out.data(), lse.data(), s, scale); };
  b.shape({{"batch", s.batch}, {"tokens", s.tokens}, {"heads", s.heads}, {"head_dim", s.head_dim}});
  of_time(b, attention_forward, T)(call);
  of_time_versions(b, attention_forward_versions, T)(call);
#ifdef OF_HAVE_CUDNN
  if constexpr (std::is_same_v<T, bf16>) {
    if (b.on_gpu() && !cuda::cudnn_found()) b.missing("cuDNN 9.16 or newer", "OF_CUDNN");
    if (b.on_gpu() && cuda::cudnn_found())
      b.provider("cuDNN", [&] {
        OF_CHECK(cuda::attention_forward_cudnn(qkv.data(), out.data(), lse.data(), s, scale,
                                               b.queue().cuda),
                 "cuDNN refuses this shape");
      });
  }
#endif
  const Head<T> head{qkv, s, scale};
  b.expect_at(
      out, s.tokens * s.head_dim,
      [&](int64_t k) {
        return (head.first + k / s.head_dim) * s.ld_out + head.column + k % s.head_dim;
      },
      [&](int64_t k) -> Expected {
        return {head.out(head.probabilities(k / s.head_dim), k % s.head_dim),
                unit(head) + epsilon<T>};
      });
  b.measure();
}

template <class T>
void backward(Bench& b, const Vit& v) {
  const AttentionShape s = shape_of(v);
  const double scale = 1 / std::sqrt(double(s.head_dim));
  Array<T> qkv(b, v.rows() * s.ld_qkv), dout(b, v.rows() * s.ld_out);
  std::vector<T> outs(size_t(v.rows() * s.ld_out));
  std::vector<Accum<T>> lses(size_t(v.batch * v.heads * v.tokens));
  cpu::attention_forward(qkv.host().data(), outs.data(), lses.data(), s, scale);
  Array<T> out(b, outs), dqkv(b, v.rows() * s.ld_qkv, Fill::nan);
  Array<Accum<T>> lse(b, lses);
  const auto call = [&](const auto& f) {
    f(qkv.data(), out.data(), dout.data(), lse.data(), dqkv.data(), s, scale);
  };
  b.shape({{"batch", s.batch}, {"tokens", s.tokens}, {"heads", s.heads}, {"head_dim", s.head_dim}});
  of_time(b, attention_backward, T)(call);
  of_time_versions(b, attention_backward_versions, T)(call);
#ifdef OF_HAVE_CUDNN
  if constexpr (std::is_same_v<T, bf16>) {
    if (b.on_gpu() && !cuda::cudnn_found()) b.missing("cuDNN 9.16 or newer", "OF_CUDNN");
    if (b.on_gpu() && cuda::cudnn_found())
      b.provider("cuDNN", [&] {
        OF_CHECK(cuda::attention_backward_cudnn(qkv.data(), out.data(), dout.data(), lse.data(),
                                                dqkv.data(), s, scale, b.queue().cuda),
                 "cuDNN refuses this shape");
      });
  }
#endif

  const Head<T> head{qkv, s, scale};
  const auto d_out = [&](int64_t i, int64_t d) {
    return dout[(head.first + i) * s.ld_out + head.column + d];
  };
  const auto tokens = size_t(s.tokens);
  std::vector<std::vector<double>> p, ds;  // [tokens, tokens]: P and dS = P * (dO V^T - D)
  for (int64_t i = 0; i < s.tokens; ++i) {
    p.push_back(head.probabilities(i));
    std::vector<double> row(tokens);
    double total = 0;
    for (size_t j = 0; j < tokens; ++j) {
      for (int64_t d = 0; d < s.head_dim; ++d) row[j] += d_out(i, d) * head.at(2, int64_t(j), d);
      total += p.back()[j] * row[j];
    }
    for (size_t j = 0; j < tokens; ++j) row[j] = p.back()[j] * (row[j] - total);
    ds.push_back(std::move(row));
  }
  const int64_t part = s.tokens * s.head_dim;  // of dq, dk and dv
  b.expect_at(
      dqkv, 3 * part,
      [&](int64_t k) {
        return (head.first + k % part / s.head_dim) * s.ld_qkv + k / part * s.ld_out + head.column +
               k % s.head_dim;
      },
      [&](int64_t k) -> Expected {
        const int64_t i = k % part / s.head_dim, d = k % s.head_dim, which = k / part;
        double want = 0, size = 0;
        for (int64_t j = 0; j < s.tokens; ++j) {
          const auto [a, c] = std::pair(size_t(i), size_t(j));
          const double term = which == 0   ? scale * ds[a][c] * head.at(1, j, d)
                              : which == 1 ? scale * ds[c][a] * head.at(0, j, d)
                                           : p[c][a] * d_out(j, d);
          want += term;
          size += std::abs(term);
        }
        // out is rounded to T, which moves D; a GPU rounds P and dS, too.
        return {want, (unit(head) + 4 * epsilon<T>)*(size + 1 / double(s.tokens))};
      });
  b.measure();
}

const bool registered = on_every_vit("attention/forward", forward<float>, forward<bf16>) &&
                        on_every_vit("attention/backward", backward<float>, backward<bf16>);

}  // namespace
}  // namespace orthofed::bench
