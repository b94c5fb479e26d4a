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
Ladder<ReductionSum<T>, Stream> reduction_sum_versions() {
  static constexpr Version<ReductionSum<T>, Stream> versions[] = {
      {1, "interleaved", Interleaved::run},
      {2, "sequential", Sequential::run},
      {3, "sharing", Sharing::run},
      {4, "shuffles", Shuffles::run},
      {5, "packs", Packs::run},
  };
  return versions;
}

template <class T, class Stream>
void reduction_sum(const ReductionSum<T>& a, const Stream& stream) {
  Packs::run(a, stream);
}

#define OF_INSTANTIATE(T)                                                             \
  template Ladder<ReductionSum<T>, OF_STREAM> reduction_sum_versions<T, OF_STREAM>(); \
  template void reduction_sum(const ReductionSum<T>&, const OF_STREAM&);
OF_INSTANTIATE(float)
OF_INSTANTIATE(bf16)
#undef OF_INSTANTIATE

}  // namespace orthofed::gpu
