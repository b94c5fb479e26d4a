// What happens to a sum between the registers and memory: one functor each, so that a kernel is
// written once. A functor works on N neighbours of row i from column j on (N = 4 only where packs()
// allows it) in two steps, so that a kernel can have several loads under way before the first
// store:
//
//   load<N>(i, j)                 what it needs besides the sums, as a Pack or Nothing
//   operator()(i, j, sums, with)  computes and stores
//
// kLayer: only ever behind op(A) = A, so that fewer kernels need to be compiled.
#pragma once
#include "kernels/core/warp.cuh"
#include "kernels/gelu/gelu_form.h"
#include "kernels/matmul/operand.cuh"

namespace orthofed::gpu {
namespace {

struct Nothing {};

// row[j] to row[j + N - 1] added to the sums; a null row is zero.
template <int N>
__device__ void add_row(Pack<float, N>& sums, const float* row, int64_t j) {
  if (row == nullptr) return;
  const auto values = load_pack<N>(row + j);
  for (int q = 0; q < N; ++q) sums[q] += values[q];
}

// C = AB [+ bias] [+ C]
template <class C>
struct Store {
  static constexpr bool kLayer = false;
  C* c;
  int64_t ldc;
  const float* bias;  // [n] or null
  bool accumulate;

  bool packs() const { return packable<4>(c, ldc) && packable<4>(bias, 0); }
  template <int N>
  __device__ Pack<C, N> load(int64_t i, int64_t j) const {
    return accumulate ? load_pack<N>(c + i * ldc + j) : Pack<C, N>{};
  }
  template <int N>
  __device__ void operator()(int64_t i, int64_t j, Pack<float, N> sums,
                             const Pack<C, N>& before) const {
    add_row(sums, bias, j);
    Pack<C, N> result;
    for (int q = 0; q < N; ++q) result[q] = C(accumulate ? sums[q] + float(before[q]) : sums[q]);
    store_pack(c + i * ldc + j, result);
  }
};

// h = T(AB + bias), y = GELU(h)
template <class T>
struct Gelu {
  static constexpr bool kLayer = true;
  T* h;
  int64_t ldh;
  T* y;
  int64_t ldy;
  const float* bias;  // [n] or null
  GeluKind kind;

  bool packs() const { return packable<4>(h, ldh) && packable<4>(y, ldy) && packable<4>(bias, 0); }
  template <int N>
  __device__ Nothing load(int64_t, int64_t) const {
    return {};
  }
  template <int N>
  __device__ void operator()(int64_t i, int64_t j, Pack<float, N> sums, Nothing) const {
    add_row(sums, bias, j);
    Pack<T, N> before, after;
    for (int q = 0; q < N; ++q) before[q] = T(sums[q]);
    const auto activate = [&]<class Form>(Form) {  // on what backward will read
      for (int q = 0; q < N; ++q) after[q] = T(float(before[q]) * Form::phi(float(before[q])));
    };
    kind == GeluKind::erf    ? activate(GeluErf{})
    : kind == GeluKind::tanh ? activate(GeluTanh{})
                             : activate(GeluQuick{});
    store_pack(h + i * ldh + j, before);
    store_pack(y + i * ldy + j, after);
  }
};

// dx = AB * GELU'(h)
template <class T>
struct GeluBackward {
  static constexpr bool kLayer = true;
  const T* h;
  int64_t ldh;
  T* dx;
  int64_t lddx;
  GeluKind kind;

  bool packs() const { return packable<4>(h, ldh) && packable<4>(dx, lddx); }
  template <int N>
  __device__ Pack<T, N> load(int64_t i, int64_t j) const {
    return load_pack<N>(h + i * ldh + j);
  }
  template <int N>
  __device__ void operator()(int64_t i, int64_t j, Pack<float, N> sums,
                             const Pack<T, N>& before) const {
    Pack<T, N> result;
    const auto multiply = [&]<class Form>(Form) {
      for (int q = 0; q < N; ++q) result[q] = T(sums[q] * Form::derivative(float(before[q])));
    };
    kind == GeluKind::erf    ? multiply(GeluErf{})
    : kind == GeluKind::tanh ? multiply(GeluTanh{})
                             : multiply(GeluQuick{});
    store_pack(dx + i * lddx + j, result);
  }
};

// y = x + gamma * (AB + bias)
struct Residual {
  static constexpr bool kLayer = true;
  const float* x;
  int64_t ldx;
  const float* gamma;  // [n] or null: 1
  float* y;
  int64_t ldy;
  const float* bias;  // [n] or null

  bool packs() const {
    return packable<4>(x, ldx) && packable<4>(y, ldy) && packable<4>(gamma, 0) &&
           packable<4>(bias, 0);
  }
  template <int N>
  __device__ Pack<float, N> load(int64_t i, int64_t j) const {
    return load_pack<N>(x + i * ldx + j);
  }
  template <int N>
  __device__ void operator()(int64_t i, int64_t j, Pack<float, N> sums,
                             const Pack<float, N>& stream) const {
    add_row(sums, bias, j);
    if (gamma != nullptr) {
      const auto scale = load_pack<N>(gamma + j);
      for (int q = 0; q < N; ++q) sums[q] *= scale[q];
    }
    for (int q = 0; q < N; ++q) sums[q] += stream[q];
    store_pack(y + i * ldy + j, sums);
  }
};

// One element, for kernels that keep no tile.
template <class Epilogue>
__device__ void finish(const Epilogue& epilogue, int64_t i, int64_t j, float sum) {
  epilogue(i, j, Pack<float, 1>{{sum}}, epilogue.template load<1>(i, j));
}

// A finished tile of sums in shared memory, 128 x 128. Columns are permuted in groups of 8 such
// that the 8 rows which a tensor core's accumulators span fall into different banks.
struct SumTile {
  static constexpr unsigned kSide = 128, kFloats = kSide * kSide;
  static constexpr OF_HOST_DEVICE unsigned at(unsigned i, unsigned j) {
    return i * kSide + (j ^ (i % 4 * 8));
  }

  // The whole block (after a barrier) passes the tile through the epilogue: a warp takes a row at a
  // time, so that every access to memory is one contiguous piece, and loads for four rows at once.
  template <int kThreads, class Epilogue>
  static __device__ void write(const float* tile, Corner corner, int64_t m, int64_t n, bool packs,
                               const Epilogue& epilogue) {
    constexpr unsigned kWarps = kThreads / 32, kRows = 4;
    const unsigned warp = threadIdx.x / 32, col = threadIdx.x % 32 * 4;
    const int64_t j = corner.j + col;
    if (packs && j + 4 <= n) {
#pragma unroll 1
      for (unsigned first = warp; first < kSide; first += kWarps * kRows) {
        decltype(epilogue.template load<4>(0, 0)) with[kRows] = {};
#pragma unroll
        for (unsigned r = 0; r < kRows; ++r) {
          const int64_t i = corner.i + first + r * kWarps;
          if (i < m) with[r] = epilogue.template load<4>(i, j);
        }
#pragma unroll
        for (unsigned r = 0; r < kRows; ++r) {
          const unsigned row = first + r * kWarps;
          const int64_t i = corner.i + row;
          if (i < m) epilogue(i, j, load_pack<4>(tile + at(row, col)), with[r]);
        }
      }
    } else {
#pragma unroll 1
      for (unsigned row = warp; row < kSide && corner.i + row < m; row += kWarps)
#pragma unroll 1
        for (unsigned q = 0; q < 4 && j + q < n; ++q)
          finish(epilogue, corner.i + row, j + q, tile[at(row, col) + q]);
    }
  }
};

}  // namespace
}  // namespace orthofed::gpu
