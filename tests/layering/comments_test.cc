// The layout of what people read: comments that a formatter has cut, messages in crumbs, lines of
// documentation that are too long, and links that lead nowhere. The checker is itself tested on
// planted examples.
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <fstream>
#include <regex>
#include <sstream>
#include <string>
#include <vector>

namespace {

namespace fs = std::filesystem;
using Lines = std::vector<std::string>;
using Violations = std::vector<std::string>;

constexpr size_t kCodeColumns = 100, kDocsColumns = 120, kCellColumns = 100;

// Files that are still to be mended; the list only shrinks.
const Lines kUnmended = {
    "README.md",
    "docs/configuration.md",
    "federation/combine/average.h",
    "federation/net/transport.h",
    "federation/server/server.cc",
    "federation/wire/messages.h",
    "kernels/attention/02_tiles.cuh",
    "kernels/attention/03_mma.cuh",
    "kernels/attention/attention_cudnn.cc",
    "kernels/attention/attention_cudnn.h",
    "kernels/core/cuda_device.h",
    "kernels/core/math.h",
    "kernels/core/parallel.h",
    "kernels/core/tile_bf16.h",
    "kernels/grad_norm/grad_norm.h",
    "kernels/image/image.h",
    "kernels/layer_norm/02_warp.cuh",
    "kernels/lora/lora.cu",
    "kernels/lora/lora_pairs.cc",
    "kernels/lora/lora_pairs.h",
    "kernels/matmul/epilogue.cuh",
    "kernels/matmul/matmul.cu",
    "kernels/matmul/operand.cuh",
    "kernels/matmul_fp8/02_wgmma.cuh",
    "kernels/matmul_fp8/matmul_fp8.h",
    "kernels/orthogonality/orthogonality.cu",
    "kernels/reduction/02_sequential.cuh",
    "kernels/residual/residual.h",
    "kernels/rope/rope.h",
    "kernels/token_mean/token_mean.h",
    "models/config/check.h",
    "models/config/keys.cc",
    "models/config/keys.h",
    "models/training/fine_tune.h",
    "models/training/penalty.h",
    "models/training/site_trainer.h",
    "tests/engine/linear_fp8_test.cc",
    "tests/engine/ops_test.cc",
    "tests/engine/synthetic_test.cc",
    "tests/kernels/attention_test.cc",
    "tests/kernels/cost_test.cc",
    "tests/kernels/reduction_test.cc",
    "tests/kernels/rope_test.cc",
    "tests/models/training/frozen_fp8_test.cc",
    "tests/models/vit/block_test.cc",
    "tests/support/device.h",
};

Lines lines_of(std::istream&& in) {
  Lines lines;
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

Lines words_of(const std::string& text) {
  std::istringstream in(text);
  Lines words;
  for (std::string word; in >> word;) words.push_back(word);
  return words;
}

// Columns of UTF-8 text that holds no wide characters.
size_t columns(const std::string& text) {
  return size_t(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; }));
}

std::string at(const std::string& name, size_t line, const std::string& what) {
  return name + ":" + std::to_string(line + 1) + ": " + what;
}

// What follows "//" in a line that holds nothing else; no value: there is no such comment.
struct Comment {
  bool is_comment = false;
  size_t slashes = 0;  // column
  std::string text;
};

Comment comment_of(const Lines& lines, size_t i) {
  if (i >= lines.size()) return {};
  const size_t slashes = lines[i].find_first_not_of(' ');
  if (slashes == std::string::npos || lines[i].compare(slashes, 2, "//") != 0) return {};
  return {true, slashes, lines[i].substr(slashes + 2)};
}

// A formatter that shortens a line which is too long leaves its last word or two on a line of their
// own: under a line that is full, one word stands alone, or two do and the sentence goes on below.
void check_comments(const std::string& name, const Lines& lines, Violations& out) {
  for (size_t i = 1; i < lines.size(); ++i) {
    const Comment above = comment_of(lines, i - 1), here = comment_of(lines, i),
                  below = comment_of(lines, i + 1);
    if (!above.is_comment || !here.is_comment || above.slashes != here.slashes) continue;
    const Lines words = words_of(here.text);
    if (words.empty() || words.size() > 2 || words_of(above.text).size() < 2) continue;
    if (std::string(";}").find(words.back().back()) != std::string::npos) continue;  // an example
    if (words[0].find("://") != std::string::npos) continue;  // an address, with nowhere to break
    const bool full = columns(lines[i - 1]) + 1 + columns(words[0]) > kCodeColumns;
    const bool goes_on = below.is_comment && below.slashes == here.slashes &&
                         !words_of(below.text).empty() &&
                         std::string(".:").find(words.back().back()) == std::string::npos;
    if (full && (words.size() == 1 || goes_on))
      out.push_back(at(name, i, "'" + words[0] + "' is left alone on a line of a comment"));
  }
}

// Between two pieces of one string stands no piece of a few letters, unless it ends a line.
void check_strings(const std::string& name, const Lines& lines, Violations& out) {
  static const std::regex ends(R"re(.*"\s*)re"), begins(R"re(\s*".*)re");
  static const std::regex crumb(R"re(\s*"((?:[^"\\]|\\.){0,19})"\s*)re");
  for (size_t i = 1; i + 1 < lines.size(); ++i) {
    std::smatch piece;
    if (!std::regex_match(lines[i], piece, crumb) || !std::regex_match(lines[i - 1], ends) ||
        !std::regex_match(lines[i + 1], begins))
      continue;
    if (!piece[1].str().ends_with("\\n"))
      out.push_back(at(name, i, "a string in crumbs: \"" + piece[1].str() + "\""));
  }
}

// Outside of code, lines of documentation have 120 columns and cells of tables 100; an address that
// is longer than that has nowhere to break. A link's address is not what a reader sees.
void check_docs(const std::string& name, const Lines& lines, Violations& out) {
  static const std::regex address(R"(\]\([^)]*\))");
  bool code = false;
  for (size_t i = 0; i < lines.size(); ++i) {
    if (lines[i].rfind("```", 0) == 0) code = !code;
    if (code || lines[i].rfind("    ", 0) == 0) continue;
    if (lines[i].rfind('|', 0) == 0) {
      std::istringstream cells(std::regex_replace(lines[i], address, "]"));
      for (std::string cell; std::getline(cells, cell, '|');)
        if (columns(cell) > kCellColumns + 2)
          out.push_back(at(name, i, "a cell of " + std::to_string(columns(cell)) + " columns"));
    } else if (columns(lines[i]) > kDocsColumns && words_of(lines[i]).size() > 1) {
      out.push_back(at(name, i, std::to_string(columns(lines[i])) + " columns"));
    }
  }
}

// A link from a page to a file of this tree finds it.
void check_links(const std::string& name, const std::string& text, Violations& out) {
  static const std::regex link(R"(\]\(([^)\s#:]+)(#[^)\s]*)?\))");
  for (std::sregex_iterator it(text.begin(), text.end(), link), end; it != end; ++it) {
    const fs::path target = fs::path(name).parent_path() / (*it)[1].str();
    if (!fs::exists(fs::path(OF_SOURCE_DIR) / target))
      out.push_back(name + ": a link to " + (*it)[1].str() + ", which does not exist");
  }
}

Violations violations_of(const std::string& name, const std::string& text) {
  Violations out;
  const Lines lines = lines_of(std::istringstream(text));
  if (name.ends_with(".md")) {
    check_docs(name, lines, out);
    check_links(name, text, out);
  } else {
    check_comments(name, lines, out);
    check_strings(name, lines, out);
  }
  return out;
}

TEST(Comments, ThisTreeIsLaidOutForReaders) {
  const fs::path root = OF_SOURCE_DIR;
  int64_t sources = 0;
  const auto check = [&](const fs::path& file) {
    const std::string name = fs::relative(file, root);
    std::ifstream in(file, std::ios::binary);
    const std::string text{std::istreambuf_iterator<char>(in), {}};
    ++sources;
    if (std::find(kUnmended.begin(), kUnmended.end(), name) != kUnmended.end()) return;
    for (const std::string& violation : violations_of(name, text)) ADD_FAILURE() << violation;
  };
  check(root / "README.md");
  for (const char* folder :
       {"kernels", "engine", "models", "federation", "cli", "tests", "bench", "docs"})
    for (const auto& entry : fs::recursive_directory_iterator(root / folder)) {
      const std::string extension = entry.path().extension();
      if (extension == ".h" || extension == ".cc" || extension == ".cu" || extension == ".cuh" ||
          (extension == ".md" && std::string(folder) == "docs"))
        check(entry.path());
    }
  EXPECT_GT(sources, 300);
}

std::string full_line(const std::string& end) {  // 98 columns
  const std::string begin = "// A sentence that fills its line";
  return begin + std::string(98 - begin.size() - end.size() - 1, '.') + " " + end;
}

void expect_one(const std::string& name, const std::string& text, const std::string& part) {
  const Violations found = violations_of(name, text);
  ASSERT_EQ(found.size(), 1u) << ::testing::PrintToString(found);
  EXPECT_NE(found[0].find(part), std::string::npos) << found[0];
}

void expect_none(const std::string& name, const std::string& text) {
  EXPECT_EQ(violations_of(name, text), Violations());
}

TEST(Comments, WordThatIsCutOffInTheMiddle) {
  expect_one("a.h", full_line("device") + "\n// throw,\n//     naming the layer\n",
             "a.h:2: 'throw,'");
  expect_one("a.h", full_line("an element is") + "\n//   then\n//     loaded once\n", "'then'");
}

TEST(Comments, TwoWordsThatAreCutOffInTheMiddle) {
  expect_one("a.h", "int a;\n  " + full_line("is") + "\n  // cut off\n  // from the rest\n",
             "'cut'");
  expect_none("a.h", full_line("is") + "\n// the end\n\n// Another sentence.\n");
}

TEST(Comments, WordThatIsLeftAtTheEnd) {
  expect_one("a.h", full_line("arXiv") + "\n// 1211.5063):\n//\n//   a formula\n", "'1211.5063):'");
  expect_one("a.h", full_line("n +") + "\n//   eps)\n", "'eps)'");
}

TEST(Comments, ShortLinesThatNobodyHasCut) {
  expect_none("a.h", "// A line with room.\n// One\n// two\n");          // a list
  expect_none("a.h", full_line("first") + "\n//     b.measure();\n");    // an example
  expect_none("a.h", full_line("first") + "\n\n// Alone\nint a;\n");     // another comment
  expect_none("a.h", full_line("first") + "\nint alone;\n  // word\n");  // code
}

TEST(Comments, StringInCrumbs) {
  const std::string crumbs = "f(\"both need \"\n  \"the \"\n  \"same file in model.weights\");\n";
  expect_one("a.cc", crumbs, "a.cc:2: a string in crumbs: \"the \"");
}

TEST(Comments, StringsThatEndWhereTheyShould) {
  expect_none("a.cc", "f(\"both need the same \"\n  \"file\");\n");
  expect_none("a.cc", "f(\"a,b\\n\"\n  \"1,2\\n\"\n  \"3,4\\n\");\n");
  expect_none("a.cc", "f(\"a\",\n  \"b\",\n  \"c\");\n");
}

TEST(Comments, LineOfDocumentationThatIsTooLong) {
  const std::string text(118, 'a');
  expect_none("a.md", text + " b\n");
  expect_one("a.md", text + " bc\n", "a.md:1: 121 columns");
  expect_none("a.md", text + "\xce\xb1\xce\xb2\n");  // two Greek letters
  expect_none("a.md", "https://example.org/" + text + "\n");
  expect_none("a.md", "```\n" + text + " bc\n```\n    " + text + " bc\n");
}

TEST(Comments, CellThatIsTooLong) {
  const std::string text(100, 'a');
  expect_none("a.md", "| " + text + " | " + text + " |\n");
  expect_one("a.md", "| " + text + " | b" + text + " |\n", "a cell of");
  expect_none("a.md", "| [a](https://" + text + ") b |\n");
}

TEST(Comments, LinkThatLeadsNowhere) {
  expect_one("docs/a.md", "[a](../kernels/a.h)\n", "docs/a.md: a link to ../kernels/a.h");
  expect_none("docs/a.md", "[a](../README.md#use), [b](#b), [c](https://example.org/c)\n");
}

}  // namespace
