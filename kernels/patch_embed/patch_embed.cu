// Token assembly on a GPU. A thread owns four neighbouring columns of one token and walks down the
// images, four of them in flight: forward reads a position once for eight images; backward turns dx
// into dz and adds up dpos and down on the way, so that dx is read once and every sum has the CPU's
// order. A warp is 128 neighbouring columns, so its accesses are one contiguous piece.
//
// Bound by memory: 6 bytes an element in bf16 and 8 in float, forward and backward alike. A
// backward with sums has tokens * dim / 4 threads, no more, because one thread owns each sum.
#include "kernels/patch_embed/patch_embed.h"

#include "kernels/core/rows.cuh"

namespace orthofed::gpu {
namespace {

constexpr int N = 4;            // columns of a thread
constexpr int kTokens = 4;      // a block's warps, one token each
constexpr int64_t kImages = 8;  // that a thread walks down where it owns no sum

LaunchShape shape_of(int64_t tokens, int64_t dim, int64_t image_groups) {
  return {
      .grid_x = unsigned(ceil_div(dim, 32 * N) * ceil_div(tokens, kTokens) * image_groups),
      .threads_x = 32,
      .threads_y = kTokens,
  };
}

// A thread's columns j..j+N-1 of token t in one group of images. Blocks go along columns first,
// then along tokens, then along groups.
struct Place {
  int64_t t, j, group;
};
__device__ inline Place place_of_thread(int64_t tokens, int64_t dim) {
  const auto across = unsigned(ceil_div(dim, 32 * N));
  const auto down = unsigned(ceil_div(tokens, kTokens));
  const unsigned block = blockIdx.x / across;
  return {int64_t{block % down} * kTokens + threadIdx.y,
          (int64_t{blockIdx.x % across} * 32 + threadIdx.x) * N, block / down};
}

template <class T>
__global__ void forward_kernel(PatchEmbedForward<T> a) {
  const T* __restrict__ z = a.z;
  float* __restrict__ x = a.x;
  const int64_t tokens = a.prefix + a.patches;
  const auto [t, j, group] = place_of_thread(tokens, a.dim);
  if (t >= tokens || j >= a.dim) return;
  const int64_t count = a.dim - j;                                      // columns left
  const Pack<float, N> p = load_part<N>(a.pos + t * a.dim + j, count);  // [N]
  Pack<float, N> c{};                                                   // [N]
  if (t < a.prefix) c = load_part<N>(a.own + t * a.dim + j, count);
  const int64_t begin = group * kImages,
                end = begin + kImages < a.batch ? begin + kImages : a.batch;
#pragma unroll 4
  for (int64_t image = begin; image < end; ++image) {
    Pack<float, N> sum = c;  // [N]
    if (t >= a.prefix) {
      const Pack<T, N> v = load_part<N>(z + (image * a.patches + t - a.prefix) * a.ldz + j, count);
#pragma unroll
      for (int e = 0; e < N; ++e) sum[e] = float(v[e]);
    }
#pragma unroll
    for (int e = 0; e < N; ++e) sum[e] += p[e];
    store_part(x + (image * tokens + t) * a.ldx + j, sum, count);
  }
}

template <class T>
__global__ void backward_kernel(PatchEmbedBackward<T> a, int64_t images_per_group) {
  const float* __restrict__ dx = a.dx;
  T* __restrict__ dz = a.dz;
  const int64_t tokens = a.prefix + a.patches;
  const auto [t, j, group] = place_of_thread(tokens, a.dim);
  if (t >= tokens || j >= a.dim) return;
  const int64_t count = a.dim - j;
  float* to_pos = a.dpos != nullptr ? a.dpos + t * a.dim + j : nullptr;
  float* to_own = a.down != nullptr && t < a.prefix ? a.down + t * a.dim + j : nullptr;
  T* to_z = dz != nullptr && t >= a.prefix ? dz + (t - a.prefix) * a.lddz + j : nullptr;
  Pack<float, N> sum_pos{}, sum_own{};  // [N]
  if (a.accumulate && to_pos != nullptr) sum_pos = load_part<N>(to_pos, count);
  if (a.accumulate && to_own != nullptr) sum_own = load_part<N>(to_own, count);
  const int64_t begin = group * images_per_group;
  const int64_t end = begin + images_per_group < a.batch ? begin + images_per_group : a.batch;
#pragma unroll 4
  for (int64_t image = begin; image < end; ++image) {
    const Pack<float, N> d = load_part<N>(dx + (image * tokens + t) * a.lddx + j, count);
    Pack<T, N> rounded;
#pragma unroll
    for (int e = 0; e < N; ++e) {
      sum_pos[e] += d[e];
      sum_own[e] += d[e];
      rounded[e] = T(d[e]);
    }
    if (to_z != nullptr) store_part(to_z + image * a.patches * a.lddz, rounded, count);
  }
  if (to_pos != nullptr) store_part(to_pos, sum_pos, count);
  if (to_own != nullptr) store_part(to_own, sum_own, count);
}

}  // namespace

template <class T, class Stream>
void patch_embed_forward(const PatchEmbedForward<T>& a, const Stream& stream) {
  OF_CHECK(a.ldz >= a.dim && a.ldx >= a.dim, "patch_embed: a pitch is smaller than its row");
  launch(forward_kernel<T>, shape_of(a.prefix + a.patches, a.dim, ceil_div(a.batch, kImages)),
         stream, a);
}

template <class T, class Stream>
void patch_embed_backward(const PatchEmbedBackward<T>& a, const Stream& stream) {
  OF_CHECK(a.lddx >= a.dim && (a.dz == nullptr || a.lddz >= a.dim),
           "patch_embed: a pitch is smaller than its row");
  if (a.dz == nullptr && a.down == nullptr && a.dpos == nullptr) return;
  const bool sums = a.down != nullptr || a.dpos != nullptr;
  const int64_t images = sums ? a.batch : kImages, groups = sums ? 1 : ceil_div(a.batch, images);
  launch(backward_kernel<T>, shape_of(a.prefix + a.patches, a.dim, groups), stream, a, images);
}

#define OF_INSTANTIATE(T)                                                           \
  template void patch_embed_forward(const PatchEmbedForward<T>&, const OF_STREAM&); \
  template void patch_embed_backward(const PatchEmbedBackward<T>&, const OF_STREAM&);
OF_INSTANTIATE(float)
OF_INSTANTIATE(bf16)
#undef OF_INSTANTIATE

}  // namespace orthofed::gpu
