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

template <class T>
struct TokenMeanForward {
  const T* x;  // [batch * tokens, dim] pitch ldx
  int64_t ldx;
  T* y;  // [batch, dim] pitch ldy
  int64_t ldy;
  TokenMeanShape shape;
};

// All of dx is written.
template <class T>
struct TokenMeanBackward {
  const T* dy;  // [batch, dim] pitch lddy
  int64_t lddy;
  T* dx;  // [batch * tokens, dim] pitch lddx
  int64_t lddx;
  TokenMeanShape shape;
};

}  // namespace orthofed

namespace orthofed::cpu {

template <class T>
void token_mean_forward(const TokenMeanForward<T>& a);
template <class T>
void token_mean_backward(const TokenMeanBackward<T>& a);

}  // namespace orthofed::cpu

namespace orthofed::cost {

template <class T>
Cost token_mean_forward(const TokenMeanForward<T>& a) {
  const TokenMeanShape& s = a.shape;
  const double means = double(s.batch) * s.dim, n = means * (s.tokens - s.first);
  return {n, moved(a.x, n) + written(a.y, means)};
}
template <class T>
Cost token_mean_backward(const TokenMeanBackward<T>& a) {
  const TokenMeanShape& s = a.shape;
  const double means = double(s.batch) * s.dim;
  return {means, moved(a.dy, means) + written(a.dx, means * s.tokens)};
}

}  // namespace orthofed::cost

namespace orthofed::gpu {

template <class T, class Stream>
void token_mean_forward(const TokenMeanForward<T>& a, const Stream& stream);
template <class T, class Stream>
void token_mean_backward(const TokenMeanBackward<T>& a, const Stream& stream);

}  // namespace orthofed::gpu
