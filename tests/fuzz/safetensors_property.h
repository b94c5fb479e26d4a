// What holds of the safetensors reader whatever bytes it is given, checked by the fuzzer
// (safetensors_fuzz.cc) and by ctest on the corpus and on mutations of it
// (tests/engine/io/safetensors_corpus_test.cc). Breaking it throws Error; memory errors are for the
// sanitizers to see.
#pragma once
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "engine/io/safetensors.h"
#include "kernels/core/check.h"

namespace orthofed::test {

// A file in memory: mapping it takes the path that real files take.
class MemoryFile {
 public:
  explicit MemoryFile(std::span<const std::byte> bytes) : fd_(::memfd_create("x", MFD_CLOEXEC)) {
    OF_CHECK(fd_ >= 0, "memfd_create");
    OF_CHECK(bytes.empty() || ::write(fd_, bytes.data(), bytes.size()) == ssize_t(bytes.size()),
             "write to memory");
  }
  ~MemoryFile() { ::close(fd_); }
  MemoryFile(const MemoryFile&) = delete;
  std::string path() const { return "/proc/self/fd/" + std::to_string(fd_); }

 private:
  int fd_;
};

inline std::vector<std::byte> encoded(const Safetensors& file) {
  return encode_safetensors(file.tensors, file.metadata);
}

// Either a UserError of one line, from memory and from a mapped file alike, or tensors that take no
// more bytes than the file has (I64 may double: i32 or f64), that can be read from end to end, and
// that survive being written and read again. Returns whether the file was accepted.
inline bool check_safetensors_reader(std::span<const std::byte> bytes) {
  const MemoryFile on_disk(bytes);
  Safetensors file;
  std::string refusal;
  try {
    file = decode_safetensors(bytes, on_disk.path());
  } catch (const UserError& error) {
    refusal = error.what();
    OF_CHECK(!refusal.empty(), "a refusal says why");
  }
  try {
    const Safetensors mapped = load_safetensors(on_disk.path());
    OF_CHECK(refusal.empty(), "a mapped file is accepted, the same bytes are not: " + refusal);
    OF_CHECK(encoded(mapped) == encoded(file), "a mapped file and the same bytes differ");
  } catch (const UserError& error) {
    OF_CHECK(refusal == error.what(), "two refusals of one file: " + refusal + "; " + error.what());
    return false;
  }
  size_t total = 0;
  for (const auto& [name, tensor] : file.tensors)
    total += size_t(tensor.size()) * size_of(tensor.dtype());
  OF_CHECK(total <= bytes.size(), "tensors are larger than their file");
  const std::vector<std::byte> once = encoded(file);
  OF_CHECK(encoded(decode_safetensors(once, "again")) == once, "written and read, it differs");
  return true;
}

}  // namespace orthofed::test
