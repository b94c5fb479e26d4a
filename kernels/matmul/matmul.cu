// Matrix products on a GPU: a ladder of versions, and the choice of the rung that production takes.
#include "kernels/matmul/matmul.h"

#include "kernels/matmul/01_naive.cuh"

namespace orthofed::gpu {
namespace {

template <class Rung, class T, class C, class Stream>
void run_rung(const T* a, const T* b, C* c, const float* bias, bool accumulate,
              const MatmulShape& shape, const Stream& stream) {
  Rung::run(product(a, b, shape), Store<C>{c, shape.ldc, bias, accumulate}, stream);
}

}  // namespace

template <class T, class C, class Stream>
std::span<const Version<MatmulRun<T, C, Stream>>> matmul_versions() {
  static const Version<MatmulRun<T, C, Stream>> versions[] = {
      {1, "naive", "one thread an element of C", 80, run_rung<Naive, T, C, Stream>},
  };
  return versions;
}

template <class T, class C, class Stream>
void matmul(const T* a, const T* b, C* c, const Accum<T>* bias, bool accumulate,
            const MatmulShape& shape, const Stream& stream) {
  run_rung<Naive>(a, b, c, bias, accumulate, shape, stream);
}

template <class T, class Stream>
void matmul_by_adapter(const T* a, const Accum<T>* b, T* c, const Accum<T>* bias, bool accumulate,
                       const MatmulShape& shape, const Stream& stream) {
  Naive::run(product(a, b, shape), Store<T>{c, shape.ldc, bias, accumulate}, stream);
}

#define OF_INSTANTIATE(T, C)                                                                 \
  template std::span<const Version<MatmulRun<T, C, OF_STREAM>>>                              \
  matmul_versions<T, C, OF_STREAM>();                                                        \
  template void matmul<T, C>(const T*, const T*, C*, const float*, bool, const MatmulShape&, \
                             const OF_STREAM&);
OF_INSTANTIATE(float, float)
OF_INSTANTIATE(bf16, bf16)
OF_INSTANTIATE(bf16, float)
#undef OF_INSTANTIATE

#define OF_INSTANTIATE(T)                                                            \
  template void matmul_by_adapter<T>(const T*, const float*, T*, const float*, bool, \
                                     const MatmulShape&, const OF_STREAM&);
OF_INSTANTIATE(float)
OF_INSTANTIATE(bf16)
#undef OF_INSTANTIATE

}  // namespace orthofed::gpu
