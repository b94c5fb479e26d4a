// Positions at any image size: a learned position embedding resampled by its family's rule, or the
// angles of a rotary one.
#pragma once
#include <vector>

#include "models/vit/vit_config.h"

namespace orthofed {

// positions [grid * grid, dim] (row by row) -> [side * side, dim]. The same values where the two
// are equal. What the rules are, is in PositionRule; the arithmetic is torch's interpolate in
// double:
//   plain      Keys' cubic with a = -3/4 at (i + 1/2) grid/side - 1/2, indices clamped to the edge
//   offset     the same at (i + 1/2) grid/(side + 0.1) - 1/2
//   antialias  Keys' cubic with a = -1/2, widened by grid/side when shrinking, weights normalised
std::vector<double> resample_positions(const std::vector<double>& positions, int64_t grid,
                                       int64_t side, int64_t dim, PositionRule rule);

// The angles of patch (y, x), its centre's coordinates in [-1, 1]: 2 pi coordinate / theta^(4 k /
// head_dim) for k < head_dim/4, first those of y, then those of x (DINOv3). [side * side,
// head_dim/2]
std::vector<double> rotary_angles(int64_t side, int64_t head_dim, double theta);

}  // namespace orthofed
