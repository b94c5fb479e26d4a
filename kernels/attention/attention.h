// Multi-head self-attention on a packed qkv (Vaswani et al., arXiv 1706.03762), computed by blocks
// of rows so that no tokens x tokens matrix is ever in memory (as in FlashAttention, Dao et al.,
// arXiv 2205.14135).
//
//   S = scale * Q K^T,  P = softmax(S),  O = P V,  lse_i = log sum_j exp(S_ij)
//
// head_dim is 1 to 256; batch or tokens may be 0. Instantiated for double, float and bf16.
//
// Error, with eps of Accum<T>: a score errs by e = (head_dim + 4) eps/2 scale sum_d |q_d k_d|, its
// probability by e relatively, a sum over n tokens by n eps/2 relatively to the sum of magnitudes;
// each result is rounded to T once (dQ once for each part of the keys that is held at a time; 257
// tokens of 64 are one part; on a GPU 256 are). What multiplies bf16 itself (a GPU's tensor cores,
// cpu::native_bf16()) reads P and dS rounded to bf16, which adds eps(bf16)/2 to the relative error
// of each. Same bits at every run and for any number of threads. Forward 4, backward 10 tokens^2
// head_dim flops an (image, head); memory traffic: qkv in and out out (forward), qkv, out, dout in
// and dqkv out (backward), tokens^2 nowhere.
//
// On a CPU: attention_cpu.cc, and attention_pairs.cc for bf16 where native_bf16().
//
// On a GPU (kernels/attention/NN_*.cuh): bf16 takes the tensor-core version (3), float the tiles of
// shared memory (2), whose backward computes S and dO V^T twice (14 tokens^2 head_dim flops); both
// pad head_dim to a multiple of 16 or 32. Above 128 columns both take the naive version (1).
#pragma once
#include <cstdint>

#include "kernels/core/check.h"
#include "kernels/core/cost.h"
#include "kernels/core/types.h"
#include "kernels/core/version.h"

namespace orthofed {

// qkv [batch * tokens, 3 * heads * head_dim]: the columns are q, k, v, each heads * head_dim wide,
// head-major, as timm packs them. out [batch * tokens, heads * head_dim].
struct AttentionShape {
  int64_t batch = 0, tokens = 0, heads = 0, head_dim = 0;
  int64_t ld_qkv = 0;  // row pitch of qkv and dqkv, in elements
  int64_t ld_out = 0;  // row pitch of out and dout
};

inline void check(const AttentionShape& s) {
  OF_CHECK(s.batch >= 0 && s.tokens >= 0 && s.heads >= 0, "attention: negative size");
  OF_CHECK(s.head_dim > 0 && s.head_dim <= 256, "attention: head_dim must be 1..256");
  OF_CHECK(s.ld_qkv >= 3 * s.heads * s.head_dim && s.ld_out >= s.heads * s.head_dim,
           "attention: a pitch is smaller than its row");
}

// The formulas above.
template <class T>
struct AttentionForward {
  const T* qkv;
  T* out;
  Accum<T>* lse;  // [batch, heads, tokens], which backward needs to rebuild P; null: not wanted
  AttentionShape shape;
  double scale;
};

// With D_i = sum_d dO_id O_id:  dV = P^T dO,  dS = P * (dO V^T - D),  dQ = scale dS K,
// dK = scale dS^T Q. dqkv is written whole, packed as qkv is. One (image, head) is one unit of
// work, so no sum crosses threads.
template <class T>
struct AttentionBackward {
  const T *qkv, *out, *dout;  // out is forward's, and dout its gradient
  const Accum<T>* lse;        // [batch, heads, tokens], as forward wrote it
  T* dqkv;
  AttentionShape shape;
  double scale;
};

}  // namespace orthofed

namespace orthofed::cpu {

template <class T>
void attention_forward(const AttentionForward<T>& a);
template <class T>
void attention_backward(const AttentionBackward<T>& a);

}  // namespace orthofed::cpu

namespace orthofed::cost {

template <class T>
Cost attention_forward(const AttentionForward<T>& a) {
  const AttentionShape& s = a.shape;
  const double rows = double(s.batch) * s.tokens, width = double(s.heads) * s.head_dim;
  return {4 * rows * s.tokens * width, moved(a.qkv, rows * 3 * width) +
                                           written(a.out, rows * width) +
                                           written(a.lse, rows * s.heads)};
}
template <class T>
Cost attention_backward(const AttentionBackward<T>& a) {
  const AttentionShape& s = a.shape;
  const double rows = double(s.batch) * s.tokens, width = double(s.heads) * s.head_dim;
  return {10 * rows * s.tokens * width,
          moved(a.qkv, rows * 3 * width) + moved(a.out, rows * width) +
              moved(a.dout, rows * width) + moved(a.lse, rows * s.heads) +
              written(a.dqkv, rows * 3 * width)};
}

}  // namespace orthofed::cost

namespace orthofed::gpu {

template <class T, class Stream>
void attention_forward(const AttentionForward<T>& a, const Stream& stream);
template <class T, class Stream>
void attention_backward(const AttentionBackward<T>& a, const Stream& stream);

// Every version of them, the naive one first. The others take head_dim up to kMaxTiledHeadDim.
inline constexpr int64_t kMaxTiledHeadDim = 128;
template <class T, class Stream>
Ladder<AttentionForward<T>, Stream> attention_forward_versions();
template <class T, class Stream>
Ladder<AttentionBackward<T>, Stream> attention_backward_versions();

}  // namespace orthofed::gpu
