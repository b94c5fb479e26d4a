// The models whose shapes are timed: every number of tokens and width that a kernel meets in
// practice, and one that is a multiple of nothing.
#pragma once
#include <cstdint>
#include <vector>

namespace orthofed::bench {

struct Vit {
  const char* name;
  int64_t batch, tokens, dim, heads, depth;
  int64_t rows() const { return batch * tokens; }
  int64_t head_dim() const { return dim / heads; }
  int64_t mlp() const { return 4 * dim; }
};

inline constexpr Vit kVits[] = {
    {"vit_tiny_16", 16, 197, 192, 3, 12},     // 224 pixels in patches of 16, as all of these
    {"vit_small_16", 16, 197, 384, 6, 12},    //
    {"vit_base_32", 16, 50, 768, 12, 12},     // CLIP
    {"vit_base_16", 16, 197, 768, 12, 12},    //
    {"vit_large_14", 16, 257, 1024, 16, 24},  // DINOv2
    {"odd", 3, 67, 66, 3, 2},
};

// A linear layer that an adapter is attached to, and the adapters of a model: rank 8 + 8.
struct Linear {
  int64_t in, out;
};
inline constexpr int64_t kRank = 16;
inline std::vector<Linear> linears(const Vit& v, int64_t depth) {
  std::vector<Linear> all;
  for (int64_t layer = 0; layer < depth; ++layer)
    for (const Linear l : {Linear{v.dim, 3 * v.dim}, Linear{v.dim, v.dim}, Linear{v.dim, v.mlp()},
                           Linear{v.mlp(), v.dim}})
      all.push_back(l);
  return all;
}

}  // namespace orthofed::bench
