#include "engine/optim/optimizer.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <numbers>

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

Error diverged(const std::string& found) {
  return Error(found + ": training has diverged; a smaller train.lr helps");
}

void ParameterGroup::add(const Var& parameter, double weight_decay) {
  parameters_.push_back(parameter);
  weight_decay_.push_back(weight_decay);
  m_.push_back(Tensor::zeros(parameter.shape(), parameter.value().dtype()));
  v_.push_back(Tensor::zeros(parameter.shape(), parameter.value().dtype()));
  parameter.grad_target();  // now, because it outlives the step that needs it first
  parameter.clear_grad();
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
  std::vector<int64_t> counts;
  for (const ParameterGroup* g : groups) counts.push_back(g->step_ + 1);
  const Tensor numbers = Tensor::of(std::vector<double>{learning_rate, scale, 0, 0}, {4});
  const Tensor counted = bytes_of(counts);
  double* const first = numbers.data<double>();
  OptimizerNumbers on_device{.learning_rate = first,
                             .scale = first + 1,
                             .counts = {},
                             .norm = first + 2,
                             .factor = first + 3};
  for (size_t i = 0; i < groups.size(); ++i) on_device.counts.push_back(as<int64_t>(counted) + i);
  const std::vector<ParameterGroup*> stepped = queue(groups, on_device);
  const double norm = numbers.columns(2, 3).item();
  if (!std::isfinite(norm)) throw diverged(fmt::format("the gradient norm is {}", norm));
  for (ParameterGroup* g : stepped) g->count_step();
  return norm;
}

std::vector<ParameterGroup*> Optimizer::queue(const std::vector<ParameterGroup*>& groups,
                                              const OptimizerNumbers& numbers) {
  OF_CHECK(numbers.counts.size() == groups.size(), "a count for every group");
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
    const Tensor& spans = lists_.of(gradients);
    OF_RUN(queue_of(spans, gpu::grad_norm_scratch(gradient_chunks)), grad_norm,
           GradNorm<R>{.gradients = as<GradientSpan<R>>(spans),
                       .count = int64_t(gradients.size()),
                       .chunks = gradient_chunks,
                       .scale = numbers.scale,
                       .max_norm = options_.clip,
                       .norm = numbers.norm,
                       .factor = numbers.factor});

    std::vector<ParameterGroup*> stepped;
    for (size_t k = 0; k < groups.size(); ++k) {
      ParameterGroup* g = groups[k];
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
      stepped.push_back(g);
      const int64_t chunks = number_chunks(tensors.data(), int64_t(tensors.size()));
      const int64_t count = int64_t(tensors.size());
      const Tensor& list = lists_.of(tensors);
      if (options_.adamw)
        OF_RUN(queue_of(list), adamw,
               AdamW<R>{.tensors = as<OptimizedTensor<R>>(list),
                        .count = count,
                        .chunks = chunks,
                        .step = AdamWStep{.learning_rate = numbers.learning_rate,
                                          .gradient_scale = numbers.factor,
                                          .step = numbers.counts[k],
                                          .beta1 = options_.beta1,
                                          .beta2 = options_.beta2,
                                          .eps = options_.eps}});
      else
        OF_RUN(queue_of(list), sgd,
               Sgd<R>{.tensors = as<OptimizedTensor<R>>(list),
                      .count = count,
                      .chunks = chunks,
                      .step = SgdStep{.learning_rate = numbers.learning_rate,
                                      .gradient_scale = numbers.factor,
                                      .momentum = options_.momentum}});
      for (const Var& p : g->parameters_) p.clear_grad();
    }
    return stepped;
  });
}

double schedule_factor(Schedule schedule, double warmup, double u) {
  if (u < warmup) return u / warmup;
  if (schedule == Schedule::constant) return 1;
  const double v = warmup < 1 ? (u - warmup) / (1 - warmup) : 1;
  return 0.5 * (1 + std::cos(std::numbers::pi * std::min(1.0, v)));
}

}  // namespace orthofed
