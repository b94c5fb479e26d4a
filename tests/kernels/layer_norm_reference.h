// Layer normalisation in double, a row at a time, as the formulas of layer_norm.h say. Its test and
// its benchmark compare with it.
#pragma once
#include <cmath>
#include <cstdint>
#include <vector>

namespace orthofed::reference {

struct LayerNormRow {
  double mean = 0, rstd = 0;
  std::vector<double> h;  // [cols] (x - mean) * rstd
};

// Of a row with the elements x(0) to x(cols - 1).
template <class X>
LayerNormRow layer_norm_row(int64_t cols, double eps, const X& x) {
  LayerNormRow row;
  double variance = 0;
  for (int64_t j = 0; j < cols; ++j) row.mean += double(x(j)) / double(cols);
  for (int64_t j = 0; j < cols; ++j)
    variance += (double(x(j)) - row.mean) * (double(x(j)) - row.mean) / double(cols);
  row.rstd = 1 / std::sqrt(variance + eps);
  for (int64_t j = 0; j < cols; ++j) row.h.push_back((double(x(j)) - row.mean) * row.rstd);
  return row;
}

// d(loss)/dx [cols] of that row, with g(j) = dy(j) * gamma(j).
template <class G>
std::vector<double> layer_norm_gradient(const LayerNormRow& row, const G& g) {
  const size_t cols = row.h.size();
  double mean_g = 0, mean_gh = 0;
  for (size_t j = 0; j < cols; ++j) {
    mean_g += g(int64_t(j)) / double(cols);
    mean_gh += g(int64_t(j)) * row.h[j] / double(cols);
  }
  std::vector<double> dx;
  for (size_t j = 0; j < cols; ++j)
    dx.push_back(row.rstd * (g(int64_t(j)) - mean_g - row.h[j] * mean_gh));
  return dx;
}

}  // namespace orthofed::reference
