#include "engine/tensor/tensor.h"

#include <fmt/core.h>

#include "engine/tensor/allocator.h"
#include "kernels/elementwise/elementwise.h"

namespace orthofed {
namespace {

constexpr int64_t kRowAlignment = 16;  // bytes

int64_t padded(int64_t cols, DType dtype) {
  const int64_t step = kRowAlignment / int64_t(size_of(dtype));
  return (cols + step - 1) / step * step;
}

void check_device(const Tensor& t) {
  OF_CHECK(t.device() == queue().device,
           fmt::format("a tensor on device {} meets a thread on device {}", name_of(t.device()),
                       name_of(queue().device)));
}

}  // namespace

const Queue& queue_of(const Tensor& t) {
  check_device(t);
  return queue();
}

const Queue& queue_of(const Tensor& t, size_t scratch_bytes) {
  check_device(t);
  return queue_with_scratch(scratch_bytes);
}

std::string Shape::str() const {
  std::string s = "[";
  for (int i = 0; i < rank_; ++i) s += fmt::format("{}{}", i ? ", " : "", dims_[size_t(i)]);
  return s + "]";
}

std::string Tensor::wrong_dtype(DType wanted) const {
  return fmt::format("tensor is {}, asked for as {}", name_of(dtype_), name_of(wanted));
}

Tensor Tensor::empty(const Shape& shape, DType dtype, Device device) {
  Tensor t;
  t.shape_ = shape;
  t.dtype_ = dtype;
  t.device_ = device;
  t.pitch_ = padded(shape.cols(), dtype);
  const size_t bytes = size_t(shape.rows() * t.pitch_) * size_of(dtype);
  t.data_ = allocate(bytes, device);
  t.owner_ = std::shared_ptr<const void>(
      t.data_, [bytes, device](const void* p) { release(const_cast<void*>(p), bytes, device); });
  if (const int64_t slack = t.pitch_ - shape.cols(); slack > 0) {
    const size_t element = size_of(dtype), pitch = size_t(t.pitch_) * element;
    zero_rows(static_cast<char*>(t.data_) + size_t(shape.cols()) * element, device, pitch,
              size_t(slack) * element, size_t(shape.rows()));
  }
  return t;
}

Tensor Tensor::zeros(const Shape& shape, DType dtype) {
  Tensor t = empty(shape, dtype);
  const size_t bytes = size_t(t.rows() * t.pitch_) * size_of(dtype);
  zero_rows(t.data_, t.device_, bytes, bytes, 1);
  return t;
}

Tensor Tensor::dense_zeros(const Shape& shape, DType dtype) {
  return zeros({shape.size()}, dtype).reshape(shape);
}

Tensor Tensor::full(const Shape& shape, DType dtype, double value) {
  Tensor t = empty(shape, dtype);
  t.fill(value);
  return t;
}

template <class T>
Tensor Tensor::of(std::span<const T> values, const Shape& shape) {
  OF_CHECK(int64_t(values.size()) == shape.size(), "as many values as elements");
  Tensor t = empty(shape, DTypeOf<T>::value);
  const size_t width = size_t(t.cols()) * sizeof(T);
  copy_rows(t.data_, t.device_, size_t(t.pitch_) * sizeof(T), values.data(), Device::cpu, width,
            width, size_t(t.rows()));
  return t;
}
template Tensor Tensor::of<double>(std::span<const double>, const Shape&);
template Tensor Tensor::of<float>(std::span<const float>, const Shape&);
template Tensor Tensor::of<bf16>(std::span<const bf16>, const Shape&);
template Tensor Tensor::of<f16>(std::span<const f16>, const Shape&);
template Tensor Tensor::of<int32_t>(std::span<const int32_t>, const Shape&);
template Tensor Tensor::of<uint8_t>(std::span<const uint8_t>, const Shape&);

Tensor Tensor::view(std::shared_ptr<const void> owner, void* data, const Shape& shape, DType dtype,
                    int64_t pitch, Device device) {
  Tensor t;
  t.device_ = device;
  t.owner_ = std::move(owner);
  t.data_ = data;
  t.shape_ = shape;
  t.dtype_ = dtype;
  t.pitch_ = pitch == 0 ? shape.cols() : pitch;
  OF_CHECK(t.pitch_ >= shape.cols(), "pitch below the row length");
  return t;
}

Tensor Tensor::columns(int64_t begin, int64_t end) const {
  OF_CHECK(0 <= begin && begin <= end && end <= cols(), "columns out of range");
  Tensor t = *this;
  int64_t dims[Shape::kMaxRank];
  for (int i = 0; i < rank(); ++i) dims[i] = dim(i);
  dims[rank() - 1] = end - begin;
  t.shape_ = Shape(dims, rank());
  t.data_ = static_cast<char*>(data_) + size_t(begin) * size_of(dtype_);
  return t;
}

Tensor Tensor::row_range(int64_t begin, int64_t end) const {
  OF_CHECK(0 <= begin && begin <= end && end <= rows(), "rows out of range");
  Tensor t = *this;
  t.shape_ = Shape{end - begin, cols()};
  t.data_ = static_cast<char*>(data_) + size_t(begin * pitch_) * size_of(dtype_);
  return t;
}

Tensor Tensor::reshape(const Shape& shape) const {
  OF_CHECK(shape.size() == size(),
           fmt::format("cannot reshape {} to {}", shape_.str(), shape.str()));
  Tensor t = *this;
  if (shape.cols() != cols()) {
    OF_CHECK(dense(), "only dense rows can be cut anew");
    t.pitch_ = shape.cols();
  }
  t.shape_ = shape;
  return t;
}

Tensor Tensor::clone() const {
  Tensor t = empty(shape_, dtype_, device_);
  t.copy_from(*this);
  return t;
}

Tensor Tensor::host_copy() const {
  return device_ == Device::cpu ? clone() : on(Device::cpu);
}

Tensor Tensor::contiguous() const {
  if (dense()) return *this;
  Tensor t = empty({size()}, dtype_, device_).reshape(shape_);
  t.copy_from(*this);
  return t;
}

Tensor Tensor::to(DType dtype) const {
  if (dtype == dtype_) return *this;
  Tensor t = empty(shape_, dtype, device_);
  t.copy_from(*this);
  return t;
}

Tensor Tensor::on(Device device) const {
  if (device == device_) return *this;
  Tensor t = empty(shape_, dtype_, device);
  t.copy_from(*this);
  return t;
}

void Tensor::copy_from(const Tensor& source) const {
  OF_CHECK(source.rows() == rows() && source.cols() == cols(),
           fmt::format("cannot copy {} to {}", source.shape().str(), shape_.str()));
  if (source.dtype() == dtype_) {
    const size_t element = size_of(dtype_);
    return copy_rows(data_, device_, size_t(pitch_) * element, source.raw(), source.device(),
                     size_t(source.pitch()) * element, size_t(cols()) * element, size_t(rows()));
  }
  if (source.device() != device_)  // a file's f64 is rounded before it travels
    return copy_from(source.device() == Device::cpu ? source.to(dtype_) : source.on(device_));
  OF_RUN(queue_on(device_), cast,
         Cast{.x = source.raw(),
              .x_type = source.dtype(),
              .ldx = source.pitch(),
              .y = data_,
              .y_type = dtype_,
              .ldy = pitch_,
              .rows = rows(),
              .cols = cols()});
}

void Tensor::fill(double value) const {
  OF_RUN(queue_on(device_), fill,
         Fill{.value = value,
              .y = data_,
              .type = dtype_,
              .ldy = pitch_,
              .rows = rows(),
              .cols = cols()});
}

void Tensor::add(const Tensor& other) const {
  OF_CHECK(other.rows() == rows() && other.cols() == cols() && other.dtype() == dtype_,
           fmt::format("cannot add {} to {}", other.shape().str(), shape_.str()));
  if (other.device() != device_) return add(other.on(device_));
  dispatch(dtype_, [&]<class T>(Tag<T>) {
    OF_RUN(queue_on(device_), add,
           Add<T>{.x = other.data<T>(),
                  .ldx = other.pitch(),
                  .y = data<T>(),
                  .ldy = pitch_,
                  .rows = rows(),
                  .cols = cols()});
  });
}

double Tensor::item() const {
  OF_CHECK(size() == 1, "item() of a tensor with one element");
  return to_vector().front();
}

std::vector<double> Tensor::to_vector() const {
  if (device_ != Device::cpu) return on(Device::cpu).to_vector();
  std::vector<double> values(static_cast<size_t>(size()));
  cpu::cast(Cast{.x = data_,
                 .x_type = dtype_,
                 .ldx = pitch_,
                 .y = values.data(),
                 .y_type = DType::f64,
                 .ldy = cols(),
                 .rows = rows(),
                 .cols = cols()});
  return values;
}

bool Tensor::all_finite() const {
  const Tensor answer = empty({1}, DType::i32, device_);
  OF_RUN(queue_on(device_), all_finite,
         AllFinite{.x = data_,
                   .type = dtype_,
                   .ldx = pitch_,
                   .finite = answer.data<int32_t>(),
                   .rows = rows(),
                   .cols = cols()});
  return answer.item() != 0;
}

}  // namespace orthofed
