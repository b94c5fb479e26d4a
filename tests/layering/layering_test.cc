// The shape of the tree, checked on its text: includes point downwards only, between layers and
// between the rooms of one layer; device code is met in kernels/core alone, every kernel has its
// files, and the README's layout names paths that exist.
// The checker is itself tested on small trees with one planted violation each.
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <regex>
#include <string>
#include <vector>

namespace {

namespace fs = std::filesystem;
using Violations = std::vector<std::string>;

// From the bottom up: a file may include its own layer and those before it. tests and bench stand
// beside the layers, see all of them, and are seen by none.
const std::vector<std::string> kLayers = {"kernels", "engine", "models", "federation", "cli"};
const std::vector<std::string> kBeside = {"tests", "bench"};

// The rooms (folders) of a layer, from the bottom up, by the same rule. The files that stand in the
// layer's own folder are named with the floor they stand on: `below` under all rooms, else above.
struct Floors {
  std::vector<std::string> rooms;
  std::vector<std::string> below = {};
  bool files_above = false;  // may other files stand there, above all rooms?
};
const std::map<std::string, Floors> kRooms = {
    {"engine", {{"time", "tensor", "io", "autograd", "ops", "optim", "data"}}},
    {"models", {{"methods", "config", "vit", "adapters", "scoring", "training"}}},
    {"federation", {{"combine", "wire", "net", "server", "client", "report", "local"}, {"site.h"}}},
    {"cli", {{"terminal"}, {}, true}},
};

bool contains(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

int rank_of(const std::string& layer) {
  return static_cast<int>(std::find(kLayers.begin(), kLayers.end(), layer) - kLayers.begin());
}

std::string read(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

// The source with comments blanked and line breaks kept. With strings too where asked.
std::string blank(const std::string& source, bool strings) {
  std::string out = source;
  const auto wipe = [&](size_t begin, size_t end) {
    for (size_t i = begin; i < std::min(end, out.size()); ++i)
      if (out[i] != '\n') out[i] = ' ';
  };
  for (size_t i = 0; i < source.size();) {
    size_t end = i + 1;
    if (source.compare(i, 2, "//") == 0) {
      end = std::min(source.find('\n', i), source.size());
      wipe(i, end);
    } else if (source.compare(i, 2, "/*") == 0) {
      const size_t close = source.find("*/", i + 2);
      end = close == std::string::npos ? source.size() : close + 2;
      wipe(i, end);
    } else if (source[i] == '"') {
      while (end < source.size() && source[end] != '"' && source[end] != '\n')
        end += source[end] == '\\' ? 2 : 1;
      if (strings) wipe(i + 1, end);
      ++end;
    } else if (source[i] == '\'' && (i == 0 || !std::isalnum(source[i - 1]))) {  // not 1'000
      end += source.compare(end, 1, "\\") == 0 ? 3 : 2;
    }
    i = end;
  }
  return out;
}

std::vector<fs::path> sources_under(const fs::path& root, const std::string& layer) {
  std::vector<fs::path> found;
  if (!fs::is_directory(root / layer)) return found;
  for (const auto& entry : fs::recursive_directory_iterator(root / layer)) {
    const std::string extension = entry.path().extension();
    if (extension == ".h" || extension == ".cc" || extension == ".cu" || extension == ".cuh")
      found.push_back(fs::relative(entry.path(), root));
  }
  std::sort(found.begin(), found.end());
  return found;
}

// The quoted includes of a file, in order.
std::vector<std::string> includes_of(const fs::path& file) {
  static const std::regex include(R"re((?:^|\n)[ \t]*#[ \t]*include[ \t]+"([^"\n]+)")re");
  const std::string text = blank(read(file), false);
  std::vector<std::string> names;
  for (std::sregex_iterator it(text.begin(), text.end(), include), end; it != end; ++it)
    names.push_back((*it)[1]);
  return names;
}

// Every quoted include starts at the root, exists, and points sideways or down.
void check_includes(const fs::path& root, const fs::path& file, Violations& out) {
  const std::string layer = file.begin()->string();
  for (const std::string& name : includes_of(root / file)) {
    const fs::path target(name);
    const std::string target_layer = target.begin()->string();
    const std::string what = file.string() + " includes \"" + name + "\"";
    if (!contains(kLayers, target_layer) && !contains(kBeside, target_layer)) {
      out.push_back(what + ", which is no path from the root");
      continue;
    }
    if (!fs::exists(root / target)) out.push_back(what + ", which does not exist");
    if (contains(kBeside, layer)) continue;
    if (rank_of(target_layer) > rank_of(layer))
      out.push_back(what + ": " + layer + " must not know " + target_layer);
    // The emulator is the other half of core: what a GPU's compiler and driver are for a GPU.
    const auto in = [](const std::string& path, const char* folder) {
      return path.rfind(folder, 0) == 0;
    };
    const bool from_core = in(file.string(), "kernels/core/") || in(file.string(), "kernels/simt/");
    if (from_core && !in(name, "kernels/core/") && !in(name, "kernels/simt/"))
      out.push_back(what + ": kernels/core stands below every kernel");
  }
}

// Where a path of this layer stands: 0 is below all rooms; -1 is nowhere that is known.
int floor_of(const Floors& floors, const fs::path& path) {
  const std::string first = std::next(path.begin())->string();
  if (std::distance(path.begin(), path.end()) > 2) {
    const auto room = std::find(floors.rooms.begin(), floors.rooms.end(), first);
    return room == floors.rooms.end() ? -1 : 1 + static_cast<int>(room - floors.rooms.begin());
  }
  if (contains(floors.below, first)) return 0;
  return floors.files_above ? 1 + static_cast<int>(floors.rooms.size()) : -1;
}

// A file of a layer with rooms stands in one of them, and includes that room and those below it.
void check_rooms(const fs::path& root, const fs::path& file, Violations& out) {
  const std::string layer = file.begin()->string();
  const auto entry = kRooms.find(layer);
  if (entry == kRooms.end()) return;
  const int floor = floor_of(entry->second, file);
  if (floor < 0) out.push_back(file.string() + " stands in no room of " + layer);
  for (const std::string& name : includes_of(root / file)) {
    if (fs::path(name).begin()->string() != layer || floor < 0) continue;
    if (floor_of(entry->second, name) > floor)
      out.push_back(file.string() + " includes \"" + name + "\" from a room above its own");
  }
}

// Device code outside kernels/core goes through the names that core defines, so that the same
// source compiles for the CPU.
void check_device_code(const fs::path& root, const fs::path& file, Violations& out) {
  if (file.string().rfind("kernels/core/", 0) == 0) return;
  static const std::regex spelling(R"(\b(__CUDACC__|__CUDA_ARCH__|__asm__|__asm|asm)\b)");
  const std::string text = blank(read(root / file), true);
  std::smatch match;
  if (std::regex_search(text, match, spelling))
    out.push_back(file.string() + " says " + match[1].str() + " outside kernels/core");
}

// Contract, CPU reference and test share one basename, and the build knows the kernel.
void check_kernels(const fs::path& root, Violations& out) {
  if (!fs::is_directory(root / "kernels")) return;
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(root / "kernels"))
    if (entry.is_directory()) names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  const std::string cmake = read(root / "kernels/CMakeLists.txt");
  for (const std::string& name : names) {
    if (name == "core" || name == "simt") continue;
    const std::string folder = "kernels/" + name + "/" + name;
    for (const std::string& file :
         {folder + ".h", folder + "_cpu.cc", "tests/kernels/" + name + "_test.cc"})
      if (!fs::exists(root / file)) out.push_back("kernel " + name + " has no " + file);
    if (!std::regex_search(cmake, std::regex("(^|\n)of_add_kernel\\(" + name + "[ )]")))
      out.push_back("kernels/CMakeLists.txt does not add kernel " + name);
  }
}

// In the README's section "Layout" every word with a slash is a path from the root or, in an
// indented tree, from the line it is indented under.
void check_readme(const fs::path& root, Violations& out) {
  static const std::regex heading(R"(^#+ .*)"), layout(R"(^#+ .*[Ll]ayout.*)");
  static const std::regex path(R"((^|[\s`(|])([A-Za-z0-9_.][A-Za-z0-9_.-]*/[A-Za-z0-9_./-]*))");
  std::ifstream in(root / "README.md");
  bool inside = false, fenced = false, found = false;
  std::vector<std::pair<size_t, fs::path>> parents;  // (indentation, folder), outermost first
  for (std::string line; std::getline(in, line);) {
    if (line.rfind("```", 0) == 0) fenced = !fenced;
    if (!fenced && std::regex_match(line, heading)) {
      inside = std::regex_match(line, layout);
      found = found || inside;
    }
    if (!inside) continue;
    const size_t indent = std::min(line.find_first_not_of(' '), line.size());
    while (!parents.empty() && (!fenced || parents.back().first >= indent)) parents.pop_back();
    const fs::path parent = parents.empty() ? fs::path() : parents.back().second;
    bool first = true;
    for (std::sregex_iterator it(line.begin(), line.end(), path), end; it != end; ++it) {
      std::string name = (*it)[2];
      while (name.back() == '.') name.pop_back();  // the end of a sentence
      const bool nested = fs::exists(root / parent / name);
      if (!nested && !fs::exists(root / name))
        out.push_back("README.md lays out " + name + ", which does not exist");
      if (first && fenced) parents.emplace_back(indent, nested ? parent / name : fs::path(name));
      first = false;
    }
  }
  if (!found) out.push_back("README.md has no section Layout");
}

Violations violations_in(const fs::path& root) {
  Violations out;
  for (const auto* group : {&kLayers, &kBeside})
    for (const std::string& layer : *group)
      for (const fs::path& file : sources_under(root, layer)) {
        check_includes(root, file, out);
        if (group != &kLayers) continue;
        check_rooms(root, file, out);
        check_device_code(root, file, out);
      }
  check_kernels(root, out);
  check_readme(root, out);
  return out;
}

TEST(Layering, ThisTreeHoldsTheRules) {
  for (const std::string& violation : violations_in(OF_SOURCE_DIR)) ADD_FAILURE() << violation;
}

// A small tree that holds every rule; each test plants one violation in it.
class PlantedTree : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (fs::temp_directory_path() / "layering_XXXXXX").string();
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    root_ = pattern;
    write("kernels/CMakeLists.txt", "# one line a kernel\nof_add_kernel(gelu)\n");
    write("kernels/core/types.h", "#ifdef __CUDACC__\n#endif\n");
    write("kernels/gelu/gelu.h", "#include \"kernels/core/types.h\"\n");
    write("kernels/gelu/gelu_cpu.cc", "#include \"kernels/gelu/gelu.h\"\n");
    write("engine/ops/gelu.h", "#include <vector>\n#include \"kernels/gelu/gelu.h\"\n");
    write("models/vit/vit.h",
          "#include \"engine/ops/gelu.h\"\n#include \"kernels/core/types.h\"\n");
    write("federation/server/server.h", "#include \"models/vit/vit.h\"\n");
    write("cli/main.cc", "#include \"federation/server/server.h\"\n");
    write("tests/support/near.h", "");
    write("tests/kernels/gelu_test.cc",
          "#include \"kernels/gelu/gelu.h\"\n#include \"tests/support/near.h\"\n");
    write("bench/kernels/gelu_bench.cc", "#include \"tests/support/near.h\"\n");
    write("README.md", kReadme);
  }
  void TearDown() override { fs::remove_all(root_); }

  void write(const std::string& path, const std::string& text) {
    fs::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << text;
  }
  void expect_one(const std::string& part) {
    const Violations found = violations_in(root_);
    ASSERT_EQ(found.size(), 1u) << ::testing::PrintToString(found);
    EXPECT_NE(found[0].find(part), std::string::npos) << found[0];
  }

  static constexpr const char* kReadme =
      "# a card\nSee other/thing.\n## Layout\nStart at `kernels/gelu/gelu.h`.\n```\n"
      "kernels/   raw pointers\n  core/    checks, see kernels/gelu/\n    types.h\nengine/  "
      "tensors\n"
      "```\n## Use\nwrites runs/demo\n";
  fs::path root_;
};

TEST_F(PlantedTree, HoldsTheRulesWithoutAPlant) {
  EXPECT_EQ(violations_in(root_), Violations());
}

TEST_F(PlantedTree, CommentsAndStringsAreNoCode) {
  write("engine/ops/a.h",
        "// #include \"cli/main.cc\"\n/* asm\n*/ const char* k = \"asm /* \\\" asm\";\n"
        "const char q = '\"'; // asm \"\nconst int n = 1'000; // __CUDACC__\n");
  EXPECT_EQ(violations_in(root_), Violations());
}

TEST_F(PlantedTree, IncludeThatPointsUp) {
  write("engine/ops/a.h", "#include \"models/vit/vit.h\"\n");
  expect_one("engine must not know models");
}

TEST_F(PlantedTree, RoomThatKnowsARoomAboveIt) {
  write("models/training/step.h", "");
  write("models/vit/a.h", "#include \"models/training/step.h\"\n");
  expect_one("from a room above its own");
}

TEST_F(PlantedTree, RoomThatKnowsTheCommandsAboveIt) {
  write("cli/commands.h", "");
  write("cli/terminal/a.cc", "#include \"cli/commands.h\"\n");
  expect_one("from a room above its own");
}

TEST_F(PlantedTree, RoomThatNobodyKnows) {
  write("federation/cellar/a.h", "");
  expect_one("federation/cellar/a.h stands in no room of federation");
}

TEST_F(PlantedTree, FileOutsideTheRooms) {
  write("models/a.h", "");
  expect_one("models/a.h stands in no room of models");
}

TEST_F(PlantedTree, KernelThatKnowsTheEngine) {
  write("kernels/gelu/gelu.cu", "#pragma once\n  #  include \"engine/ops/gelu.h\"\n");
  expect_one("kernels must not know engine");
}

TEST_F(PlantedTree, CoreThatKnowsAKernel) {
  write("kernels/core/a.h", "#include \"kernels/gelu/gelu.h\"\n");
  expect_one("kernels/core stands below");
}

TEST_F(PlantedTree, LayerThatKnowsTheTests) {
  write("cli/a.cc", "#include \"tests/support/near.h\"\n");
  expect_one("cli must not know tests");
}

TEST_F(PlantedTree, LayerThatKnowsTheBenches) {
  write("bench/a.h", "");
  write("kernels/gelu/a.h", "#include \"bench/a.h\"\n");
  expect_one("kernels must not know bench");
}

TEST_F(PlantedTree, IncludeRelativeToItsOwnFolder) {
  write("kernels/gelu/gelu_cpu.cc", "#include \"gelu.h\"\n");
  expect_one("no path from the root");
}

TEST_F(PlantedTree, IncludeOfAFileThatIsGone) {
  write("tests/engine/a_test.cc", "#include \"engine/gone.h\"\n");
  expect_one("does not exist");
}

TEST_F(PlantedTree, CudaSwitchOutsideCore) {
  write("kernels/gelu/gelu.cu", "#if defined(__CUDACC__)\n#endif\n");
  expect_one("says __CUDACC__");
}

TEST_F(PlantedTree, AssemblerOutsideCore) {
  write("models/vit/a.cc", "void f() { asm volatile(\"nop\"); }\n");
  expect_one("says asm");
}

TEST_F(PlantedTree, KernelWithoutContract) {
  fs::rename(root_ / "kernels/gelu/gelu.h", root_ / "engine/ops/moved.h");
  write("kernels/gelu/gelu_cpu.cc", "");
  write("engine/ops/gelu.h", "");
  write("tests/kernels/gelu_test.cc", "");
  write("README.md", "## Layout\nkernels/\n");
  expect_one("no kernels/gelu/gelu.h");
}

TEST_F(PlantedTree, KernelWithoutReference) {
  fs::remove(root_ / "kernels/gelu/gelu_cpu.cc");
  expect_one("no kernels/gelu/gelu_cpu.cc");
}

TEST_F(PlantedTree, KernelWithoutTest) {
  fs::remove(root_ / "tests/kernels/gelu_test.cc");
  expect_one("no tests/kernels/gelu_test.cc");
}

TEST_F(PlantedTree, KernelThatIsNotBuilt) {
  write("kernels/CMakeLists.txt", "# of_add_kernel(gelu)\n");
  expect_one("does not add kernel gelu");
}

TEST_F(PlantedTree, ReadmeWithAPathThatIsGone) {
  write("README.md", "## Layout\n```\nkernels/\n  simt/  emulator\n```\n");
  expect_one("lays out simt/");
}

TEST_F(PlantedTree, ReadmeWithoutLayout) {
  write("README.md", "# a card\n");
  expect_one("no section Layout");
}

}  // namespace
