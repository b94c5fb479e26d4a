#include "engine/io/files.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <system_error>

#include "kernels/core/check.h"

namespace orthofed {
namespace {

// What the user can do about an error of the system, if there is something.
const char* remedy(int error) {
  switch (error) {
    case ENOENT:
      return "; check the path";
    case EACCES:
    case EPERM:
      return "; check the permissions";
    case ENOSPC:
    case EDQUOT:
      return "; free some space";
    case EROFS:
      return "; choose a directory that can be written";
    case EMFILE:
    case ENFILE:
      return "; raise the limit of open files (ulimit -n)";
    default:
      return "";
  }
}

[[noreturn]] void fail(const std::string& path, std::string_view action, int error) {
  throw UserError(fmt::format("{}: cannot {}: {}{}", path, action,
                              std::generic_category().message(error), remedy(error)));
}

// A descriptor that closes itself. Errors of close matter only after writing; AtomicFile looks.
class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

struct Opened {
  int fd;
  size_t size;
};

Opened open_regular(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) fail(path, "open", errno);
  struct stat status {};
  if (::fstat(fd, &status) != 0 || !S_ISREG(status.st_mode)) {
    ::close(fd);
    throw UserError(fmt::format("{}: is not a regular file; check the path", path));
  }
  return {fd, static_cast<size_t>(status.st_size)};
}

// Fills `target` (resized to the file's length) from the file.
template <class Container>
void read_into(const std::string& path, Container& target) {
  const auto [fd, size] = open_regular(path);
  const Descriptor file(fd);
  target.resize(size);
  size_t done = 0;
  while (done < size) {
    const ssize_t n = ::read(file.get(), target.data() + done, size - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail(path, "read", errno);
    if (n == 0)
      throw UserError(fmt::format("{}: became shorter while it was read; try again", path));
    done += static_cast<size_t>(n);
  }
}

MappedFile mapped(void* address, size_t size) {
  return {std::shared_ptr<const void>(
              address, [size](const void* p) { ::munmap(const_cast<void*>(p), size); }),
          std::span(static_cast<std::byte*>(address), size)};
}

}  // namespace

void require_file(const std::string& path, std::string_view what) {
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0) fail(path, fmt::format("find {}", what), errno);
  if (!S_ISREG(status.st_mode))
    throw UserError(fmt::format("{}: {} must be a regular file; check the path", path, what));
  if (::access(path.c_str(), R_OK) != 0) fail(path, fmt::format("read {}", what), errno);
}

void require_directory(const std::string& path, std::string_view what) {
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0) fail(path, fmt::format("find {}", what), errno);
  if (!S_ISDIR(status.st_mode))
    throw UserError(fmt::format("{}: {} must be a directory; check the path", path, what));
  if (::access(path.c_str(), R_OK | X_OK) != 0) fail(path, fmt::format("read {}", what), errno);
}

void make_directories(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) fail(path, "create the directory", error.value());
}

std::string read_text(const std::string& path) {
  std::string text;
  read_into(path, text);
  return text;
}

std::vector<std::byte> read_bytes(const std::string& path) {
  std::vector<std::byte> bytes;
  read_into(path, bytes);
  return bytes;
}

AtomicFile::AtomicFile(std::string path) : path_(std::move(path)) {
  static std::atomic<unsigned> counter{0};
  temporary_ = fmt::format("{}.{}-{}.tmp", path_, ::getpid(), counter++);
  descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (descriptor_ < 0) {
    if (errno == ENOENT)
      throw UserError(
          fmt::format("{}: cannot write: its directory does not exist; create it", path_));
    fail(path_, "write", errno);
  }
}

AtomicFile::~AtomicFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

void AtomicFile::write(std::span<const std::byte> bytes) {
  OF_CHECK(descriptor_ >= 0, "write after commit");
  while (!bytes.empty()) {
    const ssize_t n = ::write(descriptor_, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail(path_, "write", errno);
    bytes = bytes.subspan(static_cast<size_t>(n));
  }
}

void AtomicFile::commit() {
  OF_CHECK(descriptor_ >= 0, "commit twice");
  if (::fsync(descriptor_) != 0) fail(path_, "write", errno);
  const int fd = descriptor_;
  descriptor_ = -1;
  if (::close(fd) != 0) fail(path_, "write", errno);
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) fail(path_, "write", errno);
  temporary_.clear();

  // The new name is durable only when the directory is. Some file systems cannot sync a directory;
  // there the rename is as durable as they make it.
  const std::string directory = std::filesystem::path(path_).parent_path().string();
  const Descriptor parent(
      ::open(directory.empty() ? "." : directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (parent.get() >= 0 && ::fsync(parent.get()) != 0 && errno == EIO) fail(path_, "write", errno);
}

void write_file(const std::string& path, std::span<const std::byte> bytes) {
  AtomicFile file(path);
  file.write(bytes);
  file.commit();
}

void write_file(const std::string& path, std::string_view text) {
  write_file(path, as_bytes(text));
}

AtomicFolder::AtomicFolder(const std::string& wanted) : wanted_(wanted) {
  static std::atomic<unsigned> counter{0};
  while (wanted_.size() > 1 && wanted_.ends_with('/')) wanted_.pop_back();
  std::error_code error;
  if (std::filesystem::exists(wanted_, error) && !std::filesystem::is_empty(wanted_, error))
    throw UserError(fmt::format("{}: is there already; name another folder or remove it", wanted_));
  temporary_ = fmt::format("{}.{}-{}.tmp", wanted_, ::getpid(), counter++);
  make_directories(temporary_);
}

AtomicFolder::~AtomicFolder() {
  std::error_code ignored;
  if (!temporary_.empty()) std::filesystem::remove_all(temporary_, ignored);
}

void AtomicFolder::commit() {
  OF_CHECK(!temporary_.empty(), "commit twice");
  if (::rename(temporary_.c_str(), wanted_.c_str()) != 0) fail(wanted_, "write", errno);
  temporary_.clear();
}

MappedFile map_file(const std::string& path) {
  const auto [fd, size] = open_regular(path);
  const Descriptor file(fd);
  if (size == 0) return {};  // an empty mapping does not exist
  void* address = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE, file.get(), 0);
  if (address == MAP_FAILED) fail(path, "map into memory", errno);
  return mapped(address, size);
}

MappedFile map_scratch_file(size_t bytes) {
  OF_CHECK(bytes > 0, "an empty mapping does not exist");
  const char* wish = std::getenv("TMPDIR");
  const std::string directory = wish != nullptr && *wish != '\0' ? wish : "/var/tmp";
  std::string path = directory + "/orthofed-XXXXXX";
  const Descriptor file(::mkostemp(path.data(), O_CLOEXEC));
  if (file.get() < 0)
    fail(directory, "create a temporary file there (TMPDIR names another place)", errno);
  ::unlink(path.c_str());
  if (const int error = ::posix_fallocate(file.get(), 0, static_cast<off_t>(bytes)); error != 0)
    fail(directory,
         fmt::format("reserve {} MiB there (TMPDIR names another place)", (bytes >> 20) + 1),
         error);
  void* address = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0);
  if (address == MAP_FAILED) fail(directory, "map a temporary file", errno);
  return mapped(address, bytes);
}

}  // namespace orthofed
