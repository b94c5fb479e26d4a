// A directory that is removed with the test, and assertions about errors that users see.
#pragma once
#include <gtest/gtest.h>
#include <stdlib.h>

#include <cstdlib>
#include <filesystem>
#include <initializer_list>
#include <string>
#include <system_error>

#include "kernels/core/check.h"

namespace orthofed::test {

// The checkout that the test was built from, or the copy of it that OF_SOURCE_DIR names.
inline std::string source_dir() {
  const char* moved = std::getenv("OF_SOURCE_DIR");
  return moved != nullptr ? moved : OF_SOURCE_DIR;
}

class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    std::string pattern = (std::filesystem::temp_directory_path() / "orthofed-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr) throw Error("cannot create " + pattern);
    path_ = pattern;
  }
  ~TemporaryDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;

  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

// Does action() throw a UserError of one line that holds every one of `parts`?
template <class F>
testing::AssertionResult user_error(F&& action, std::initializer_list<std::string> parts) {
  try {
    action();
  } catch (const UserError& error) {
    const std::string message = error.what();
    if (message.find('\n') != std::string::npos)
      return testing::AssertionFailure() << "more than one line: " << message;
    for (const std::string& part : parts)
      if (message.find(part) == std::string::npos)
        return testing::AssertionFailure() << "'" << part << "' is not in: " << message;
    return testing::AssertionSuccess();
  } catch (const std::exception& error) {
    return testing::AssertionFailure() << "not a UserError: " << error.what();
  }
  return testing::AssertionFailure() << "nothing was thrown";
}

}  // namespace orthofed::test
