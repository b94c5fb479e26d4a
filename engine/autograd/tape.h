// A tape differentiates automatically, in reverse mode.
//
// Ops compute their result at once and, if any input needs a gradient, record one node: a closure
// that reads the gradient of its outputs and hands gradients to its inputs. Tape::backward walks
// the nodes in reverse. What needs no gradient costs nothing: no node is recorded below the first
// trainable parameter, and each op asks requires_grad() before it computes an input's gradient.
//
// A gradient reaches an input in one of three ways, none of which launches an unneeded sum:
//   give_grad(t)   hands over a buffer; the first one is adopted as it is, later ones are added
//   grad_target()  lends the variable's own buffer to a kernel that can write or accumulate
//   add_grad(t)    copies or adds a piece into that buffer, where a gradient is required at all
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/tensor/tensor.h"

namespace orthofed {

struct GradTarget {
  Tensor buffer;
  bool accumulate = false;  // false: there is nothing in it yet, so write
};

// A Var is a tensor in the graph. Copies share the value and the gradient.
class Var {
 public:
  Var() = default;
  // A leaf. Parameters keep their gradient buffer from step to step.
  explicit Var(Tensor value, bool requires_grad = false, std::string name = {});

  bool defined() const { return state_ != nullptr; }
  const Tensor& value() const { return state_->value; }
  const std::string& name() const { return state_->name; }
  bool requires_grad() const { return state_ && state_->requires_grad; }
  void set_requires_grad(bool on) const { state_->requires_grad = on; }
  const Shape& shape() const { return state_->value.shape(); }

  bool has_grad() const { return state_ && state_->has_grad; }
  const Tensor& grad() const;
  void give_grad(Tensor gradient) const;
  GradTarget grad_target() const;
  void add_grad(const Tensor& piece) const;
  Tensor take_grad() const;  // moves the gradient out, for ops that pass it on in place
  void clear_grad() const { state_->has_grad = false; }  // the buffer is kept
  void drop_grad() const;                                // the buffer is freed

 private:
  struct State {
    Tensor value, grad;
    bool requires_grad = false, has_grad = false;
    std::string name;
  };
  std::shared_ptr<State> state_;
};

// Some kernels have an argument that may be null: a bias, LayerScale.
template <class R>
const R* data_or_null(const Var& v) {
  return v.defined() ? v.value().data<R>() : nullptr;
}

class Tape {
 public:
  // A tape that does not record is for inference; ops then save nothing.
  explicit Tape(bool recording = true) : recording_(recording) {}
  Tape(const Tape&) = delete;
  Tape& operator=(const Tape&) = delete;

  bool recording() const { return recording_; }
  // Will anything ask for a gradient of these inputs?
  bool needs(std::initializer_list<const Var*> inputs) const;

  // Wraps an op's result; `needed` says whether its gradient will be needed.
  Var output(Tensor value, bool needed) const { return Var(std::move(value), needed); }
  // backward() runs when at least one of the outputs has received a gradient.
  void record(std::vector<Var> outputs, std::function<void()> backward);

  // Computes seed * d(loss)/d(every variable that requires it). loss has one element; nodes and
  // what they saved are freed as the walk passes them.
  void backward(const Var& loss, double seed = 1);

 private:
  struct Node {
    std::vector<Var> outputs;
    std::function<void()> backward;
  };
  std::vector<Node> nodes_;
  bool recording_;
};

}  // namespace orthofed
