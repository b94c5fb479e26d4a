// The orthogonality penalties on a GPU: one block of 8 warps a layer, everything in double.
//
// A penalty is a function of Gram matrices, which lie in shared memory, and its gradient is those
// matrices times A or B. So there are two devices, and the kernels only say what goes into them:
//   gram          X Y^T, a warp for every 4 x 4 entries, its lanes along the sum; an element is then
//                 loaded and widened once for four products, and 16 sums cost 16 shuffles
//   add_products  Y += C X + C' X', a thread for every 4 rows of one column, columns side by side
// Three matrices of 64 x 64 fit in what a launch may ask for, so `update` makes the Grams of the
// B's twice: once for the value, beside those of the A's, once for the gradient, in their place.
//
// Bound by fp64 arithmetic: per layer R^2 (in + out) multiply-adds, doubled by gradients, on one
// multiprocessor; the bytes, 4 R (in + out), are few. Only `base` reads W0, and a block alone would
// take 3 R in out: 16 blocks share a layer there, in two launches, since the gradient needs the sum
// over all of W0 first.
#include "kernels/orthogonality/orthogonality.h"

#include <string>

#include "kernels/core/check.h"
#include "kernels/core/fold.cuh"
#include "kernels/core/warp.cuh"
#include "kernels/orthogonality/similarity.h"

namespace orthofed::gpu {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kMaxRank = int(kMaxPenaltyRank);

struct Small {
  double m[kMaxRank][kMaxRank];
  __device__ double* operator[](int i) { return m[i]; }
};

// A matrix x(i, t) in memory: t is what a Gram sums over, or the long side of a gradient.
template <class T>
struct View {
  const T* data;
  int64_t step_i, step_t;
  __device__ double operator()(int64_t i, int64_t t) const {
    return double(data[i * step_i + t * step_t]);
  }
};
template <class T>
__device__ View<T> rows_of(const T* a, int64_t pitch) {  // A [rank, in]
  return {a, pitch, 1};
}
template <class T>
__device__ View<T> columns_of(const T* b, int64_t rank) {  // B [out, rank]
  return {b, 1, rank};
}

// A lane hands half of its first 2 kHalf values to its partner and keeps the other half's sums.
template <int kHalf>
__device__ void halve(double (&v)[16]) {
  const bool upper = (threadIdx.x & kHalf) != 0;
#pragma unroll
  for (int i = 0; i < kHalf; ++i) {
    const double given = upper ? v[i] : v[i + kHalf], kept = upper ? v[i + kHalf] : v[i];
    v[i] = kept + __shfl_xor_sync(kFullWarp, given, kHalf);
  }
}
// Lane l of the warp gets the sum of every lane's v[l % 16].
__device__ inline double sum_of_sixteen(double (&v)[16]) {
  halve<8>(v);
  halve<4>(v);
  halve<2>(v);
  halve<1>(v);
  return v[0] + __shfl_xor_sync(kFullWarp, v[0], 16);
}

// sink(i, j, sum over t < n of x(i, t) y(j, t)) for i < rx, j < ry, each from one lane of the warp
// that made it. Tiles of 4 x 4 go to warp `worker` of `workers` in turn.
template <class X, class Y, class Sink>
__device__ void gram(const View<X>& x, int rx, const View<Y>& y, int ry, int64_t n, int worker,
                     int workers, const Sink& sink) {
  const int lane = int(threadIdx.x) % 32, across = (ry + 3) / 4, tiles = (rx + 3) / 4 * across;
  for (int tile = worker; tile < tiles; tile += workers) {
    const int i0 = tile / across * 4, j0 = tile % across * 4;
    double v[16] = {};  // [4, 4]
    for (int64_t t = lane; t < n; t += 32) {
      double xi[4], yj[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        xi[e] = i0 + e < rx ? x(i0 + e, t) : 0;
        yj[e] = j0 + e < ry ? y(j0 + e, t) : 0;
      }
#pragma unroll
      for (int e = 0; e < 16; ++e) v[e] += xi[e / 4] * yj[e % 4];
    }
    const double sum = sum_of_sixteen(v);
    const int i = i0 + lane / 4, j = j0 + lane % 4;
    if (lane < 16 && i < rx && j < ry) sink(i, j, sum);
  }
}
// By all warps of the block, into shared memory; a barrier makes it visible.
template <class X, class Y>
__device__ void gram(const View<X>& x, int rx, const View<Y>& y, int ry, int64_t n, Small& to) {
  gram(x, rx, y, ry, n, int(threadIdx.x) / 32, kWarps,
       [&](int i, int j, double sum) { to[i][j] = sum; });
}
// <to, X Y^T>_F, this thread's part.
template <class X, class Y>
__device__ double gram_inner(const View<X>& x, int rx, const View<Y>& y, int ry, int64_t n,
                             Small& with) {
  double part = 0;
  gram(x, rx, y, ry, n, int(threadIdx.x) / 32, kWarps,
       [&](int i, int j, double sum) { part += sum * with[i][j]; });
  return part;
}

// factor * C [r, s] X [s, n], C(i, j) = c[i * step_i + j * step_j]
template <class T>
struct Product {
  const double* c;
  int64_t step_i, step_j;
  double factor;
  View<T> x;
  int s;
};
template <class T>
__device__ Product<T> product(Small& c, double factor, const View<T>& x, int s) {
  return {c[0], kMaxRank, 1, factor, x, s};
}
template <class T>
__device__ Product<T> product_transposed(Small& c, double factor, const View<T>& x, int s) {
  return {c[0], 1, kMaxRank, factor, x, s};
}

// y(i, t) += (p + q)(i, t) for i < r and begin <= t < end, rounded once; y null: not wanted. The
// whole block calls it.
template <class T>
__device__ void add_products(T* y, int64_t step_i, int64_t step_t, int r, int64_t begin,
                             int64_t end, const Product<T>& p, const Product<T>& q) {
  if (y == nullptr) return;
  const int64_t width = end - begin, items = (r + 3) / 4 * width;
  for (int64_t item = threadIdx.x; item < items; item += kThreads) {
    const int i0 = int(item / width) * 4;
    const int64_t t = begin + item % width;
    double sum[4] = {};
    const auto add = [&](const Product<T>& from) {
      for (int j = 0; j < from.s; ++j) {
        const double x = from.factor * from.x(j, t);
#pragma unroll
        for (int e = 0; e < 4; ++e)
          if (i0 + e < r) sum[e] += from.c[(i0 + e) * from.step_i + j * from.step_j] * x;
      }
    };
    add(p);
    add(q);
#pragma unroll
    for (int e = 0; e < 4; ++e)
      if (i0 + e < r) {
        T& to = y[(i0 + e) * step_i + t * step_t];
        to = T(double(to) + sum[e]);
      }
  }
}

__device__ inline void check_rank(int64_t rank) {
  if (rank < 1 || rank > kMaxRank) __trap();
}

// --- update -----------------------------------------------------------------------------------

template <class T>
__global__ void __launch_bounds__(kThreads) update_kernel(OrthogonalityPenalty<T> a) {
  const OrthogonalityLayer<T> l = a.layers[blockIdx.x];
  check_rank(l.rank_g);
  check_rank(l.rank_p);
  const int rg = int(l.rank_g), rp = int(l.rank_p);
  const auto a_g = rows_of(l.a_g, l.in), a_p = rows_of(l.a_p, l.in);
  const auto b_g = columns_of(l.b_g, rg), b_p = columns_of(l.b_p, rp);
  Small* s = dynamic_shared<Small>();
  Small &gg = s[0], &gp = s[1], &pp = s[2];
  gram(a_g, rg, a_g, rg, l.in, gg);
  gram(a_g, rg, a_p, rp, l.in, gp);
  gram(a_p, rp, a_p, rp, l.in, pp);
  __syncthreads();
  const double z = block_sum<kThreads>(gram_inner(b_g, rg, b_p, rp, l.out, gp));
  const double norm_g = block_sum<kThreads>(gram_inner(b_g, rg, b_g, rg, l.out, gg));
  const double norm_p = block_sum<kThreads>(gram_inner(b_p, rp, b_p, rp, l.out, pp));
  const Similarity f = similarity(z, norm_g, norm_p, a.form);
  if (threadIdx.x == 0) a.values[blockIdx.x] = f.value;
  if (*a.weight == 0) return;

  const double cross = *a.weight * f.d_inner;
  const double own_g = 2 * *a.weight * f.d_norm_x, own_p = 2 * *a.weight * f.d_norm_y;
  add_products(l.db_g, 1, rg, rg, 0, l.out, product(gp, cross, b_p, rp),
               product(gg, own_g, b_g, rg));
  add_products(l.db_p, 1, rp, rp, 0, l.out, product_transposed(gp, cross, b_g, rg),
               product(pp, own_p, b_p, rp));
  __syncthreads();
  gram(b_g, rg, b_g, rg, l.out, gg);
  gram(b_g, rg, b_p, rp, l.out, gp);
  gram(b_p, rp, b_p, rp, l.out, pp);
  __syncthreads();
  add_products(l.da_g, l.in, 1, rg, 0, l.in, product(gp, cross, a_p, rp),
               product(gg, own_g, a_g, rg));
  add_products(l.da_p, l.in, 1, rp, 0, l.in, product_transposed(gp, cross, a_g, rg),
               product(pp, own_p, a_p, rp));
}

// --- base -------------------------------------------------------------------------------------

template <class T>
struct Adapter {
  const T *a, *b;  // [rank, in], [out, rank]
  T *da, *db;
  int rank;
};
template <class T>
__device__ Adapter<T> adapter(const OrthogonalityLayer<T>& l, int which) {  // 0 general, 1 personal
  return which == 0 ? Adapter<T>{l.a_g, l.b_g, l.da_g, l.db_g, int(l.rank_g)}
                    : Adapter<T>{l.a_p, l.b_p, l.da_p, l.db_p, int(l.rank_p)};
}

// Block b's share of n: strip b % kBaseStrips.
struct Strip {
  int64_t begin, end;
};
__device__ inline Strip strip(int64_t n) {
  const int64_t width = ceil_div(n, kBaseStrips), begin = blockIdx.x % kBaseStrips * width;
  return {begin < n ? begin : n, begin + width < n ? begin + width : n};
}

// sums [layer, strip, 2]: the strip's rows of <W0, B A> = sum((W0 A^T) o B).
template <class T>
__global__ void __launch_bounds__(kThreads)
    base_inner_kernel(OrthogonalityPenalty<T> a, double* sums) {
  const OrthogonalityLayer<T> l = a.layers[blockIdx.x / kBaseStrips];
  const Strip rows = strip(l.out);
  for (int which = 0; which < 2; ++which) {
    const Adapter<T> x = adapter(l, which);
    check_rank(x.rank);
    double part = 0;
    gram(rows_of(l.w0 + rows.begin * l.ld_w0, l.ld_w0), int(rows.end - rows.begin),
         rows_of(x.a, l.in), x.rank, l.in, int(threadIdx.x) / 32, kWarps,
         [&](int o, int r, double sum) {
           part += sum * double(x.b[(rows.begin + o) * x.rank + r]);
         });
    const double sum = block_sum<kThreads>(part);
    if (threadIdx.x == 0) sums[2 * blockIdx.x + which] = sum;
  }
}

// Every block of a layer makes its small matrices anew; the products with W0, B^T W0 for its
// columns of dA and W0 A^T for its rows of dB, are divided.
template <class T>
__global__ void __launch_bounds__(kThreads)
    base_kernel(OrthogonalityPenalty<T> args, const double* sums) {
  const int64_t layer = blockIdx.x / kBaseStrips;
  const OrthogonalityLayer<T> l = args.layers[layer];
  const Strip rows = strip(l.out), columns = strip(l.in);
  Small* s = dynamic_shared<Small>();
  Small &aat = s[0], &btb = s[1];
  double value = 0;
  for (int which = 0; which < 2; ++which) {
    const Adapter<T> x = adapter(l, which);
    const auto a = rows_of(x.a, l.in);
    const auto b = columns_of(x.b, x.rank);
    gram(a, x.rank, a, x.rank, l.in, aat);
    gram(b, x.rank, b, x.rank, l.out, btb);
    __syncthreads();
    double part = 0;
    for (int e = int(threadIdx.x); e < x.rank * x.rank; e += kThreads)
      part += aat[e / x.rank][e % x.rank] * btb[e / x.rank][e % x.rank];
    const double norm2 = block_sum<kThreads>(part);
    double z = 0;
    for (int64_t i = 0; i < kBaseStrips; ++i) z += sums[(layer * kBaseStrips + i) * 2 + which];
    const Similarity f = similarity(z, l.w0_norm2, norm2, args.form);
    value += f.value / 2;
    if (*args.weight != 0) {
      const double inner = *args.weight / 2 * f.d_inner, own = *args.weight * f.d_norm_y;
      add_products(x.db, 1, x.rank, x.rank, rows.begin, rows.end, product(aat, own, b, x.rank),
                   product(aat, 0, b, 0));
      add_products(x.da, l.in, 1, x.rank, columns.begin, columns.end, product(btb, own, a, x.rank),
                   product(btb, 0, a, 0));
      __syncthreads();  // dA and dB change hands
      if (x.db != nullptr)
        gram(rows_of(l.w0 + rows.begin * l.ld_w0, l.ld_w0), int(rows.end - rows.begin), a, x.rank,
             l.in, int(threadIdx.x) / 32, kWarps, [&](int o, int r, double sum) {
               T& to = x.db[(rows.begin + o) * x.rank + r];
               to = T(double(to) + inner * sum);
             });
      if (x.da != nullptr)
        gram(b, x.rank, View<T>{l.w0 + columns.begin, 1, l.ld_w0}, int(columns.end - columns.begin),
             l.out, int(threadIdx.x) / 32, kWarps, [&](int r, int t, double sum) {
               T& to = x.da[r * l.in + columns.begin + t];
               to = T(double(to) + inner * sum);
             });
    }
    __syncthreads();  // before the next adapter's matrices
  }
  if (blockIdx.x % kBaseStrips == 0 && threadIdx.x == 0) args.values[layer] = value;
}

// --- subspace, subspace_l1 --------------------------------------------------------------------

// Sums over pairs of rows (a_i of A_g, b_j of A_p) of the similarity of two vectors, over a count:
// dA_g = C A_p + D A_g and dA_p = C^T A_g + D' A_p with diagonal D, D'.
template <class T>
__global__ void __launch_bounds__(kThreads)
    subspace_kernel(OrthogonalityPenalty<T> a, PenaltyForm form) {
  __shared__ double norms_g[kMaxRank], norms_p[kMaxRank];
  const OrthogonalityLayer<T> l = a.layers[blockIdx.x];
  check_rank(l.rank_g);
  check_rank(l.rank_p);
  const int rg = int(l.rank_g), rp = int(l.rank_p), tid = int(threadIdx.x), warp = tid / 32;
  const double count = form == PenaltyForm::abs_cosine ? rg * rp : rg < rp ? rg : rp;
  const auto a_g = rows_of(l.a_g, l.in), a_p = rows_of(l.a_p, l.in);
  Small* s = dynamic_shared<Small>();
  Small &gp = s[0], &gg = s[1], &pp = s[2];
  gram(a_g, rg, a_p, rp, l.in, gp);
  for (int i = warp; i < rg + rp; i += kWarps) {
    double sum = 0;
    for (int64_t t = tid % 32; t < l.in; t += 32) {
      const double x = i < rg ? a_g(i, t) : a_p(i - rg, t);
      sum += x * x;
    }
    sum = warp_sum(sum);
    if (tid % 32 == 0) (i < rg ? norms_g[i] : norms_p[i - rg]) = sum;
  }
  for (int e = tid; e < rg * rg; e += kThreads) gg[e / rg][e % rg] = 0;
  for (int e = tid; e < rp * rp; e += kThreads) pp[e / rp][e % rp] = 0;
  __syncthreads();

  // One thread a row of C makes D and the value, one a column D'.
  double part = 0;
  if (tid < rg) {
    for (int j = 0; j < rp; ++j) {
      const Similarity f = similarity(gp[tid][j], norms_g[tid], norms_p[j], form);
      part += f.value / count;
      gg[tid][tid] += 2 * f.d_norm_x / count;
    }
  } else if (tid >= kMaxRank && tid < kMaxRank + rp) {
    const int j = tid - kMaxRank;
    for (int i = 0; i < rg; ++i)
      pp[j][j] += 2 * similarity(gp[i][j], norms_g[i], norms_p[j], form).d_norm_y / count;
  }
  const double value = block_sum<kThreads>(part);
  if (tid == 0) a.values[blockIdx.x] = value;
  if (*a.weight == 0) return;
  for (int e = tid; e < rg * rp; e += kThreads) {
    double& c = gp[e / rp][e % rp];
    c = similarity(c, norms_g[e / rp], norms_p[e % rp], form).d_inner / count;
  }
  __syncthreads();
  add_products(l.da_g, l.in, 1, rg, 0, l.in, product(gp, *a.weight, a_p, rp),
               product(gg, *a.weight, a_g, rg));
  add_products(l.da_p, l.in, 1, rp, 0, l.in, product_transposed(gp, *a.weight, a_g, rg),
               product(pp, *a.weight, a_p, rp));
}

// --- base_subspace ----------------------------------------------------------------------------

// Of one adapter, with Z = A V_k [rank, k]:  |B A V_k|^2 = <B^T B, Z Z^T>,
//   d/dA = 2 (B^T B) Z V_k^T,  d/dB = 2 B Z Z^T
template <class T>
__device__ double base_subspace_term(const Adapter<T>& x, const View<T>& v, int k, int64_t in,
                                     int64_t out, double weight, Small* s) {
  const int r = x.rank, tid = int(threadIdx.x);
  const auto a = rows_of(x.a, in);
  const auto b = columns_of(x.b, r);
  Small &c = s[0], &z = s[1], &btb = s[2];  // c: A A^T, then the coefficients of dB, then of dA
  gram(a, r, a, r, in, c);
  gram(a, r, v, k, in, z);
  gram(b, r, b, r, out, btb);
  __syncthreads();
  const auto zzt = [&](int i, int j) {
    double sum = 0;
    for (int e = 0; e < k; ++e) sum += z[i][e] * z[j][e];
    return sum;
  };
  double norm_part = 0, inner_part = 0;
  for (int e = tid; e < r * r; e += kThreads) {
    norm_part += btb[e / r][e % r] * c[e / r][e % r];
    inner_part += btb[e / r][e % r] * zzt(e / r, e % r);
  }
  const double norm2 = block_sum<kThreads>(norm_part), inner = block_sum<kThreads>(inner_part);
  if (norm2 <= kSmallestDenominator) return 0;
  const double value = inner / norm2;
  if (weight == 0) return value;

  const double factor = 2 * weight / norm2, own = -factor * value;
  for (int e = tid; e < r * r; e += kThreads)
    c[e / r][e % r] = factor * zzt(e / r, e % r) + own * c[e / r][e % r];
  __syncthreads();
  add_products(x.db, 1, r, r, 0, out, product(c, 1, b, r), product(c, 0, b, 0));
  __syncthreads();
  for (int e = tid; e < r * k; e += kThreads) {
    double sum = 0;
    for (int j = 0; j < r; ++j) sum += btb[e / k][j] * z[j][e % k];
    c[e / k][e % k] = factor * sum;
  }
  __syncthreads();
  add_products(x.da, in, 1, r, 0, in, product(c, 1, v, k), product(btb, own, a, r));
  __syncthreads();  // before the next adapter's matrices
  return value;
}

template <class T>
__global__ void __launch_bounds__(kThreads) base_subspace_kernel(OrthogonalityPenalty<T> a) {
  const OrthogonalityLayer<T> l = a.layers[blockIdx.x];
  check_rank(l.rank_g);
  check_rank(l.rank_p);
  check_rank(l.k);
  Small* s = dynamic_shared<Small>();
  const auto v = rows_of(l.v_k, l.in);
  double value = 0;
  for (int which = 0; which < 2; ++which)
    value += base_subspace_term(adapter(l, which), v, int(l.k), l.in, l.out, *a.weight / 2, s) / 2;
  if (threadIdx.x == 0) a.values[blockIdx.x] = value;
}

// --- delta_norm2 ------------------------------------------------------------------------------

template <class T>
__global__ void __launch_bounds__(kThreads) delta_norm2_kernel(DeltaNorm2<T> args) {
  const OrthogonalityLayer<T> l = args.layers[blockIdx.x / 2];
  const Adapter<T> x = adapter(l, int(blockIdx.x % 2));
  check_rank(x.rank);
  Small& aat = *dynamic_shared<Small>();
  const auto a = rows_of(x.a, l.in);
  const auto b = columns_of(x.b, x.rank);
  gram(a, x.rank, a, x.rank, l.in, aat);
  __syncthreads();
  const double norm2 = block_sum<kThreads>(gram_inner(b, x.rank, b, x.rank, l.out, aat));
  if (threadIdx.x == 0) args.norms2[blockIdx.x] = norm2;
}

// --- features ---------------------------------------------------------------------------------

// Three matrices [g, g], [g, p], [p, p], dense and one after the other, as `features` keeps them.
struct Triple {
  int rank_g, rank_p;
  OF_HOST_DEVICE int gp() const { return rank_g * rank_g; }
  OF_HOST_DEVICE int pp() const { return gp() + rank_g * rank_p; }
  OF_HOST_DEVICE int size() const { return pp() + rank_p * rank_p; }
};

template <class U>
OF_HOST_DEVICE Triple triple_of(const OrthogonalityFeatures<U>& a) {
  return {int(a.rank_g), int(a.rank_p)};
}
// Does anybody want dB?
template <class U>
OF_HOST_DEVICE bool wants_outer(const OrthogonalityFeatures<U>& a) {
  return a.db_g != nullptr || a.db_p != nullptr;
}

// grams = B_g^T B_g, B_g^T B_p, B_p^T B_p; a warp for every 4 x 4 entries.
template <class U>
__global__ void __launch_bounds__(kThreads)
    features_gram_kernel(OrthogonalityFeatures<U> a, double* grams) {
  const Triple triple = triple_of(a);
  const int rg = triple.rank_g, rp = triple.rank_p;
  const int worker = int(blockIdx.x) * kWarps + int(threadIdx.x) / 32;
  const int workers = int(gridDim.x) * kWarps;
  const auto g = columns_of(a.b_g, rg), p = columns_of(a.b_p, rp);
  const auto into = [&](int offset, int columns) {
    return [=](int i, int j, double sum) { grams[offset + i * columns + j] = sum; };
  };
  gram(g, rg, g, rg, a.out, worker, workers, into(0, rg));
  gram(g, rg, p, rp, a.out, worker, workers, into(triple.gp(), rp));
  gram(p, rp, p, rp, a.out, worker, workers, into(triple.pp(), rp));
}

// What a block keeps of one token: u; P u for both Grams that meet each element; f's derivatives.
constexpr size_t token_bytes(int64_t rank) {
  return size_t(rank) * (2 * sizeof(double) + sizeof(float)) + 3 * sizeof(double);
}
// As many as there are threads for in two passes, fewer where they do not fit into 98 KiB.
int tokens_at_a_time(int64_t rank) {
  const size_t fit = 98 * 1024 / token_bytes(rank);
  return int(fit < 64 ? fit : 64);
}

// Tokens of one block. Per token, with the Grams P = B^T B':
//   z = u_g^T P_gp u_p,  n = u^T P u,  du_g = f_z P_gp u_p + 2 f_n P_gg u_g
// partial [block, entries + 1]: sums over tokens of f_n 2 u_g u_g^T, f_z u_g u_p^T, f_n 2 u_p u_p^T
// (if `outer`), then the value.
template <class U>
__global__ void __launch_bounds__(kThreads, 4)
    features_kernel(OrthogonalityFeatures<U> a, int64_t block_rows, int at_a_time,
                    const double* __restrict__ grams, double* partial) {
  const Triple triple = triple_of(a);
  const bool outer = wants_outer(a);
  const int rg = triple.rank_g, rp = triple.rank_p, r = rg + rp, tid = int(threadIdx.x);
  const int64_t first = blockIdx.x * block_rows;
  const int64_t last = first + block_rows < a.rows ? first + block_rows : a.rows;
  const double share = *a.weight / double(a.rows);
  partial += int64_t{blockIdx.x} * (triple.size() + 1);

  double* gram = dynamic_shared<double>();                // triple
  double* cross = gram + triple.size();                   // [at_a_time, r]: P_gp u_p | P_gp^T u_g
  double* own = cross + at_a_time * r;                    // [at_a_time, r]: P_gg u_g | P_pp u_p
  double* f = own + at_a_time * r;                        // [at_a_time, 3]: of g g, g p, p p
  auto* u = reinterpret_cast<float*>(f + at_a_time * 3);  // [at_a_time, r]: u_g | u_p
  double value = 0;
  for (int64_t token = first; token < last; token += at_a_time) {
    const int tokens = int(last - token < at_a_time ? last - token : at_a_time);
    __syncthreads();  // everybody is done with the tokens before
    for (int e = tid; e < tokens * r; e += kThreads) {
      const int64_t row = token + e / r;
      const int i = e % r;
      u[e] = i < rg ? float(a.u_g[row * a.ld_g + i]) : float(a.u_p[row * a.ld_p + i - rg]);
    }
    __syncthreads();
    for (int e = tid; e < tokens * r; e += kThreads) {
      const float *ug = u + e / r * r, *up = ug + rg;
      const int i = e % r;
      double other = 0, same = 0;
      if (i < rg) {
        for (int j = 0; j < rp; ++j) other += grams[triple.gp() + i * rp + j] * double(up[j]);
        for (int j = 0; j < rg; ++j) same += grams[i * rg + j] * double(ug[j]);
      } else {
        for (int j = 0; j < rg; ++j) other += grams[triple.gp() + j * rp + i - rg] * double(ug[j]);
        for (int j = 0; j < rp; ++j) same += grams[triple.pp() + (i - rg) * rp + j] * double(up[j]);
      }
      cross[e] = other;
      own[e] = same;
    }
    __syncthreads();
    if (tid < tokens) {
      double z = 0, norm_g = 0, norm_p = 0;
      for (int e = tid * r; e < tid * r + rg; ++e) {
        z += double(u[e]) * cross[e];
        norm_g += double(u[e]) * own[e];
      }
      for (int e = tid * r + rg; e < (tid + 1) * r; ++e) norm_p += double(u[e]) * own[e];
      const Similarity of = similarity(z, norm_g, norm_p, a.form);
      value += of.value / double(a.rows);
      f[tid * 3] = 2 * share * of.d_norm_x;
      f[tid * 3 + 1] = share * of.d_inner;
      f[tid * 3 + 2] = 2 * share * of.d_norm_y;
    }
    if (*a.weight == 0) continue;
    __syncthreads();
    for (int e = tid; e < tokens * r; e += kThreads) {
      const int i = e % r;
      float* du = i < rg ? a.du_g : a.du_p;
      if (du == nullptr) continue;
      const int64_t row = token + e / r;
      du += i < rg ? row * a.ldd_g + i : row * a.ldd_p + i - rg;
      const double* of = f + e / r * 3;
      *du = float(double(*du) + (of[1] * cross[e] + of[i < rg ? 0 : 2] * own[e]));
    }
    if (!outer) continue;
    for (int e = tid; e < triple.size(); e += kThreads) {
      const int which = e < triple.gp() ? 0 : e < triple.pp() ? 1 : 2;
      const int in = e - (which == 0 ? 0 : which == 1 ? triple.gp() : triple.pp());
      const int columns = which == 0 ? rg : rp;
      const float* ui = u + (which == 2 ? rg : 0) + in / columns;
      const float* uj = u + (which == 0 ? 0 : rg) + in % columns;
      double sum = token == first ? 0 : partial[e];
      for (int t = 0; t < tokens; ++t)
        sum += f[t * 3 + which] * double(ui[t * r]) * double(uj[t * r]);
      partial[e] = sum;
    }
  }
  value = block_sum<kThreads>(value);
  if (tid == 0) partial[triple.size()] = value;
}

// totals [entries + 1] = sum over blocks of partial [blocks, entries + 1]. Only the value counts
// where there is no gradient.
template <class U>
__global__ void features_fold_kernel(OrthogonalityFeatures<U> a, const double* partial,
                                     int64_t blocks, double* totals) {
  const int entries = triple_of(a).size();
  const int64_t e = folded_entry();
  const bool wanted = e == entries || (e < entries && wants_outer(a) && *a.weight != 0);
  const double sum = fold_entry(partial, blocks, entries + 1, e, wanted);
  if (threadIdx.y > 0 || !wanted) return;
  totals[e] = sum;
  if (e == entries) *a.value = sum;
}

constexpr int64_t kOutputs = 64;  // rows of dB of one block

// dB_g += B_p S_gp^T + B_g S_gg and dB_p += B_g S_gp + B_p S_pp
template <class U>
__global__ void __launch_bounds__(kThreads)
    features_gradient_kernel(OrthogonalityFeatures<U> a, const double* totals) {
  using A = Accum<U>;
  if (*a.weight == 0) return;
  const Triple triple = triple_of(a);
  const int rg = triple.rank_g, rp = triple.rank_p;
  const auto g = columns_of(a.b_g, rg), p = columns_of(a.b_p, rp);
  const int64_t begin = blockIdx.x * kOutputs,
                end = begin + kOutputs < a.out ? begin + kOutputs : a.out;
  const double *gg = totals, *gp = totals + triple.gp(), *pp = totals + triple.pp();
  add_products(a.db_g, 1, rg, rg, begin, end, Product<A>{gp, rp, 1, 1, p, rp},
               Product<A>{gg, rg, 1, 1, g, rg});
  add_products(a.db_p, 1, rp, rp, begin, end, Product<A>{gp, 1, rp, 1, g, rg},
               Product<A>{pp, rp, 1, 1, p, rp});
}

// One block of kThreads a layer.
LaunchShape per_layer(int64_t blocks, int matrices) {
  return {.grid_x = unsigned(blocks),
          .threads_x = kThreads,
          .shared_bytes = size_t(matrices) * sizeof(Small)};
}

}  // namespace

template <class T, class Stream>
void orthogonality_update(const OrthogonalityPenalty<T>& a, const Stream& stream) {
  launch(update_kernel<T>, per_layer(a.count, 3), stream, a);
}

template <class T, class Stream>
void orthogonality_base(const OrthogonalityPenalty<T>& a, const Stream& stream) {
  auto* sums = scratch_as<double>(stream, orthogonality_base_scratch(a.count));
  launch(base_inner_kernel<T>, per_layer(a.count * kBaseStrips, 0), stream, a, sums);
  launch(base_kernel<T>, per_layer(a.count * kBaseStrips, 2), stream, a, sums);
}

template <class T, class Stream>
void orthogonality_subspace(const OrthogonalityPenalty<T>& a, const Stream& stream) {
  launch(subspace_kernel<T>, per_layer(a.count, 3), stream, a, PenaltyForm::cosine2);
}

template <class T, class Stream>
void orthogonality_subspace_l1(const OrthogonalityPenalty<T>& a, const Stream& stream) {
  launch(subspace_kernel<T>, per_layer(a.count, 3), stream, a, PenaltyForm::abs_cosine);
}

template <class T, class Stream>
void orthogonality_base_subspace(const OrthogonalityPenalty<T>& a, const Stream& stream) {
  launch(base_subspace_kernel<T>, per_layer(a.count, 3), stream, a);
}

template <class T, class Stream>
void delta_norm2(const DeltaNorm2<T>& a, const Stream& stream) {
  launch(delta_norm2_kernel<T>, per_layer(2 * a.count, 1), stream, a);
}

template <class U, class Stream>
void orthogonality_features(const OrthogonalityFeatures<U>& a, const Stream& stream) {
  const int64_t ranks[] = {a.rank_g, a.rank_p};
  for (const int64_t rank : ranks)
    OF_CHECK(0 < rank && rank <= kMaxRank,
             "rank " + std::to_string(rank) + " is not in 1.." + std::to_string(kMaxRank));
  OF_CHECK(a.form != PenaltyForm::raw2, "`features` has no raw2 form");
  const int64_t block_rows = features_block_rows(a.rows), blocks = ceil_div(a.rows, block_rows);
  const int entries = triple_of(a).size(), at_a_time = tokens_at_a_time(a.rank_g + a.rank_p);
  auto* grams =
      scratch_as<double>(stream, orthogonality_features_scratch(a.rows, a.rank_g, a.rank_p));
  double *totals = grams + entries, *partial = totals + entries + 1;
  const int64_t tiles = ceil_div(a.rank_g, 4) * ceil_div(a.rank_g + a.rank_p, 4) +
                        ceil_div(a.rank_p, 4) * ceil_div(a.rank_p, 4);
  launch(features_gram_kernel<U>,
         {.grid_x = unsigned(ceil_div(tiles, kWarps)), .threads_x = kThreads}, stream, a, grams);
  launch(features_kernel<U>,
         {.grid_x = unsigned(blocks),
          .threads_x = kThreads,
          .shared_bytes = size_t(entries) * sizeof(double) +
                          size_t(at_a_time) * token_bytes(a.rank_g + a.rank_p)},
         stream, a, block_rows, at_a_time, grams, partial);
  launch(features_fold_kernel<U>, fold_shape(entries + 1), stream, a, partial, blocks, totals);
  if (wants_outer(a) && a.rows > 0)
    launch(features_gradient_kernel<U>,
           {.grid_x = unsigned(ceil_div(a.out, kOutputs)), .threads_x = kThreads}, stream, a,
           totals);
}

template void orthogonality_update(const OrthogonalityPenalty<float>&, const OF_STREAM&);
template void orthogonality_base(const OrthogonalityPenalty<float>&, const OF_STREAM&);
template void orthogonality_subspace(const OrthogonalityPenalty<float>&, const OF_STREAM&);
template void orthogonality_subspace_l1(const OrthogonalityPenalty<float>&, const OF_STREAM&);
template void orthogonality_base_subspace(const OrthogonalityPenalty<float>&, const OF_STREAM&);
template void delta_norm2(const DeltaNorm2<float>&, const OF_STREAM&);
template void orthogonality_features(const OrthogonalityFeatures<float>&, const OF_STREAM&);
template void orthogonality_features(const OrthogonalityFeatures<bf16>&, const OF_STREAM&);

}  // namespace orthofed::gpu
