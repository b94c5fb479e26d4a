#include "kernels/matmul/matmul_onednn.h"

#include <array>
#include <dnnl.hpp>
#include <map>
#include <string>
#include <unordered_map>
#include <vector>

#include "kernels/core/check.h"
#include "kernels/core/parallel.h"

namespace orthofed::cpu::onednn {
namespace {

using Desc = dnnl::memory::desc;

template <class T>
constexpr dnnl::memory::data_type type_of = sizeof(T) == 2 ? dnnl::memory::data_type::bf16
                                                           : dnnl::memory::data_type::f32;

const dnnl::engine& engine() {
  static const dnnl::engine cpu(dnnl::engine::kind::cpu, 0);
  return cpu;
}

dnnl::stream& stream() {
  thread_local dnnl::stream in_order(engine());
  return in_order;
}

void* scratch(size_t bytes) {
  thread_local std::vector<std::byte> memory;
  constexpr size_t alignment = 64;
  if (memory.size() < bytes + alignment) memory.resize(bytes + alignment);
  const auto address = reinterpret_cast<uintptr_t>(memory.data());
  return memory.data() + (alignment - address % alignment) % alignment;
}

template <class T>
Desc matrix(int64_t rows, int64_t cols, int64_t ld, Op op) {
  return op == Op::none ? Desc({rows, cols}, type_of<T>, dnnl::memory::dims{ld, 1})
                        : Desc({rows, cols}, type_of<T>, dnnl::memory::dims{1, ld});
}

dnnl::memory::dims dims_of(const Desc& d) {
#if DNNL_VERSION_MAJOR >= 3
  return d.get_dims();
#else
  return d.dims();
#endif
}

dnnl::matmul::primitive_desc describe(const Desc& a, const Desc& b, const Desc& c, bool bias,
                                      bool accumulate) {
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  if (accumulate) {
    dnnl::post_ops sum;
    sum.append_sum(1.0f);
    attributes.set_post_ops(sum);
  }
  const int64_t n = dims_of(c)[1];
  const Desc row =
      bias ? Desc({1, n}, dnnl::memory::data_type::f32, dnnl::memory::dims{n, 1}) : Desc();
#if DNNL_VERSION_MAJOR >= 3
  return {engine(), a, b, row, c, attributes};
#else
  return {dnnl::matmul::desc(a, b, row, c), attributes, engine()};
#endif
}

// One primitive with its arguments, whose addresses are set anew for each call.
class Product {
 public:
  explicit Product(const dnnl::matmul::primitive_desc& description)
      : a_(description.src_desc(), engine(), nullptr),
        b_(description.weights_desc(), engine(), nullptr),
        c_(description.dst_desc(), engine(), nullptr),
        scratch_(description.scratchpad_desc(), engine(), nullptr),
        scratch_bytes_(description.scratchpad_desc().get_size()),
        primitive_(description),
        arguments_{{DNNL_ARG_SRC, a_},
                   {DNNL_ARG_WEIGHTS, b_},
                   {DNNL_ARG_DST, c_},
                   {DNNL_ARG_SCRATCHPAD, scratch_}} {
    const Desc bias = description.query_md(dnnl::query::weights_md, 1);
    if (bias.get_size() == 0) return;
    bias_ = dnnl::memory(bias, engine(), nullptr);
    arguments_.emplace(DNNL_ARG_BIAS, bias_);
  }

  void run(const void* a, const void* b, void* c, const float* bias) {
    a_.set_data_handle(const_cast<void*>(a));
    b_.set_data_handle(const_cast<void*>(b));
    c_.set_data_handle(c);
    if (bias != nullptr) bias_.set_data_handle(const_cast<float*>(bias));
    scratch_.set_data_handle(scratch(scratch_bytes_));
    primitive_.execute(stream(), arguments_);
    stream().wait();
  }

 private:
  dnnl::memory a_, b_, c_, bias_, scratch_;
  size_t scratch_bytes_;
  dnnl::matmul primitive_;
  std::unordered_map<int, dnnl::memory> arguments_;
};

// m, n, k, lda, ldb (0: packed), ldc, options, threads (a primitive may be built for a number).
using Key = std::array<int64_t, 8>;

template <class T, class C>
int64_t options(Op op_a, Op op_b, bool bias, bool accumulate) {
  return (op_a == Op::transpose) | (op_b == Op::transpose) << 1 | bias << 2 | accumulate << 3 |
         (sizeof(T) == 2) << 4 | (sizeof(C) == 2) << 5;
}

template <class Describe>
Product& find_or_make(const Key& key, const Describe& make_description) {
  thread_local std::map<Key, Product> products;
  auto found = products.find(key);
  if (found == products.end()) {
    constexpr size_t limit =
        1024;  // a run has some dozens of shapes; bound what a stranger one keeps
    if (products.size() >= limit) products.clear();
    found = products.emplace(key, Product(make_description())).first;
  }
  return found->second;
}

// oneDNN reports errors as its own exceptions.
template <class F>
auto translate_errors(const F& body) {
  try {
    return body();
  } catch (const dnnl::error& e) {
    throw Error(std::string("oneDNN refused a matrix product: ") + e.what());
  }
}

}  // namespace

bool available() {
  static const Isa level = [] {
#if defined(__x86_64__)
    if (isa() == Isa::v2) dnnl::set_max_cpu_isa(dnnl::cpu_isa::sse41);
    if (isa() == Isa::v3) dnnl::set_max_cpu_isa(dnnl::cpu_isa::avx2);
#endif
    return isa();
  }();
  return isa() == level;
}

template <class T, class C>
void matmul(const Matmul<T, C>& p) {
  translate_errors([&] {
    const MatmulShape& s = p.shape;
    const Key key{s.m,
                  s.n,
                  s.k,
                  s.lda,
                  s.ldb,
                  s.ldc,
                  options<T, C>(s.op_a, s.op_b, p.bias != nullptr, p.accumulate),
                  threads()};
    find_or_make(key, [&] {
      return describe(matrix<T>(s.m, s.k, s.lda, s.op_a), matrix<T>(s.k, s.n, s.ldb, s.op_b),
                      matrix<C>(s.m, s.n, s.ldc, Op::none), p.bias != nullptr, p.accumulate);
    }).run(p.a, p.b, p.c, p.bias);
  });
}

struct Packed {
  dnnl::memory weights;  // [k, n]
};

template <class T>
std::shared_ptr<const Packed> pack(const T* b, int64_t ldb, Op op_b, int64_t k, int64_t n) {
  return translate_errors([&] {
    constexpr int64_t large_m = 1024;
    const Desc any({k, n}, type_of<T>, dnnl::memory::format_tag::any);
    const auto description =
        describe(matrix<T>(large_m, k, k, Op::none), any, matrix<T>(large_m, n, n, Op::none),
                 /*bias=*/true, /*accumulate=*/false);
    auto packed = std::make_shared<Packed>();
    packed->weights = dnnl::memory(description.weights_desc(), engine());
    dnnl::memory source(matrix<T>(k, n, ldb, op_b), engine(), const_cast<T*>(b));
    dnnl::reorder(source, packed->weights).execute(stream(), source, packed->weights);
    stream().wait();
    return std::shared_ptr<const Packed>(std::move(packed));
  });
}

size_t bytes(const Packed& b) {
  return b.weights.get_desc().get_size();
}

template <class T, class C>
void matmul(const T* a, int64_t lda, const Packed& b, C* c, int64_t ldc, const float* bias,
            bool accumulate, int64_t m) {
  translate_errors([&] {
    const Desc weights = b.weights.get_desc();
    const auto size = dims_of(weights);
    const int64_t k = size[0], n = size[1];
    const Key key{
        m,        n, k, lda, 0, ldc, options<T, C>(Op::none, Op::none, bias != nullptr, accumulate),
        threads()};
    find_or_make(key, [&] {
      return describe(matrix<T>(m, k, lda, Op::none), weights, matrix<C>(m, n, ldc, Op::none),
                      bias != nullptr, accumulate);
    }).run(a, b.weights.get_data_handle(), c, bias);
  });
}

const char* version() {
  static const std::string text = [] {
    const dnnl_version_t* v = dnnl_version();
    return "oneDNN " + std::to_string(v->major) + "." + std::to_string(v->minor) + "." +
           std::to_string(v->patch);
  }();
  return text.c_str();
}

template void matmul(const Matmul<float, float>&);
template void matmul(const Matmul<bf16, bf16>&);
template void matmul(const Matmul<bf16, float>&);
template void matmul(const float*, int64_t, const Packed&, float*, int64_t, const float*, bool,
                     int64_t);
template void matmul(const bf16*, int64_t, const Packed&, bf16*, int64_t, const float*, bool,
                     int64_t);
template void matmul(const bf16*, int64_t, const Packed&, float*, int64_t, const float*, bool,
                     int64_t);
template std::shared_ptr<const Packed> pack(const float*, int64_t, Op, int64_t, int64_t);
template std::shared_ptr<const Packed> pack(const bf16*, int64_t, Op, int64_t, int64_t);

}  // namespace orthofed::cpu::onednn
