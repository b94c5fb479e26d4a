#include "cli/terminal/table.h"

#include <gtest/gtest.h>

#include "cli/terminal/time_table.h"
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

TimeSplit split(std::initializer_list<std::pair<Activity, double>> parts) {
  TimeSplit time;
  for (const auto& [activity, seconds] : parts) time[activity] = seconds;
  return time;
}

TEST(TimeTable, PerCentAddUp) {
  const TimeSplit thirds =
      split({{Activity::set_up, 1}, {Activity::training, 1}, {Activity::waiting, 1}});
  EXPECT_EQ(shares(thirds, 100), (std::vector<int>{34, 0, 33, 0, 0, 0, 0, 33, 0}));
  EXPECT_EQ(shares(thirds, 1), (std::vector<int>{1, 0, 0, 0, 0, 0, 0, 0, 0}));
  EXPECT_EQ(shares(TimeSplit{}, 100), std::vector<int>(9, 0));

  // Nobody communicated for half a per cent: no column.
  const TimeSplit a = split({{Activity::set_up, 10},
                             {Activity::training, 184.3},
                             {Activity::communication, 0.7},
                             {Activity::waiting, 5}});
  const TimeSplit server = split({{Activity::waiting, 200}});
  EXPECT_EQ(time_table({{"a", a}, {"server", server}}),
            "time    set-up  training  waiting       total\n"
            "------  ------  --------  -------  ----------\n"
            "a          5 %      92 %      3 %  3 min 20 s\n"
            "server     0 %       0 %    100 %  3 min 20 s\n");
}

TEST(TimeTable, BarsAreStacked) {
  const TimeSplit a = split({{Activity::training, 3}, {Activity::waiting, 1}});
  EXPECT_EQ(time_table({{"a", a}}, true),
            "time  training  waiting  total\n"
            "----  --------  -------  -----  ----------------------------------------\n"
            "a         75 %     25 %    4 s  TTTTTTTTTTTTTTTTTTTTTTTTTTTTTT..........\n"
            "T training, . waiting\n");
}

TEST(Table, RefusesRowsOfAnotherLength) {
  Table table({"a", "b"});
  EXPECT_THROW(table.add_row({"x"}), Error);
  EXPECT_THROW(Table({}), Error);
}

}  // namespace
}  // namespace orthofed::cli
