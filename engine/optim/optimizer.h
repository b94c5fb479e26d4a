// AdamW and SGD over groups of parameters, with global-norm clipping (kernels/optimizer and
// kernels/grad_norm have the formulas).
#pragma once
#include <string>
#include <vector>

#include "engine/autograd/tape.h"
#include "engine/tensor/bytes.h"
#include "engine/tensor/tensor_map.h"

namespace orthofed {

// The error that ends a run whose loss or gradient is not finite any more; `found` says which,
// and where.
Error diverged(const std::string& found);

struct OptimizerOptions {
  bool adamw = true;  // false: SGD
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
  double momentum = 0.9;  // SGD
  double clip = 1.0;      // on the norm of all gradients of all groups; 0: off
};

// The parameters of a group step together and share one step count, so that the general adapter's
// moments and count can live on while the personal one's are reset, or stand still while the
// other trains.
class ParameterGroup {
 public:
  void add(const Var& parameter, double weight_decay);
  const std::vector<Var>& parameters() const { return parameters_; }
  int64_t step() const { return step_; }
  void count_step() { ++step_; }  // after Optimizer::queue
  void reset();                   // moments and count to zero

  // The moments are called "m.<name>" and "v.<name>" and the count "step", behind the prefix; load
  // needs every one of them.
  void save(const std::string& prefix, TensorMap& to) const;
  void load(const std::string& prefix, const TensorMap& from);

 private:
  friend class Optimizer;
  std::vector<Var> parameters_;
  std::vector<double> weight_decay_;
  std::vector<Tensor> m_, v_;
  int64_t step_ = 0;
};

// The numbers of a step are in the memory of the parameters' device.
struct OptimizerNumbers {
  const double* learning_rate = nullptr;
  const double* scale = nullptr;       // of the gradients, before they are clipped
  std::vector<const int64_t*> counts;  // of each group: which of its steps this is, from 1
  double* norm = nullptr;              // result: of the scaled gradients, before clipping
  double* factor = nullptr;            // result: what each gradient was multiplied by
};

class Optimizer {
 public:
  explicit Optimizer(const OptimizerOptions& options) : options_(options) {}

  // Takes one step on every parameter of the groups that has a gradient, and clears the gradients.
  // Gradients are first multiplied by `scale` (1 / sum of the micro-batches' weights), then clipped
  // together. Returns the norm before clipping; throws Error if it is not finite, and changes
  // nothing then.
  double step(const std::vector<ParameterGroup*>& groups, double learning_rate, double scale = 1);

  // Does the same without waiting for the device: where the norm is not finite, its kernels change
  // nothing. Returns the groups that had a gradient; the caller calls their count_step() once the
  // norm is known.
  std::vector<ParameterGroup*> queue(const std::vector<ParameterGroup*>& groups,
                                     const OptimizerNumbers& numbers);

 private:
  OptimizerOptions options_;
  KeptLists lists_;
};

enum class Schedule { constant, cosine };

// Returns the factor of the learning rate at progress u in [0, 1] of the whole run: linear warm-up
// over the first `warmup` of it, then constant, or a half cosine to 0 (Loshchilov, Hutter,
// arXiv 1608.03983).
double schedule_factor(Schedule schedule, double warmup, double u);

}  // namespace orthofed
