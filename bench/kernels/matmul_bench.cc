// The frozen products of a block, y = x W^T + bias: the default, with weights packed once, and by
// the blocked loop; on a GPU every version and cuBLASLt. Then those with the elementwise step
// behind them in one call, beside the two calls that they replace on a GPU (on a CPU they are two).
// On a GPU also those whose adapters are a tail of the product, beside the calls that they replace;
// the products above are what merging the adapters leaves.
#include "kernels/matmul/matmul.h"

#include "bench/support/bench.h"
#include "kernels/core/parallel.h"
#include "kernels/lora/lora.h"
#include "kernels/residual/residual.h"
#include "tests/kernels/gelu_reference.h"
#include "tests/kernels/matmul_reference.h"
#ifdef OF_HAVE_CUBLASLT
#include "kernels/matmul/matmul_cublaslt.h"
#endif

namespace orthofed::bench {
namespace {

// A product's element with its bias (null: none): exactly, and by how much the sum may err.
template <class T>
Expected element(const Array<T>& a, const Array<T>& b, const Array<Accum<T>>* bias,
                 const MatmulShape& s, int64_t i, int64_t j) {
  const auto product = reference::product_element(
      s.k, [&](int64_t p) { return a[i * s.lda + p]; },
      [&](int64_t p) { return b[s.op_b == Op::none ? p * s.ldb + j : j * s.ldb + p]; });
  const double shift = bias != nullptr ? (*bias)[j] : 0;
  return {product.value + shift,
          epsilon<Accum<T>> * double(s.k) * (product.size + std::abs(shift))};
}

template <class T>
void product(Bench& b, const Vit& v, Linear l) {
  using A = Accum<T>;
  const int64_t m = v.rows(), n = l.out, k = l.in;
  const MatmulShape s{m, n, k, k, k, n, Op::none, Op::transpose};
  Array<T> x(b, m * k), w(b, n * k), y(b, m * n, Fill::nan);
  Array<A> bias(b, n);
  const auto arguments = [&] {
    return Matmul<T, T>{
        .a = x.data(), .b = w.data(), .c = y.data(), .bias = bias.data(), .shape = s};
  };
  b.shape({{"m", m}, {"n", n}, {"k", k}});
  OF_TIME(b, matmul, arguments);
  OF_TIME_VERSIONS(b, arguments, matmul_versions, T, T);
#ifdef OF_HAVE_CUBLASLT
  if (b.on_gpu()) {
    if (cuda::open_library("libcublasLt.so.13", "OF_CUBLASLT").handle == nullptr)
      b.missing("cuBLASLt", "OF_CUBLASLT");
    else
      b.provider("cuBLASLt", [&] {
        OF_CHECK(cuda::matmul_cublaslt(arguments(), b.queue().cuda),
                 "cuBLASLt refuses this product");
      });
  }
#endif
  // Frozen weights stay where they were packed: the copies in rotation are of x and y alone.
  const cpu::PackedMatrix<T> packed(w.host().data(), k, Op::transpose, k, n);
  if (!b.on_gpu()) {
    b.provider("packed weights",
               [&] { packed.multiply(x.data(), k, y.data(), n, bias.data(), false, m); });
    if (sizeof(T) == 4 || cpu::native_bf16())  // elsewhere that is what the default does
      b.provider("blocked loop", [&] { cpu::matmul_blocked(arguments()); });
  }
  b.expect(y, m * n, [&](int64_t at) -> Expected {
    const Expected e = element(x, w, &bias, s, at / n, at % n);
    return {e.value, e.budget + epsilon<T> * std::abs(e.value)};
  });
  b.measure();
}

template <class T>
void qkv(Bench& b, const Vit& v) {
  product<T>(b, v, {v.dim, 3 * v.dim});
}
template <class T>
void proj(Bench& b, const Vit& v) {
  product<T>(b, v, {v.dim, v.dim});
}
template <class T>
void fc1(Bench& b, const Vit& v) {
  product<T>(b, v, {v.dim, v.mlp()});
}
template <class T>
void fc2(Bench& b, const Vit& v) {
  product<T>(b, v, {v.mlp(), v.dim});
}

constexpr GeluKind kKind = GeluKind::erf;

// fc1, its bias and GELU. The hidden activations before GELU are kept for backward.
template <class T>
void bias_gelu(Bench& b, const Vit& v) {
  using A = Accum<T>;
  const int64_t m = v.rows(), n = v.mlp(), k = v.dim;
  const MatmulShape s{m, n, k, k, k, n, Op::none, Op::transpose};
  Array<T> x(b, m * k), w(b, n * k), h(b, m * n, Fill::nan), y(b, m * n, Fill::nan);
  Array<A> bias(b, n);
  b.shape({{"m", m}, {"n", n}, {"k", k}});
  OF_TIME(b, matmul_gelu, [&] {
    return MatmulGelu<T>{.a = x.data(),
                         .b = w.data(),
                         .tail = {},
                         .bias = bias.data(),
                         .h = h.data(),
                         .ldh = n,
                         .y = y.data(),
                         .kind = kKind,
                         .shape = s};
  });
  if (b.on_gpu())
    b.provider("two calls", [&] {
      OF_RUN(b.queue(), matmul,
             Matmul<T, T>{
                 .a = x.data(), .b = w.data(), .c = h.data(), .bias = bias.data(), .shape = s});
      OF_RUN(b.queue(), gelu_forward,
             GeluForward<T>{.x = h.data(),
                            .ldx = n,
                            .y = y.data(),
                            .ldy = n,
                            .rows = m,
                            .cols = n,
                            .kind = kKind});
    });
  const auto sum = [&](int64_t at) {
    Expected e = element(x, w, &bias, s, at / n, at % n);
    e.budget += epsilon<T> * std::abs(e.value);  // the step may read it rounded
    return e;
  };
  b.expect(h, m * n, sum);
  b.expect(y, m * n, [&](int64_t at) -> Expected {
    const Expected e = sum(at);
    const double want = reference::gelu(e.value, kKind);
    return {want,
            1.13 * e.budget + 4 * epsilon<A> * std::abs(e.value) + epsilon<T> * std::abs(want)};
  });
  b.measure();
}

// The gradient through fc2's weights [dim, mlp] and GELU.
template <class T>
void gelu_backward(Bench& b, const Vit& v) {
  using A = Accum<T>;
  const int64_t m = v.rows(), n = v.mlp(), k = v.dim;
  const MatmulShape s{m, n, k, k, n, n, Op::none, Op::none};
  Array<T> dy(b, m * k), w(b, k * n), h(b, m * n), dx(b, m * n, Fill::nan);
  b.shape({{"m", m}, {"n", n}, {"k", k}});
  OF_TIME(b, matmul_gelu_backward, [&] {
    return MatmulGeluBackward<T>{.a = dy.data(),
                                 .b = w.data(),
                                 .tail = {},
                                 .h = h.data(),
                                 .ldh = n,
                                 .dx = dx.data(),
                                 .kind = kKind,
                                 .shape = s};
  });
  if (b.on_gpu())
    b.provider("two calls", [&] {
      OF_RUN(b.queue(), matmul,
             Matmul<T, T>{.a = dy.data(), .b = w.data(), .c = dx.data(), .shape = s});
      OF_RUN(b.queue(), gelu_backward,
             GeluBackward<T>{.dy = dx.data(),
                             .lddy = n,
                             .x = h.data(),
                             .ldx = n,
                             .dx = dx.data(),
                             .lddx = n,
                             .rows = m,
                             .cols = n,
                             .kind = kKind});
    });
  b.expect(dx, m * n, [&](int64_t at) -> Expected {
    const Expected e = element<T>(dy, w, nullptr, s, at / n, at % n);
    const double want = e.value * reference::gelu_derivative(h[at], kKind);
    return {want, 1.13 * (e.budget + epsilon<T> * std::abs(e.value)) +
                      4 * epsilon<A> * std::abs(e.value) * (1 + std::abs(h[at])) +
                      epsilon<T> * std::abs(want)};
  });
  b.measure();
}

// fc2, its bias, LayerScale and the residual.
template <class T>
void residual(Bench& b, const Vit& v) {
  using A = Accum<T>;
  const int64_t m = v.rows(), n = v.dim, k = v.mlp();
  const MatmulShape s{m, n, k, k, k, n, Op::none, Op::transpose};
  Array<T> x(b, m * k), w(b, n * k), z(b, b.on_gpu() ? m * n : 0, Fill::nan);
  Array<A> bias(b, n), gamma(b, n), stream(b, m * n), y(b, m * n, Fill::nan);
  b.shape({{"m", m}, {"n", n}, {"k", k}});
  OF_TIME(b, matmul_residual, [&] {
    return MatmulResidual<T>{.a = x.data(),
                             .b = w.data(),
                             .tail = {},
                             .bias = bias.data(),
                             .gamma = gamma.data(),
                             .x = stream.data(),
                             .ldx = n,
                             .y = y.data(),
                             .shape = s};
  });
  if (b.on_gpu())
    b.provider("two calls", [&] {
      OF_RUN(b.queue(), matmul,
             Matmul<T, T>{
                 .a = x.data(), .b = w.data(), .c = z.data(), .bias = bias.data(), .shape = s});
      OF_RUN(b.queue(), residual_forward,
             ResidualForward<T>{.x = stream.data(),
                                .ldx = n,
                                .z = z.data(),
                                .ldz = n,
                                .gamma = gamma.data(),
                                .y = y.data(),
                                .ldy = n,
                                .rows = m,
                                .cols = n});
    });
  b.expect(y, m * n, [&](int64_t at) -> Expected {
    const Expected e = element(x, w, &bias, s, at / n, at % n);
    const double want = stream[at] + gamma[at % n] * e.value;
    return {want, std::abs(gamma[at % n]) * (e.budget + epsilon<T> * std::abs(e.value)) +
                      2 * epsilon<A> * (1 + std::abs(e.value))};
  });
  b.measure();
}

// x W^T + u V^T + bias of a layer with adapters of rank kRank, V = s B, and GELU of it.
template <class T>
struct Adapted {
  int64_t m, n, k;
  MatmulShape s;
  Array<T> x, w, u, v;
  Array<Accum<T>> bias, b, scale;  // V in float and scale 1, for products of their own
  Array<T> h;

  Adapted(Bench& bench, const Vit& vit, Linear l)
      : m(vit.rows()),
        n(l.out),
        k(l.in),
        s{m, n, k, k, k, n, Op::none, Op::transpose},
        x(bench, m * k),
        w(bench, n * k),
        u(bench, m * kRank),
        v(bench, n * kRank),
        bias(bench, n),
        b(bench, std::vector<Accum<T>>(v.host().begin(), v.host().end())),
        scale(bench, std::vector<Accum<T>>(kRank, 1)),
        h(bench, m * n, Fill::nan) {
    bench.shape({{"m", m}, {"n", n}, {"k", k}, {"rank", kRank}});
  }
  MatmulTail<T> tail() { return {u.data(), kRank, v.data(), kRank, kRank}; }
  void product_and_up(Bench& bench) {
    OF_RUN(
        bench.queue(), matmul,
        Matmul<T, T>{.a = x.data(), .b = w.data(), .c = h.data(), .bias = bias.data(), .shape = s});
    OF_RUN(bench.queue(), lora_up,
           LoraUp<T>{.u = u.data(),
                     .ldu = kRank,
                     .b = b.data(),
                     .ldb = kRank,
                     .scale = scale.data(),
                     .y = h.data(),
                     .ldy = n,
                     .rows = m,
                     .out = n,
                     .rank = kRank});
  }
  // Providers may round the product once more before they add to it.
  Expected sum(int64_t i, int64_t j) const {
    Expected e = element(x, w, &bias, s, i, j);
    const double frozen = std::abs(e.value);
    for (int64_t r = 0; r < kRank; ++r) e.value += u[i * kRank + r] * v[j * kRank + r];
    e.budget += epsilon<T> * (frozen + std::abs(e.value)) + 1e-4;
    return e;
  }
};

template <class T>
void qkv_extended(Bench& b, const Vit& v) {
  Adapted<T> a(b, v, {v.dim, 3 * v.dim});
  OF_TIME(b, matmul_extended, [&] {
    return MatmulExtended<T>{.a = a.x.data(),
                             .b = a.w.data(),
                             .tail = a.tail(),
                             .c = a.h.data(),
                             .bias = a.bias.data(),
                             .shape = a.s};
  });
  b.provider("two calls", [&] { a.product_and_up(b); });
  b.expect(a.h, a.m * a.n, [&](int64_t at) { return a.sum(at / a.n, at % a.n); });
  b.measure();
}

template <class T>
void bias_gelu_extended(Bench& b, const Vit& v) {
  using A = Accum<T>;
  Adapted<T> a(b, v, {v.dim, v.mlp()});
  Array<T> y(b, a.m * a.n, Fill::nan);
  OF_TIME(b, matmul_gelu, [&] {
    return MatmulGelu<T>{.a = a.x.data(),
                         .b = a.w.data(),
                         .tail = a.tail(),
                         .bias = a.bias.data(),
                         .h = a.h.data(),
                         .ldh = a.n,
                         .y = y.data(),
                         .kind = kKind,
                         .shape = a.s};
  });
  b.provider("three calls", [&] {
    a.product_and_up(b);
    OF_RUN(b.queue(), gelu_forward,
           GeluForward<T>{.x = a.h.data(),
                          .ldx = a.n,
                          .y = y.data(),
                          .ldy = a.n,
                          .rows = a.m,
                          .cols = a.n,
                          .kind = kKind});
  });
  b.expect(y, a.m * a.n, [&](int64_t at) -> Expected {
    const Expected e = a.sum(at / a.n, at % a.n);
    const double want = reference::gelu(e.value, kKind);
    return {want,
            1.13 * e.budget + 4 * epsilon<A> * std::abs(e.value) + epsilon<T> * std::abs(want)};
  });
  b.measure();
}

const bool registered =
    on_every_vit("matmul/qkv", qkv<float>, qkv<bf16>) &&
    on_every_vit("matmul/proj", proj<float>, proj<bf16>) &&
    on_every_vit("matmul/fc1", fc1<float>, fc1<bf16>) &&
    on_every_vit("matmul/fc2", fc2<float>, fc2<bf16>) &&
    on_every_vit("matmul/fc1_gelu", bias_gelu<float>, bias_gelu<bf16>) &&
    on_every_vit("matmul/fc2_dx_gelu", gelu_backward<float>, gelu_backward<bf16>) &&
    on_every_vit("matmul/fc2_residual", residual<float>, residual<bf16>) &&
    on_every_vit("matmul/qkv_extended", nullptr, qkv_extended<bf16>, /*gpu_alone=*/true) &&
    on_every_vit("matmul/fc1_gelu_extended", nullptr, bias_gelu_extended<bf16>,
                 /*gpu_alone=*/true);

}  // namespace
}  // namespace orthofed::bench
