#include "bench/support/onednn.h"

#ifdef OF_HAVE_ONEDNN
#include <dnnl.hpp>
#include <memory>
#include <unordered_map>

namespace orthofed::bench::onednn {
namespace {

using Desc = dnnl::memory::desc;

const dnnl::engine& engine() {
  static const dnnl::engine cpu(dnnl::engine::kind::cpu, 0);
  return cpu;
}

Desc matrix(int64_t rows, int64_t cols) {
  return {{rows, cols}, dnnl::memory::data_type::f32, dnnl::memory::dims{cols, 1}};
}

// A description of the primitive P: what 2.x makes in two steps.
template <class P, class... A>
typename P::primitive_desc describe(const A&... a) {
#if DNNL_VERSION_MAJOR >= 3
  return {engine(), a...};
#else
  return {typename P::desc(a...), engine()};
#endif
}

struct Operand {
  int argument;
  Desc desc;
  Array<float>* array;
};

// Runs the primitive on the arrays as they are selected then. make() may refuse.
template <class Make>
Bench::Run runner(Bench& b, std::vector<Operand> operands, const Make& make) {
  if (b.queue().device != Device::cpu) return {};
  try {
    const auto primitive = make();
    std::unordered_map<int, dnnl::memory> arguments;
    for (const Operand& o : operands)
      arguments.emplace(o.argument, dnnl::memory(o.desc, engine(), nullptr));
    dnnl::stream stream(engine());
    return [=]() mutable {
      for (const Operand& o : operands) arguments.at(o.argument).set_data_handle(o.array->data());
      primitive.execute(stream, arguments);
      stream.wait();
    };
  } catch (const dnnl::error&) {
    return {};  // this oneDNN has no such primitive for this processor: no peer
  }
}

constexpr dnnl::algorithm kGelu = dnnl::algorithm::eltwise_gelu_erf;

dnnl::eltwise_forward::primitive_desc gelu_forward(const Desc& flat) {
#if DNNL_VERSION_MAJOR >= 3
  return describe<dnnl::eltwise_forward>(dnnl::prop_kind::forward_training, kGelu, flat, flat, 0.f,
                                         0.f);
#else
  return describe<dnnl::eltwise_forward>(dnnl::prop_kind::forward_training, kGelu, flat, 0.f, 0.f);
#endif
}

}  // namespace

Bench::Run softmax(Bench& b, Array<float>& x, Array<float>& y, int64_t rows, int64_t cols) {
  const Desc m = matrix(rows, cols);
  return runner(b, {{DNNL_ARG_SRC, m, &x}, {DNNL_ARG_DST, m, &y}}, [&] {
#if DNNL_VERSION_MAJOR >= 3
    using P = dnnl::softmax_forward;
#else
    using P = dnnl::softmax_v2_forward;
#endif
    return P(describe<P>(dnnl::prop_kind::forward_inference, dnnl::algorithm::softmax_accurate, m,
                         m, 1));
  });
}

Bench::Run layer_norm(Bench& b, Array<float>& x, Array<float>& gamma, Array<float>& beta,
                      Array<float>& y, int64_t rows, int64_t cols, double eps) {
  const Desc m = matrix(rows, cols);
  const Desc row({cols}, dnnl::memory::data_type::f32, dnnl::memory::dims{1});
  return runner(
      b,
      {{DNNL_ARG_SRC, m, &x},
       {DNNL_ARG_SCALE, row, &gamma},
       {DNNL_ARG_SHIFT, row, &beta},
       {DNNL_ARG_DST, m, &y}},
      [&] {
        using P = dnnl::layer_normalization_forward;
        using Flags = dnnl::normalization_flags;
        const Flags flags = Flags::use_scale | Flags::use_shift;
#if DNNL_VERSION_MAJOR >= 3
        return P(describe<P>(dnnl::prop_kind::forward_inference, m, m, float(eps), flags));
#else
        return P(describe<P>(dnnl::prop_kind::forward_inference, m, float(eps), flags));
#endif
      });
}

Bench::Run gelu(Bench& b, Array<float>& x, Array<float>& y, int64_t n) {
  const Desc flat = matrix(1, n);
  return runner(b, {{DNNL_ARG_SRC, flat, &x}, {DNNL_ARG_DST, flat, &y}},
                [&] { return dnnl::eltwise_forward(gelu_forward(flat)); });
}

Bench::Run gelu_backward(Bench& b, Array<float>& dy, Array<float>& x, Array<float>& dx, int64_t n) {
  const Desc flat = matrix(1, n);
  return runner(
      b, {{DNNL_ARG_DIFF_DST, flat, &dy}, {DNNL_ARG_SRC, flat, &x}, {DNNL_ARG_DIFF_SRC, flat, &dx}},
      [&] {
        using P = dnnl::eltwise_backward;
        const auto forward = gelu_forward(flat);
#if DNNL_VERSION_MAJOR >= 3
        return P({engine(), kGelu, flat, flat, flat, 0.f, 0.f, forward});
#else
        return P({P::desc(kGelu, flat, flat, 0.f, 0.f), engine(), forward});
#endif
      });
}

Bench::Run sum(Bench& b, Array<float>& x, Array<float>& out, int64_t n) {
  const Desc row = matrix(1, n), one = matrix(1, 1);
  return runner(b, {{DNNL_ARG_SRC, row, &x}, {DNNL_ARG_DST, one, &out}}, [&] {
    using P = dnnl::reduction;
    return P(describe<P>(dnnl::algorithm::reduction_sum, row, one, 0.f, 0.f));
  });
}

}  // namespace orthofed::bench::onednn

#else
namespace orthofed::bench::onednn {

Bench::Run softmax(Bench&, Array<float>&, Array<float>&, int64_t, int64_t) {
  return {};
}
Bench::Run layer_norm(Bench&, Array<float>&, Array<float>&, Array<float>&, Array<float>&, int64_t,
                      int64_t, double) {
  return {};
}
Bench::Run gelu(Bench&, Array<float>&, Array<float>&, int64_t) {
  return {};
}
Bench::Run gelu_backward(Bench&, Array<float>&, Array<float>&, Array<float>&, int64_t) {
  return {};
}
Bench::Run sum(Bench&, Array<float>&, Array<float>&, int64_t) {
  return {};
}

}  // namespace orthofed::bench::onednn
#endif
