#include "engine/ops/softmax.h"

#include "kernels/softmax/softmax.h"

namespace orthofed {

Var softmax(Tape& tape, const Var& x) {
  const bool needed = tape.needs({&x});
  const Tensor& in = x.value();
  const Tensor out = Tensor::empty(in.shape(), in.dtype());
  dispatch(in.dtype(), [&]<class T>(Tag<T>) {
    OF_RUN(queue_of(in), softmax_forward,
           SoftmaxForward<T>{.x = in.data<T>(),
                             .ldx = in.pitch(),
                             .y = out.data<T>(),
                             .ldy = out.pitch(),
                             .rows = in.rows(),
                             .cols = in.cols()});
  });
  const Var y = tape.output(out, needed);
  if (needed) {
    tape.record({y}, [x, y] {
      const Tensor dx = y.take_grad();  // in place: dx may be dy
      const Tensor& p = y.value();
      dispatch(p.dtype(), [&]<class T>(Tag<T>) {
        OF_RUN(queue_of(p), softmax_backward,
               SoftmaxBackward<T>{.dy = dx.data<T>(),
                                  .lddy = dx.pitch(),
                                  .y = p.data<T>(),
                                  .ldy = p.pitch(),
                                  .dx = dx.data<T>(),
                                  .lddx = dx.pitch(),
                                  .rows = p.rows(),
                                  .cols = p.cols()});
      });
      x.give_grad(dx);
    });
  }
  return y;
}

}  // namespace orthofed
