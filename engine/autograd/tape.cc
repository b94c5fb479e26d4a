#include "engine/autograd/tape.h"

#include <algorithm>
#include <utility>

namespace orthofed {

Var::Var(Tensor value, bool requires_grad, std::string name) : state_(std::make_shared<State>()) {
  state_->value = std::move(value);
  state_->requires_grad = requires_grad;
  state_->name = std::move(name);
}

const Tensor& Var::grad() const {
  OF_CHECK(has_grad(), "no gradient has reached " + (defined() ? name() : std::string("this")));
  return state_->grad;
}

void Var::give_grad(Tensor gradient) const {
  OF_CHECK(gradient.rows() == value().rows() && gradient.cols() == value().cols(),
           "a gradient has its variable's shape");
  if (state_->has_grad) {
    state_->grad.add(gradient);
  } else {
    state_->grad = std::move(gradient);
    state_->has_grad = true;
  }
}

GradTarget Var::grad_target() const {
  if (!state_->grad.defined()) state_->grad = Tensor::empty(shape(), value().dtype());
  return {state_->grad, std::exchange(state_->has_grad, true)};
}

void Var::add_grad(const Tensor& piece) const {
  if (!requires_grad()) return;
  const GradTarget target = grad_target();
  if (target.accumulate)
    target.buffer.add(piece);
  else
    target.buffer.copy_from(piece);
}

Tensor Var::take_grad() const {
  OF_CHECK(has_grad(), "no gradient to take");
  state_->has_grad = false;
  return std::move(state_->grad);
}

void Var::drop_grad() const {
  state_->has_grad = false;
  state_->grad = Tensor();
}

bool Tape::needs(std::initializer_list<const Var*> inputs) const {
  return recording_ &&
         std::any_of(inputs.begin(), inputs.end(), [](const Var* v) { return v->requires_grad(); });
}

void Tape::record(std::vector<Var> outputs, std::function<void()> backward) {
  if (recording_) nodes_.push_back({std::move(outputs), std::move(backward)});
}

void Tape::backward(const Var& loss, double seed) {
  OF_CHECK(loss.value().size() == 1, "backward starts at a scalar");
  OF_CHECK(loss.requires_grad(), "nothing in this graph needs a gradient");
  loss.give_grad(Tensor::full(loss.shape(), loss.value().dtype(), seed));
  while (!nodes_.empty()) {
    Node node = std::move(nodes_.back());
    nodes_.pop_back();
    const bool reached = std::any_of(node.outputs.begin(), node.outputs.end(),
                                     [](const Var& v) { return v.has_grad(); });
    if (reached) node.backward();
    for (const Var& v : node.outputs) v.drop_grad();
  }
}

}  // namespace orthofed
