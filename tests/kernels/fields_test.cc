#include "kernels/core/fields.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/core/types.h"

namespace orthofed::test {
namespace {

enum class Kind { plain, other };
struct Sizes {
  int64_t m = 0, n = 0;
  Kind kind = Kind::plain;
  int64_t size() const { return m * n; }
};
struct Nothing {};
struct One {
  double* value;
};
// One member of each sort that contracts have, some with defaults and some without.
template <class T>
struct Many {
  const Accum<T>* x;
  int64_t ldx;
  T *y, *z = nullptr;
  bool accumulate;
  double eps = 1e-6;
  Kind kind = Kind::other;
  Sizes sizes;
  std::array<Sizes, 3> parts = {};
  bf16 value;
  const float* const* list = nullptr;
};
struct Long {
  char a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t, u, v, w, x;
};
class Closed {
 public:
  int64_t size() const { return size_; }

 private:
  int64_t size_ = 0;
};

// Where each_field finds the members, in bytes from the beginning.
template <class X>
std::vector<size_t> offsets() {
  X x{};
  std::vector<size_t> found;
  each_field(x, [&](auto& field) {
    found.push_back(
        size_t(reinterpret_cast<std::byte*>(&field) - reinterpret_cast<std::byte*>(&x)));
  });
  return found;
}

TEST(Fields, VisitsEveryMemberInOrder) {
  using M = Many<float>;
  EXPECT_EQ(offsets<M>(),
            (std::vector<size_t>{offsetof(M, x), offsetof(M, ldx), offsetof(M, y), offsetof(M, z),
                                 offsetof(M, accumulate), offsetof(M, eps), offsetof(M, kind),
                                 offsetof(M, sizes), offsetof(M, parts), offsetof(M, value),
                                 offsetof(M, list)}));
  EXPECT_EQ(offsets<Sizes>(),
            (std::vector<size_t>{offsetof(Sizes, m), offsetof(Sizes, n), offsetof(Sizes, kind)}));
  EXPECT_EQ(offsets<One>(), std::vector<size_t>{0});
  EXPECT_TRUE(offsets<Nothing>().empty());
  std::vector<size_t> all;
  for (size_t i = 0; i < sizeof(Long); ++i) all.push_back(i);
  EXPECT_EQ(offsets<Long>(), all);
}

TEST(Fields, ChangesTheStruct) {
  Sizes s{.m = 2, .n = 3};
  each_field(s, [](auto& field) {
    if constexpr (std::is_same_v<decltype(field), int64_t&>) field *= 10;
  });
  EXPECT_EQ(s.m, 20);
  EXPECT_EQ(s.n, 30);
}

TEST(Fields, AreThoseOfPlainStructsAlone) {
  EXPECT_TRUE(HasFields<Many<double>>);
  EXPECT_FALSE(HasFields<Closed>);
  EXPECT_FALSE((HasFields<std::array<float*, 2>>));
  EXPECT_FALSE(HasFields<bf16>);
  EXPECT_FALSE(HasFields<float*>);
}

}  // namespace
}  // namespace orthofed::test
