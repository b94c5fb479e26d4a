// 4, vectorised: memory and shared memory are read four elements at a time (a quarter of the load
// instructions); an operand that lies along k is transposed on its way into shared memory, so that
// a thread's 4 rows are neighbours there. The next step's tiles travel to registers while this
// step's are multiplied, and two buffers need one barrier a step.
#pragma once
#include "kernels/matmul/epilogue.cuh"

namespace orthofed::gpu {
namespace {

struct Vectorised {
  static constexpr int kTile = SumTile::kSide, kStep = 8, kThreads = 256;
  static constexpr int kRow = kTile + 4;  // transposing stores fall into different banks
  static constexpr int kPanel = kStep * kRow;
  static constexpr size_t kSharedBytes = SumTile::kFloats * sizeof(float);
  static_assert(4 * kPanel <= SumTile::kFloats, "two buffers of two panels fit into the tile");
  static_assert(kTile * kStep == kThreads * 4, "a thread moves one pack of each panel");

  template <class T, class B, class Epilogue, class Stream>
  static void run(const Product<T, B>& x, const Epilogue& epilogue, const Stream& stream);
};

// A thread's part of the panels X[i0 .. i0 + 127, p .. p + 7] for p = 0, 8, ...: 4 neighbours in
// memory each time.
template <class T>
struct PanelLoader {
  const Operand<T>& x;
  int64_t row, col;  // in memory
  int at;            // in the panel [p, i]
  __device__ PanelLoader(const Operand<T>& x_, int64_t i0) : x(x_) {
    const int thread = int(threadIdx.x);
    const int i = x.along_k ? thread / 2 : thread % 32 * 4;
    const int p = x.along_k ? thread % 2 * 4 : thread / 32;
    row = x.along_k ? i0 + i : p;
    col = x.along_k ? p : i0 + i;
    at = p * Vectorised::kRow + i;
  }
  __device__ Pack<T, 4> next() {
    const auto values = x.template load<4>(row, col);
    (x.along_k ? col : row) += Vectorised::kStep;
    return values;
  }
  __device__ void put(float* panel, const Pack<T, 4>& values) const {
    if (x.along_k) {
#pragma unroll
      for (int q = 0; q < 4; ++q) panel[at + q * Vectorised::kRow] = float(values[q]);
    } else {
      store_pack(panel + at, Pack<float, 4>{{float(values[0]), float(values[1]), float(values[2]),
                                             float(values[3])}});
    }
  }
};

template <class T, class B, class Epilogue>
__global__ void __launch_bounds__(Vectorised::kThreads, 2)
    vectorised_kernel(Product<T, B> x, Epilogue epilogue, bool packs) {
  using R = Vectorised;
  float* const shared = dynamic_shared<float>();
  const Corner corner = tile_corner<R::kTile, R::kTile>(x.n());
  const int64_t k = x.k();
  PanelLoader<T> load_a(x.a, corner.i);
  PanelLoader<B> load_b(x.b, corner.j);
  // Rows 4 ty + {0..3} and the same + 64, columns likewise with tx.
  const int tx = int(threadIdx.x) % 16, ty = int(threadIdx.x) / 16;

  float sum[8][8] = {};
  float *a = shared, *a_next = shared + 2 * R::kPanel;  // [p, i], the panel of B behind
  load_a.put(a, load_a.next());
  load_b.put(a + R::kPanel, load_b.next());
  __syncthreads();
  for (int64_t p0 = 0; p0 < k; p0 += R::kStep) {
    const Pack<T, 4> next_a = load_a.next();  // zeros beyond the end
    const Pack<B, 4> next_b = load_b.next();
#pragma unroll 2  // more, and registers spill
    for (int p = 0; p < R::kStep; ++p) {
      const float* from_a = a + p * R::kRow + 4 * ty;
      const float* from_b = a + R::kPanel + p * R::kRow + 4 * tx;
      const Pack<float, 4> column[2] = {load_pack<4>(from_a), load_pack<4>(from_a + 64)};
      const Pack<float, 4> row[2] = {load_pack<4>(from_b), load_pack<4>(from_b + 64)};
#pragma unroll
      for (int r = 0; r < 8; ++r)
#pragma unroll
        for (int c = 0; c < 8; ++c) sum[r][c] += column[r / 4][r % 4] * row[c / 4][c % 4];
    }
    load_a.put(a_next, next_a);
    load_b.put(a_next + R::kPanel, next_b);
    __syncthreads();
    float* const done = a;
    a = a_next;
    a_next = done;
  }

#pragma unroll
  for (int r = 0; r < 8; ++r)
#pragma unroll
    for (int c = 0; c < 8; c += 4)
      store_pack(shared + SumTile::at(4 * ty + r % 4 + r / 4 * 64, 4 * tx + c / 4 * 64),
                 Pack<float, 4>{{sum[r][c], sum[r][c + 1], sum[r][c + 2], sum[r][c + 3]}});
  __syncthreads();
  SumTile::write<R::kThreads>(shared, corner, x.m(), x.n(), packs, epilogue);
}

template <class T, class B, class Epilogue, class Stream>
void Vectorised::run(const Product<T, B>& x, const Epilogue& epilogue, const Stream& stream) {
  launch(vectorised_kernel<T, B, Epilogue>,
         {.grid_x = tiles<kTile, kTile>(x.m(), x.n()),
          .threads_x = kThreads,
          .shared_bytes = kSharedBytes},
         stream, x, epilogue, epilogue.packs());
}

}  // namespace
}  // namespace orthofed::gpu
