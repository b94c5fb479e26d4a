// Messages below cli/ name configuration keys and files, never an option or a command of the command
// line: who calls the library from elsewhere has neither.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <regex>
#include <string>
#include <vector>

namespace {

namespace fs = std::filesystem;

// Every string of a source, comments left out, parts that stand side by side joined. Without raw
// strings' delimiters, which this tree does not use.
std::vector<std::string> strings_in(const std::string& source) {
  std::vector<std::string> found;
  bool side_by_side = false;
  for (size_t i = 0; i < source.size();) {
    const bool raw = source.compare(i, 3, "R\"(") == 0;
    if (source.compare(i, 2, "//") == 0) {
      i = std::min(source.find('\n', i), source.size());
    } else if (source.compare(i, 2, "/*") == 0) {
      i = std::min(source.find("*/", i), source.size() - 2) + 2;
    } else if (raw || source[i] == '"') {
      std::string text;
      i += raw ? 3 : 1;
      while (i < source.size() && source.compare(i, raw ? 2 : 1, raw ? ")\"" : "\"") != 0) {
        if (!raw && source[i] == '\\') ++i;
        text += source[i++];
      }
      i += raw ? 2 : 1;
      if (side_by_side)
        found.back() += text;
      else
        found.push_back(text);
      side_by_side = true;
    } else if (source[i] == '\'' && (i == 0 || !std::isalnum(source[i - 1]))) {  // not 1'000
      i += source.compare(i + 1, 1, "\\") == 0 ? 4 : 3;
      side_by_side = false;
    } else {
      side_by_side = side_by_side && std::isspace(source[i]);
      ++i;
    }
  }
  return found;
}

// "FILE: the text" of each that speaks of the command line.
std::vector<std::string> violations_in(const fs::path& root) {
  static const std::regex command_line(
      "(^|[^-a-z])--[a-z]|\\borthofed "
      "(run|serve|join|train|eval|predict|export|import|inspect|check|"
      "demo|report|doctor|config)\\b");
  std::vector<std::string> out;
  for (const char* layer : {"kernels", "engine", "models", "federation"}) {
    if (!fs::is_directory(root / layer)) continue;
    for (const auto& entry : fs::recursive_directory_iterator(root / layer)) {
      const std::string extension = entry.path().extension();
      if (extension != ".h" && extension != ".cc") continue;
      std::ifstream in(entry.path(), std::ios::binary);
      const std::string source((std::istreambuf_iterator<char>(in)), {});
      for (const std::string& text : strings_in(source)) {
        if (text.rfind("<!-- Written by", 0) == 0) continue;  // a file that says how it is made
        if (std::regex_search(text, command_line))
          out.push_back(fs::relative(entry.path(), root).string() + ": " + text);
      }
    }
  }
  return out;
}

TEST(Messages, BelowTheCommandLineDoNotSpeakOfIt) {
  for (const std::string& violation : violations_in(OF_SOURCE_DIR)) ADD_FAILURE() << violation;
}

class PlantedMessage : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (fs::temp_directory_path() / "messages_XXXXXX").string();
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    root_ = pattern;
  }
  void TearDown() override { fs::remove_all(root_); }
  std::vector<std::string> found(const std::string& path, const std::string& source) {
    fs::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << source;
    return violations_in(root_);
  }
  using Found = std::vector<std::string>;
  fs::path root_;
};

TEST_F(PlantedMessage, AnOption) {
  EXPECT_EQ(found("models/a.cc", R"(throw UserError(path + ": choose another --out");)"),
            Found{"models/a.cc: : choose another --out"});
}

TEST_F(PlantedMessage, ACommandThatIsCutInTwo) {
  EXPECT_EQ(
      found("federation/net/a.cc", "f(\"start `orthofed \"  // why\n      \"serve` there\");"),
      Found{"federation/net/a.cc: start `orthofed serve` there"});
}

TEST_F(PlantedMessage, ARawString) {
  EXPECT_EQ(found("engine/a.h", "g('\"', R\"(use \"--csv\")\");"),
            Found{"engine/a.h: use \"--csv\""});
}

TEST_F(PlantedMessage, WhatIsNone) {
  found("cli/a.cc", "f(\"--out\");");
  found("engine/a.cc",
        "// --out\n/* `orthofed run` */ f(\"a -- b\"); g(\"an orthofed server\");\n");
  EXPECT_EQ(found("models/a.cc", "h(R\"(<!-- Written by `orthofed config --markdown`. -->)\");"),
            Found());
}

}  // namespace
