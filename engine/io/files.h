// Files are read whole or mapped, and written completely or not at all. Every failure is a
// UserError that names the file, the reason and the remedy.
#pragma once
#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace orthofed {

// Throws unless `path` is a regular file (a directory) that can be read. The message calls it
// `what`, such as "the weights".
void require_file(const std::string& path, std::string_view what = "the file");
void require_directory(const std::string& path, std::string_view what = "the directory");
// Creates the directory and those of its parents that are missing.
void make_directories(const std::string& path);

std::string read_text(const std::string& path);
std::vector<std::byte> read_bytes(const std::string& path);

inline std::span<const std::byte> as_bytes(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

// Writes a temporary file beside `path` and moves it there in commit(), after it has reached the
// disk: a reader, or a crash, sees the old file or the new one, never half of one. Without commit()
// nothing is left behind. The directory must exist.
class AtomicFile {
 public:
  explicit AtomicFile(std::string path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(std::span<const std::byte> bytes);
  void write(std::string_view text) { write(as_bytes(text)); }
  void commit();

 private:
  std::string path_, temporary_;
  int descriptor_ = -1;
};

void write_file(const std::string& path, std::span<const std::byte> bytes);
void write_file(const std::string& path, std::string_view text);

// Does the same for a folder of files: they are written to path(), a new folder beside the wanted
// one, and commit() renames it. Without commit() nothing is left behind.
class AtomicFolder {
 public:
  // Creates missing parents. Throws UserError where `wanted` exists already, unless it is an
  // empty folder.
  explicit AtomicFolder(const std::string& wanted);
  ~AtomicFolder();
  AtomicFolder(const AtomicFolder&) = delete;
  AtomicFolder& operator=(const AtomicFolder&) = delete;

  const std::string& path() const { return temporary_; }
  void commit();

 private:
  std::string wanted_, temporary_;  // temporary_: empty after commit
};

// A file mapped privately: writes to the memory stay in this process. The file must not be
// shortened while it is mapped (replacing it by AtomicFile is safe: the mapping keeps the old one).
struct MappedFile {
  std::shared_ptr<const void> owner;  // unmaps when the last copy goes
  std::span<std::byte> bytes;
};
MappedFile map_file(const std::string& path);

// Returns memory on disk, for data that would not fit otherwise: a new mapped file of this size in
// $TMPDIR (/var/tmp without it) that has no name and goes with its last user. Its room on the disk
// is reserved, so that no later write can fail.
MappedFile map_scratch_file(size_t bytes);

}  // namespace orthofed
