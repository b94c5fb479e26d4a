// The frozen products of a block, y = x W^T + bias: the default, with weights packed once, and by
// the blocked loop; on a GPU every version and cuBLASLt.
#include "kernels/matmul/matmul.h"

#include "bench/support/bench.h"
#ifdef OF_HAVE_CUBLASLT
#include "kernels/matmul/matmul_cublaslt.h"
#endif

namespace orthofed::bench {
namespace {

template <class T>
void product(Bench& b, const Vit& v, Linear l) {
  using A = Accum<T>;
  const int64_t m = v.rows(), n = l.out, k = l.in;
  const MatmulShape s{m, n, k, k, k, n, Op::none, Op::transpose};
  Array<T> x(b, m * k), w(b, n * k), y(b, m * n, Fill::nan);
  Array<A> bias(b, n);
  const auto call = [&](const auto& f) { f(x.data(), w.data(), y.data(), bias.data(), false, s); };
  b.shape({{"m", m}, {"n", n}, {"k", k}});
  of_time(b, matmul, T, T)(call);
  of_time_versions(b, matmul_versions, T, T)(call);
#ifdef OF_HAVE_CUBLASLT
  if (b.on_gpu() && cuda::open_library("libcublasLt.so.13", "OF_CUBLASLT").handle != nullptr)
    b.provider("cuBLASLt", [&] {
      OF_CHECK((cuda::matmul_cublaslt<T, T>(x.data(), w.data(), y.data(), bias.data(), false, s,
                                            b.queue().cuda)),
               "cuBLASLt refuses this product");
    });
#endif
  // Frozen weights stay where they were packed: the copies in rotation are of x and y alone.
  const cpu::PackedMatrix<T> packed(w.host().data(), k, Op::transpose, k, n);
  if (!b.on_gpu()) {
    b.provider("packed weights",
               [&] { packed.multiply(x.data(), k, y.data(), n, bias.data(), false, m); });
    if (sizeof(T) == 4 || cpu::native_bf16())  // elsewhere that is what the default does
      b.provider("blocked loop", [&] { call(cpu::matmul_blocked<T, T, T>); });
  }
  b.expect(y, m * n, [&](int64_t i) -> Expected {
    double sum = bias[i % n], size = std::abs(sum);
    for (int64_t p = 0; p < k; ++p) {
      const double term = x[i / n * k + p] * w[i % n * k + p];
      sum += term;
      size += std::abs(term);
    }
    return {sum, epsilon<A> * double(k) * size + epsilon<T> * std::abs(sum)};
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

const bool registered = on_every_vit("matmul/qkv", qkv<float>, qkv<bf16>) &&
                        on_every_vit("matmul/proj", proj<float>, proj<bf16>) &&
                        on_every_vit("matmul/fc1", fc1<float>, fc1<bf16>) &&
                        on_every_vit("matmul/fc2", fc2<float>, fc2<bf16>);

}  // namespace
}  // namespace orthofed::bench
