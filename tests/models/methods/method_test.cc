// The table of methods: what its rows say of themselves, that docs/method.md shows them, and that no
// other code knows a method by name.
#include "models/methods/method.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <regex>
#include <set>
#include <sstream>

#include "engine/io/files.h"
#include "tests/support/files.h"

namespace orthofed {
namespace {

namespace fs = std::filesystem;
using Strings = std::vector<std::string>;

TEST(MethodTable, EveryRowIsWhole) {
  std::set<std::string> names;
  for (const Method& m : methods()) {
    SCOPED_TRACE(m.name);
    EXPECT_TRUE(names.insert(m.name).second);
    EXPECT_NE(std::string(m.help), "");
    EXPECT_TRUE(m.general || m.personal);
    EXPECT_EQ(m.federated(), m.up != kNothing);
    EXPECT_EQ(m.federated(), m.down != kNothing);
    EXPECT_FALSE(m.all_images && m.federated());
    EXPECT_TRUE(m.penalty_update == 0 || m.two_adapters());
    EXPECT_EQ(&method_named(m.name), &m);
  }
}

TEST(MethodTable, ANameThatIsInNoRowIsRefusedWithThoseThatAre) {
  EXPECT_TRUE(test::user_error([] { method_named("magic"); }, {"method: \"magic\"", "fedavg_ft"}));
}

TEST(MethodTable, RowsAreFoundByWhatTheyAre) {
  EXPECT_EQ(without_penalty(method_named("opal"))->name, std::string("dual"));
  EXPECT_EQ(without_penalty(method_named("fedavg"))->name, std::string("fedavg"));
  EXPECT_EQ(method_alone(false).name, std::string("local"));
  EXPECT_EQ(method_alone(true).name, std::string("pooled"));
  EXPECT_EQ(demo_methods(), (Strings{"local", "fedavg", "fedavg_ft", "dual", "opal"}));
}

TEST(MethodTable, AnExchangeIsOfTheTensorsItNames) {
  TensorMap general;
  for (const char* name : {"blocks.0.attn.qkv.lora_A.weight", "blocks.0.attn.qkv.lora_B.weight",
                           "head.bias", "head.weight"})
    general[name] = Tensor::zeros({1}, DType::f32);
  const auto names = [&](const Exchange& parts) {
    Strings list;
    for (const auto& [name, tensor] : exchanged(general, parts)) list.push_back(name);
    return list;
  };
  EXPECT_EQ(names(kNothing), Strings{});
  EXPECT_EQ(names(kGeneralPart).size(), 4u);
  EXPECT_EQ(names({.a = true}), Strings{"blocks.0.attn.qkv.lora_A.weight"});
  EXPECT_EQ(names({.b = true, .head = true}),
            (Strings{"blocks.0.attn.qkv.lora_B.weight", "head.bias", "head.weight"}));
}

TEST(MethodTable, DocsAreUpToDate) {
  const std::string page = read_text(test::source_dir() + "/docs/method.md");
  EXPECT_NE(page.find(".cc instead. -->\n" + methods_markdown() + "\n"), std::string::npos)
      << "the table in docs/method.md is out of date: orthofed config method --markdown\n"
      << methods_markdown();
}

// "file:line: name" of every name in C++ outside models/methods. Names that are words of English,
// too, are names where they are quoted or set.
Strings names_in(const fs::path& root) {
  static const std::set<std::string> english = {"dual", "local", "pooled"};
  std::string pattern;
  for (const std::string& name : method_names()) {
    const std::string quoted = "\\\\?\"" + name + "\\\\?\"|method ?= ?" + name + "\\b";
    pattern +=
        (pattern.empty() ? "" : "|") + (english.contains(name) ? quoted : "\\b" + name + "\\b");
  }
  const std::regex named(pattern);
  Strings found;
  for (const char* layer : {"kernels", "engine", "models", "federation", "cli", "bench"}) {
    if (!fs::is_directory(root / layer)) continue;
    for (const auto& entry : fs::recursive_directory_iterator(root / layer)) {
      const std::string file = fs::relative(entry.path(), root).string();
      const std::string extension = entry.path().extension();
      if (file.starts_with("models/methods/") ||
          !std::set<std::string>{".h", ".cc", ".cu", ".cuh"}.contains(extension))
        continue;
      std::istringstream lines(read_text(entry.path()));
      int number = 0;
      for (std::string line; std::getline(lines, line);) {
        ++number;
        std::smatch match;
        if (std::regex_search(line, match, named))
          found.push_back(file + ":" + std::to_string(number) + ": " + match.str());
      }
    }
  }
  std::sort(found.begin(), found.end());
  return found;
}

TEST(MethodNames, StandInTheTableAlone) {
  for (const std::string& place : names_in(test::source_dir())) ADD_FAILURE() << place;
}

TEST(MethodNames, PlantedOnesAreFound) {
  const test::TemporaryDirectory root;
  const auto write = [&](const std::string& file, const std::string& text) {
    make_directories(fs::path(root / file).parent_path().string());
    write_file(root / file, text);
  };
  write("models/methods/method.cc", "const char* name = \"opal\";\n");
  write("models/vit/vit.h", "// pooled features; of a local file, of dual use\nint fedavgs;\n");
  write("docs/method.md", "`opal`\n");
  EXPECT_EQ(names_in(root.path()), Strings{});
  write("federation/server.cc", "\nif (method == \"local\")\n");
  write("cli/run.cc", "// as in fedavg\nsay(\"set method=dual\");\n");
  write("models/config/check.cc", "fail(\"which is \\\"pooled\\\"\");\n");
  EXPECT_EQ(names_in(root.path()), (Strings{"cli/run.cc:1: fedavg", "cli/run.cc:2: method=dual",
                                            "federation/server.cc:2: \"local\"",
                                            "models/config/check.cc:1: \\\"pooled\\\""}));
}

}  // namespace
}  // namespace orthofed
