// A Watch sees every kernel call of a queue: what the call was given and what it left behind
// (engine/tensor/watch.h has the two watches that exist). OF_RUN shows it each argument in turn.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

#include "kernels/core/cost.h"
#include "kernels/core/fields.h"
#include "kernels/core/types.h"

namespace orthofed {

class Watch {
 public:
  virtual ~Watch() = default;
  virtual void begin(const char* kernel) = 0;
  // A pointer to elements of `dtype`; the kernel writes through it if `output`. Returns its twin in
  // host memory, with the same contents.
  virtual void* pointer(const void* device, DType dtype, bool output) = 0;
  // The type of the elements at the last pointer, where the type is an argument of its own.
  virtual void type(DType dtype) = 0;
  // An array of items. Returns a copy in host memory of all that follows in its block of memory,
  // in which pointers then become their twins; empty where the block is unknown.
  virtual std::span<std::byte> list(const void* device) = 0;
  virtual void number(int64_t value) = 0;  // sizes, pitches, flags
  virtual void opaque() = 0;               // a class that may hide a pointer: no twin can be made
  // All arguments have been shown and the kernel runs now.
  virtual void run(const Cost& cost) = 0;
  // The GPU's kernel has run. Shall the CPU's run on the twins?
  virtual bool ran() = 0;
  virtual void end() = 0;
};

enum class Show : uint8_t { all, pointers };

// Shows x, member by member where it is a struct, and replaces its pointers by their twins.
template <class X>
void show(Watch& watch, X& x, Show what) {
  if constexpr (std::is_pointer_v<X>) {
    using Element = std::remove_cv_t<std::remove_pointer_t<X>>;
    constexpr bool output = !std::is_const_v<std::remove_pointer_t<X>>;
    if (x == nullptr) return;
    if constexpr (requires { DTypeOf<Element>::value; }) {
      x = static_cast<X>(watch.pointer(x, DTypeOf<Element>::value, output));
    } else if constexpr (std::is_void_v<Element> || std::is_arithmetic_v<Element>) {
      x = static_cast<X>(watch.pointer(x, DType::u8, output));
    } else {
      const std::span<std::byte> bytes = watch.list(x);
      if (bytes.empty()) return;
      auto* const items = reinterpret_cast<Element*>(bytes.data());
      for (size_t i = 0; i < bytes.size() / sizeof(Element); ++i)
        show(watch, items[i], Show::pointers);
      x = items;
    }
  } else if constexpr (HasFields<X>) {
    each_field(x, [&](auto& field) { show(watch, field, what); });
  } else if constexpr (std::is_same_v<X, DType>) {
    watch.type(x);
  } else if constexpr (std::is_arithmetic_v<X>) {
    if (what == Show::all) watch.number(int64_t(x));
  } else if constexpr (std::is_class_v<X> && !std::is_aggregate_v<X> &&
                       !requires { DTypeOf<X>::value; }) {
    watch.opaque();
  }
}

// Returns the argument as the CPU's kernel gets it: pointers become their twins.
template <class X>
X shown(Watch& watch, const X& argument) {
  X twin = argument;
  show(watch, twin, Show::all);
  return twin;
}

}  // namespace orthofed
