#include "engine/io/sha256.h"

#include <openssl/evp.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <vector>

#include "kernels/core/check.h"

namespace orthofed {
namespace {

EVP_MD_CTX* as_evp(void* context) {
  return static_cast<EVP_MD_CTX*>(context);
}

struct Close {
  void operator()(std::FILE* file) const { std::fclose(file); }
};

}  // namespace

void Sha256::Free::operator()(void* context) const {
  EVP_MD_CTX_free(as_evp(context));
}

Sha256::Sha256() : context_(EVP_MD_CTX_new()) {
  OF_CHECK(context_ != nullptr, "OpenSSL has no memory for a digest");
  OF_CHECK(EVP_DigestInit_ex(as_evp(context_.get()), EVP_sha256(), nullptr) == 1,
           "OpenSSL refuses SHA-256");
}

void Sha256::update(const void* bytes, size_t size) {
  OF_CHECK(context_ != nullptr, "update after hex");
  OF_CHECK(EVP_DigestUpdate(as_evp(context_.get()), bytes, size) == 1, "OpenSSL digest failed");
}

std::string Sha256::hex() {
  OF_CHECK(context_ != nullptr, "hex called twice");
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  OF_CHECK(EVP_DigestFinal_ex(as_evp(context_.get()), digest, &size) == 1, "OpenSSL digest failed");
  context_.reset();
  const char* digits = "0123456789abcdef";
  std::string text;
  for (unsigned int i = 0; i < size; ++i) {
    text += digits[digest[i] >> 4];
    text += digits[digest[i] & 15];
  }
  return text;
}

std::string sha256(std::string_view bytes) {
  Sha256 digest;
  digest.update(bytes.data(), bytes.size());
  return digest.hex();
}

std::string sha256_of_file(const std::filesystem::path& path) {
  const std::unique_ptr<std::FILE, Close> file(std::fopen(path.c_str(), "rb"));
  if (!file) throw UserError(path.string() + ": cannot open: " + std::strerror(errno));
  Sha256 digest;
  std::vector<char> block(1 << 16);
  while (const size_t read = std::fread(block.data(), 1, block.size(), file.get()))
    digest.update(block.data(), read);
  if (std::ferror(file.get()))
    throw UserError(path.string() + ": cannot read: " + std::strerror(errno));
  return digest.hex();
}

}  // namespace orthofed
