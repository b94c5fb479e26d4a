// Softmax cross-entropy, forward and backward in one call (the gradient costs one more pass over a
// row that is already in cache).
//
//   z' = z + prior                         logit adjustment (Menon et al., arXiv 2007.07314)
//   q  = softmax(z'),  t = (1 - a) onehot(label) + a / C                    label smoothing a
//   l  = -sum_j t_j (1 - q_j)^f log q_j                     focal f (Lin et al., 1708.02002)
//   loss = sum_b w_b c_{y_b} l_b / sum_b w_b c_{y_b}               as torch's weighted mean
//
// w is the sample's weight: 0 for the padding of a partial batch, which then contributes exactly
// nothing. All weights 0: loss 0, gradient 0. c is the class weight of the label; torch instead
// gives each class its own weight within the smoothed part, so the two differ where both are used.
//
//   dl/dz_k = t_k s_k - q_k sum_j t_j s_j,   s_j = f q_j (1-q_j)^(f-1) log q_j - (1-q_j)^f
//
// s is -1 with focal 0, and the gradient q - t. A prior of -infinity (a class that a site has never
// seen) takes the class out: q = 0 and gradient 0, as long as its target t is 0.
// Instantiated for double and float.
//
// A label outside [0, classes) where the weight is not 0 is a fault of the caller: the cpu throws
// Error naming it; a GPU cannot throw, and makes the loss and every gradient of the batch NaN (0
// where the weight is 0). Labels are validated where data is read.
//
// Error of l and of dlogits * sum w c / (w c): 4 (1 + f) eps (classes/16 + 40) for |z'| <= 16.
// Per element: 2 sizeof(T) bytes and about 50 flops with focal 0.
#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/core/cost.h"

namespace orthofed {

struct CrossEntropyOptions {
  double label_smoothing = 0;
  double focal = 0;
};

// dlogits may be logits. Scratch on a GPU: cross_entropy_scratch(batch) bytes.
template <class T>
struct CrossEntropy {
  const T* logits;  // [batch, classes] pitch ld
  int64_t ld;
  const int32_t* labels;             // [batch], any where the weight is 0
  const T* weights;                  // [batch]
  const T* class_weights = nullptr;  // [classes]; null: 1
  const T* prior = nullptr;          // [classes]; null: 0
  T* loss;                           // one number
  T* losses = nullptr;   // [batch] the unweighted l_b, 0 where the weight is 0; null: not wanted
  T* dlogits = nullptr;  // [batch, classes] pitch ldd, the loss's gradient; null: not wanted
  int64_t ldd = 0;
  int64_t batch, classes;
  CrossEntropyOptions options = {};
};

}  // namespace orthofed

namespace orthofed::cpu {

template <class T>
void cross_entropy(const CrossEntropy<T>& a);

}  // namespace orthofed::cpu

namespace orthofed::cost {

template <class T>
Cost cross_entropy(const CrossEntropy<T>& a) {
  const double n = double(a.batch) * a.classes;
  return {50 * n, moved(a.logits, n) + moved(a.labels, a.batch) + moved(a.weights, a.batch) +
                      moved(a.class_weights, a.classes) + moved(a.prior, a.classes) +
                      written(a.loss, 1) + written(a.losses, a.batch) + written(a.dlogits, n)};
}

}  // namespace orthofed::cost

namespace orthofed::gpu {

template <class T, class Stream>
void cross_entropy(const CrossEntropy<T>& a, const Stream& stream);
inline size_t cross_entropy_scratch(int64_t batch) {
  return size_t(batch) * sizeof(double);
}

}  // namespace orthofed::gpu
