// A tensor has a shape, a row pitch, a dtype, a device, and shared storage.
//
// It is row-major: the last dimension is contiguous, and consecutive rows (all leading dimensions
// collapsed) are `pitch` elements apart. Rows start at multiples of 16 bytes (those of a mapped
// file start where the file has them), so the pitch may exceed cols; padding columns are zero.
// Copying a Tensor copies the handle, as a view; clone() copies the elements. Column views share
// storage: q, k and v are columns of one packed qkv. New tensors go to the thread's device
// (engine/tensor/device.h); functions that take or give host values copy them. Kernels work on the
// elements; host code reads data<T>() on Device::cpu only.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/tensor/device.h"
#include "engine/tensor/shape.h"
#include "kernels/core/types.h"

namespace orthofed {

class Tensor {
 public:
  Tensor() = default;

  // The elements are uninitialised, the padding is zero.
  static Tensor empty(const Shape& shape, DType dtype, Device device = queue().device);
  static Tensor zeros(const Shape& shape, DType dtype);
  static Tensor full(const Shape& shape, DType dtype, double value);
  static Tensor dense_zeros(const Shape& shape, DType dtype);  // no row padding
  template <class T>
  static Tensor of(std::span<const T> values, const Shape& shape);
  template <class T>
  static Tensor of(const std::vector<T>& values, const Shape& shape) {
    return of(std::span<const T>(values), shape);
  }
  // A view of memory that `owner` keeps alive, such as a mapped file. Dense unless pitch is given.
  static Tensor view(std::shared_ptr<const void> owner, void* data, const Shape& shape, DType dtype,
                     int64_t pitch = 0, Device device = Device::cpu);

  bool defined() const { return data_ != nullptr; }
  const Shape& shape() const { return shape_; }
  int rank() const { return shape_.rank(); }
  int64_t dim(int i) const { return shape_[i]; }
  int64_t rows() const { return shape_.rows(); }
  int64_t cols() const { return shape_.cols(); }
  int64_t size() const { return shape_.size(); }
  int64_t pitch() const { return pitch_; }
  DType dtype() const { return dtype_; }
  Device device() const { return device_; }
  bool dense() const { return pitch_ == cols() || rows() <= 1; }

  // Throws where T is not the dtype. Constness is shallow, as for a span.
  template <class T>
  T* data() const {
    OF_CHECK(dtype_ == DTypeOf<T>::value, wrong_dtype(DTypeOf<T>::value));
    return static_cast<T*>(data_);
  }
  void* raw() const { return data_; }
  template <class T>
  T* row(int64_t i) const {
    return data<T>() + i * pitch_;
  }

  Tensor columns(int64_t begin, int64_t end) const;    // [..., end - begin], same pitch
  Tensor row_range(int64_t begin, int64_t end) const;  // [end - begin, cols]
  Tensor reshape(const Shape& shape) const;  // same elements; a new last dimension needs dense rows

  Tensor clone() const;
  Tensor host_copy() const;        // elements of its own on Device::cpu
  Tensor contiguous() const;       // with dense rows; this tensor itself if its rows are dense
  Tensor to(DType dtype) const;    // this tensor itself if it has the dtype
  Tensor on(Device device) const;  // this tensor itself if it is there
  void copy_from(const Tensor& source) const;  // same shape; converts; from any device
  void fill(double value) const;
  void add(const Tensor& other) const;  // this += other, same shape and floating dtype

  double item() const;                    // the only element
  std::vector<double> to_vector() const;  // all elements in order, without padding
  bool all_finite() const;

 private:
  std::string wrong_dtype(DType wanted) const;

  std::shared_ptr<const void> owner_;
  void* data_ = nullptr;
  Shape shape_;
  int64_t pitch_ = 0;
  DType dtype_ = DType::f32;
  Device device_ = Device::cpu;
};

// The queue for a kernel that works on t: the thread's, which must be of t's device.
const Queue& queue_of(const Tensor& t);
const Queue& queue_of(const Tensor& t, size_t scratch_bytes);

// The dtype of sums and of the residual stream for activations of dtype t.
constexpr DType accum(DType t) {
  return t == DType::f64 ? DType::f64 : DType::f32;
}

template <class T>
struct Tag {
  using type = T;
};

// Calls f(Tag<T>{}), where T is the compute type: double, float or bf16.
template <class F>
decltype(auto) dispatch(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f64:
      return f(Tag<double>{});
    case DType::f32:
      return f(Tag<float>{});
    case DType::bf16:
      return f(Tag<bf16>{});
    default:
      throw Error(std::string("no kernels compute in ") + name_of(dtype));
  }
}

// The same for tensors that are never bf16: parameters, the residual stream, logits.
template <class F>
decltype(auto) dispatch_accum(DType dtype, F&& f) {
  if (dtype == DType::f64) return f(Tag<double>{});
  OF_CHECK(dtype == DType::f32, std::string("expected f32 or f64, not ") + name_of(dtype));
  return f(Tag<float>{});
}

}  // namespace orthofed
