// The fuzzer's property on its committed corpus and on seeded mutations of it, so that every build
// checks it without clang (tests/fuzz/safetensors_fuzz.cc searches further).
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "engine/io/files.h"
#include "tests/fuzz/safetensors_property.h"
#include "tests/support/files.h"
#include "tests/support/random.h"

namespace orthofed {
namespace {

namespace fs = std::filesystem;
using Bytes = std::vector<std::byte>;

std::vector<std::pair<std::string, Bytes>> corpus() {
  std::vector<std::pair<std::string, Bytes>> files;
  for (const auto& entry : fs::directory_iterator(test::source_dir() + "/tests/fuzz/corpus"))
    files.emplace_back(entry.path().filename(), read_bytes(entry.path()));
  std::sort(files.begin(), files.end());
  return files;
}

// One or two small changes: of a byte, of a digit, a copied or removed piece, the header's length.
Bytes mutated(Bytes bytes, const Philox& rng) {
  uint64_t counter = 0;
  const auto below = [&](uint64_t n) { return size_t(rng(counter++)[0] % n); };
  for (size_t change = 1 + below(2); change > 0 && !bytes.empty(); --change) {
    const size_t at = below(bytes.size());
    switch (below(6)) {
      case 0:
        bytes[at] ^= std::byte(1 << below(8));
        break;
      case 1:
        bytes[at] = std::byte(below(256));
        break;
      case 2: {  // the next digit, if there is one: offsets and shapes
        const auto digit = std::find_if(bytes.begin() + long(at), bytes.end(), [](std::byte b) {
          return b >= std::byte('0') && b <= std::byte('9');
        });
        if (digit != bytes.end()) *digit = std::byte('0' + below(10));
        break;
      }
      case 3: {
        const size_t n = 1 + below(std::min<size_t>(bytes.size() - at, 16));
        const Bytes piece(bytes.begin() + long(at), bytes.begin() + long(at + n));
        bytes.insert(bytes.begin() + long(below(bytes.size())), piece.begin(), piece.end());
        break;
      }
      case 4:
        bytes.erase(bytes.begin() + long(at),
                    bytes.begin() + long(at + 1 + below(std::min<size_t>(bytes.size() - at, 16))));
        break;
      default:  // a header that reaches from -2 to +2 bytes around the end
        if (bytes.size() >= 8) {
          const uint64_t length = uint64_t(bytes.size()) - 10 + below(5);
          std::memcpy(bytes.data(), &length, sizeof length);
        }
    }
  }
  return bytes;
}

TEST(SafetensorsCorpus, SoundFilesAreReadAndWrongOnesRefused) {
  const auto files = corpus();
  ASSERT_GE(files.size(), 29u);
  for (const auto& [name, bytes] : files)
    EXPECT_EQ(test::check_safetensors_reader(bytes), name.starts_with("sound_")) << name;
}

TEST(SafetensorsCorpus, MutationsAreReadOrRefused) {
  constexpr uint64_t kEach = 200;  // 29 files: about 6,000 mutations
  int64_t accepted = 0, refused = 0;
  for (const auto& [name, bytes] : corpus())
    for (uint64_t i = 0; i < kEach; ++i) {
      SCOPED_TRACE(name + ", mutation " + std::to_string(i));
      const Bytes changed = mutated(bytes, PhiloxKey(test::seed()).with(name).with(i));
      bool sound = false;
      ASSERT_NO_THROW(sound = test::check_safetensors_reader(changed));
      ++(sound ? accepted : refused);
    }
  // Mutations that all fail at the first check would prove nothing.
  EXPECT_GT(accepted, 30);
  EXPECT_GT(refused, 2000);
}

}  // namespace
}  // namespace orthofed
