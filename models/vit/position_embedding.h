// A model reads any image size: a learned position embedding is resampled by its family's rule, and
// the angles of a rotary one are computed.
#pragma once
#include <vector>

#include "models/vit/vit_config.h"

namespace orthofed {

// Resamples positions [grid * grid, dim] (row by row) to [side * side, dim]; where grid and side
// are equal the values stay as they are. PositionRule says what the rules are; the arithmetic is
// that of torch's interpolate, in double:
//   plain      Keys' cubic with a = -3/4 at (i + 1/2) grid/side - 1/2, indices clamped to the edge
//   offset     the same at (i + 1/2) grid/(side + 0.1) - 1/2
//   antialias  Keys' cubic with a = -1/2, widened by grid/side when shrinking, weights normalised
std::vector<double> resample_positions(const std::vector<double>& positions, int64_t grid,
                                       int64_t side, int64_t dim, PositionRule rule);

// Returns the angles of every patch (y, x), [side * side, head_dim/2] (DINOv3): with its centre's
// coordinates in [-1, 1], 2 pi coordinate / theta^(4 k / head_dim) for k < head_dim/4, first those
// of y, then those of x.
std::vector<double> rotary_angles(int64_t side, int64_t head_dim, double theta);

}  // namespace orthofed
