#include "engine/ops/softmax.h"

#include "kernels/softmax/softmax.h"

namespace orthofed {

Var softmax(Tape& tape, const Var& x) {
  const bool needed = tape.needs({&x});
  const Tensor& in = x.value();
  const Tensor out = Tensor::empty(in.shape(), in.dtype());
  dispatch(in.dtype(), [&]<class T>(Tag<T>) {
    of_on(queue_of(in), softmax_forward, T)(in.data<T>(), in.pitch(), out.data<T>(), out.pitch(),
                                            in.rows(), in.cols());
  });
  const Var y = tape.output(out, needed);
  if (needed) {
    tape.record({y}, [x, y] {
      const Tensor dx = y.take_grad();  // in place: dx may be dy
      const Tensor& p = y.value();
      dispatch(p.dtype(), [&]<class T>(Tag<T>) {
        of_on(queue_of(p), softmax_backward, T)(dx.data<T>(), dx.pitch(), p.data<T>(), p.pitch(),
                                                dx.data<T>(), dx.pitch(), p.rows(), p.cols());
      });
      x.give_grad(dx);
    });
  }
  return y;
}

}  // namespace orthofed
