// From a dtype to a type, and from one type's number to another's: shared by CPU and GPU.
#pragma once
#include <cmath>
#include <limits>
#include <type_traits>

#include "kernels/core/check.h"
#include "kernels/core/host_device.h"
#include "kernels/core/types.h"

namespace orthofed {

// Calls f(std::type_identity<T>{}) with T the type of that name.
template <class F>
void with_type(DType type, F&& f) {
  switch (type) {
    case DType::f64:
      return f(std::type_identity<double>{});
    case DType::f32:
      return f(std::type_identity<float>{});
    case DType::bf16:
      return f(std::type_identity<bf16>{});
    case DType::f16:
      return f(std::type_identity<f16>{});
    case DType::i32:
      return f(std::type_identity<int32_t>{});
    case DType::u8:
      return f(std::type_identity<uint8_t>{});
  }
  throw Error("unknown dtype");
}

// The cast of elementwise.h.
template <class To, class From>
OF_HOST_DEVICE inline To convert(From x) {
  if constexpr (std::is_same_v<From, To>) {
    return x;
  } else if constexpr (std::is_integral_v<From>) {
    if constexpr (std::is_integral_v<To> || std::is_floating_point_v<To>)
      return To(x);
    else
      return To(float(x));
  } else if constexpr (std::is_integral_v<To>) {
    using Number = std::conditional_t<std::is_same_v<From, double>, double, float>;
    using Range = std::numeric_limits<To>;
    const auto number = Number(x);
    if (number != number) return 0;
    if (number <= Number(Range::min())) return Range::min();
    if (number >= Number(Range::max() / 2 + 1) * 2) return Range::max();
    return To(number);
  } else if constexpr (std::is_same_v<To, double>) {
    if constexpr (std::is_same_v<From, float>)
      return double(x);
    else
      return double(float(x));
  } else {
    return To(float(x));
  }
}

}  // namespace orthofed
