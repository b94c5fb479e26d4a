// Tensor cores and asynchronous copies of compute capability 8.0 (PTX ISA, "Warp-level matrix
// instructions" and "cp.async").
//
//   mma_16x8x16     D [16, 8] += A [16, 16] B [16, 8], bf16 in, float sums, by a whole warp
//   mma_16x8x32     D [16, 8] = A [16, 32] B [32, 8], e4m3 in (compute capability 8.9)
//   ldmatrix_x4/x2  8 x 8 tiles of 16-bit elements from shared memory into those fragments
//   cp_async_16     16 bytes from global to shared memory without a detour through registers
//
// Who holds what, with g = lane / 4 and t = lane % 4; a register holds two neighbours, the lower
// index in its lower half:
//   A  a[0]: row g, columns 2t, 2t+1      a[1]: row g+8, same columns
//      a[2]: row g, columns 2t+8, 2t+9    a[3]: row g+8, same columns
//   B  b[0]: rows 2t, 2t+1 of column g    b[1]: rows 2t+8, 2t+9
//   D  d[0], d[1]: row g, columns 2t, 2t+1    d[2], d[3]: row g+8, same columns
//
// For e4m3 read a neighbouring pair along k for each element of A and B: a register holds four. So
// a matrix of e4m3 whose rows lie along k is copied and loaded as one of bf16, half as long.
#pragma once
#include "kernels/core/fp8.h"
#include "kernels/core/gpu.cuh"
#ifdef __CUDACC__
#include "kernels/core/cuda_device.h"
#endif

namespace orthofed::gpu {
namespace {

// Two floats as bf16, `low` in the lower half.
__device__ inline uint32_t pack_bf16(float low, float high) {
#ifdef __CUDA_ARCH__
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#else
  return uint32_t{bf16(low).bits} | uint32_t{bf16(high).bits} << 16;
#endif
}

#ifdef __CUDACC__

__device__ inline void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// May a kernel with mma_16x8x32 be launched? On other devices it traps. (A build has code for it:
// machine code for 9.0, PTX of 8.9 for the others, see kernels/CMakeLists.txt.)
inline bool has_fp8(const cuda::Stream&) {
  return cuda::capability() >= 89;
}

__device__ inline void mma_16x8x32([[maybe_unused]] float (&d)[4],
                                   [[maybe_unused]] const uint32_t (&a)[4],
                                   [[maybe_unused]] const uint32_t (&b)[2]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 890
  __trap();
#else
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%10, %10, %10, %10};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(0.0f));
#endif
}

// Lane l gives the address of row l % 8 of tile l / 8, 16 bytes aligned to 16; registers[i] is
// then this lane's pair of tile i: row g, columns 2t and 2t+1. `trans` hands out the
// transposed tile.
__device__ inline void ldmatrix_x4(uint32_t (&registers)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ inline void ldmatrix_x4_trans(uint32_t (&registers)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(shared_address(row))
               : "memory");
}
// Two tiles: the addresses of lanes 0 to 15 count.
__device__ inline void ldmatrix_x2(uint32_t (&registers)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(registers[0]), "=r"(registers[1])
               : "r"(shared_address(row))
               : "memory");
}
__device__ inline void ldmatrix_x2_trans(uint32_t (&registers)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(registers[0]), "=r"(registers[1])
               : "r"(shared_address(row))
               : "memory");
}

// Copies the first `bytes` (0 to 16) of 16 and fills the rest with zero; both ends aligned to 16.
// With bytes = 0 the source is not read, but must be a pointer that could be.
__device__ inline void cp_async_16(void* shared, const void* global, int bytes = 16) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(shared_address(shared)), "l"(global), "r"(bytes)
               : "memory");
}
// Closes a group of this thread's copies.
__device__ inline void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits until at most the kPending latest groups of this thread are unfinished. Other threads see
// the copies after the next barrier.
template <int kPending>
__device__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

#else

struct MmaOperands {
  float* d;
  const uint32_t* a;
  const uint32_t* b;
};

inline float bf16_half(uint32_t pair, int half) {
  return std::bit_cast<float>(half == 0 ? pair << 16 : pair & 0xffff0000u);
}

inline float e4m3_quarter(uint32_t four, int quarter) {
  e4m3 x;
  x.bits = uint8_t(four >> (8 * quarter));
  return x;
}

// A register holds kEach neighbours, which element() tells apart.
template <int kEach, float (*element)(uint32_t, int)>
OF_NO_TSAN void complete_mma(simt::Lane* lanes, uint32_t) {
  constexpr int kDepth = 8 * kEach;
  float a[16][kDepth], b[kDepth][8];
  const auto operands = [&](int lane) { return static_cast<const MmaOperands*>(lanes[lane].in); };
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i)
      for (int e = 0; e < kEach; ++e)
        a[g + i % 2 * 8][(t + i / 2 * 4) * kEach + e] = element(operands(lane)->a[i], e);
    for (int i = 0; i < 2; ++i)
      for (int e = 0; e < kEach; ++e)
        b[(t + i * 4) * kEach + e][g] = element(operands(lane)->b[i], e);
  }
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) {
      float sum = operands(lane)->d[i];
      for (int k = 0; k < kDepth; ++k) sum += a[g + i / 2 * 8][k] * b[k][2 * t + i % 2];
      operands(lane)->d[i] = sum;
    }
  }
}

inline void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                        const simt::Site& site = simt::Site::current()) {
  const MmaOperands operands{d, a, b};
  simt::rendezvous("mma", 0xffffffffu, &complete_mma<2, bf16_half>, {&operands, nullptr, 0}, site);
}
inline bool has_fp8(const simt::Stream& stream) {
  return stream.capability >= 89;
}
inline void mma_16x8x32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                        const simt::Site& site = simt::Site::current()) {
  for (float& x : d) x = 0;
  const MmaOperands operands{d, a, b};
  simt::rendezvous("mma", 0xffffffffu, &complete_mma<4, e4m3_quarter>, {&operands, nullptr, 0},
                   site);
}

template <int kTiles, bool kTranspose>
struct Ldmatrix {
  // Shared memory is read by each lane for itself, so that ThreadSanitizer sees who reads what.
  static void run(uint32_t* registers, const void* row, const simt::Site& site) {
    const void* rows[32] = {};
    simt::rendezvous("ldmatrix", 0xffffffffu, &complete, {row, rows, 0}, site);
    const int lane = int(simt::lane_id()), g = lane / 4, t = lane % 4;
    for (int tile = 0; tile < kTiles; ++tile) {
      uint32_t pair = 0;
      for (int half = 0; half < 2; ++half) {
        const int i = kTranspose ? 2 * t + half : g, j = kTranspose ? g : 2 * t + half;
        const auto* address = static_cast<const uint16_t*>(rows[tile * 8 + i]);
        simt::check_shared(address, 16, "ldmatrix");
        pair |= uint32_t{address[j]} << (16 * half);
      }
      registers[tile] = pair;
    }
  }
  OF_NO_TSAN static void complete(simt::Lane* lanes, uint32_t) {
    for (int lane = 0; lane < 32; ++lane)
      for (int other = 0; other < 32; ++other)
        static_cast<const void**>(lanes[lane].out)[other] = lanes[other].in;
  }
};

inline void ldmatrix_x4(uint32_t (&registers)[4], const void* row,
                        const simt::Site& site = simt::Site::current()) {
  Ldmatrix<4, false>::run(registers, row, site);
}
inline void ldmatrix_x4_trans(uint32_t (&registers)[4], const void* row,
                              const simt::Site& site = simt::Site::current()) {
  Ldmatrix<4, true>::run(registers, row, site);
}
inline void ldmatrix_x2(uint32_t (&registers)[2], const void* row,
                        const simt::Site& site = simt::Site::current()) {
  Ldmatrix<2, false>::run(registers, row, site);
}
inline void ldmatrix_x2_trans(uint32_t (&registers)[2], const void* row,
                              const simt::Site& site = simt::Site::current()) {
  Ldmatrix<2, true>::run(registers, row, site);
}

inline void copy_16(void* shared, const void* global, int bytes) {
  auto* to = static_cast<unsigned char*>(shared);
  const auto* from = static_cast<const unsigned char*>(global);
  for (int i = 0; i < 16; ++i) to[i] = i < bytes ? from[i] : 0;
}
inline void cp_async_16(void* shared, const void* global, int bytes = 16) {
  simt::check_shared(shared, 16, "cp.async");
  if (reinterpret_cast<uintptr_t>(global) % 16 != 0)
    simt::fault("cp.async from an address that is not a multiple of 16");
  if (bytes < 0 || bytes > 16) simt::fault("cp.async copies 0 to 16 bytes");
  simt::copy_async([=] { copy_16(shared, global, bytes); });
}
inline void cp_async_commit() {
  simt::commit_async();
}
template <int kPending>
void cp_async_wait() {
  simt::wait_async(kPending);
}

#endif

}  // namespace
}  // namespace orthofed::gpu
