#include "federation/combine/average.h"

#include <fmt/core.h>

#include <bit>
#include <cmath>

namespace orthofed {

void ExactSum::add(int64_t weight, float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  const auto exponent = int(bits >> 23 & 0xff);
  // |x| = fraction 2^(shift - 149); the smallest exponents share a shift (subnormal numbers).
  const int64_t fraction = (bits & 0x7fffff) | (exponent > 0 ? 0x800000 : 0);
  const int shift = exponent > 0 ? exponent - 1 : 0;
  const int64_t product = (bits >> 31 ? -fraction : fraction) * weight;  // below 2^63
  const auto wide = static_cast<__int128>(product) * (int64_t{1} << (shift & 31));
  int64_t* digit = &digits_[size_t(shift >> 5)];
  digit[0] += int64_t(uint32_t(wide));
  digit[1] += int64_t(uint32_t(wide >> 32));
  digit[2] += int64_t(wide >> 64);  // the sign is up here
}

double ExactSum::value() const {
  std::array<int64_t, 10> digits = digits_;
  const auto carry = [&] {
    for (size_t i = 0; i + 1 < digits.size(); ++i) {
      digits[i + 1] += digits[i] >> 32;  // towards minus infinity
      digits[i] &= 0xffffffff;
    }
  };
  carry();
  // Of a negative sum the digits are a complement: it is read as minus its opposite.
  const bool negative = digits.back() < 0;
  if (negative) {
    for (int64_t& digit : digits) digit = -digit;
    carry();
  }
  double value = 0;
  for (size_t i = 0; i < digits.size(); ++i)
    value += std::ldexp(double(digits[i]), 32 * int(i) - 149);
  return negative ? -value : value;
}

void Average::add(const TensorMap& tensors, int64_t samples) {
  OF_CHECK(samples >= 0 && samples <= kMaxSamples, "samples out of range");
  OF_CHECK(clients_ == 0 || tensors.size() == sums_.size(),
           "contributions differ in their tensors");
  const int64_t weight = weighting_ == Weighting::samples ? samples : 1;
  for (const auto& [name, tensor] : tensors) {
    if (clients_ == 0)
      sums_[name] = {tensor.shape(), std::vector<ExactSum>(size_t(tensor.rows() * tensor.cols()))};
    const auto it = sums_.find(name);
    OF_CHECK(it != sums_.end() && it->second.shape == tensor.shape(),
             "contributions differ in tensor " + name);
    ExactSum* sum = it->second.elements.data();
    for (int64_t r = 0; r < tensor.rows(); ++r) {
      const float* row = tensor.row<float>(r);
      for (int64_t c = 0; c < tensor.cols(); ++c, ++sum) {
        OF_CHECK(std::isfinite(row[c]), "a contribution that is not finite: " + name);
        sum->add(weight, row[c]);
      }
    }
  }
  ++clients_;
  total_ += weight;
}

TensorMap Average::result() const {
  OF_CHECK(clients_ > 0, "an average of nothing");
  OF_CHECK(total_ > 0, "all weights are zero");
  TensorMap result;
  for (const auto& [name, sum] : sums_) {
    const Tensor mean = Tensor::empty(sum.shape, DType::f32);
    const ExactSum* element = sum.elements.data();
    for (int64_t r = 0; r < mean.rows(); ++r) {
      float* row = mean.row<float>(r);
      for (int64_t c = 0; c < mean.cols(); ++c, ++element)
        row[c] = float(element->value() / double(total_));
    }
    result[name] = mean;
  }
  return result;
}

}  // namespace orthofed
