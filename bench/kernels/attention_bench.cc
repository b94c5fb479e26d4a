// Attention of a batch, forward and backward; on a GPU by every version and cuDNN.
#include "kernels/attention/attention.h"

#include "bench/support/bench.h"
#include "tests/kernels/attention_reference.h"
#ifdef OF_HAVE_CUDNN
#include "kernels/attention/attention_cudnn.h"
#endif

namespace orthofed::bench {
namespace {

AttentionShape shape_of(const Vit& v) {
  return {v.batch, v.tokens, v.heads, v.head_dim(), 3 * v.dim, v.dim};
}

// The last head of the last image, in double; out and dout may be null.
template <class T>
struct Head {
  AttentionShape s;
  int64_t first = (s.batch - 1) * s.tokens, column = (s.heads - 1) * s.head_dim;

  reference::AttentionHead compute(double scale, const Array<T>& qkv, const Array<T>* out,
                                   const Array<T>* dout) const {
    const auto of_qkv = [&](int64_t part) {
      return [&qkv, part, this](int64_t i, int64_t d) -> double {
        return qkv[(first + i) * s.ld_qkv + part * s.ld_out + column + d];
      };
    };
    const auto of_out = [&](const Array<T>* x) {
      return [x, this](int64_t i, int64_t d) -> double {
        return x == nullptr ? 0 : (*x)[(first + i) * s.ld_out + column + d];
      };
    };
    // What multiplies bf16 itself rounds P and dS.
    return reference::attention_head<T>(s.tokens, s.head_dim, scale, of_qkv(0), of_qkv(1),
                                        of_qkv(2), of_out(out), of_out(dout),
                                        std::is_same_v<T, bf16> ? epsilon<bf16> / 2 : 0);
  }
};

template <class T>
void forward(Bench& b, const Vit& v) {
  const AttentionShape s = shape_of(v);
  const double scale = 1 / std::sqrt(double(s.head_dim));
  Array<T> qkv(b, v.rows() * s.ld_qkv), out(b, v.rows() * s.ld_out, Fill::nan);
  Array<Accum<T>> lse(b, v.batch * v.heads * v.tokens, Fill::nan);
  const auto arguments = [&] {
    return AttentionForward<T>{
        .qkv = qkv.data(), .out = out.data(), .lse = lse.data(), .shape = s, .scale = scale};
  };
  b.shape({{"batch", s.batch}, {"tokens", s.tokens}, {"heads", s.heads}, {"head_dim", s.head_dim}});
  OF_TIME(b, attention_forward, arguments);
  OF_TIME_VERSIONS(b, arguments, attention_forward_versions, T);
#ifdef OF_HAVE_CUDNN
  if constexpr (std::is_same_v<T, bf16>) {
    if (b.on_gpu() && !cuda::cudnn_found()) b.missing("cuDNN 9.16 or newer", "OF_CUDNN");
    if (b.on_gpu() && cuda::cudnn_found())
      b.provider("cuDNN", [&] {
        OF_CHECK(cuda::attention_forward_cudnn(arguments(), b.queue().cuda),
                 "cuDNN refuses this shape");
      });
  }
#endif
  const Head<T> head{s};
  const auto want = head.compute(scale, qkv, nullptr, nullptr);
  b.expect_at(
      out, s.tokens * s.head_dim,
      [&](int64_t k) {
        return (head.first + k / s.head_dim) * s.ld_out + head.column + k % s.head_dim;
      },
      [&](int64_t k) -> Expected {
        return {want.out.value[size_t(k)], want.out.budget[size_t(k)]};
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
  cpu::attention_forward(AttentionForward<T>{.qkv = qkv.host().data(),
                                             .out = outs.data(),
                                             .lse = lses.data(),
                                             .shape = s,
                                             .scale = scale});
  Array<T> out(b, outs), dqkv(b, v.rows() * s.ld_qkv, Fill::nan);
  Array<Accum<T>> lse(b, lses);
  const auto arguments = [&] {
    return AttentionBackward<T>{.qkv = qkv.data(),
                                .out = out.data(),
                                .dout = dout.data(),
                                .lse = lse.data(),
                                .dqkv = dqkv.data(),
                                .shape = s,
                                .scale = scale};
  };
  b.shape({{"batch", s.batch}, {"tokens", s.tokens}, {"heads", s.heads}, {"head_dim", s.head_dim}});
  OF_TIME(b, attention_backward, arguments);
  OF_TIME_VERSIONS(b, arguments, attention_backward_versions, T);
#ifdef OF_HAVE_CUDNN
  if constexpr (std::is_same_v<T, bf16>) {
    if (b.on_gpu() && !cuda::cudnn_found()) b.missing("cuDNN 9.16 or newer", "OF_CUDNN");
    if (b.on_gpu() && cuda::cudnn_found())
      b.provider("cuDNN", [&] {
        OF_CHECK(cuda::attention_backward_cudnn(arguments(), b.queue().cuda),
                 "cuDNN refuses this shape");
      });
  }
#endif
  const Head<T> head{s};
  const auto want = head.compute(scale, qkv, &out, &dout);
  const int64_t part = s.tokens * s.head_dim;  // of dq, dk and dv
  b.expect_at(
      dqkv, 3 * part,
      [&](int64_t k) {
        return (head.first + k % part / s.head_dim) * s.ld_qkv + k / part * s.ld_out + head.column +
               k % s.head_dim;
      },
      [&](int64_t k) -> Expected {
        const auto& numbers = k < part ? want.dq : k < 2 * part ? want.dk : want.dv;
        return {numbers.value[size_t(k % part)], numbers.budget[size_t(k % part)]};
      });
  b.measure();
}

const bool registered = on_every_vit("attention/forward", forward<float>, forward<bf16>) &&
                        on_every_vit("attention/backward", backward<float>, backward<bf16>);

}  // namespace
}  // namespace orthofed::bench
