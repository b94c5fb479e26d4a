// A linear layer y = x W^T + b with low-rank adapters (adapter_stack.h): forward and backward.
//
// A frozen W is rearranged once for the matrix product and never gets a gradient. The adapters'
// share of y and dx comes by one of three strategies:
//
//   unmerged   low-rank products of their own, added to y and dx
//   extended   the tail of the product's sum (MatmulTail):  y = x W^T + u T(s B)^T + b,
//              dx = dy W + du T(A);  in bf16 on a GPU, else as unmerged
//   merged     W itself: the product is with a copy, T(W + sum of s B A), rounded once
//
// What follows a product (GELU, the residual sum) is done in the same kernel where nothing is left
// to add to y. Extended rounds s B and A to bf16 once: y errs by another 2^-8 sum |u s B|, dx by
// 2^-8 sum |du A|, and both are rounded once instead of twice. Gradients of adapters are computed
// alike whatever the strategy. Merged, dx has no part for what an observer adds to du.
//
// quantize() makes the products with W FP8, of an unmerged layer.
#pragma once
#include "engine/ops/adapter_stack.h"
#include "engine/ops/adapter_strategy.h"
#include "engine/ops/fp8.h"
#include "kernels/gelu/gelu.h"
#include "kernels/matmul/matmul.h"

namespace orthofed {

class Linear {
 public:
  Linear() = default;
  // weight [out, in], bias [out] or undefined. compute: the dtype of x and y.
  Linear(Var weight, Var bias, DType compute);

  Var weight, bias;
  AdapterStack adapters;

  int64_t in() const { return weight.value().cols(); }
  int64_t out() const { return weight.value().rows(); }

  // What backward needs of one forward.
  struct Saved {
    Tensor x;  // [rows, in]
    Tensor u;  // [rows, R], x A^T of the active adapters; undefined: there are none
  };

  // y [rows, out]. saved null: inference.
  Tensor forward(const Tensor& x, Saved* saved) const;
  // GELU(y); f becomes y, which backward needs.
  Tensor forward_gelu(const Tensor& x, GeluKind kind, Saved* saved, Tensor* f) const;
  // r + gamma * y in r's type, which is the residual stream's; gamma [out] or undefined. z: where y
  // is wanted (for gamma's gradient), or null.
  Tensor forward_residual(const Tensor& x, const Tensor& r, const Var& gamma, Saved* saved,
                          Tensor* z) const;
  // Gradients of every trainable parameter; returns dx, or nothing if need_dx is false. Throws
  // Error for an observer that adds to du of a merged layer.
  Tensor backward(const Tensor& dy, const Saved& saved, bool need_dx,
                  SliceObserver* observer = nullptr) const;
  // The same where x is GELU(f): returns df.
  Tensor backward_gelu(const Tensor& dy, const Saved& saved, const Tensor& f, GeluKind kind,
                       SliceObserver* observer) const;
  // Does any parameter of this layer need a gradient?
  bool trainable() const;

  // Unmerged at first.
  void set_strategy(AdapterStrategy strategy);
  AdapterStrategy strategy() const { return strategy_; }
  // To be called when adapters' values have changed, or adapters were added or switched on or off:
  // the products are with the adapters of the last call. A merged copy of W keeps its place in
  // memory from call to call.
  void refresh_adapters();
  bool merged() const { return merged_.defined(); }

  // From here on y = x W^T and dx = dy W are FP8 products of x, dy and two copies of W, each
  // quantised by rows along the sum (fp8.h); gradients are those of an exact W. A frozen W and bf16
  // only, where multiplies_fp8(), and unmerged. Copies of the layer share the quantised W.
  void quantize();
  bool quantized() const { return fp8_.forward.defined(); }

 private:
  // y = x W^T + b and dx = dy W, and the adapters' share if there is a tail.
  void product(const Tensor& x, const AdapterTail& tail, const Tensor& y) const;
  void product_transposed(const Tensor& dy, const AdapterTail& tail, const Tensor& dx) const;

  // x, and u if the product or the backward pass needs it.
  Saved project(const Tensor& x, bool for_backward) const;
  // W's, the bias's and the B's gradients; returns du, undefined where no adapter is active.
  Tensor gradients_above(const Tensor& dy, const Saved& saved, SliceObserver* observer) const;
  void base_gradients(const Tensor& dy, const Tensor& x) const;  // W's and the bias's

  bool extended() const;  // asked for, and this device and type do it
  bool apart() const { return !merged() && !extended(); }
  AdapterTail tail_forward(const Tensor& u) const;
  AdapterTail tail_backward(const Tensor& du) const;
  // Is the product all of y (and of dx), and by a kernel that can do what follows?
  bool fuses() const;

  DType compute_ = DType::f32;
  AdapterStrategy strategy_ = AdapterStrategy::unmerged;
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
  mutable Packed<float> packed_f32_;
  mutable Packed<bf16> packed_bf16_;
  template <class T>
  Packed<T>* packed() const;
};

// The primitive op.
Var linear(Tape& tape, const Linear& layer, const Var& x);

}  // namespace orthofed
