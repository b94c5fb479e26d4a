#include "engine/io/files.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <filesystem>

#include "kernels/core/check.h"
#include "tests/support/files.h"

namespace orthofed {
namespace {

using test::TemporaryDirectory;
using test::user_error;

std::vector<std::string> names_in(const std::string& directory) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(directory))
    names.push_back(entry.path().filename());
  return names;
}

TEST(Files, RoundTrip) {
  const TemporaryDirectory directory;
  for (const std::string& text : {std::string(), std::string("one"), std::string(1 << 20, 'x')}) {
    write_file(directory / "a.txt", text);
    EXPECT_EQ(read_text(directory / "a.txt"), text);
    EXPECT_EQ(read_bytes(directory / "a.txt").size(), text.size());
    const MappedFile map = map_file(directory / "a.txt");
    ASSERT_EQ(map.bytes.size(), text.size());
    EXPECT_TRUE(text.empty() || std::memcmp(map.bytes.data(), text.data(), text.size()) == 0);
  }
  EXPECT_EQ(names_in(directory.path()), std::vector<std::string>{"a.txt"});
}

TEST(Files, WithoutCommitTheOldFileStays) {
  const TemporaryDirectory directory;
  write_file(directory / "a", "old");
  {
    AtomicFile file(directory / "a");
    file.write("new");
    EXPECT_EQ(read_text(directory / "a"), "old");
  }
  EXPECT_EQ(read_text(directory / "a"), "old");
  EXPECT_EQ(names_in(directory.path()), std::vector<std::string>{"a"});
}

TEST(Files, AMapSurvivesReplacementAndDoesNotReachTheFile) {
  const TemporaryDirectory directory;
  write_file(directory / "a", "old");
  const MappedFile map = map_file(directory / "a");
  map.bytes[0] = std::byte{'O'};
  EXPECT_EQ(read_text(directory / "a"), "old");
  write_file(directory / "a", "new!");
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(map.bytes.data()), 3), "Old");
}

TEST(Files, NewFilesFollowTheUmask) {
  const TemporaryDirectory directory;
  const mode_t before = ::umask(022);
  write_file(directory / "a", "x");
  ::umask(before);
  struct stat status {};
  ASSERT_EQ(::stat((directory / "a").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0644U);
}

TEST(Files, ErrorsNameThePathAndTheRemedy) {
  const TemporaryDirectory directory;
  const std::string missing = directory / "none", nested = directory / "no/where";
  EXPECT_TRUE(user_error([&] { read_text(missing); }, {missing, "No such file", "check the path"}));
  EXPECT_TRUE(user_error([&] { map_file(missing); }, {missing}));
  EXPECT_TRUE(user_error([&] { read_text(directory.path()); }, {"not a regular file"}));
  EXPECT_TRUE(user_error([&] { map_file(directory.path()); }, {"not a regular file"}));
  EXPECT_TRUE(user_error([&] { write_file(nested, "x"); }, {nested, "directory does not exist"}));
  EXPECT_TRUE(user_error([&] { require_file(missing, "the weights"); }, {missing, "the weights"}));
  EXPECT_TRUE(user_error([&] { require_file(directory.path()); }, {"regular file"}));
  EXPECT_TRUE(user_error([&] { require_directory(missing, "the data"); }, {missing, "the data"}));
  write_file(directory / "a", "x");
  EXPECT_TRUE(user_error([&] { require_directory(directory / "a"); }, {"must be a directory"}));
  EXPECT_TRUE(user_error([&] { make_directories(directory / "a/b"); }, {"cannot create"}));
  EXPECT_NO_THROW(require_file(directory / "a"));
  EXPECT_NO_THROW(require_directory(directory.path()));
}

TEST(Files, AFileThatCannotGrowIsAUserErrorAndLeavesNothing) {
  // A limit on the file size fails in write() as a full disk does.
  const TemporaryDirectory directory;
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const rlimit small{4096, before.rlim_max};
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const auto result = user_error([&] { write_file(directory / "a", std::string(8192, 'x')); },
                                 {directory / "a", "cannot write"});
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  std::signal(SIGXFSZ, handler);
  EXPECT_TRUE(result);
  EXPECT_TRUE(names_in(directory.path()).empty());
}

TEST(Files, AFolderIsThereWholeOrNotAtAll) {
  const TemporaryDirectory directory;
  {
    AtomicFolder folder(directory / "deep/a/");
    write_file(folder.path() + "/one", "1");
    EXPECT_FALSE(std::filesystem::exists(directory / "deep/a"));
  }
  EXPECT_TRUE(names_in(directory / "deep").empty());        // without commit
  std::filesystem::create_directory(directory / "deep/a");  // an empty folder is nothing to lose
  {
    AtomicFolder folder(directory / "deep/a");
    write_file(folder.path() + "/one", "1");
    folder.commit();
  }
  EXPECT_EQ(read_text(directory / "deep/a/one"), "1");
  EXPECT_EQ(names_in(directory / "deep"), std::vector<std::string>{"a"});
  EXPECT_TRUE(user_error([&] { AtomicFolder again(directory / "deep/a"); }, {"deep/a", "another"}));
  write_file(directory / "file", "x");
  EXPECT_TRUE(user_error([&] { AtomicFolder again(directory / "file"); }, {"file", "is there"}));
}

}  // namespace
}  // namespace orthofed
