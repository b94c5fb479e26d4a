// The sum of a vector on a GPU: a ladder of versions, from a tree in shared memory to one that asks
// memory for as much as it can deliver. Bounded by bytes, see reduction.h. Two launches each:
// two_phases.cuh says why.
#include "kernels/reduction/reduction.h"

#include "kernels/reduction/01_interleaved.cuh"
#include "kernels/reduction/02_sequential.cuh"
#include "kernels/reduction/03_sharing.cuh"
#include "kernels/reduction/04_shuffles.cuh"
#include "kernels/reduction/05_packs.cuh"

namespace orthofed::gpu {

template <class T, class Stream>
std::span<const Version<ReductionSumRun<T, Stream>>> reduction_sum_versions() {
  static const Version<ReductionSumRun<T, Stream>> versions[] = {
      {1, "interleaved", Interleaved::run<T, Stream>},
      {2, "sequential", Sequential::run<T, Stream>},
      {3, "sharing", Sharing::run<T, Stream>},
      {4, "shuffles", Shuffles::run<T, Stream>},
      {5, "packs", Packs::run<T, Stream>},
  };
  return versions;
}

template <class T, class Stream>
void reduction_sum(const T* x, int64_t n, Accum<T>* out, const Stream& stream) {
  Packs::run(x, n, out, stream);
}

#define OF_INSTANTIATE(T)                                          \
  template std::span<const Version<ReductionSumRun<T, OF_STREAM>>> \
  reduction_sum_versions<T, OF_STREAM>();                          \
  template void reduction_sum<T>(const T*, int64_t, float*, const OF_STREAM&);
OF_INSTANTIATE(float)
OF_INSTANTIATE(bf16)
#undef OF_INSTANTIATE

}  // namespace orthofed::gpu
