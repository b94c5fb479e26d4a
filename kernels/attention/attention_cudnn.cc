#include "kernels/attention/attention_cudnn.h"

#include <cudnn_graph.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kernels/core/cuda_device.h"

namespace orthofed::cuda {
namespace {

// The functions that are used, by their names without "cudnn".
// clang-format off
#define OF_EACH_FUNCTION(X) \
  X(GetVersion) X(GetErrorString) X(GetLastErrorString) X(Create) X(Destroy) X(SetStream) \
  X(BackendCreateDescriptor) X(BackendDestroyDescriptor) X(BackendFinalize) \
  X(BackendSetAttribute) X(BackendGetAttribute) X(BackendExecute)
// clang-format on

struct Api {
  Library library;
#define OF_DECLARE(name) decltype(&::cudnn##name) name = nullptr;
  OF_EACH_FUNCTION(OF_DECLARE)
#undef OF_DECLARE
};

// Null where the library is not to be found, or too old.
const Api* api() {
  static const std::unique_ptr<const Api> found = []() -> std::unique_ptr<const Api> {
    auto a = std::make_unique<Api>();
    a->library = open_library("libcudnn.so.9", "OF_CUDNN");
    if (a->library.handle == nullptr) return nullptr;
#define OF_FIND(name) find_function(a->library, "cudnn" #name, a->name);
    OF_EACH_FUNCTION(OF_FIND)
#undef OF_FIND
    if (a->GetVersion() < 91600) return nullptr;
    return a;
  }();
  return found.get();
}

void check(cudnnStatus_t status, const char* call) {
  if (status == CUDNN_STATUS_SUCCESS) return;
  std::array<char, 1024> why{};
  api()->GetLastErrorString(why.data(), why.size());
  throw Error(std::string(call) + ": " + api()->GetErrorString(status) + " (" + why.data() + ')');
}
#define OF_DNN(call, ...) check(api()->call(__VA_ARGS__), "cudnn" #call)

// How cuDNN names the types of attributes. (A descriptor is a void*, as an address is: VOID_PTR is
// said where one is meant.)
template <class T>
constexpr cudnnBackendAttributeType_t type_of = CUDNN_TYPE_BACKEND_DESCRIPTOR;
template <>
constexpr auto type_of<bool> = CUDNN_TYPE_BOOLEAN;
template <>
constexpr auto type_of<int64_t> = CUDNN_TYPE_INT64;
template <>
constexpr auto type_of<cudnnHandle_t> = CUDNN_TYPE_HANDLE;
template <>
constexpr auto type_of<cudnnDataType_t> = CUDNN_TYPE_DATA_TYPE;
template <>
constexpr auto type_of<cudnnPointwiseMode_t> = CUDNN_TYPE_POINTWISE_MODE;
template <>
constexpr auto type_of<cudnnReduceTensorOp_t> = CUDNN_TYPE_REDUCTION_OPERATOR_TYPE;
template <>
constexpr auto type_of<cudnnBackendHeurMode_t> = CUDNN_TYPE_HEUR_MODE;

// Anything that cuDNN describes: made, given its attributes, finalised, then used.
class Descriptor {
 public:
  explicit Descriptor(cudnnBackendDescriptorType_t type) {
    OF_DNN(BackendCreateDescriptor, type, &handle_);
  }
  ~Descriptor() {
    if (handle_ != nullptr) api()->BackendDestroyDescriptor(handle_);
  }
  Descriptor(Descriptor&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  cudnnBackendDescriptor_t handle() const { return handle_; }

  template <class T>
  void set_all(cudnnBackendAttributeName_t name, std::span<const T> values,
               cudnnBackendAttributeType_t type = type_of<T>) {
    OF_DNN(BackendSetAttribute, handle_, name, type, int64_t(values.size()), values.data());
  }
  template <class T>
  void set(cudnnBackendAttributeName_t name, const T& value) {
    set_all(name, std::span<const T>(&value, 1));
  }
  template <class T>
  int64_t get_all(cudnnBackendAttributeName_t name, std::span<T> values) const {
    int64_t count = 0;  // how many there are
    OF_DNN(BackendGetAttribute, handle_, name, type_of<T>, int64_t(values.size()), &count,
           values.data());
    return count;
  }
  void finalise() { OF_DNN(BackendFinalize, handle_); }
  // False where it describes what this cuDNN cannot do on this GPU.
  bool finalise_if_supported() {
    const cudnnStatus_t status = api()->BackendFinalize(handle_);
    if (CUDNN_STATUS_CATEGORY(status) == CUDNN_STATUS_NOT_SUPPORTED) return false;
    check(status, "cudnnBackendFinalize");
    return true;
  }

 private:
  cudnnBackendDescriptor_t handle_ = nullptr;
};

constexpr int64_t kAlignment = 16;  // bytes, of every address and row

// Sizes and strides of a tensor, [batch, heads, rows, columns].
struct View {
  std::array<int64_t, 4> sizes, strides;

  View transposed() const {
    View t = *this;
    std::swap(t.sizes[2], t.sizes[3]);
    std::swap(t.strides[2], t.strides[3]);
    return t;
  }
};

struct Tensor {
  cudnnBackendDescriptor_t handle;
  View view;
};

// Tensors and operations, in which cuDNN's engines recognise attention.
class OperationGraph {
 public:
  // What the caller has: in memory, or a number. execute() takes addresses in the order of these
  // calls.
  Tensor argument(const View& view, cudnnDataType_t type = CUDNN_DATA_BFLOAT16) {
    arguments_.push_back(ids_);
    return tensor(view, type, false, false);
  }
  Tensor number() {
    arguments_.push_back(ids_);
    return tensor({{1, 1, 1, 1}, {1, 1, 1, 1}}, CUDNN_DATA_FLOAT, false, true);
  }
  // What exists only within the graph.
  Tensor between(const View& view, cudnnDataType_t type = CUDNN_DATA_FLOAT) {
    return tensor(view, type, true, false);
  }

  void matmul(const Tensor& a, const Tensor& b, const Tensor& c) {
    Descriptor& how = add(CUDNN_BACKEND_MATMUL_DESCRIPTOR);
    how.set(CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_DATA_FLOAT);
    how.finalise();
    operation(CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR,
              {{CUDNN_ATTR_OPERATION_MATMUL_DESC, how.handle()},
               {CUDNN_ATTR_OPERATION_MATMUL_ADESC, a.handle},
               {CUDNN_ATTR_OPERATION_MATMUL_BDESC, b.handle},
               {CUDNN_ATTR_OPERATION_MATMUL_CDESC, c.handle}});
  }
  // f(x), or f(x, b) where there is a b, of x's view.
  Tensor pointwise(cudnnPointwiseMode_t f, const Tensor& x, const Tensor* b = nullptr) {
    const Tensor y = between(x.view);
    pointwise_to(y, f, x, b);
    return y;
  }
  void pointwise_to(const Tensor& y, cudnnPointwiseMode_t f, const Tensor& x, const Tensor* b) {
    Descriptor& how = add(CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
    how.set(CUDNN_ATTR_POINTWISE_MODE, f);
    how.set(CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_DATA_FLOAT);
    how.finalise();
    std::vector<Attribute> attributes = {
        {CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, how.handle()},
        {CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x.handle},
        {CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y.handle}};
    if (b != nullptr) attributes.push_back({CUDNN_ATTR_OPERATION_POINTWISE_BDESC, b->handle});
    operation(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR, attributes);
  }
  Tensor sum_of_rows(const Tensor& x, const View& rows) {
    const Tensor y = between(rows);
    Descriptor& how = add(CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
    how.set(CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_REDUCE_TENSOR_ADD);
    how.set(CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_DATA_FLOAT);
    how.finalise();
    operation(CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR,
              {{CUDNN_ATTR_OPERATION_REDUCTION_DESC, how.handle()},
               {CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x.handle},
               {CUDNN_ATTR_OPERATION_REDUCTION_YDESC, y.handle}});
    return y;
  }
  Tensor transpose(const Tensor& x) {
    const Tensor y = between(x.view.transposed(), CUDNN_DATA_BFLOAT16);
    operation(CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR,
              {{CUDNN_ATTR_OPERATION_RESHAPE_XDESC, x.handle},
               {CUDNN_ATTR_OPERATION_RESHAPE_YDESC, y.handle}});
    return y;
  }

  using Attribute = std::pair<cudnnBackendAttributeName_t, cudnnBackendDescriptor_t>;
  void operation(cudnnBackendDescriptorType_t type, const std::vector<Attribute>& attributes) {
    Descriptor& d = add(type);
    for (const auto& [name, value] : attributes) d.set(name, value);
    d.finalise();
    operations_.push_back(d.handle());
  }

  std::span<const cudnnBackendDescriptor_t> operations() const { return operations_; }
  std::span<const int64_t> arguments() const { return arguments_; }

 private:
  Descriptor& add(cudnnBackendDescriptorType_t type) {
    parts_.push_back(std::make_unique<Descriptor>(type));
    return *parts_.back();
  }
  Tensor tensor(const View& view, cudnnDataType_t type, bool is_virtual, bool by_value) {
    Descriptor& d = add(CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    d.set(CUDNN_ATTR_TENSOR_UNIQUE_ID, ids_++);
    d.set(CUDNN_ATTR_TENSOR_DATA_TYPE, type);
    d.set(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, kAlignment);
    d.set_all(CUDNN_ATTR_TENSOR_DIMENSIONS, std::span<const int64_t>(view.sizes));
    d.set_all(CUDNN_ATTR_TENSOR_STRIDES, std::span<const int64_t>(view.strides));
    d.set(CUDNN_ATTR_TENSOR_IS_VIRTUAL, is_virtual);
    d.set(CUDNN_ATTR_TENSOR_IS_BY_VALUE, by_value);
    d.finalise();
    return {d.handle(), view};
  }

  std::vector<std::unique_ptr<Descriptor>> parts_;
  std::vector<cudnnBackendDescriptor_t> operations_;
  std::vector<int64_t> arguments_;  // their ids
  int64_t ids_ = 1;
};

// A part of packed rows that are `ld` apart: q, k, v, out; a number a row; S and all of its size.
View packed_view(const AttentionShape& s, int64_t ld) {
  return {{s.batch, s.heads, s.tokens, s.head_dim}, {s.tokens * ld, s.head_dim, ld, 1}};
}
View row_view(const AttentionShape& s) {
  return {{s.batch, s.heads, s.tokens, 1}, {s.heads * s.tokens, s.tokens, 1, 1}};
}
View score_view(const AttentionShape& s) {
  return {{s.batch, s.heads, s.tokens, s.tokens},
          {s.heads * s.tokens * s.tokens, s.tokens * s.tokens, s.tokens, 1}};
}

// Arguments: q, k, v, out, scale, and lse where it is wanted.
OperationGraph forward_graph(const AttentionShape& s, bool with_lse) {
  OperationGraph g;
  const View qkv = packed_view(s, s.ld_qkv);
  std::vector<OperationGraph::Attribute> attributes = {
      {CUDNN_ATTR_OPERATION_SDPA_FWD_QDESC, g.argument(qkv).handle},
      {CUDNN_ATTR_OPERATION_SDPA_FWD_KDESC, g.argument(qkv).handle},
      {CUDNN_ATTR_OPERATION_SDPA_FWD_VDESC, g.argument(qkv).handle},
      {CUDNN_ATTR_OPERATION_SDPA_FWD_ODESC, g.argument(packed_view(s, s.ld_out)).handle},
      {CUDNN_ATTR_OPERATION_SDPA_FWD_SCALEDESC, g.number().handle}};
  if (with_lse)
    attributes.push_back({CUDNN_ATTR_OPERATION_SDPA_FWD_STATSDESC,
                          g.argument(row_view(s), CUDNN_DATA_FLOAT).handle});
  g.operation(CUDNN_BACKEND_OPERATION_SDPA_FWD_DESCRIPTOR, attributes);
  return g;
}

// Arguments: q, k, v, out, dout, lse, scale, 1, dq, dk, dv, and D in memory of the plan's own. The
// operations are those that cudnn-frontend's sdpa_backward gives cuDNN, down to the factor of 1,
// without which cuDNN 9.19 keeps one more tokens x tokens matrix in memory.
OperationGraph backward_graph(const AttentionShape& s) {
  OperationGraph g;
  const View qkv = packed_view(s, s.ld_qkv), rows = packed_view(s, s.ld_out);
  const Tensor q = g.argument(qkv);
  const Tensor k = g.argument(qkv.transposed()), v = g.argument(qkv.transposed());
  const Tensor out = g.argument(rows), dout = g.argument(rows);
  const Tensor lse = g.argument(row_view(s), CUDNN_DATA_FLOAT);
  const Tensor scale = g.number(), one = g.number();
  const Tensor dq = g.argument(qkv), dk = g.argument(qkv), dv = g.argument(qkv);
  const Tensor d = g.argument(row_view(s), CUDNN_DATA_FLOAT);

  // D_i = sum_d dO_id O_id, times 1 as without dropout
  const Tensor products = g.pointwise(CUDNN_POINTWISE_MUL, dout, &out);
  g.pointwise_to(d, CUDNN_POINTWISE_MUL, g.sum_of_rows(products, d.view), &one);
  // P = exp(scale Q K^T - lse),  dV = P^T dO
  const Tensor s0 = g.between(score_view(s));
  g.matmul(q, k, s0);
  const Tensor s1 = g.pointwise(CUDNN_POINTWISE_MUL, s0, &scale);
  const Tensor p = g.pointwise(CUDNN_POINTWISE_EXP, g.pointwise(CUDNN_POINTWISE_SUB, s1, &lse));
  g.matmul(g.transpose(p), dout, dv);
  // dS = scale P * (dO V^T - D),  dK = dS^T Q,  dQ = dS K
  const Tensor dp = g.between(score_view(s));
  g.matmul(dout, v, dp);
  const Tensor dp_d = g.pointwise(CUDNN_POINTWISE_SUB, dp, &d);
  const Tensor ds0 = g.pointwise(CUDNN_POINTWISE_MUL, dp_d, &p);
  const Tensor ds = g.pointwise(CUDNN_POINTWISE_MUL, ds0, &scale);
  g.matmul(g.transpose(ds), q, dk);
  g.matmul(ds, g.transpose(k), dq);
  return g;
}

struct Release {
  void operator()(void* memory) const noexcept { release(memory); }
};
using Memory = std::unique_ptr<void, Release>;

Memory allocate_or_throw(int64_t bytes) {
  if (bytes == 0) return nullptr;
  Memory memory(allocate(size_t(bytes)));
  if (!memory)
    throw Error("cuDNN's attention needs " + std::to_string(bytes) +
                " bytes of workspace, more than the GPU has free");
  return memory;
}

// The memory is a plan's own, because a captured step goes on using it.
struct Plan {
  OperationGraph graph;
  std::unique_ptr<Descriptor> execution;  // null: cuDNN has no engine
  Memory workspace, row_sums;             // row_sums: D
};

// What a plan is for: backward, with lse, the shape.
using Key = std::array<int64_t, 8>;

struct DestroyHandle {
  void operator()(cudnnHandle_t h) const noexcept { api()->Destroy(h); }
};

// One a thread, as queues are.
struct Context {
  std::unique_ptr<cudnnContext, DestroyHandle> handle;
  std::map<Key, Plan> plans;

  Context() {
    cudnnHandle_t h = nullptr;
    OF_DNN(Create, &h);
    handle.reset(h);
  }
};

Context& context() {
  thread_local Context c;
  return c;
}

// The heuristic's first engine that compiles; null where there is none.
std::unique_ptr<Descriptor> execution_of(const OperationGraph& graph, cudnnHandle_t handle) {
  Descriptor operations(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
  operations.set(CUDNN_ATTR_OPERATIONGRAPH_HANDLE, handle);
  operations.set_all(CUDNN_ATTR_OPERATIONGRAPH_OPS, graph.operations());
  operations.finalise();
  Descriptor heuristic(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
  heuristic.set(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, operations.handle());
  heuristic.set(CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_HEUR_MODE_A);
  if (!heuristic.finalise_if_supported()) return nullptr;

  std::vector<Descriptor> engines;
  std::vector<cudnnBackendDescriptor_t> handles;
  for (int i = 0; i < 8; ++i)
    handles.push_back(engines.emplace_back(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR).handle());
  const auto found = size_t(heuristic.get_all(CUDNN_ATTR_ENGINEHEUR_RESULTS, std::span(handles)));
  for (size_t i = 0; i < std::min(found, handles.size()); ++i) {
    auto plan = std::make_unique<Descriptor>(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
    plan->set(CUDNN_ATTR_EXECUTION_PLAN_HANDLE, handle);
    plan->set(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, handles[i]);
    if (plan->finalise_if_supported()) return plan;
  }
  return nullptr;
}

Plan make_plan(const AttentionShape& s, bool backward, bool with_lse, cudnnHandle_t handle) {
  Plan plan{backward ? backward_graph(s) : forward_graph(s, with_lse), nullptr, nullptr, nullptr};
  plan.execution = execution_of(plan.graph, handle);
  if (!plan.execution) return plan;
  int64_t bytes = 0;
  plan.execution->get_all(CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, std::span(&bytes, 1));
  plan.workspace = allocate_or_throw(bytes);
  if (backward)
    plan.row_sums = allocate_or_throw(int64_t{sizeof(float)} * s.batch * s.heads * s.tokens);
  return plan;
}

// The calling thread's plan, made when it is first asked for.
const Plan& plan_for(const AttentionShape& s, bool backward, bool with_lse) {
  Context& c = context();
  const Key key = {backward, with_lse, s.batch, s.tokens, s.heads, s.head_dim, s.ld_qkv, s.ld_out};
  auto it = c.plans.find(key);
  if (it == c.plans.end())
    it = c.plans.emplace(key, make_plan(s, backward, with_lse, c.handle.get())).first;
  return it->second;
}

// Queues the plan. A number's address is one in the host's memory and read before this returns.
void execute(const Plan& plan, const std::vector<const void*>& arguments, const Stream& stream) {
  cudnnHandle_t handle = context().handle.get();
  const void* const workspace = plan.workspace.get();
  Descriptor pack(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
  pack.set_all(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, plan.graph.arguments());
  pack.set_all(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, std::span(arguments), CUDNN_TYPE_VOID_PTR);
  pack.set_all(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, std::span(&workspace, 1), CUDNN_TYPE_VOID_PTR);
  pack.finalise();
  OF_DNN(SetStream, handle, static_cast<cudaStream_t>(stream.handle));
  OF_DNN(BackendExecute, handle, plan.execution->handle(), pack.handle());
}

// Is there work, of which cuDNN may read 16 bytes at a time?
bool takes(const AttentionShape& s, std::initializer_list<const void*> addresses) {
  orthofed::check(s);
  const bool packs = s.head_dim % 8 == 0 && s.ld_qkv % 8 == 0 && s.ld_out % 8 == 0;
  return cudnn_found() && s.batch * s.heads > 0 && s.tokens > 1 && packs &&
         std::all_of(addresses.begin(), addresses.end(), [](const void* p) {
           return reinterpret_cast<uintptr_t>(p) % kAlignment == 0;
         });
}

}  // namespace

bool cudnn_found() {
  return api() != nullptr;
}

bool cudnn_asked() {
  static const bool asked =
      peer_asked("OF_ATTENTION", "cudnn", cudnn_found, "libcudnn 9.16 or newer", "OF_CUDNN");
  return asked;
}

bool attention_forward_cudnn(const AttentionForward<bf16>& a, const Stream& stream) {
  if (!takes(a.shape, {a.qkv, a.out, a.lse})) return false;
  const Plan& plan = plan_for(a.shape, false, a.lse != nullptr);
  if (!plan.execution) return false;
  const float scale = float(a.scale);
  const int64_t width = a.shape.heads * a.shape.head_dim;
  std::vector<const void*> arguments = {a.qkv, a.qkv + width, a.qkv + 2 * width, a.out, &scale};
  if (a.lse != nullptr) arguments.push_back(a.lse);
  execute(plan, arguments, stream);
  return true;
}

bool attention_backward_cudnn(const AttentionBackward<bf16>& a, const Stream& stream) {
  if (!takes(a.shape, {a.qkv, a.out, a.dout, a.lse, a.dqkv})) return false;
  const Plan& plan = plan_for(a.shape, true, true);
  if (!plan.execution) return false;
  const float scale = float(a.scale), one = 1;
  const int64_t width = a.shape.heads * a.shape.head_dim;
  const bf16 *k = a.qkv + width, *v = k + width, *dk = a.dqkv + width, *dv = dk + width;
  execute(plan,
          {a.qkv, k, v, a.out, a.dout, a.lse, &scale, &one, a.dqkv, dk, dv, plan.row_sums.get()},
          stream);
  return true;
}

}  // namespace orthofed::cuda
