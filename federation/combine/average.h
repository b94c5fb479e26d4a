// The server's average of what the clients send (METHOD: Round, step 4):
//
//   theta^{t+1} = sum_i w_i theta_i / sum_i w_i      w_i = n_i (samples) or 1 (uniform)
//
// A client's tensors are added as they arrive and are not kept, so memory does not grow with the
// number of clients. The sum is exact, and therefore the same in whatever order they come: each
// element is a fixed-point number wide enough for every product of a float and a weight (Kulisch,
// "Computer Arithmetic and Validity", 2008), 80 bytes of it, rounded once at the end.
// McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data",
// 2017.
#pragma once
#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "engine/tensor/tensor_map.h"
#include "models/config/config.h"

namespace orthofed {

// The most training images that one contribution may have.
constexpr int64_t kMaxSamples = (int64_t{1} << 39) - 1;

// A sum of products of integers and floats, without any rounding. Digit i counts in 2^(32 i - 149):
// 2^-149 is the smallest float. Carries stay in the digits' upper halves until value() moves them,
// so 2^31 products fit.
class ExactSum {
 public:
  // weight in [0, kMaxSamples], x finite
  void add(int64_t weight, float x);
  double value() const;  // within 2^-52 of the sum, relative; the sum itself where a double can be

 private:
  // The top bit of the largest product is 2^(127 + 39), 316 above the lowest digit's.
  std::array<int64_t, 10> digits_{};
};

class Average {
 public:
  explicit Average(Weighting weighting) : weighting_(weighting) {}

  // tensors: f32, finite, the same names and shapes at every call. samples in [0, kMaxSamples].
  void add(const TensorMap& tensors, int64_t samples);
  // New tensors, f32. At least one call of add, and at least one sample where they are the weights.
  TensorMap result() const;

 private:
  struct Sum {
    Shape shape;
    std::vector<ExactSum> elements;
  };
  Weighting weighting_;
  int64_t clients_ = 0, total_ = 0;
  std::map<std::string, Sum> sums_;
};

}  // namespace orthofed
