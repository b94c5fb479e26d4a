// each_field(x, f) calls f with every member of a plain struct, in order, so that no struct has to
// list its own members and none can be forgotten.
//
// C++20 has no reflection. But it tells whether S{a, b, c} compiles, which gives the number of
// members, and a structured binding of that many names gives the members. A struct with an array
// T x[n] in it does not compile here; std::array<T, n> does.
#pragma once
#include <array>
#include <type_traits>

namespace orthofed {

// A struct that each_field looks into. A std::array is a value by itself.
template <class X>
concept HasFields = std::is_class_v<X> && std::is_aggregate_v<X> && !requires {
  std::tuple_size<X>::value;
};

struct AnyField {
  template <class Member>
  operator Member() const;  // never called: it only has to look convertible
};

template <HasFields X, class... Found>
constexpr int number_of_fields() {
  if constexpr (std::is_empty_v<X>)
    return 0;
  else if constexpr (requires { X{Found{}..., AnyField{}}; })
    return number_of_fields<X, Found..., AnyField>();
  else
    return int(sizeof...(Found));
}

template <HasFields X, class F>
constexpr void each_field(X& x, const F& visit) {
  constexpr int count = number_of_fields<X>();
  const auto each = [&](auto&... fields) { (visit(fields), ...); };
#define OF_FIELDS(n, ...)     \
  if constexpr (count == n) { \
    auto& [__VA_ARGS__] = x;  \
    each(__VA_ARGS__);        \
  }
  OF_FIELDS(1, a)
  OF_FIELDS(2, a, b)
  OF_FIELDS(3, a, b, c)
  OF_FIELDS(4, a, b, c, d)
  OF_FIELDS(5, a, b, c, d, e)
  OF_FIELDS(6, a, b, c, d, e, f)
  OF_FIELDS(7, a, b, c, d, e, f, g)
  OF_FIELDS(8, a, b, c, d, e, f, g, h)
  OF_FIELDS(9, a, b, c, d, e, f, g, h, i)
  OF_FIELDS(10, a, b, c, d, e, f, g, h, i, j)
  OF_FIELDS(11, a, b, c, d, e, f, g, h, i, j, k)
  OF_FIELDS(12, a, b, c, d, e, f, g, h, i, j, k, l)
  OF_FIELDS(13, a, b, c, d, e, f, g, h, i, j, k, l, m)
  OF_FIELDS(14, a, b, c, d, e, f, g, h, i, j, k, l, m, n)
  OF_FIELDS(15, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o)
  OF_FIELDS(16, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p)
  OF_FIELDS(17, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q)
  OF_FIELDS(18, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r)
  OF_FIELDS(19, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s)
  OF_FIELDS(20, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t)
  OF_FIELDS(21, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t, u)
  OF_FIELDS(22, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t, u, v)
  OF_FIELDS(23, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t, u, v, w)
  OF_FIELDS(24, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t, u, v, w, y)
#undef OF_FIELDS
  static_assert(count <= 24, "one more line is needed above");
}

}  // namespace orthofed
