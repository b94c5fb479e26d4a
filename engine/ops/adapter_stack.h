// The low-rank adapters of one linear layer, side by side: parameters, and products with them.
//
//   y[:, slice] += sum over the slice's active adapters of s (x A^T) B^T
//
// (Hu et al., arXiv 2106.09685.) A slice is a range of the layer's outputs and has any number of
// adapters, which are stacked: u = x A^T [rows, R] of all of them is one pass over x, and
// (s u) B^T of a slice is one pass over its part of y. So N adapters on three slices cost what one
// of their total rank does, and an adapter that is not active costs nothing.
//
// Where the parameters are. A of all adapters is one tensor, in the order of the slices and in a
// slice of the adapters' names; an adapter's A is a view of its rows. B of each adapter is a tensor
// of its own, not columns of one for the slice: the optimiser's kernels and the gradient norm's
// read a parameter as one run of numbers, the penalties' read it dense, and all of them would have
// to learn a pitch to save one copy of a few thousand numbers a step.
//
// That copy is made by gather(): the B's of each slice as one [slice rows, r_1 + r_2 + ...] where
// several adapters are active, and the A's where the active ones are not neighbours. gather() is to
// be called whenever values have changed, or adapters were switched on or off, before the products
// are called; it is part of a captured step (engine/tensor/graph.h), so its copies keep their
// addresses. Changed values without gather() go unnoticed, a switched adapter is an Error.
#pragma once
#include <array>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "engine/autograd/tape.h"
#include "kernels/matmul/matmul.h"

namespace orthofed {

// One adapter: Delta W = scale * B A. Parameters are fp32 (f64 in gradient checks).
struct Adapter {
  std::string name;  // "general"
  Var a;             // [r, in]
  Var b;             // [rows of the slice, r]
  double scale = 0;  // s = alpha / r
  bool active = true;

  int64_t rank() const { return a.value().rows(); }
  bool trainable() const { return a.requires_grad() || b.requires_grad(); }
  void set_trainable(bool on) const {
    a.set_requires_grad(on);
    b.set_requires_grad(on);
  }
};

// The adapters of rows [begin, begin + rows) of W: all of it, or the q, k or v part of a fused qkv.
struct AdapterSlice {
  std::string name;  // "blocks.0.attn.qkv" or "blocks.0.attn.q"
  int64_t begin = 0, rows = 0;
  std::vector<Adapter> adapters = {};  // by name; AdapterStack::add() adds to them

  Adapter* find(const std::string& adapter);  // null if there is none
  const Adapter* find(const std::string& adapter) const;
  int64_t active_rank() const;
  // The columns of an active adapter in a tensor that has those of all active ones side by side.
  Tensor columns_of(const Adapter& adapter, const Tensor& all) const;
};

// Sees each slice during backward: a penalty on what adapters do to a layer's actual input.
class SliceObserver {
 public:
  virtual ~SliceObserver() = default;
  // u = x A^T and its gradient du [rows, active rank], both of the compute type. May add to du and
  // to gradients of B, which have the loss's by then.
  virtual void backward(const AdapterSlice& slice, const Tensor& u, const Tensor& du) = 0;
  virtual bool adds_to_du() const = 0;
};

// The adapters' share as a part of a layer's own product, U V; undefined: none.
struct AdapterTail {
  Tensor u, v;  // as MatmulTail has them
  std::array<MatmulTailPart, 3> parts = {};

  template <class T>
  MatmulTail<T> of() const {
    if (!u.defined()) return {};
    return {u.data<T>(), u.pitch(), v.data<T>(), v.pitch(), u.cols(), parts};
  }
};

class AdapterStack {
 public:
  // Adds an adapter to the slice of this name, and the slice if it is new; its name must be new to
  // the slice. Values and requires_grad are taken over, but A moves into the stack: the Vars a of
  // all adapters are new ones afterwards.
  void add(const std::string& slice, int64_t begin, int64_t rows, const Adapter& adapter);

  bool empty() const { return slices_.empty(); }
  std::span<AdapterSlice> slices() { return slices_; }
  std::span<const AdapterSlice> slices() const { return slices_; }
  int64_t active_rank() const;  // R
  bool trainable() const;       // does an active adapter need a gradient?

  void gather();  // see above
  // Behind gather(): what the tails below are made of, in this type, for a layer of `out` outputs.
  void gather_tails(DType compute, int64_t out);

  Tensor down(const Tensor& x) const;               // u [rows, R] = x A^T
  void up(const Tensor& u, const Tensor& y) const;  // y [rows, out] += (s u) B^T
  // Gradients of the B's; returns du [rows, R] = s dy B, after the observer has seen it.
  Tensor up_backward(const Tensor& dy, const Tensor& u, SliceObserver* observer) const;
  // Gradients of the A's; dx += du A, if dx is defined.
  void down_backward(const Tensor& du, const Tensor& x, const Tensor& dx) const;

  // up() as the tail of y = x W^T, V = T(s B) [out, R], and dx += du A as that of dx = dy W,
  // V = T(A) [R, in].
  AdapterTail up_tail(const Tensor& u) const;
  AdapterTail down_tail(const Tensor& du) const;

  // merged [out, in] = T(W + sum of s B A), in the rows of the slices. W is of the sums' type.
  void merge(const Tensor& w, const Tensor& merged) const;

 private:
  // What the products read, for one choice of active adapters.
  struct Part {  // of a slice with an active adapter
    size_t slice;
    int64_t begin, rank;  // its columns of R
    Tensor b;             // [slice rows, rank]
  };
  struct Copy {
    Tensor from, to;
  };
  struct Operands {
    Tensor a;  // [R, in]
    std::vector<Part> parts;
    Tensor scales;             // [R] of the sums' type, as bytes
    std::vector<Copy> copies;  // that gather() makes
    Tensor scaled_b, rounded_a;
  };
  std::vector<bool> active() const;
  Operands make_operands() const;
  const Operands& operands() const;

  Tensor a_;  // [rank of all adapters, in]
  std::vector<AdapterSlice> slices_;
  std::map<std::vector<bool>, Operands> operands_;  // by which adapters are active
  std::vector<bool> gathered_;
};

}  // namespace orthofed
