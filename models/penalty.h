// The orthogonality penalties of a whole model: the mean over adapted layers of each kind
// (kernels/orthogonality has the formulas), added to the gradients after the task's backward.
//
// They need no tape: the gradient is known in closed form and reaches only A and B. `features` is
// the exception, its value lives in the activations; Linear::backward computes it
// (FeaturesPenalty).
#pragma once
#include <map>
#include <string>

#include "models/lora.h"

namespace orthofed {

// Name -> value, as metrics.jsonl logs them: each kind, "delta_general" and "delta_personal" (mean
// |DeltaW|_F), and "base_chance" (mean of 1 / (out in), what random directions give for `base`).
using PenaltyValues = std::map<std::string, double>;

class Penalties {
 public:
  // Throws UserError for a form that a weighted kind does not have.
  Penalties(Vit& model, const PenaltyConfig& config);

  // Adds factor * lambda * gradient of every weighted kind but `features` to the adapters'
  // gradients and returns factor-free sum of lambda * value.
  double apply(double factor);
  // The features term for one backward: its per-layer weight is factor * lambda / layers.
  FeaturesPenalty features(double factor, int64_t valid_rows) const;
  bool wants_features() const { return config_.features > 0; }
  double features_weight() const { return config_.features; }

  // Every kind but `features`, weighted or not, without gradients. base_subspace only if weighted:
  // it needs singular vectors of every weight.
  PenaltyValues measure();

 private:
  struct Layer {
    AdapterSlice* slice;
    Tensor w0;  // [out, in], the slice of the frozen weight
    double w0_norm2 = 0;
    Tensor v_k = {};  // [k, in], if base_subspace is weighted
  };
  struct List;
  template <class R>
  List list(bool with_gradients) const;
  double lambda(const std::string& kind) const;

  PenaltyConfig config_;
  PenaltyForm form_;
  std::vector<Layer> layers_;  // those with both adapters
};

}  // namespace orthofed
