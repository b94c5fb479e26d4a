#include "engine/io/sha256.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "kernels/core/check.h"

namespace orthofed {
namespace {

const std::string million_a = "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0";

// FIPS 180-4 examples as NIST publishes them ("Secure Hashing" example values).
TEST(Sha256, NistVectors) {
  EXPECT_EQ(sha256(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(sha256("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(sha256("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(sha256(std::string(1000000, 'a')), million_a);
}

TEST(Sha256, PiecesGiveTheDigestOfTheWhole) {
  const std::string text(1000003, 'x');
  Sha256 digest;
  for (size_t at = 0; at < text.size();) {
    const size_t size = std::min<size_t>(1 + at % 4099, text.size() - at);
    digest.update(text.data() + at, size);
    at += size;
  }
  EXPECT_EQ(digest.hex(), sha256(text));
  EXPECT_THROW(digest.hex(), Error);
  EXPECT_THROW(digest.update("a", 1), Error);
}

TEST(Sha256, AZeroByteCounts) {
  EXPECT_NE(sha256(std::string("a\0b", 3)), sha256(std::string("ab")));
}

TEST(Sha256, OfAFile) {
  const auto path =
      std::filesystem::temp_directory_path() / ("sha256_test." + std::to_string(::getpid()));
  {
    std::ofstream file(path, std::ios::binary);
    file << std::string(1000000, 'a');
    ASSERT_TRUE(file.flush());
  }
  EXPECT_EQ(sha256_of_file(path), million_a);
  { std::ofstream empty(path, std::ios::binary | std::ios::trunc); }
  EXPECT_EQ(sha256_of_file(path), sha256(""));
  std::filesystem::remove(path);
  try {
    sha256_of_file(path);
    FAIL() << "a missing file must throw";
  } catch (const UserError& error) {
    EXPECT_NE(std::string(error.what()).find(path.string()), std::string::npos) << error.what();
  }
  EXPECT_THROW(sha256_of_file(std::filesystem::temp_directory_path()), UserError) << "a folder";
}

}  // namespace
}  // namespace orthofed
