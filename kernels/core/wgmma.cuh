// Warpgroup products (PTX ISA, "Asynchronous Warpgroup Level Matrix Multiply-Accumulate"): four
// warps start D [64, N] += A [64, 16] B [16, N] in bf16 with float sums and go on; B comes from
// shared memory, A from there or from registers.
//
//   wgmma_fence();                               the registers are the products' from here on
//   wgmma<kTransposeA, kTransposeB>(d, a, b);    a, b: descriptors; any number of products
//   wgmma<kTransposeB>(d, registers, b);         A [4] in registers, pairs of bf16
//   wgmma_e4m3(d, a, b, add);                    N = 128: D = A B, or += if add; A [64, 32] and
//                                                B [32, N] of e4m3, both with k along the row,
//                                                where a pair takes a bf16's place
//   wgmma_commit();                              closes a group of products
//   wgmma_wait<kPending>(d);                     all but the kPending latest groups are done
//
// From the product to the wait nobody touches d, nor what the products read. Products of one d
// need no wait in between.
//
// Who holds what, with w = warp % 4, g = lane / 4, t = lane % 4:
//   D  d[4c], d[4c + 1]: row 16w + g, columns 8c + 2t, 8c + 2t + 1;  d[4c + 2], d[4c + 3]: row + 8
//   A  a[0]: row 16w + g, columns 2t, 2t + 1; a[1]: row + 8; a[2]: columns + 8; a[3]: both
//
// In shared memory an operand is made of atoms of 1,024 bytes at a multiple of 1,024: 8 rows of 64
// elements, swizzled as tensor_map() does it, with k along the row (as a row of A, or of B^T), or
// across it if kTransposeA (B). Its descriptor says where it begins and how far atoms are apart.
#pragma once
#include "kernels/core/hopper.cuh"

namespace orthofed::gpu {
namespace {

// stride: bytes from one atom to the next across the rows (along m or n; along k if transposed);
// leading: along the rows, used only where the operand is transposed and wider than an atom. An
// operand may start at a later chunk of the first row: 16 elements further along k are 32 bytes.
OF_HOST_DEVICE constexpr uint64_t wgmma_descriptor(uint32_t address, uint32_t stride,
                                                   uint32_t leading = 16) {
  const auto field = [](uint32_t bytes) { return uint64_t{(bytes & 0x3ffff) >> 4}; };
  constexpr uint64_t kSwizzle128 = 1;
  return field(address) | field(leading) << 16 | field(stride) << 32 | kSwizzle128 << 62;
}

#ifdef __CUDACC__

// nvcc must not move a use of d across what waits for it: `asm` knows it as an operand.
template <int kRegisters>
__device__ void keep_in_place(float (&d)[kRegisters]) {
#pragma unroll
  for (int i = 0; i < kRegisters; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

__device__ inline void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ inline void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// filled: the sums that are complete from here on.
template <int kPending, class... D>
__device__ void wgmma_wait(D&... filled) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
  (keep_in_place(filled), ...);
}

// N = 64, 128, 256: 32, 64, 128 registers. The operands after D have the numbers P0 to P5.
#define OF_LIST_32                                                         \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13"             \
  ", %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27" \
  ", %28, %29, %30, %31"
#define OF_LIST_64                                                         \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13"             \
  ", %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27" \
  ", %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41" \
  ", %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55" \
  ", %56, %57, %58, %59, %60, %61, %62, %63"
#define OF_LIST_128                                                                      \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13"                           \
  ", %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27"               \
  ", %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41"               \
  ", %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55"               \
  ", %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69"               \
  ", %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83"               \
  ", %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97"               \
  ", %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111"   \
  ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125" \
  ", %126, %127"
#define OF_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define OF_D16(i) OF_D4(i), OF_D4(i + 4), OF_D4(i + 8), OF_D4(i + 12)
#define OF_D32(i) OF_D16(i), OF_D16(i + 16)
#define OF_D64(i) OF_D32(i), OF_D32(i + 32)
#define OF_D128(i) OF_D64(i), OF_D64(i + 64)
#define OF_WGMMA(N, REGISTERS, P0, P1, P2, P3, P4, P5)                                   \
  template <bool kTransposeA, bool kTransposeB>                                          \
  __device__ void wgmma(float(&d)[REGISTERS], uint64_t a, uint64_t b) {                  \
    asm volatile(                                                                        \
        "{\n.reg .pred add;\nsetp.eq.u32 add, 0, 0;\n"                                   \
        "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" OF_LIST_##REGISTERS \
        "}, "                                                                            \
        "%" #P0 ", %" #P1 ", add, 1, 1, %" #P2 ", %" #P3 ";\n}"                          \
        : OF_D##REGISTERS(0)                                                             \
        : "l"(a), "l"(b), "n"(int{kTransposeA}), "n"(int{kTransposeB}));                 \
  }                                                                                      \
  template <bool kTransposeB>                                                            \
  __device__ void wgmma(float(&d)[REGISTERS], const uint32_t(&a)[4], uint64_t b) {       \
    asm volatile(                                                                        \
        "{\n.reg .pred add;\nsetp.eq.u32 add, 0, 0;\n"                                   \
        "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" OF_LIST_##REGISTERS \
        "}, "                                                                            \
        "{%" #P0 ", %" #P1 ", %" #P2 ", %" #P3 "}, %" #P4 ", add, 1, 1, %" #P5 ";\n}"    \
        : OF_D##REGISTERS(0)                                                             \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(int{kTransposeB}));    \
  }
OF_WGMMA(64, 32, 32, 33, 34, 35, 36, 37)
OF_WGMMA(128, 64, 64, 65, 66, 67, 68, 69)
OF_WGMMA(256, 128, 128, 129, 130, 131, 132, 133)
#undef OF_WGMMA
__device__ inline void wgmma_e4m3(float (&d)[64], uint64_t a, uint64_t b, bool add) {
  asm volatile(
      "{\n.reg .pred add;\nsetp.ne.u32 add, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 {" OF_LIST_64
      "}, %64, %65, add, 1, 1;\n}"
      : OF_D64(0)
      : "l"(a), "l"(b), "r"(int{add}));
}
#undef OF_D128
#undef OF_D64
#undef OF_D32
#undef OF_D16
#undef OF_D4
#undef OF_LIST_128
#undef OF_LIST_64
#undef OF_LIST_32

#else

inline void wgmma_fence() {
  simt::wgmma_fence();
}
inline void wgmma_commit() {
  simt::wgmma_commit();
}
template <int kPending, class... D>
void wgmma_wait(D&...) {
  simt::wgmma_wait(kPending);
}

template <bool kTransposeA, bool kTransposeB, int kRegisters>
void wgmma(float (&d)[kRegisters], uint64_t a, uint64_t b,
           const simt::Site& site = simt::Site::current()) {
  static_assert(kRegisters == 32 || kRegisters == 64 || kRegisters == 128);
  simt::wgmma({d, nullptr, a, b, 2 * kRegisters, kTransposeA, kTransposeB}, site);
}
inline void wgmma_e4m3(float (&d)[64], uint64_t a, uint64_t b, bool add,
                       const simt::Site& site = simt::Site::current()) {
  simt::wgmma({d, nullptr, a, b, 128, false, false, /*e4m3=*/true, add}, site);
}
template <bool kTransposeB, int kRegisters>
void wgmma(float (&d)[kRegisters], const uint32_t (&a)[4], uint64_t b,
           const simt::Site& site = simt::Site::current()) {
  static_assert(kRegisters == 32 || kRegisters == 64 || kRegisters == 128);
  simt::wgmma({d, a, 0, b, 2 * kRegisters, false, kTransposeB}, site);
}

#endif

}  // namespace
}  // namespace orthofed::gpu
