// Average pooling: the mean of an image's tokens, without those before `first` (class token,
// registers).
//
//   y[b] = 1/n sum over t in [first, tokens) of x[b, t],   n = tokens - first
//
// Every token that counts gets a share of the gradient: dx[b, t] = dy[b] / n, and 0 before `first`.
// x and y are the residual stream's (Accum<T> elsewhere). Instantiated for double and float.
//
// Error of y: eps/2 (k mean |x| + 2 |y|), k the additions that one token passes through: n/8 + 8
// in float on a GPU; in double on a CPU, n 2^-53 / (eps/2). Of dx: eps |dx|. Per element: forward
// reads sizeof(T) bytes and adds once, backward writes as many.
#pragma once
#include <cstdint>

#include "kernels/core/check.h"
#include "kernels/core/cost.h"
#include "kernels/core/types.h"

namespace orthofed {

struct TokenMeanShape {
  int64_t batch = 0, tokens = 0, first = 0, dim = 0;
};

inline void check(const TokenMeanShape& s) {
  OF_CHECK(s.first >= 0 && s.first < s.tokens, "token_mean: a mean of no tokens");
}

}  // namespace orthofed

namespace orthofed::cpu {

// x [batch * tokens, dim] pitch ldx, y [batch, dim] pitch ldy.
template <class T>
void token_mean_forward(const T* x, int64_t ldx, T* y, int64_t ldy, const TokenMeanShape& shape);

// dy [batch, dim] pitch lddy, dx [batch * tokens, dim] pitch lddx, all of which is written.
template <class T>
void token_mean_backward(const T* dy, int64_t lddy, T* dx, int64_t lddx,
                         const TokenMeanShape& shape);

}  // namespace orthofed::cpu

namespace orthofed::cost {

template <class T>
Cost token_mean_forward(const T* x, int64_t, T* y, int64_t, const TokenMeanShape& s) {
  const double means = double(s.batch) * s.dim, n = means * (s.tokens - s.first);
  return {n, moved(x, n) + written(y, means)};
}
template <class T>
Cost token_mean_backward(const T* dy, int64_t, T* dx, int64_t, const TokenMeanShape& s) {
  const double means = double(s.batch) * s.dim;
  return {means, moved(dy, means) + written(dx, means * s.tokens)};
}

}  // namespace orthofed::cost

namespace orthofed::gpu {

template <class T, class Stream>
void token_mean_forward(const T* x, int64_t ldx, T* y, int64_t ldy, const TokenMeanShape& shape,
                        const Stream& stream);

template <class T, class Stream>
void token_mean_backward(const T* dy, int64_t lddy, T* dx, int64_t lddx,
                         const TokenMeanShape& shape, const Stream& stream);

}  // namespace orthofed::gpu
