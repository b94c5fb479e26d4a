// Matrix products through oneDNN, where it is built in (OF_HAVE_ONEDNN). The one place that knows
// its interface; 2.6 and 3.x both build.
//
// A primitive is made once for each shape, pitch and option, kept, and only rerun. Scratch space is
// ours and grows to the largest need. Both belong to the calling thread, so threads do not wait for
// each other.
#pragma once
#include <memory>

#include "kernels/matmul/matmul.h"

namespace orthofed::cpu::onednn {

#ifdef OF_HAVE_ONEDNN
inline constexpr bool built_in = true;
#else
inline constexpr bool built_in = false;  // nothing below is defined
#endif

// oneDNN takes an instruction set once, at its first use: the one isa() names then. At another one
// (tests force it) this is false, and the blocked loop serves.
bool available();

// As cpu::matmul, with m, n, k > 0. T, C in {float, float}, {bf16, bf16}, {bf16, float}.
template <class T, class C>
void matmul(const Matmul<T, C>& p);

// B in the layout that oneDNN likes best for a large m.
struct Packed;
template <class T>
std::shared_ptr<const Packed> pack(const T* b, int64_t ldb, Op op_b, int64_t k, int64_t n);
size_t bytes(const Packed& b);
template <class T, class C>
void matmul(const T* a, int64_t lda, const Packed& b, C* c, int64_t ldc, const float* bias,
            bool accumulate, int64_t m);

const char* version();  // "oneDNN 3.7.1"

}  // namespace orthofed::cpu::onednn
