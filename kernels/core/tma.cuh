// The copy engine (Tensor Memory Accelerator): one thread asks for a box of a matrix, or of a stack
// of matrices, and an mbarrier counts the bytes as they come (PTX ISA, "cp.async.bulk.tensor").
// Elements outside of the matrix arrive as zeros, and count.
//
// A tensor map describes the matrix and the box. The host makes it; a kernel takes it as a
// parameter `const __grid_constant__ TensorMap map`, because the engine reads it by its address.
#pragma once
#include <array>

#include "kernels/core/mbarrier.cuh"

#ifdef __CUDACC__
#include <cuda.h>
#include <cudaTypedefs.h>
#endif

namespace orthofed::gpu {
namespace {

#ifdef __CUDACC__
using TensorMap = CUtensorMap;
#else
using TensorMap = simt::TensorMap;
#endif

// A tensor of rank 2 or 3 in global memory; dimension 0 is the one whose elements are neighbours.
// The base and every pitch are multiples of 16 bytes.
template <class T, int kRank>
struct Tensor {
  static_assert(kRank == 2 || kRank == 3);
  const T* data;
  std::array<int64_t, kRank> size;       // elements, at least 1
  std::array<int64_t, kRank - 1> pitch;  // elements from one index of dimension 1 (2) to the next
};

// The box arrives in shared memory row after row: [box[1], box[0]], or [box[2], box[1], box[0]];
// at most 256 elements a side, at an address that is a multiple of 128.
//
// swizzle: rows are 128 bytes long and the address is a multiple of 1,024; chunk c of 16 bytes of
// row r then lies in place c ^ (r % 8) of its row, so that chunks of one column fill all banks.
template <class T, int kRank>
TensorMap tensor_map(const Tensor<T, kRank>& tensor, const std::array<int, kRank>& box,
                     bool swizzle) {
  OF_CHECK(reinterpret_cast<uintptr_t>(tensor.data) % 16 == 0,
           "a tensor map: the base is not a multiple of 16 bytes");
  for (int d = 0; d < kRank; ++d)
    OF_CHECK(1 <= tensor.size[d] && tensor.size[d] <= 0x7fffffff && 1 <= box[d] && box[d] <= 256,
             "a tensor map: sizes from 1 to 2^31 - 1, boxes from 1 to 256");
  for (const int64_t pitch : tensor.pitch)
    OF_CHECK(pitch * int64_t{sizeof(T)} % 16 == 0,
             "a tensor map: a pitch is not a multiple of 16 bytes");
  const size_t row = size_t(box[0]) * sizeof(T);
  OF_CHECK(swizzle ? row == 128 : row % 16 == 0,
           "a tensor map: rows of a box are multiples of 16 bytes, or 128 if swizzled");
#ifdef __CUDACC__
  static_assert(std::is_same_v<T, bf16> || std::is_same_v<T, float>);
  static const auto encode = [] {
    void* function = nullptr;  // of the driver, which is not linked
    cudaDriverEntryPointQueryResult found{};
    OF_CUDA_CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                                   cudaEnableDefault, &found));
    OF_CHECK(found == cudaDriverEntryPointSuccess, "the driver has no cuTensorMapEncodeTiled");
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
  }();
  cuuint64_t size[kRank], pitch[kRank - 1];
  cuuint32_t sides[kRank], steps[kRank];
  for (int d = 0; d < kRank; ++d) {
    size[d] = cuuint64_t(tensor.size[d]);
    sides[d] = cuuint32_t(box[d]);
    steps[d] = 1;
    if (d > 0) pitch[d - 1] = cuuint64_t(tensor.pitch[d - 1]) * sizeof(T);
  }
  TensorMap map;
  const CUresult result = encode(
      &map,
      std::is_same_v<T, bf16> ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
      kRank, const_cast<T*>(tensor.data), size, pitch, sides, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      swizzle ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  OF_CHECK(result == CUDA_SUCCESS,
           "cuTensorMapEncodeTiled: the driver's error " + std::to_string(int(result)));
  return map;
#else
  TensorMap map{reinterpret_cast<const std::byte*>(tensor.data),
                kRank,
                int(sizeof(T)),
                {1, 1, 1},
                {int64_t{sizeof(T)}, 0, 0},
                {1, 1, 1},
                swizzle ? simt::Swizzle::bytes_128 : simt::Swizzle::none};
  for (int d = 0; d < kRank; ++d) {
    map.size[d] = tensor.size[d];
    map.box[d] = box[d];
    if (d > 0) map.pitch[d] = tensor.pitch[d - 1] * int64_t{sizeof(T)};
  }
  return map;
#endif
}

#ifdef __CUDACC__

// Starts to copy the box whose first element is [y, x] (or [z, y, x]); coordinates may be outside.
__device__ inline void tma_load(void* shared, const TensorMap& map, Mbarrier& arrival, int x,
                                int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%3, %4}], [%2];" ::"r"(shared_address(shared)),
      "l"(&map), "r"(shared_address(&arrival)), "r"(x), "r"(y)
      : "memory");
}
__device__ inline void tma_load(void* shared, const TensorMap& map, Mbarrier& arrival, int x, int y,
                                int z) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%3, %4, %5}], [%2];" ::"r"(shared_address(shared)),
      "l"(&map), "r"(shared_address(&arrival)), "r"(x), "r"(y), "r"(z)
      : "memory");
}

#else

inline void tma_load(void* shared, const TensorMap& map, Mbarrier& arrival, int x, int y) {
  if (map.rank != 2) simt::fault("a bulk copy with two coordinates from a tensor of rank 3");
  simt::bulk_copy(shared, map, {x, y, 0}, &arrival.opaque);
}
inline void tma_load(void* shared, const TensorMap& map, Mbarrier& arrival, int x, int y, int z) {
  if (map.rank != 3) simt::fault("a bulk copy with three coordinates from a tensor of rank 2");
  simt::bulk_copy(shared, map, {x, y, z}, &arrival.opaque);
}

#endif

}  // namespace
}  // namespace orthofed::gpu
