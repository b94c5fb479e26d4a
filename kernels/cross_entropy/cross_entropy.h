// Softmax cross-entropy, forward and backward in one call (the gradient costs one more pass over a
// row that is already in cache).
//
//   z' = z + prior                         logit adjustment (Menon et al., arXiv 2007.07314) or null
//   q  = softmax(z'),  t = (1 - a) onehot(label) + a / C        label smoothing a
//   l  = -sum_j t_j log q_j                                     focal 0
//   l  = -sum_j t_j (1 - q_j)^f log q_j                         focal f (Lin et al., arXiv 1708.02002)
//   loss = sum_b w_b c_{y_b} l_b / sum_b w_b c_{y_b}            as torch's weighted mean
//
// w is the sample's weight: 0 for the padding of a partial batch, which then contributes exactly
// nothing. All weights 0: loss 0, gradient 0. Instantiated for double and float.
#pragma once
#include <cstdint>

namespace orthofed {

struct CrossEntropyOptions {
  double label_smoothing = 0;
  double focal = 0;
};

}  // namespace orthofed

namespace orthofed::cpu {

// logits [batch, classes] pitch ld; labels [batch] in [0, classes) (ignored where weight is 0);
// weights [batch]; class_weights, prior [classes] or null; losses [batch] the unweighted l_b or null;
// dlogits [batch, classes] pitch ldd or null, gradient of the returned loss.
template <class T>
T cross_entropy(const T* logits, int64_t ld, const int32_t* labels, const T* weights,
                const T* class_weights, const T* prior, T* losses, T* dlogits, int64_t ldd,
                int64_t batch, int64_t classes, const CrossEntropyOptions& options);

}  // namespace orthofed::cpu
