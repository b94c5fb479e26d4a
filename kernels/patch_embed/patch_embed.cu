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
__global__ void forward_kernel(const T* __restrict__ z, int64_t ldz, const float* own,
                               const float* pos, float* __restrict__ x, int64_t ldx, int64_t batch,
                               int64_t prefix, int64_t patches, int64_t dim) {
  const int64_t tokens = prefix + patches;
  const auto [t, j, group] = place_of_thread(tokens, dim);
  if (t >= tokens || j >= dim) return;
  const int64_t count = dim - j;                                    // columns left
  const Pack<float, N> p = load_part<N>(pos + t * dim + j, count);  // [N]
  Pack<float, N> c{};                                               // [N]
  if (t < prefix) c = load_part<N>(own + t * dim + j, count);
  const int64_t begin = group * kImages, end = begin + kImages < batch ? begin + kImages : batch;
#pragma unroll 4
  for (int64_t image = begin; image < end; ++image) {
    Pack<float, N> sum = c;  // [N]
    if (t >= prefix) {
      const Pack<T, N> v = load_part<N>(z + (image * patches + t - prefix) * ldz + j, count);
#pragma unroll
      for (int e = 0; e < N; ++e) sum[e] = float(v[e]);
    }
#pragma unroll
    for (int e = 0; e < N; ++e) sum[e] += p[e];
    store_part(x + (image * tokens + t) * ldx + j, sum, count);
  }
}

template <class T>
__global__ void backward_kernel(const float* __restrict__ dx, int64_t lddx, T* __restrict__ dz,
                                int64_t lddz, float* down, float* dpos, bool accumulate,
                                int64_t batch, int64_t prefix, int64_t patches, int64_t dim,
                                int64_t images_per_group) {
  const int64_t tokens = prefix + patches;
  const auto [t, j, group] = place_of_thread(tokens, dim);
  if (t >= tokens || j >= dim) return;
  const int64_t count = dim - j;
  float* to_pos = dpos != nullptr ? dpos + t * dim + j : nullptr;
  float* to_own = down != nullptr && t < prefix ? down + t * dim + j : nullptr;
  T* to_z = dz != nullptr && t >= prefix ? dz + (t - prefix) * lddz + j : nullptr;
  Pack<float, N> sum_pos{}, sum_own{};  // [N]
  if (accumulate && to_pos != nullptr) sum_pos = load_part<N>(to_pos, count);
  if (accumulate && to_own != nullptr) sum_own = load_part<N>(to_own, count);
  const int64_t begin = group * images_per_group;
  const int64_t end = begin + images_per_group < batch ? begin + images_per_group : batch;
#pragma unroll 4
  for (int64_t image = begin; image < end; ++image) {
    const Pack<float, N> d = load_part<N>(dx + (image * tokens + t) * lddx + j, count);
    Pack<T, N> rounded;
#pragma unroll
    for (int e = 0; e < N; ++e) {
      sum_pos[e] += d[e];
      sum_own[e] += d[e];
      rounded[e] = T(d[e]);
    }
    if (to_z != nullptr) store_part(to_z + image * patches * lddz, rounded, count);
  }
  if (to_pos != nullptr) store_part(to_pos, sum_pos, count);
  if (to_own != nullptr) store_part(to_own, sum_own, count);
}

}  // namespace

template <class T, class Stream>
void patch_embed_forward(const T* z, int64_t ldz, const Accum<T>* own, const Accum<T>* pos,
                         Accum<T>* x, int64_t ldx, int64_t batch, int64_t prefix, int64_t patches,
                         int64_t dim, const Stream& stream) {
  OF_CHECK(ldz >= dim && ldx >= dim, "patch_embed: a pitch is smaller than its row");
  launch(forward_kernel<T>, shape_of(prefix + patches, dim, ceil_div(batch, kImages)), stream, z,
         ldz, own, pos, x, ldx, batch, prefix, patches, dim);
}

template <class T, class Stream>
void patch_embed_backward(const Accum<T>* dx, int64_t lddx, T* dz, int64_t lddz, Accum<T>* down,
                          Accum<T>* dpos, bool accumulate, int64_t batch, int64_t prefix,
                          int64_t patches, int64_t dim, const Stream& stream) {
  OF_CHECK(lddx >= dim && (dz == nullptr || lddz >= dim),
           "patch_embed: a pitch is smaller than its row");
  if (dz == nullptr && down == nullptr && dpos == nullptr) return;
  const bool sums = down != nullptr || dpos != nullptr;
  const int64_t images = sums ? batch : kImages, groups = sums ? 1 : ceil_div(batch, images);
  launch(backward_kernel<T>, shape_of(prefix + patches, dim, groups), stream, dx, lddx, dz, lddz,
         down, dpos, accumulate, batch, prefix, patches, dim, images);
}

#define OF_INSTANTIATE(T)                                                                         \
  template void patch_embed_forward<T>(const T*, int64_t, const float*, const float*, float*,     \
                                       int64_t, int64_t, int64_t, int64_t, int64_t,               \
                                       const OF_STREAM&);                                         \
  template void patch_embed_backward<T>(const float*, int64_t, T*, int64_t, float*, float*, bool, \
                                        int64_t, int64_t, int64_t, int64_t, const OF_STREAM&);
OF_INSTANTIATE(float)
OF_INSTANTIATE(bf16)
#undef OF_INSTANTIATE

}  // namespace orthofed::gpu
