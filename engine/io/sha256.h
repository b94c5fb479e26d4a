// SHA-256 (FIPS 180-4) by OpenSSL, in lower-case hexadecimal, names base models and files, and
// gives samples an order that does not depend on where they stand in a manifest.
#pragma once
#include <cstddef>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

namespace orthofed {

// The digest of bytes that arrive in pieces.
class Sha256 {
 public:
  Sha256();
  void update(const void* bytes, size_t size);
  std::string hex();  // 64 characters; ends the stream: update and hex may not be called again

 private:
  struct Free {
    void operator()(void* context) const;
  };
  std::unique_ptr<void, Free> context_;
};

std::string sha256(std::string_view bytes);

// Throws UserError where the file cannot be opened or read.
std::string sha256_of_file(const std::filesystem::path& path);

}  // namespace orthofed
