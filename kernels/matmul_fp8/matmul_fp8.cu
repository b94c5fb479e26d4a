// FP8 on a GPU: quantize_rows has a warp a row (core/warp_row.cuh), so that a row is read from
// memory once; the bytes bound it. The product is a ladder of two, both on tensor cores: 2 where
// the device is a Hopper, else 1.
#include "kernels/matmul_fp8/matmul_fp8.h"

#include <array>

#include "kernels/core/warp_row.cuh"
#include "kernels/matmul_fp8/01_mma.cuh"
#include "kernels/matmul_fp8/02_wgmma.cuh"

namespace orthofed::gpu {
namespace {

template <class T, int kItems>
__global__ void quantize_kernel(const T* x, int64_t ldx, e4m3* q, int64_t ldq, float* scales,
                                int64_t rows, int64_t cols) {
  constexpr int N = kFullPack<T>;
  const int64_t i = warp_row_index();
  if (i >= rows) return;
  const WarpRow<T, N, kItems> xi(x + i * ldx, cols);  // [cols]
  e4m3* qi = q + i * ldq;                             // [cols] and zeros

  float largest = 0;
  over_row<N, kItems>(cols, [&](int p, int64_t j) {
    const Pack<T, N> v = xi(p, j);  // [N], zero beyond the row
#pragma unroll
    for (int e = 0; e < N; ++e) largest = max_or_nan(largest, fabsf(float(v[e])));
  });
  const RowScale scale = row_scale(warp_max(largest));
  if (threadIdx.x == 0) scales[i] = scale.scale;

  // A pack of N begins at a multiple of N, and so may be stored whole: what lies beyond the row is
  // zero. The rest of the 16 bytes is too.
  over_row<N, kItems>(cols, [&](int p, int64_t j) {
    const Pack<T, N> v = xi(p, j);  // [N]
    Pack<e4m3, N> out;
#pragma unroll
    for (int e = 0; e < N; ++e) out[e] = j + e < cols ? e4m3(float(v[e]) * scale.inverse) : e4m3(0);
    store_pack(qi + j, out);
  });
  const int64_t j = ceil_div(cols, N) * N + threadIdx.x;
  if (j < quantised_pitch(cols)) qi[j] = e4m3(0.0f);
}

Product<bf16, bf16> pairs_of(const e4m3* a, const e4m3* b, const MatmulShape& s) {
  check_fp8_product(a, b, s);
  return {pairs_of(a, s.m, s.k, s.lda), pairs_of(b, s.n, s.k, s.ldb)};
}

template <class Rung, class C, class Stream>
void run_rung(const e4m3* a, const float* scales_a, const e4m3* b, const float* scales_b, C* c,
              const float* bias, const MatmulShape& s, const Stream& stream) {
  Rung::run(pairs_of(a, b, s),
            Scaled<C>{{c, s.ldc, bias, /*accumulate=*/false}, scales_a, scales_b}, stream);
}

template <class C, class Stream>
bool mma_applies(const e4m3*, const float*, const e4m3*, const float*, C*, const float*,
                 const MatmulShape&, const Stream& stream) {
  return has_fp8(stream);
}
template <class C, class Stream>
bool wgmma_applies(const e4m3* a, const float*, const e4m3* b, const float*, C*, const float*,
                   const MatmulShape& s, const Stream& stream) {
  return Fp8Wgmma::applies(pairs_of(a, b, s), stream);
}

}  // namespace

template <class T, class Stream>
void quantize_rows(const T* x, int64_t ldx, e4m3* q, int64_t ldq, float* scales, int64_t rows,
                   int64_t cols, const Stream& stream) {
  check_quantised(q, ldq, cols);
  with_row_items(cols, [&]<int kItems>() {
    launch(quantize_kernel<T, kItems>, warp_row_shape(rows), stream, x, ldx, q, ldq, scales, rows,
           cols);
  });
}

template <class C, class Stream>
std::span<const Version<MatmulFp8Run<C, Stream>>> matmul_fp8_versions() {
  static constexpr std::array<Version<MatmulFp8Run<C, Stream>>, 2> versions = {
      {{1, "mma", run_rung<Fp8Mma, C, Stream>, mma_applies<C, Stream>},
       {2, "wgmma", run_rung<Fp8Wgmma, C, Stream>, wgmma_applies<C, Stream>}}};
  return versions;
}

template <class C, class Stream>
void matmul_fp8(const e4m3* a, const float* scales_a, const e4m3* b, const float* scales_b, C* c,
                const float* bias, const MatmulShape& s, const Stream& stream) {
  const bool hopper = wgmma_applies(a, scales_a, b, scales_b, c, bias, s, stream);
  (hopper ? run_rung<Fp8Wgmma, C, Stream> : run_rung<Fp8Mma, C, Stream>)(a, scales_a, b, scales_b,
                                                                         c, bias, s, stream);
}

template <class Stream>
bool multiplies_fp8(const Stream& stream) {
  return has_fp8(stream);
}

#define OF_INSTANTIATE(T)                                                                     \
  template void quantize_rows<T>(const T*, int64_t, e4m3*, int64_t, float*, int64_t, int64_t, \
                                 const OF_STREAM&);                                           \
  template void matmul_fp8<T>(const e4m3*, const float*, const e4m3*, const float*, T*,       \
                              const float*, const MatmulShape&, const OF_STREAM&);            \
  template std::span<const Version<MatmulFp8Run<T, OF_STREAM>>> matmul_fp8_versions<T, OF_STREAM>();
OF_INSTANTIATE(float)
OF_INSTANTIATE(bf16)
#undef OF_INSTANTIATE
template bool multiplies_fp8(const OF_STREAM&);

}  // namespace orthofed::gpu
