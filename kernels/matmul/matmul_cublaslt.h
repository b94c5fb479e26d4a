// cuBLASLt's matrix product behind matmul's contract: a peer to compare with, and another way to
// compute large products on a GPU (OF_MATMUL=cublaslt in the environment). The library is opened
// when it is first asked for and never linked; OF_CUBLASLT names a file or folder to look in first.
//
// Built where the toolkit has its header (OF_HAVE_CUBLASLT). No GPU has run it yet.
//
// The algorithm is the heuristic's first one that does not split k among blocks, so a product gives
// the same bits at every run on the same GPU and release of the library.
#pragma once
#include "kernels/core/device.h"
#include "kernels/matmul/matmul.h"

namespace orthofed::cuda {

// Does OF_MATMUL=cublaslt ask for it? Throws UserError for another value, or if it asks and the
// library is not there.
bool cublaslt_asked();

// gpu::matmul's contract, T, C in {float, float}, {bf16, bf16}, {bf16, float}. False, and nothing
// done, where the library is absent, a pitch or address is not one that it takes, or it has no such
// algorithm. Errors of a product that it accepted throw.
template <class T, class C>
bool matmul_cublaslt(const Matmul<T, C>& p, const Stream& stream);

}  // namespace orthofed::cuda
