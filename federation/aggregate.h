// The server's average of what the clients send (METHOD: Round, step 4):
//
//   theta^{t+1} = sum_i w_i theta_i / sum_i w_i      w_i = n_i (samples) or 1 (uniform)
//
// Summed in double in the order of the clients' names and rounded once to f32, so that the result
// does not depend on who answered first. With w_i < 2^29 each product is exact in double.
// McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data",
// 2017.
#pragma once
#include <cstdint>
#include <map>
#include <string>

#include "engine/tensor/tensor_map.h"

namespace orthofed {

enum class Weighting { samples, uniform };
Weighting parse_weighting(const std::string& text);  // UserError names the two

struct Contribution {
  TensorMap tensors;    // f32; every contribution has the same names and shapes
  int64_t samples = 0;  // n_i
};

// New tensors; empty where the contributions have none. At least one contribution, and at least one
// sample where they are the weights.
TensorMap average(const std::map<std::string, Contribution>& by_client, Weighting weighting);

}  // namespace orthofed
