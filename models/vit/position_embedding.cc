#include "models/vit/position_embedding.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "kernels/core/check.h"

namespace orthofed {
namespace {

// Keys' cubic convolution kernel.
double cubic(double x, double a) {
  x = std::abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a;
  return 0;
}

struct Tap {
  int64_t from;
  double weight;
};

// The inputs of output i along one axis.
std::vector<Tap> taps(int64_t i, int64_t grid, int64_t side, PositionRule rule) {
  std::vector<Tap> all;
  if (rule == PositionRule::antialias) {
    const double scale = double(grid) / double(side), width = std::max(scale, 1.0);
    const double support = 2 * width, centre = scale * (double(i) + 0.5);
    const int64_t begin = std::max(int64_t(centre - support + 0.5), int64_t(0)),
                  end = std::min(int64_t(centre + support + 0.5), grid);
    double sum = 0;
    for (int64_t j = begin; j < end; ++j) {
      all.push_back({j, cubic((double(j) - centre + 0.5) / width, -0.5)});
      sum += all.back().weight;
    }
    for (Tap& t : all) t.weight /= sum;
    return all;
  }
  const double scale = double(grid) / (double(side) + (rule == PositionRule::offset ? 0.1 : 0.0));
  const double centre = scale * (double(i) + 0.5) - 0.5, floor = std::floor(centre);
  for (int64_t k = -1; k <= 2; ++k)
    all.push_back({std::clamp(int64_t(floor) + k, int64_t(0), grid - 1),
                   cubic(centre - floor - double(k), -0.75)});
  return all;
}

}  // namespace

std::vector<double> resample_positions(const std::vector<double>& positions, int64_t grid,
                                       int64_t side, int64_t dim, PositionRule rule) {
  OF_CHECK(int64_t(positions.size()) == grid * grid * dim, "a position for every cell");
  if (side == grid) return positions;
  std::vector<std::vector<Tap>> along;  // [side], the same for both axes
  for (int64_t i = 0; i < side; ++i) along.push_back(taps(i, grid, side, rule));

  std::vector<double> wide(size_t(grid * side * dim)), result(size_t(side * side * dim));
  for (int64_t y = 0; y < grid; ++y)
    for (int64_t x = 0; x < side; ++x)
      for (const Tap& t : along[size_t(x)])
        for (int64_t c = 0; c < dim; ++c)
          wide[size_t((y * side + x) * dim + c)] +=
              t.weight * positions[size_t((y * grid + t.from) * dim + c)];
  for (int64_t y = 0; y < side; ++y)
    for (const Tap& t : along[size_t(y)])
      for (int64_t i = 0; i < side * dim; ++i)
        result[size_t(y * side * dim + i)] += t.weight * wide[size_t(t.from * side * dim + i)];
  return result;
}

std::vector<double> rotary_angles(int64_t side, int64_t head_dim, double theta) {
  const int64_t quarter = head_dim / 4;
  std::vector<double> angles;
  for (int64_t y = 0; y < side; ++y)
    for (int64_t x = 0; x < side; ++x)
      for (int64_t along : {y, x}) {
        const double coordinate = 2 * (double(along) + 0.5) / double(side) - 1;
        for (int64_t k = 0; k < quarter; ++k)
          angles.push_back(2 * std::numbers::pi * coordinate /
                           std::pow(theta, 4 * double(k) / double(head_dim)));
      }
  return angles;
}

}  // namespace orthofed
