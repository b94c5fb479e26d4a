#include <algorithm>
#include <type_traits>
#include <utility>
#include <vector>

#include "kernels/core/check.h"
#include "kernels/core/tile.h"
#include "kernels/matmul/matmul.h"
#include "kernels/matmul/matmul_onednn.h"
#include "kernels/residual/residual.h"

namespace orthofed::cpu {
namespace {

// The product is cut into blocks of C of at most block_m x block_n, one task each; a task walks
// along k in steps of block_k. Operands of a step are copied (widened to the accumulator's type,
// edges filled with zeros) into panels as wide as the register tile (core/tile.h), which then reads
// both in order. None of these sizes depends on the number of threads, and neither does the order
// of any sum.
constexpr int64_t block_m = 96, block_n = 96, block_k = 128;
static_assert(block_m % tile_rows == 0 && block_n % tile_cols<16> == 0);

// The operand op(X)[i, p] as X[i * row + p * col].
template <class T>
struct View {
  const T* data;
  int64_t row, col;
  View at(int64_t i, int64_t p) const { return {data + i * row + p * col, row, col}; }
};

// Copies [rows, k] of the operand into panels of `width` rows: to[panel][p][i in panel].
template <int width, class T, class A>
void pack(const View<T>& x, int64_t rows, int64_t k, A* to) {
  int64_t i0 = 0;
  for (; i0 + width <= rows; i0 += width, to += k * width) {
    const T* from = x.data + i0 * x.row;
    if (x.row == 1) {
      for (int64_t p = 0; p < k; ++p) {
        for (int i = 0; i < width; ++i) to[p * width + i] = A(from[p * x.col + i]);
      }
    } else {
      for (int64_t p = 0; p < k; ++p) {
        for (int i = 0; i < width; ++i) to[p * width + i] = A(from[i * x.row + p]);
      }
    }
  }
  if (i0 < rows) {
    for (int64_t p = 0; p < k; ++p) {
      for (int64_t i = 0; i < width; ++i) {
        to[p * width + i] = i0 + i < rows ? A(x.data[(i0 + i) * x.row + p * x.col]) : A(0);
      }
    }
  }
}

template <class T, class C, class B>
void blocked(const Matmul<T, C, B>& p, const MatmulTail<T>& tail) {
  using A = Accum<T>;
  const MatmulShape& s = p.shape;
  const bool ta = s.op_a == Op::transpose, tb = s.op_b == Op::transpose;
  const View<T> va{p.a, ta ? 1 : s.lda, ta ? s.lda : 1};               // op(A)[i, p]
  const View<B> vb{p.b, tb ? s.ldb : 1, tb ? 1 : s.ldb};               // op(B)^T[j, p]
  const View<T> tail_u{tail.u, tail.ldu, 1};                           // U[i, p]
  const View<T> tail_v{tail.v, tb ? tail.ldv : 1, tb ? 1 : tail.ldv};  // V^T[j, p]
  const int64_t blocks_m = (s.m + block_m - 1) / block_m, blocks_n = (s.n + block_n - 1) / block_n;

  parallel_for_vector<A>(blocks_m * blocks_n, 1, [&](auto lanes, int64_t task, int64_t) {
    constexpr int cols = tile_cols<lanes>;
    const int64_t i0 = task / blocks_n * block_m, j0 = task % blocks_n * block_n;
    const int64_t m = std::min(block_m, s.m - i0), n = std::min(block_n, s.n - j0);
    alignas(64) A sum[block_m * block_n];       // [block_m, block_n]
    alignas(64) A packed_a[block_m * block_k];  // [block_m / tile_rows, k, tile_rows]
    alignas(64) A packed_b[block_n * block_k];  // [block_n / cols, k, cols]
    std::fill(sum, sum + block_m * block_n, A(0));
    const auto add = [&](const auto& x, const auto& y, int64_t length) {
      for (int64_t p0 = 0; p0 < length; p0 += block_k) {
        const int64_t k = std::min(block_k, length - p0);
        pack<tile_rows>(x.at(i0, p0), m, k, packed_a);
        pack<cols>(y.at(j0, p0), n, k, packed_b);
        for (int64_t j = 0; j < n; j += cols) {
          for (int64_t i = 0; i < m; i += tile_rows) {
            multiply_tile<lanes>(packed_a + i * k, 1, tile_rows, packed_b + j * k, cols,
                                 sum + i * block_n + j, block_n, k, /*add=*/true);
          }
        }
      }
    };
    add(va, vb, s.k);
    add(tail_u, tail_v, tail.rank);
    const A* bias = p.bias;
    const bool accumulate = p.accumulate;
    for (int64_t i = 0; i < m; ++i) {
      C* row = p.c + (i0 + i) * s.ldc + j0;
      const A* from = sum + i * block_n;
      for (int64_t j = 0; j < n; ++j) {
        A v = from[j];
        if (bias) v += bias[j0 + j];
        if (accumulate) v += A(row[j]);
        row[j] = C(v);
      }
    }
  });
}

void check(const MatmulShape& s) {
  OF_CHECK(s.m >= 0 && s.n >= 0 && s.k >= 0, "matmul: negative size");
  OF_CHECK(s.lda >= (s.op_a == Op::none ? s.k : s.m) && s.ldb >= (s.op_b == Op::none ? s.n : s.k) &&
               s.ldc >= s.n,
           "matmul: a pitch is smaller than its row");
}

template <class T>
void check(const MatmulTail<T>& t, const MatmulShape& s) {
  OF_CHECK(
      t.rank >= 0 && t.ldu >= t.rank && t.ldv >= (s.op_b == Op::none && t.rank > 0 ? s.n : t.rank),
      "matmul: a tail's pitch is smaller than its row");
}

// Types that oneDNN may get; whether it does is decided for each product.
template <class T>
constexpr bool onednn_type = onednn::built_in && !std::is_same_v<T, double>;

template <class T>
bool onednn_is_faster(int64_t m, int64_t n, int64_t k) {
  if (m == 0 || n == 0 || k == 0 || !onednn::available()) return false;
  return std::is_same_v<T, float> || native_bf16();
}

}  // namespace

template <class T, class C, class B>
void matmul_blocked(const Matmul<T, C, B>& p) {
  blocked(p, {});
}

template <class T, class C>
void matmul(const Matmul<T, C>& p) {
  const MatmulShape& s = p.shape;
  check(s);
  if constexpr (onednn_type<T>) {
    // oneDNN 3.7 on AVX-512 takes a vector for dense, whatever its stride.
    const bool vector = s.m == 1 || s.n == 1;
    if (!vector && onednn_is_faster<T>(s.m, s.n, s.k)) return onednn::matmul(p);
  }
  matmul_blocked(p);
}

namespace {

// C = AB + UV [+ bias]: a tail goes through the blocked loop.
template <class T, class C>
void product(const Matmul<T, C>& p, const MatmulTail<T>& tail) {
  OF_CHECK(p.shape.op_a == Op::none, "a product with a tail or a fused step: A is transposed");
  check(tail, p.shape);
  if (tail.rank == 0) return matmul(p);
  check(p.shape);
  blocked(p, tail);
}

}  // namespace

template <class T>
void matmul_extended(const MatmulExtended<T>& p) {
  product(Matmul<T, T>{.a = p.a, .b = p.b, .c = p.c, .bias = p.bias, .shape = p.shape}, p.tail);
}

template <class T>
void matmul_by_adapter(const Matmul<T, T, Accum<T>>& p) {
  if constexpr (std::is_same_v<T, Accum<T>>) {
    matmul(p);
  } else {
    check(p.shape);
    matmul_blocked(p);
  }
}

template <class T>
void matmul_gelu(const MatmulGelu<T>& p) {
  const MatmulShape& s = p.shape;
  MatmulShape of_h = s;
  of_h.ldc = p.ldh;
  product(Matmul<T, T>{.a = p.a, .b = p.b, .c = p.h, .bias = p.bias, .shape = of_h}, p.tail);
  gelu_forward(GeluForward<T>{
      .x = p.h, .ldx = p.ldh, .y = p.y, .ldy = s.ldc, .rows = s.m, .cols = s.n, .kind = p.kind});
}

template <class T>
void matmul_gelu_backward(const MatmulGeluBackward<T>& p) {
  const MatmulShape& s = p.shape;
  product(Matmul<T, T>{.a = p.a, .b = p.b, .c = p.dx, .shape = s}, p.tail);
  gelu_backward(GeluBackward<T>{.dy = p.dx,
                                .lddy = s.ldc,
                                .x = p.h,
                                .ldx = p.ldh,
                                .dx = p.dx,
                                .lddx = s.ldc,
                                .rows = s.m,
                                .cols = s.n,
                                .kind = p.kind});
}

template <class T>
void matmul_residual(const MatmulResidual<T>& p) {
  using A = Accum<T>;
  const MatmulShape& s = p.shape;
  product(Matmul<T, A>{.a = p.a, .b = p.b, .c = p.y, .bias = p.bias, .shape = s}, p.tail);
  residual_forward(ResidualForward<A>{.x = p.x,
                                      .ldx = p.ldx,
                                      .z = p.y,
                                      .ldz = s.ldc,
                                      .gamma = p.gamma,
                                      .y = p.y,
                                      .ldy = s.ldc,
                                      .rows = s.m,
                                      .cols = s.n});
}

// Packed by oneDNN, or a dense copy [k, n], whose rows the loop above copies fastest.
template <class T>
struct PackedMatrix<T>::Impl {
  std::shared_ptr<const onednn::Packed> packed;
  std::vector<T> dense;
};

template <class T>
PackedMatrix<T>::PackedMatrix(const T* b, int64_t ldb, Op op_b, int64_t k, int64_t n)
    : k_(k), n_(n) {
  check({.n = n, .k = k, .lda = k, .ldb = ldb, .ldc = n, .op_b = op_b});
  auto impl = std::make_shared<Impl>();
  if constexpr (onednn_type<T>) {
    if (n > 1 && onednn_is_faster<T>(1, n, k)) impl->packed = onednn::pack(b, ldb, op_b, k, n);
  }
  if (!impl->packed) {
    impl->dense.resize(size_t(k * n));
    for (int64_t p = 0; p < k; ++p) {
      for (int64_t j = 0; j < n; ++j) {
        impl->dense[size_t(p * n + j)] = op_b == Op::none ? b[p * ldb + j] : b[j * ldb + p];
      }
    }
  }
  impl_ = std::move(impl);
}

template <class T>
size_t PackedMatrix<T>::bytes() const {
  if (!impl_) return 0;
  if constexpr (onednn_type<T>) {
    if (impl_->packed) return onednn::bytes(*impl_->packed);
  }
  return impl_->dense.size() * sizeof(T);
}

template <class T>
template <class C>
void PackedMatrix<T>::multiply(const T* a, int64_t lda, C* c, int64_t ldc, const Accum<T>* bias,
                               bool accumulate, int64_t m) const {
  OF_CHECK(impl_, "multiply by a PackedMatrix that holds nothing");
  const MatmulShape shape{.m = m, .n = n_, .k = k_, .lda = lda, .ldb = n_, .ldc = ldc};
  check(shape);
  if constexpr (onednn_type<T>) {
    if (impl_->packed) {
      if (m > 0) onednn::matmul(a, lda, *impl_->packed, c, ldc, bias, accumulate, m);
      return;
    }
  }
  matmul_blocked(Matmul<T, C>{.a = a,
                              .b = impl_->dense.data(),
                              .c = c,
                              .bias = bias,
                              .accumulate = accumulate,
                              .shape = shape});
}

const char* matmul_backend() {
  if constexpr (onednn::built_in) return onednn::version();
  return "blocked loop";
}

#define OF_INSTANTIATE(T, C)                                                                     \
  template void matmul(const Matmul<T, C>&);                                                     \
  template void matmul_blocked(const Matmul<T, C>&);                                             \
  template void PackedMatrix<T>::multiply(const T*, int64_t, C*, int64_t, const Accum<T>*, bool, \
                                          int64_t) const;
OF_INSTANTIATE(double, double)
OF_INSTANTIATE(float, float)
OF_INSTANTIATE(bf16, bf16)
OF_INSTANTIATE(bf16, float)
#undef OF_INSTANTIATE
template void matmul_blocked(const Matmul<bf16, bf16, float>&);

#define OF_INSTANTIATE(T)                                           \
  template class PackedMatrix<T>;                                   \
  template void matmul_extended(const MatmulExtended<T>&);          \
  template void matmul_by_adapter(const Matmul<T, T, Accum<T>>&);   \
  template void matmul_gelu(const MatmulGelu<T>&);                  \
  template void matmul_gelu_backward(const MatmulGeluBackward<T>&); \
  template void matmul_residual(const MatmulResidual<T>&);
OF_INSTANTIATE(double)
OF_INSTANTIATE(float)
OF_INSTANTIATE(bf16)
#undef OF_INSTANTIATE

}  // namespace orthofed::cpu
