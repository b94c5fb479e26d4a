// A linear layer y = x W^T + b with low-rank adapters: forward and backward.
//
//   y[:, slice] = x W[slice]^T + b[slice] + sum over its adapters of s (x A^T) B^T
//
// (Hu et al., arXiv 2106.09685; the general and the personal adapter of METHOD.md side by side.)
// A frozen W is rearranged once for the matrix product and never gets a gradient; A and B of all
// adapters are stacked, so that two adapters on three slices still cost one pass over x.
//
// The adapters' share of y and dx comes by one of three ways:
//
//   unmerged   low-rank products of their own, added to y and dx
//   extended   the tail of the product's sum (MatmulTail):  y = x W^T + u T(s B)^T + b,
//              dx = dy W + du T(A);  in bf16 on a GPU, else as unmerged
//   merged     W itself: merge() adds the adapters into a copy of it
//
// What follows a product (GELU, the residual sum) is done in the same kernel where nothing is left
// to add to y. Extended rounds s B and A to bf16 once: y errs by another 2^-8 sum |u s B|, dx by
// 2^-8 sum |du A|, and both are rounded once instead of twice.
//
// quantize() makes the products with W FP8, of an unmerged layer.
#pragma once
#include <array>
#include <optional>
#include <string>
#include <vector>

#include "engine/autograd/tape.h"
#include "engine/ops/fp8.h"
#include "engine/tensor/bytes.h"
#include "kernels/gelu/gelu.h"
#include "kernels/matmul/matmul.h"
#include "kernels/orthogonality/orthogonality.h"

namespace orthofed {

// One adapter: Delta W = scale * B A. Parameters are fp32 (f64 in gradient checks).
struct Adapter {
  Var a;             // [r, in]
  Var b;             // [rows of the slice, r]
  double scale = 0;  // s = alpha / r
  bool active = true;
  bool present() const { return a.defined(); }
  int64_t rank() const { return a.value().rows(); }
};

// The adapters of rows [begin, begin + rows) of W: all of it, or the q, k or v part of a fused qkv.
struct AdapterSlice {
  std::string name;  // "blocks.0.attn.qkv" or "blocks.0.attn.q"
  int64_t begin = 0, rows = 0;
  Adapter general, personal;
};

// The `features` penalty needs what only the layer has: u = A x. Its value and gradient are
// computed during backward, over the first `rows` tokens (the rest is padding). The numbers stay on
// the layer's device.
struct FeaturesPenalty {
  const double* weight = nullptr;  // of one layer's term; null: value only
  double* values = nullptr;        // [layers with both adapters], in the order of backward
  PenaltyForm form = PenaltyForm::cosine2;
  bool detach_general = false;
  int64_t rows = 0;
  int64_t layers = 0;  // values written so far
};

class Linear {
 public:
  Linear() = default;
  // weight [out, in], bias [out] or undefined. compute: the dtype of x and y.
  Linear(Var weight, Var bias, DType compute);

  Var weight, bias;
  std::vector<AdapterSlice> slices;

  int64_t in() const { return weight.value().cols(); }
  int64_t out() const { return weight.value().rows(); }

  // What backward needs of one forward.
  struct Saved {
    Tensor x;               // [rows, in]
    Tensor u;               // [rows, R], the stacked x A^T
    Tensor a;               // [R, in]
    std::vector<Tensor> b;  // a slice: [slice rows, its part of R]
    Tensor scales;          // [R] of the sums' type, as bytes
  };

  // y [rows, out]. saved null: inference.
  Tensor forward(const Tensor& x, Saved* saved) const;
  // GELU(y); f becomes y, which backward needs.
  Tensor forward_gelu(const Tensor& x, GeluKind kind, Saved* saved, Tensor* f) const;
  // r + gamma * y in r's type, which is the residual stream's; gamma [out] or undefined. z: where y
  // is wanted (for gamma's gradient), or null.
  Tensor forward_residual(const Tensor& x, const Tensor& r, const Var& gamma, Saved* saved,
                          Tensor* z) const;
  // Gradients of every trainable parameter; returns dx, or nothing if need_dx is false.
  Tensor backward(const Tensor& dy, const Saved& saved, bool need_dx,
                  FeaturesPenalty* features = nullptr) const;
  // The same where x is GELU(f): returns df.
  Tensor backward_gelu(const Tensor& dy, const Saved& saved, const Tensor& f, GeluKind kind,
                       FeaturesPenalty* features) const;
  // Does any parameter of this layer need a gradient?
  bool trainable() const;

  // Unmerged at first.
  void extend();
  void unmerge();
  // From here on forward and dX multiply by T(W + sum of s B A), rounded once, of the adapters that
  // are active now; until the next merge(), or unmerge(). W itself stays as it is, and gradients of
  // adapters are computed as ever, but the `features` penalty's way through x is not: throws Error
  // where that has a weight. The copy keeps its place in memory from merge to merge.
  void merge();
  bool merged() const { return merged_.defined(); }

  // From here on y = x W^T and dx = dy W are FP8 products of x, dy and two copies of W, each
  // quantised by rows along the sum (fp8.h); gradients are those of an exact W. A frozen W and bf16
  // only, where multiplies_fp8(), and never merged. Copies of the layer share the quantised W.
  void quantize();
  bool quantized() const { return fp8_.forward.defined(); }

 private:
  struct Column {  // one adapter's place in the stack
    const Adapter* adapter;
    size_t slice;
    int64_t begin;           // first column of R
    int64_t begin_in_slice;  // first column of its slice's part
  };
  struct Tail {   // the adapters' share of a product
    Tensor u, v;  // as MatmulTail has them; undefined: none
    std::array<MatmulTailPart, 3> parts = {};
    template <class T>
    MatmulTail<T> of() const;
  };
  std::vector<Column> stack() const;
  // y = x W^T + b and dx = dy W, and the adapters' share if there is a tail.
  void product(const Tensor& x, const Tail& tail, const Tensor& y) const;
  void product_transposed(const Tensor& dy, const Tail& tail, const Tensor& dx) const;

  // u and what else the adapters' shares are made of, if anything needs it.
  Saved project(const Tensor& x, bool for_backward) const;
  // dW, the bias's and the B's gradients; returns du [rows, R], with the `features` penalty's part.
  Tensor gradients_above(const Tensor& dy, const Saved& saved, FeaturesPenalty* features) const;
  // The A's gradients; adds du A to dx, if that is defined.
  void gradients_below(const Tensor& du, const Saved& saved, const Tensor& dx) const;

  bool extended() const;  // asked for, and this device and type do it
  bool apart() const { return !merged() && !extended(); }
  Tail tail_forward(const Saved& saved) const;
  Tail tail_backward(const Tensor& du, const Saved& saved) const;
  // Is the product all of y (and of dx), and by a kernel that can do what follows?
  bool fuses() const;

  DType compute_ = DType::f32;
  bool extend_ = false;
  Tensor merged_;  // [out, in] of the compute type
  template <class T>
  struct Packed {
    cpu::PackedMatrix<T> forward, backward;
  };
  const Tensor& computed_weight() const;  // W, or what it was merged to, in the compute type
  struct {
    Fp8Matrix forward, backward;  // of W, of W^T
  } fp8_;
  mutable Tensor frozen_;
  mutable KeptLists scales_;  // of the stacks that there have been: adapters come and go
  mutable Packed<float> packed_f32_;
  mutable Packed<bf16> packed_bf16_;
  template <class T>
  Packed<T>* packed() const;
};

// The primitive op.
Var linear(Tape& tape, const Linear& layer, const Var& x);

}  // namespace orthofed
