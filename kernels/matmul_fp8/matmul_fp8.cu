// FP8 on a GPU: quantize_rows has a warp a row (core/warp_row.cuh), so that a row is read from
// memory once; the bytes bound it. The product is a ladder of two, both on tensor cores: 2 where
// the device is a Hopper, else 1.
#include "kernels/matmul_fp8/matmul_fp8.h"

#include "kernels/core/warp_row.cuh"
#include "kernels/matmul_fp8/01_mma.cuh"
#include "kernels/matmul_fp8/02_wgmma.cuh"

namespace orthofed::gpu {
namespace {

template <class T, int kItems>
__global__ void quantize_kernel(QuantizeRows<T> a) {
  constexpr int N = kFullPack<T>;
  const int64_t i = warp_row_index();
  if (i >= a.rows) return;
  const WarpRow<T, N, kItems> xi(a.x + i * a.ldx, a.cols);  // [cols]
  e4m3* qi = a.q + i * a.ldq;                               // [cols] and zeros

  float largest = 0;
  over_row<N, kItems>(a.cols, [&](int p, int64_t j) {
    const Pack<T, N> v = xi(p, j);  // [N], zero beyond the row
#pragma unroll
    for (int e = 0; e < N; ++e) largest = max_or_nan(largest, fabsf(float(v[e])));
  });
  const RowScale scale = row_scale(warp_max(largest));
  if (threadIdx.x == 0) a.scales[i] = scale.scale;

  // A pack of N begins at a multiple of N, and so may be stored whole: what lies beyond the row is
  // zero. The rest of the 16 bytes is too.
  over_row<N, kItems>(a.cols, [&](int p, int64_t j) {
    const Pack<T, N> v = xi(p, j);  // [N]
    Pack<e4m3, N> out;
#pragma unroll
    for (int e = 0; e < N; ++e)
      out[e] = j + e < a.cols ? e4m3(float(v[e]) * scale.inverse) : e4m3(0);
    store_pack(qi + j, out);
  });
  const int64_t j = ceil_div(a.cols, N) * N + threadIdx.x;
  if (j < quantised_pitch(a.cols)) qi[j] = e4m3(0.0f);
}

template <class C>
Product<bf16, bf16> pairs_of(const MatmulFp8<C>& p) {
  const MatmulShape& s = p.shape;
  check_fp8_product(p.a, p.b, s);
  return {pairs_of(p.a, s.m, s.k, s.lda), pairs_of(p.b, s.n, s.k, s.ldb)};
}

template <class Rung, class C, class Stream>
void run_rung(const MatmulFp8<C>& p, const Stream& stream) {
  Rung::run(pairs_of(p),
            Scaled<C>{{p.c, p.shape.ldc, p.bias, /*accumulate=*/false}, p.scales_a, p.scales_b},
            stream);
}

template <class C, class Stream>
bool mma_applies(const MatmulFp8<C>&, const Stream& stream) {
  return has_fp8(stream);
}
template <class C, class Stream>
bool wgmma_applies(const MatmulFp8<C>& p, const Stream& stream) {
  return Fp8Wgmma::applies(pairs_of(p), stream);
}

}  // namespace

template <class T, class Stream>
void quantize_rows(const QuantizeRows<T>& a, const Stream& stream) {
  check_quantised(a.q, a.ldq, a.cols);
  with_row_items(a.cols, [&]<int kItems>() {
    launch(quantize_kernel<T, kItems>, warp_row_shape(a.rows), stream, a);
  });
}

template <class C, class Stream>
Ladder<MatmulFp8<C>, Stream> matmul_fp8_versions() {
  static constexpr Version<MatmulFp8<C>, Stream> versions[] = {
      {1, "mma", run_rung<Fp8Mma, C, Stream>, mma_applies<C, Stream>},
      {2, "wgmma", run_rung<Fp8Wgmma, C, Stream>, wgmma_applies<C, Stream>},
  };
  return versions;
}

template <class C, class Stream>
void matmul_fp8(const MatmulFp8<C>& p, const Stream& stream) {
  wgmma_applies(p, stream) ? run_rung<Fp8Wgmma>(p, stream) : run_rung<Fp8Mma>(p, stream);
}

template <class Stream>
bool multiplies_fp8(const Stream& stream) {
  return has_fp8(stream);
}

#define OF_INSTANTIATE(T)                                                \
  template void quantize_rows(const QuantizeRows<T>&, const OF_STREAM&); \
  template void matmul_fp8(const MatmulFp8<T>&, const OF_STREAM&);       \
  template Ladder<MatmulFp8<T>, OF_STREAM> matmul_fp8_versions<T, OF_STREAM>();
OF_INSTANTIATE(float)
OF_INSTANTIATE(bf16)
#undef OF_INSTANTIATE
template bool multiplies_fp8(const OF_STREAM&);

}  // namespace orthofed::gpu
