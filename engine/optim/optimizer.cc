#include "engine/optim/optimizer.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "engine/tensor/bytes.h"
#include "kernels/grad_norm/grad_norm.h"
#include "kernels/optimizer/optimizer.h"

namespace orthofed {
namespace {

// Rows and their padding as one run of numbers: padding is zero in a parameter, its gradient and
// its moments, and stays so.
int64_t extent(const Tensor& t) {
  return t.rows() * t.pitch();
}

}  // namespace

void ParameterGroup::add(const Var& parameter, double weight_decay) {
  parameters_.push_back(parameter);
  weight_decay_.push_back(weight_decay);
  m_.push_back(Tensor::zeros(parameter.shape(), parameter.value().dtype()));
  v_.push_back(Tensor::zeros(parameter.shape(), parameter.value().dtype()));
}

void ParameterGroup::reset() {
  for (size_t i = 0; i < parameters_.size(); ++i) {
    m_[i].fill(0);
    v_[i].fill(0);
  }
  step_ = 0;
}

void ParameterGroup::save(const std::string& prefix, TensorMap& to) const {
  for (size_t i = 0; i < parameters_.size(); ++i) {
    to[prefix + "m." + parameters_[i].name()] = m_[i].host_copy();
    to[prefix + "v." + parameters_[i].name()] = v_[i].host_copy();
  }
  to[prefix + "step"] = Tensor::of(std::vector<int32_t>{int32_t(step_)}, {1});
}

void ParameterGroup::load(const std::string& prefix, const TensorMap& from) {
  auto find = [&](const std::string& name, const Shape& shape) -> const Tensor& {
    const auto it = from.find(prefix + name);
    if (it == from.end() || !(it->second.shape() == shape))
      throw UserError(
          fmt::format("optimiser state: '{}' is missing or has another shape; delete the "
                      "state to start afresh",
                      prefix + name));
    return it->second;
  };
  for (size_t i = 0; i < parameters_.size(); ++i) {
    m_[i].copy_from(find("m." + parameters_[i].name(), m_[i].shape()));
    v_[i].copy_from(find("v." + parameters_[i].name(), v_[i].shape()));
  }
  step_ = int64_t(find("step", {1}).item());
}

double Optimizer::step(const std::vector<ParameterGroup*>& groups, double learning_rate,
                       double scale) {
  DType dtype = DType::f32;
  for (const ParameterGroup* g : groups)
    if (!g->parameters_.empty()) dtype = g->parameters_.front().value().dtype();

  return dispatch_accum(dtype, [&]<class R>(Tag<R>) {
    std::vector<GradientSpan<R>> gradients;
    for (const ParameterGroup* g : groups)
      for (const Var& p : g->parameters_)
        if (p.has_grad()) {
          OF_CHECK(p.grad().pitch() == p.value().pitch(), "gradient and parameter share a layout");
          gradients.push_back({p.grad().data<R>(), extent(p.grad())});
        }
    const int64_t gradient_chunks = number_chunks(gradients.data(), int64_t(gradients.size()));
    const Tensor spans = bytes_of(gradients);
    const Tensor numbers = Tensor::of(std::vector<double>{learning_rate, scale, 0, 0}, {4});
    double* const rate = numbers.data<double>();
    double *const given = rate + 1, *const norm_of_all = rate + 2, *const factor = rate + 3;
    of_on(queue_of(numbers, gpu::grad_norm_scratch(gradient_chunks)), grad_norm, R)(
        as<GradientSpan<R>>(spans), int64_t(gradients.size()), gradient_chunks, given,
        options_.clip, norm_of_all, factor);
    const double norm = numbers.columns(2, 3).item();
    if (!std::isfinite(norm))
      throw Error(
          fmt::format("the gradient norm is {}: training has diverged; a smaller train.lr "
                      "helps",
                      norm));

    for (ParameterGroup* g : groups) {
      std::vector<OptimizedTensor<R>> tensors;
      for (size_t i = 0; i < g->parameters_.size(); ++i) {
        const Var& p = g->parameters_[i];
        if (!p.has_grad()) continue;
        tensors.push_back({.parameter = p.value().data<R>(),
                           .gradient = p.grad().data<R>(),
                           .m = g->m_[i].data<R>(),
                           .v = g->v_[i].data<R>(),
                           .size = extent(p.value()),
                           .weight_decay = g->weight_decay_[i]});
      }
      if (tensors.empty()) continue;
      ++g->step_;
      const int64_t chunks = number_chunks(tensors.data(), int64_t(tensors.size()));
      const int64_t count = int64_t(tensors.size());
      const Tensor list = bytes_of(tensors), step = bytes_of(std::vector<int64_t>{g->step_});
      if (options_.adamw)
        of_on(queue_of(list), adamw, R)(as<OptimizedTensor<R>>(list), count, chunks,
                                        AdamWStep{.learning_rate = rate,
                                                  .gradient_scale = factor,
                                                  .step = as<int64_t>(step),
                                                  .beta1 = options_.beta1,
                                                  .beta2 = options_.beta2,
                                                  .eps = options_.eps});
      else
        of_on(queue_of(list), sgd, R)(
            as<OptimizedTensor<R>>(list), count, chunks,
            SgdStep{
                .learning_rate = rate, .gradient_scale = factor, .momentum = options_.momentum});
      for (const Var& p : g->parameters_) p.clear_grad();
    }
    return norm;
  });
}

double schedule_factor(Schedule schedule, double warmup, double u) {
  if (u < warmup) return u / warmup;
  if (schedule == Schedule::constant) return 1;
  const double v = warmup < 1 ? (u - warmup) / (1 - warmup) : 1;
  return 0.5 * (1 + std::cos(std::numbers::pi * std::min(1.0, v)));
}

}  // namespace orthofed
