#include "engine/data/csv.h"

#include <gtest/gtest.h>

#include "kernels/core/check.h"
#include "tests/support/files.h"

namespace orthofed {
namespace {

using Fields = std::vector<std::string>;

testing::AssertionResult refused(const std::string& text, const std::string& reason) {
  return test::user_error([&] { parse_csv(text, "m.csv"); }, {"m.csv", reason});
}

TEST(Csv, PlainAndQuotedFields) {
  const CsvTable table = parse_csv("a,b\n1,2\n\"x, \"\"y\"\"\nz\",\n,\"\"\n", "m.csv");
  EXPECT_EQ(table.header, (Fields{"a", "b"}));
  ASSERT_EQ(table.rows.size(), 3U);
  EXPECT_EQ(table.rows[0].fields, (Fields{"1", "2"}));
  EXPECT_EQ(table.rows[1].fields, (Fields{"x, \"y\"\nz", ""}));
  EXPECT_EQ(table.rows[2].fields, (Fields{"", ""}));
  EXPECT_EQ(table.rows[1].line, 3);
  EXPECT_EQ(table.rows[2].line, 5);  // the field before holds a line break
}

TEST(Csv, LineEndsMarksAndEmptyLines) {
  const CsvTable table = parse_csv(
      "\xef\xbb\xbf"
      "a,b\r\n\r\n1,2\r\n\n3,4",
      "m.csv");
  EXPECT_EQ(table.header, (Fields{"a", "b"}));
  ASSERT_EQ(table.rows.size(), 2U);
  EXPECT_EQ(table.rows[0].fields, (Fields{"1", "2"}));
  EXPECT_EQ(table.rows[0].line, 3);
  EXPECT_EQ(table.rows[1].fields, (Fields{"3", "4"}));
  EXPECT_TRUE(parse_csv("a\n", "m.csv").rows.empty());
}

TEST(Csv, FaultsNameTheLine) {
  EXPECT_TRUE(refused("", "is empty"));
  EXPECT_TRUE(refused("\n\r\n", "is empty"));
  EXPECT_TRUE(refused("a,b,a\n", "line 1: column 'a' appears twice"));
  EXPECT_TRUE(refused("a,b\n1,2\n1\n", "line 3: has 1 fields, the header 2"));
  EXPECT_TRUE(refused("a,b\n1,2,3\n", "line 2: has 3 fields"));
  EXPECT_TRUE(refused("a,b\n1,\"2\n3,4\n", "line 2: a quote is opened"));
  EXPECT_TRUE(refused("a,b\n1,\"2\"x\n", "line 2: has text after a closing quote"));
}

}  // namespace
}  // namespace orthofed
