#include "kernels/core/rows.h"
#include "kernels/reduction/reduction.h"

namespace orthofed::cpu {

// At most 256 parts of whole chunks; a chunk is summed in Accum<T>, all else in double.
template <class T>
void reduction_sum(const ReductionSum<T>& a) {
  using A = Accum<T>;
  constexpr int64_t kParts = 256, kChunk = 4096;
  const int64_t chunks = (a.n + kChunk - 1) / kChunk;
  const int64_t part = std::max<int64_t>(1, (chunks + kParts - 1) / kParts);  // chunks
  double partial[kParts] = {};
  double* const sums = partial;
  parallel_for((chunks + part - 1) / part, 1, [=](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      double sum = 0;
      for (int64_t c = p * part; c < std::min(chunks, (p + 1) * part); ++c) {
        const T* xc = a.x + c * kChunk;  // [kChunk]
        sum += double(
            lane_sum<A>(std::min(kChunk, a.n - c * kChunk), [=](int64_t j) { return A(xc[j]); }));
      }
      sums[p] = sum;
    }
  });
  double total = 0;
  for (const double sum : partial) total += sum;
  *a.out = A(total);
}

template void reduction_sum(const ReductionSum<double>&);
template void reduction_sum(const ReductionSum<float>&);
template void reduction_sum(const ReductionSum<bf16>&);

}  // namespace orthofed::cpu
