// Softmax cross-entropy on a GPU, the loss and its gradient in one launch, and a second one of one
// block that adds the samples' losses in order. A warp owns a sample: its classes are read from
// memory once and from cache twice more (the maximum, the sum, the gradient). The gradient needs
// the sum of all weights, which every block makes for itself: the batch's few weights are in cache,
// and that is cheaper than one more launch. A batch of logits is small, so that what bounds all
// this is the latency of two launches rather than 8 bytes and about 50 flops an element.
#include "kernels/cross_entropy/cross_entropy.h"

#include <algorithm>

#include "kernels/core/math.h"
#include "kernels/core/warp.cuh"
#include "kernels/cross_entropy/cross_entropy_share.h"

namespace orthofed::gpu {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / 32;
constexpr int64_t kMaxBlocks = 256;  // each sums all weights: more would add more than they divide

__device__ bool is_class(int32_t label, int64_t classes) {
  return 0 <= label && label < classes;
}

// What a sample counts; NaN if its label is no class, which then reaches all that depends on it.
__device__ float weight_of(const CrossEntropy<float>& a, int64_t b) {
  const float w = a.weights[b];
  if (w == 0) return 0;
  if (!is_class(a.labels[b], a.classes)) return NAN;
  return a.class_weights != nullptr ? w * a.class_weights[a.labels[b]] : w;
}

// Over all samples, in an order that the batch alone fixes; every thread gets it.
__device__ double sum_of_weights(const CrossEntropy<float>& a) {
  double sum = 0;
  for (int64_t b = threadIdx.x; b < a.batch; b += kThreads) sum += double(weight_of(a, b));
  return block_sum<kThreads>(sum);
}

// weighted [batch]: the samples' terms of the loss, before it is divided by the sum of weights.
// The target is peak + floor for the label and floor for the others.
__global__ void sample_kernel(CrossEntropy<float> a, double* weighted, float peak, float floor,
                              float focal) {
  const int64_t classes = a.classes;
  const float* prior = a.prior;  // [classes] or null
  const double total = sum_of_weights(a);
  const int lane = int(threadIdx.x) % 32;
  const int64_t first = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  for (int64_t b = first; b < a.batch; b += int64_t{gridDim.x} * kWarps) {
    const float* z = a.logits + b * a.ld;                                // [classes]
    float* dz = a.dlogits != nullptr ? a.dlogits + b * a.ldd : nullptr;  // [classes]
    const float w = weight_of(a, b);
    if (w == 0) {
      for (int64_t j = lane; dz != nullptr && j < classes; j += 32) dz[j] = 0;
      if (lane == 0) {
        weighted[b] = 0;
        if (a.losses != nullptr) a.losses[b] = 0;
      }
      continue;
    }
    const int32_t label = a.labels[b];
    const auto target = [=](int64_t j) { return (j == label ? peak : 0.0f) + floor; };
    const auto adjusted = [=](int64_t j) { return prior != nullptr ? z[j] + prior[j] : z[j]; };
    float top = -INFINITY;
    for (int64_t j = lane; j < classes; j += 32) top = max_or_nan(top, adjusted(j));
    top = warp_max(top);
    float sum = 0;
    for (int64_t j = lane; j < classes; j += 32) sum += exp_(adjusted(j) - top);
    const float log_sum = logf(warp_sum(sum));

    // Classes without target mass are left out, not multiplied by 0: a prior of -infinity (a class
    // this site has never seen) makes their log q infinite.
    double loss = 0;
    float slope = 0;  // sum_j t_j q_j phi'(q_j)
    for (int64_t j = lane; j < classes; j += 32) {
      if (target(j) == 0) continue;
      const Share<float> s = share(adjusted(j) - top - log_sum, focal);
      loss += double(target(j) * s.value);
      slope += target(j) * s.slope;
    }
    loss = warp_sum(loss);
    slope = warp_sum(slope);
    if (lane == 0) {
      weighted[b] = double(w) * loss;
      if (a.losses != nullptr) a.losses[b] = is_class(label, classes) ? float(loss) : NAN;
    }
    if (dz == nullptr) continue;
    const float scale = float(double(w) / total);
    for (int64_t j = lane; j < classes; j += 32) {
      const float log_q = adjusted(j) - top - log_sum, t = target(j);
      const float own = t == 0 ? 0 : t * share(log_q, focal).slope;
      dz[j] = scale * (own - exp_(log_q) * slope);
    }
  }
}

__global__ void loss_kernel(CrossEntropy<float> a, const double* weighted) {
  const double total = sum_of_weights(a);
  double sum = 0;
  for (int64_t b = threadIdx.x; b < a.batch; b += kThreads) sum += weighted[b];
  sum = block_sum<kThreads>(sum);
  if (threadIdx.x == 0) *a.loss = total == 0 ? 0 : float(sum / total);
}

}  // namespace

template <class T, class Stream>
void cross_entropy(const CrossEntropy<T>& a, const Stream& stream) {
  auto* weighted = scratch_as<double>(stream, cross_entropy_scratch(a.batch));
  const double floor = a.classes > 0 ? a.options.label_smoothing / double(a.classes) : 0;
  const int64_t blocks = std::min(kMaxBlocks, ceil_div(a.batch, kWarps));
  launch(sample_kernel, {.grid_x = unsigned(blocks), .threads_x = kThreads}, stream, a, weighted,
         1 - a.options.label_smoothing, floor, a.options.focal);
  launch(loss_kernel, {.threads_x = kThreads}, stream, a, weighted);
}

template void cross_entropy(const CrossEntropy<float>&, const OF_STREAM&);

}  // namespace orthofed::gpu
