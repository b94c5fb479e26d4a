// Matrix products on a GPU: a ladder of versions, and the choice of the rung that production takes.
//
//   bf16 x bf16            6, where the device is a Hopper and the operands suit its copy engine;
//                          else 5, tensor cores; float sums
//   float, and by adapter  4, the vector units: fp32 stays fp32, tensor cores would round it to
//                          TF32
//
// 4 and 5 take any size, order and alignment, and a tile of 128 x 128 of C a block. With tiles of
// that size a block reads (128 + 128) k elements for 128 * 128 * k products: 64 flops a byte in
// bf16 from the L2 cache; 85 with the 128 x 256 of version 6. 5 and 6 take a tail, as more steps of
// the same sum. What C's elements go through on their way to memory is in epilogue.cuh.
#include "kernels/matmul/matmul.h"

#include <vector>

#include "kernels/matmul/01_naive.cuh"
#include "kernels/matmul/02_tiled.cuh"
#include "kernels/matmul/03_register_blocked.cuh"
#include "kernels/matmul/04_vectorised.cuh"
#include "kernels/matmul/05_mma.cuh"
#include "kernels/matmul/06_wgmma.cuh"
#ifdef OF_HAVE_CUBLASLT
#include "kernels/matmul/matmul_cublaslt.h"
#endif

namespace orthofed::gpu {
namespace {

template <class Rung, class T, class C, class Stream>
void run_rung(const Matmul<T, C>& p, const Stream& stream) {
  const Store<C> store{p.c, p.shape.ldc, p.bias, p.accumulate};
  if constexpr (std::is_same_v<Rung, Mma> || std::is_same_v<Rung, Wgmma>)
    Rung::run(product(p.a, p.b, p.shape), NoTail(), store, stream);
  else
    Rung::run(product(p.a, p.b, p.shape), store, stream);
}

// The rung that production takes.
template <class AnyTail, class Epilogue, class Stream>
void run_tensor_cores(const Product<bf16, bf16>& x, const AnyTail& tail, const Epilogue& epilogue,
                      const Stream& stream) {
  if (Wgmma::applies(x, tail, stream))
    Wgmma::run(x, tail, epilogue, stream);
  else
    Mma::run(x, tail, epilogue, stream);
}
template <class T, class Epilogue, class Stream>
void run_fastest(const Product<T, T>& x, const Epilogue& epilogue, const Stream& stream) {
  if constexpr (std::is_same_v<T, bf16>)
    run_tensor_cores(x, NoTail(), epilogue, stream);
  else
    Vectorised::run(x, epilogue, stream);
}

template <class C, class Stream>
bool wgmma_applies(const Matmul<bf16, C>& p, const Stream& stream) {
  return Wgmma::applies(product(p.a, p.b, p.shape), NoTail(), stream);
}

// A layer's product, with a tail or without: Args is one of those with a tail.
template <class T, template <class> class Args, class Epilogue, class Stream>
void run_layer(const Args<T>& p, const Epilogue& epilogue, const Stream& stream) {
  OF_CHECK(p.shape.op_a == Op::none, "a product with a tail or a fused step: A is transposed");
  const Product<T, T> x = product(p.a, p.b, p.shape);
  if (p.tail.rank == 0) return run_fastest(x, epilogue, stream);
  if constexpr (std::is_same_v<T, bf16>)
    run_tensor_cores(x, tail_of(x, p.tail), epilogue, stream);
  else
    OF_CHECK(false, "on a GPU only bf16 products take a tail");
}

}  // namespace

template <class T, class C, class Stream>
Ladder<Matmul<T, C>, Stream> matmul_versions() {
  using V = Version<Matmul<T, C>, Stream>;
  static const auto versions = [] {
    std::vector<V> list = {{1, "naive", run_rung<Naive, T, C, Stream>},
                           {2, "tiled", run_rung<Tiled, T, C, Stream>},
                           {3, "register-blocked", run_rung<RegisterBlocked, T, C, Stream>},
                           {4, "vectorised", run_rung<Vectorised, T, C, Stream>}};
    if constexpr (std::is_same_v<T, bf16>) {
      list.push_back({5, "mma", run_rung<Mma, T, C, Stream>});
      list.push_back({6, "wgmma", run_rung<Wgmma, T, C, Stream>, wgmma_applies<C, Stream>});
    }
    return list;
  }();
  return versions;
}

template <class T, class C, class Stream>
void matmul(const Matmul<T, C>& p, const Stream& stream) {
#ifdef OF_HAVE_CUBLASLT
  if constexpr (std::is_same_v<Stream, cuda::Stream>)
    if (cuda::cublaslt_asked() && cuda::matmul_cublaslt(p, stream)) return;
#endif
  run_fastest(product(p.a, p.b, p.shape), Store<C>{p.c, p.shape.ldc, p.bias, p.accumulate}, stream);
}

template <class T, class Stream>
void matmul_by_adapter(const Matmul<T, T, Accum<T>>& p, const Stream& stream) {
  Vectorised::run(product(p.a, p.b, p.shape), Store<T>{p.c, p.shape.ldc, p.bias, p.accumulate},
                  stream);
}

template <class T, class Stream>
void matmul_extended(const MatmulExtended<T>& p, const Stream& stream) {
  run_layer(p, Store<T>{p.c, p.shape.ldc, p.bias, /*accumulate=*/false}, stream);
}

template <class T, class Stream>
void matmul_gelu(const MatmulGelu<T>& p, const Stream& stream) {
  run_layer(p, Gelu<T>{p.h, p.ldh, p.y, p.shape.ldc, p.bias, p.kind}, stream);
}

template <class T, class Stream>
void matmul_gelu_backward(const MatmulGeluBackward<T>& p, const Stream& stream) {
  run_layer(p, GeluBackward<T>{p.h, p.ldh, p.dx, p.shape.ldc, p.kind}, stream);
}

template <class T, class Stream>
void matmul_residual(const MatmulResidual<T>& p, const Stream& stream) {
  run_layer(p, Residual{p.x, p.ldx, p.gamma, p.y, p.shape.ldc, p.bias}, stream);
}

#define OF_INSTANTIATE(T, C)                                                   \
  template Ladder<Matmul<T, C>, OF_STREAM> matmul_versions<T, C, OF_STREAM>(); \
  template void matmul(const Matmul<T, C>&, const OF_STREAM&);
OF_INSTANTIATE(float, float)
OF_INSTANTIATE(bf16, bf16)
OF_INSTANTIATE(bf16, float)
#undef OF_INSTANTIATE

#define OF_INSTANTIATE(T)                                                             \
  template void matmul_by_adapter(const Matmul<T, T, Accum<T>>&, const OF_STREAM&);   \
  template void matmul_extended(const MatmulExtended<T>&, const OF_STREAM&);          \
  template void matmul_gelu(const MatmulGelu<T>&, const OF_STREAM&);                  \
  template void matmul_gelu_backward(const MatmulGeluBackward<T>&, const OF_STREAM&); \
  template void matmul_residual(const MatmulResidual<T>&, const OF_STREAM&);
OF_INSTANTIATE(float)
OF_INSTANTIATE(bf16)
#undef OF_INSTANTIATE

}  // namespace orthofed::gpu
