#include "kernels/matmul/matmul_cublaslt.h"

#include <cublasLt.h>

#include <array>
#include <cstdint>
#include <map>
#include <memory>

#include "kernels/core/cuda_device.h"

namespace orthofed::cuda {
namespace {

// The functions that are used, by their names without "cublasLt".
// clang-format off
#define OF_EACH_FUNCTION(X) \
  X(Create) X(Destroy) \
  X(MatmulDescCreate) X(MatmulDescDestroy) X(MatmulDescSetAttribute) \
  X(MatrixLayoutCreate) X(MatrixLayoutDestroy) \
  X(MatmulPreferenceCreate) X(MatmulPreferenceDestroy) X(MatmulPreferenceSetAttribute) \
  X(MatmulAlgoGetHeuristic) X(Matmul) X(GetStatusName)
// clang-format on

struct Api {
  Library library;
#define OF_DECLARE(name) decltype(&::cublasLt##name) name = nullptr;
  OF_EACH_FUNCTION(OF_DECLARE)
#undef OF_DECLARE
};

// Null where the library is not to be found.
const Api* api() {
  static const std::unique_ptr<const Api> found = []() -> std::unique_ptr<const Api> {
    auto a = std::make_unique<Api>();
    const std::string name = "libcublasLt.so." + std::to_string(toolkit_version() / 1000);
    a->library = open_library(name, "OF_CUBLASLT");
    if (a->library.handle == nullptr) return nullptr;
#define OF_FIND(name) find_function(a->library, "cublasLt" #name, a->name);
    OF_EACH_FUNCTION(OF_FIND)
#undef OF_FIND
    return a;
  }();
  return found.get();
}

void check(cublasStatus_t status, const char* call) {
  if (status != CUBLAS_STATUS_SUCCESS)
    throw Error(std::string(call) + ": " + api()->GetStatusName(status));
}
#define OF_LT(call, ...) check(api()->call(__VA_ARGS__), "cublasLt" #call)

struct DestroyHandle {
  void operator()(cublasLtHandle_t h) const noexcept { api()->Destroy(h); }
};
struct DestroyDesc {
  void operator()(cublasLtMatmulDesc_t d) const noexcept { api()->MatmulDescDestroy(d); }
};
struct DestroyLayout {
  void operator()(cublasLtMatrixLayout_t l) const noexcept { api()->MatrixLayoutDestroy(l); }
};
struct DestroyPreference {
  void operator()(cublasLtMatmulPreference_t p) const noexcept {
    api()->MatmulPreferenceDestroy(p);
  }
};
struct Release {
  void operator()(void* memory) const noexcept { release(memory); }
};
template <class Handle, class Destroy>
using Owned = std::unique_ptr<std::remove_pointer_t<Handle>, Destroy>;

constexpr size_t kWorkspaceBytes = size_t{32} << 20;  // what its documentation advises for Hopper

// cuBLASLt counts columns first. A row-major matrix is its own transpose there, so that
// C = op(A) op(B) is computed as C^T = op(B)^T op(A)^T: B is its first operand, A its second.
struct Plan {
  Owned<cublasLtMatmulDesc_t, DestroyDesc> desc;
  Owned<cublasLtMatrixLayout_t, DestroyLayout> first, second, result;
  cublasLtMatmulAlgo_t algorithm{};
  bool usable = false;
};

// What a plan is for: types, sizes, pitches, options, alignments.
using Key = std::array<int64_t, 16>;

// One a thread, as queues are.
struct Context {
  Owned<cublasLtHandle_t, DestroyHandle> handle;
  std::unique_ptr<void, Release> workspace;
  std::map<Key, Plan> plans;

  Context() {
    cublasLtHandle_t h = nullptr;
    OF_LT(Create, &h);
    handle.reset(h);
    workspace.reset(allocate(kWorkspaceBytes));
    if (!workspace) throw Error("cuBLASLt's workspace: the GPU has no 32 MiB free");
  }
};

template <class T>
constexpr cudaDataType_t type_of = std::is_same_v<T, float> ? CUDA_R_32F : CUDA_R_16BF;

template <class Value>
void set(const Plan& plan, cublasLtMatmulDescAttributes_t attribute, const Value& value) {
  OF_LT(MatmulDescSetAttribute, plan.desc.get(), attribute, &value, sizeof value);
}
template <class Value>
void set(cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t attribute,
         const Value& value) {
  OF_LT(MatmulPreferenceSetAttribute, preference, attribute, &value, sizeof value);
}

Owned<cublasLtMatrixLayout_t, DestroyLayout> layout(cudaDataType_t type, int64_t rows, int64_t cols,
                                                    int64_t ld) {
  cublasLtMatrixLayout_t l = nullptr;
  OF_LT(MatrixLayoutCreate, &l, type, uint64_t(rows), uint64_t(cols), ld);
  return Owned<cublasLtMatrixLayout_t, DestroyLayout>(l);
}

// The largest power of two, up to 256, that divides an address.
uint32_t alignment(const void* p) {
  const uintptr_t low = reinterpret_cast<uintptr_t>(p) | 256;
  return uint32_t(low & (~low + 1));
}

template <class T, class C>
Plan make_plan(const Context& context, const MatmulShape& s, bool bias, uint32_t align_a,
               uint32_t align_b, uint32_t align_c) {
  Plan plan;
  cublasLtMatmulDesc_t d = nullptr;
  OF_LT(MatmulDescCreate, &d, CUBLAS_COMPUTE_32F, CUDA_R_32F);
  plan.desc.reset(d);
  const auto transposed = [](Op op) { return op == Op::transpose ? CUBLAS_OP_T : CUBLAS_OP_N; };
  set(plan, CUBLASLT_MATMUL_DESC_TRANSA, transposed(s.op_b));
  set(plan, CUBLASLT_MATMUL_DESC_TRANSB, transposed(s.op_a));
  if (bias) {  // along n: the rows of C^T
    set(plan, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
    set(plan, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, CUDA_R_32F);
  }
  const bool plain_a = s.op_a == Op::none, plain_b = s.op_b == Op::none;
  plan.first = layout(type_of<T>, plain_b ? s.n : s.k, plain_b ? s.k : s.n, s.ldb);
  plan.second = layout(type_of<T>, plain_a ? s.k : s.m, plain_a ? s.m : s.k, s.lda);
  plan.result = layout(type_of<C>, s.n, s.m, s.ldc);

  cublasLtMatmulPreference_t p = nullptr;
  OF_LT(MatmulPreferenceCreate, &p);
  const Owned<cublasLtMatmulPreference_t, DestroyPreference> preference(p);
  set(p, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspaceBytes);
  set(p, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, uint32_t{CUBLASLT_REDUCTION_SCHEME_NONE});
  set(p, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, align_b);
  set(p, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, align_a);
  set(p, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, align_c);
  set(p, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, align_c);
  cublasLtMatmulHeuristicResult_t best{};
  int found = 0;
  const cublasStatus_t status = api()->MatmulAlgoGetHeuristic(
      context.handle.get(), plan.desc.get(), plan.first.get(), plan.second.get(), plan.result.get(),
      plan.result.get(), p, 1, &best, &found);
  plan.usable = status == CUBLAS_STATUS_SUCCESS && found == 1;
  plan.algorithm = best.algo;
  return plan;
}

}  // namespace

bool cublaslt_asked() {
  static const bool asked = peer_asked(
      "OF_MATMUL", "cublaslt", [] { return api() != nullptr; }, "libcublasLt", "OF_CUBLASLT");
  return asked;
}

template <class T, class C>
bool matmul_cublaslt(const Matmul<T, C>& p, const Stream& stream) {
  const MatmulShape& s = p.shape;
  if (api() == nullptr || s.m == 0 || s.n == 0 || s.k == 0) return false;
  thread_local Context context;
  const uint32_t align_a = alignment(p.a), align_b = alignment(p.b), align_c = alignment(p.c);
  const Key key = {sizeof(T),
                   sizeof(C),
                   s.m,
                   s.n,
                   s.k,
                   s.lda,
                   s.ldb,
                   s.ldc,
                   s.op_a == Op::none,
                   s.op_b == Op::none,
                   p.bias != nullptr,
                   align_a,
                   align_b,
                   align_c};
  auto it = context.plans.find(key);
  if (it == context.plans.end())
    it =
        context.plans
            .emplace(key, make_plan<T, C>(context, s, p.bias != nullptr, align_a, align_b, align_c))
            .first;
  const Plan& plan = it->second;
  if (!plan.usable) return false;
  if (p.bias != nullptr) set(plan, CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bias);
  const float alpha = 1, beta = p.accumulate ? 1 : 0;
  OF_LT(Matmul, context.handle.get(), plan.desc.get(), &alpha, p.b, plan.first.get(), p.a,
        plan.second.get(), &beta, p.c, plan.result.get(), p.c, plan.result.get(), &plan.algorithm,
        context.workspace.get(), kWorkspaceBytes, static_cast<cudaStream_t>(stream.handle));
  return true;
}

template bool matmul_cublaslt(const Matmul<float, float>&, const Stream&);
template bool matmul_cublaslt(const Matmul<bf16, bf16>&, const Stream&);
template bool matmul_cublaslt(const Matmul<bf16, float>&, const Stream&);

}  // namespace orthofed::cuda
