#include "cli/table.h"

#include <gtest/gtest.h>

#include "kernels/core/check.h"

namespace orthofed::cli {
namespace {

Table example() {
  Table table({"client", "images", "accuracy"});
  table.add_row({"Zürich", "120", "0.91"});
  table.add_row({"東京", "7", "0.8"});
  table.add_rule();
  table.add_row({"mean", "", "0.855"});
  return table;
}

TEST(Table, AlignsByWhatIsShown) {
  EXPECT_EQ(example().text(),
            "client  images  accuracy\n"
            "------  ------  --------\n"
            "Zürich     120      0.91\n"
            "東京         7       0.8\n"
            "------  ------  --------\n"
            "mean               0.855\n");
}

TEST(Table, LeavesNoBlanksAtTheEndOfALine) {
  Table table({"a", "b"}, {Align::left, Align::left});
  table.add_row({"x", ""});
  table.add_row({"y", "long"});
  EXPECT_EQ(table.text(), "a  b\n-  ----\nx\ny  long\n");
}

TEST(Table, Markdown) {
  EXPECT_EQ(example().markdown(),
            "| client | images | accuracy |\n"
            "|---|---:|---:|\n"
            "| Zürich | 120 | 0.91 |\n"
            "| 東京 | 7 | 0.8 |\n"
            "| mean |  | 0.855 |\n");
  Table table({"a|b"});
  table.add_row({"two\nlines"});
  EXPECT_EQ(table.markdown(), "| a\\|b |\n|---|\n| two lines |\n");
}

TEST(Table, WithoutRows) {
  EXPECT_EQ(Table({"a", "b"}).text(), "a  b\n-  -\n");
}

TEST(Table, RefusesRowsOfAnotherLength) {
  Table table({"a", "b"});
  EXPECT_THROW(table.add_row({"x"}), Error);
  EXPECT_THROW(Table({}), Error);
}

}  // namespace
}  // namespace orthofed::cli
