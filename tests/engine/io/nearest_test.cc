#include "engine/io/nearest.h"

#include <gtest/gtest.h>

namespace orthofed {
namespace {

TEST(Nearest, KnowsAMisspeltWord) {
  EXPECT_EQ(edit_distance("", "abc"), 3);
  EXPECT_EQ(edit_distance("kitten", "sitting"), 3);
  EXPECT_EQ(edit_distance("trian", "train"), 1);
  EXPECT_EQ(nearest_name("rouns", {"seed", "rounds"}), "rounds");
  EXPECT_EQ(nearest_name("ab", {"cd"}), "");
  EXPECT_EQ(nearest_name("completely", {"rounds", "seed"}), "");
  EXPECT_EQ(nearest_name("lr", {"lora"}), "");
  EXPECT_EQ(nearest_name("", {"ab", ""}), "");
}

TEST(Nearest, SuggestsWhatIsNear) {
  const std::vector<std::string> known{"basophil", "eosinophil", "monocyte"};
  EXPECT_EQ(nearest_name("Basofil", known), "basophil");
  EXPECT_EQ(nearest_name("eosinophils", known), "eosinophil");
  EXPECT_EQ(nearest_name("platelet", known), "");
  EXPECT_EQ(nearest_name("", known), "");
  EXPECT_EQ(nearest_name("x", {}), "");
  EXPECT_EQ(suggestion("x", {}), "");
  EXPECT_EQ(suggestion("platelet", {"a", "b"}), "; known: a, b");
}

}  // namespace
}  // namespace orthofed
