#include "engine/io/npz.h"

#include <fmt/core.h>
#include <zip.h>

#include <algorithm>
#include <bit>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <map>
#include <string_view>

#include "engine/io/dense.h"
#include "engine/io/files.h"
#include "engine/io/integers.h"
#include "engine/io/nearest.h"

namespace orthofed {
namespace {

static_assert(std::endian::native == std::endian::little, "arrays are little-endian");

constexpr std::string_view kMagic = "\x93NUMPY";
constexpr uint64_t kMaxHeader = 1 << 16;
constexpr uint64_t kMaxBytes = uint64_t{1} << 48;
constexpr uint64_t kMaxDeflateRatio = 1032;  // of deflate: more is a lie about the size
constexpr size_t kAlignment = 64;            // of the array's bytes after the header

struct Header {
  std::string descr;
  bool fortran_order = false;
  std::vector<int64_t> shape;
};

// The header is a Python dict literal of one known form:
// {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }
class HeaderParser {
 public:
  explicit HeaderParser(std::string_view text) : text_(text) {}

  bool parse(Header& header) {
    bool seen[3] = {false, false, false};
    if (!take('{')) return false;
    while (!take('}')) {
      std::string key;
      if (!string(key) || !take(':')) return false;
      if (key == "descr" && !seen[0]) {
        seen[0] = true;
        if (!string(header.descr)) return false;
      } else if (key == "fortran_order" && !seen[1]) {
        seen[1] = true;
        header.fortran_order = word("True");
        if (!header.fortran_order && !word("False")) return false;
      } else if (key == "shape" && !seen[2]) {
        seen[2] = true;
        if (!shape(header.shape)) return false;
      } else {
        return false;
      }
      if (!take(',') && !peek('}')) return false;
    }
    skip_space();
    return at_ == text_.size() && seen[0] && seen[1] && seen[2];
  }

 private:
  void skip_space() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n')) ++at_;
  }
  bool peek(char c) {
    skip_space();
    return at_ < text_.size() && text_[at_] == c;
  }
  bool take(char c) {
    if (!peek(c)) return false;
    ++at_;
    return true;
  }
  bool word(std::string_view w) {
    skip_space();
    if (text_.substr(at_, w.size()) != w) return false;
    at_ += w.size();
    return true;
  }
  bool string(std::string& value) {
    if (!peek('\'') && !peek('"')) return false;
    const char quote = text_[at_++];
    const size_t end = text_.find(quote, at_);
    if (end == std::string_view::npos) return false;
    value = std::string(text_.substr(at_, end - at_));
    at_ = end + 1;
    return true;
  }
  bool shape(std::vector<int64_t>& dims) {
    if (!take('(')) return false;
    while (!take(')')) {
      skip_space();
      int64_t dim = 0;
      const auto [end, error] =
          std::from_chars(text_.data() + at_, text_.data() + text_.size(), dim);
      if (error != std::errc() || dim < 0) return false;
      at_ = static_cast<size_t>(end - text_.data());
      dims.push_back(dim);
      if (!take(',') && !peek(')')) return false;
    }
    return true;
  }

  std::string_view text_;
  size_t at_ = 0;
};

// Bytes an element takes in the file; 0: not supported.
uint64_t element_bytes(const std::string& descr) {
  static const std::map<std::string, uint64_t> sizes{{"<f8", 8}, {"<f4", 4}, {"<f2", 2}, {"<i8", 8},
                                                     {"<i4", 4}, {"|u1", 1}, {"|b1", 1}};
  const auto it = sizes.find(descr);
  return it == sizes.end() ? 0 : it->second;
}

DType memory_dtype(const std::string& descr) {
  if (descr == "<f8") return DType::f64;
  if (descr == "<f4") return DType::f32;
  if (descr == "<f2") return DType::f16;
  if (descr == "<i4") return DType::i32;
  return DType::u8;
}

const char* descr_of(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return "<f8";
    case DType::bf16:
    case DType::f32:
      return "<f4";
    case DType::f16:
      return "<f2";
    case DType::i32:
      return "<i4";
    case DType::u8:
      return "|u1";
  }
  return "?";
}

// Reads one member of the archive front to back.
class Member {
 public:
  Member(zip_t* archive, uint64_t index) : file_(zip_fopen_index(archive, index, 0)) {}
  ~Member() {
    if (file_ != nullptr) zip_fclose(file_);
  }
  Member(const Member&) = delete;
  Member& operator=(const Member&) = delete;

  // False where the member ends early or its data are damaged (libzip checks the CRC at the end).
  bool read(void* target, uint64_t bytes) {
    auto* to = static_cast<char*>(target);
    while (bytes > 0) {
      const zip_int64_t n = file_ == nullptr ? -1 : zip_fread(file_, to, bytes);
      if (n <= 0) return false;
      to += n;
      bytes -= static_cast<uint64_t>(n);
    }
    return true;
  }
  bool at_end() {
    char extra;
    return file_ != nullptr && zip_fread(file_, &extra, 1) == 0;
  }

 private:
  zip_file_t* file_;
};

std::vector<std::byte> encode_npy(const Tensor& tensor) {
  const Tensor t = tensor.dtype() == DType::bf16 ? tensor.to(DType::f32) : tensor;
  std::string shape;
  for (int i = 0; i < t.rank(); ++i) shape += fmt::format("{}, ", t.dim(i));
  if (t.rank() > 1) shape.resize(shape.size() - 2);
  if (t.rank() == 1) shape.pop_back();  // (3,)
  std::string header = fmt::format("{{'descr': '{}', 'fortran_order': False, 'shape': ({}), }}",
                                   descr_of(t.dtype()), shape);
  const size_t before = kMagic.size() + 4;  // version and the length of the header
  const size_t end = (before + header.size() + 1 + kAlignment - 1) / kAlignment * kAlignment;
  header.resize(end - before - 1, ' ');
  header += '\n';

  std::vector<std::byte> bytes;
  auto append = [&](const void* from, size_t n) {
    const auto* first = static_cast<const std::byte*>(from);
    bytes.insert(bytes.end(), first, first + n);
  };
  append(kMagic.data(), kMagic.size());
  const uint8_t prefix[4] = {1, 0, uint8_t(header.size() & 0xff), uint8_t(header.size() >> 8)};
  append(prefix, sizeof prefix);
  append(header.data(), header.size());
  const size_t element = size_of(t.dtype());
  for (int64_t r = 0; r < t.rows(); ++r)
    append(static_cast<const char*>(t.raw()) + size_t(r * t.pitch()) * element,
           size_t(t.cols()) * element);
  return bytes;
}

}  // namespace

struct NpzFile::Archive {
  zip_t* zip = nullptr;
  uint64_t bytes = 0;  // of the file
  std::map<std::string, uint64_t> index;

  ~Archive() {
    if (zip != nullptr) zip_discard(zip);
  }
};

NpzFile::NpzFile(const std::string& path) : path_(path), archive_(std::make_unique<Archive>()) {
  require_file(path, "the arrays");
  archive_->bytes = std::filesystem::file_size(path);
  int error = 0;
  archive_->zip = zip_open(path.c_str(), ZIP_RDONLY, &error);
  if (archive_->zip == nullptr)
    throw UserError(fmt::format(
        "{}: is not a readable .npz archive (truncated or of another format); fetch it again",
        path));
  const zip_int64_t entries = zip_get_num_entries(archive_->zip, 0);
  for (zip_int64_t i = 0; i < entries; ++i) {
    const char* raw = zip_get_name(archive_->zip, static_cast<zip_uint64_t>(i), 0);
    std::string name = raw == nullptr ? "" : raw;
    if (name.size() < 4 || name.substr(name.size() - 4) != ".npy") continue;
    name.resize(name.size() - 4);
    if (!archive_->index.emplace(name, static_cast<uint64_t>(i)).second)
      throw UserError(fmt::format("{}: holds array '{}' twice; write the file again", path, name));
    names_.push_back(name);
  }
}

NpzFile::~NpzFile() = default;

bool NpzFile::contains(const std::string& name) const {
  return archive_->index.count(name) > 0;
}

Tensor NpzFile::read(const std::string& name) const {
  const auto fail = [&](const std::string& what) {
    throw UserError(fmt::format("{}: array '{}': {}", path_, name, what));
  };
  const auto it = archive_->index.find(name);
  if (it == archive_->index.end())
    throw UserError(fmt::format("{}: has no array '{}'{}", path_, name, suggestion(name, names_)));

  zip_stat_t status;
  zip_stat_init(&status);
  if (zip_stat_index(archive_->zip, it->second, 0, &status) != 0 ||
      (status.valid & ZIP_STAT_SIZE) == 0)
    fail("has no size in the archive; fetch the file again");
  if (status.size / kMaxDeflateRatio > archive_->bytes)
    fail(fmt::format("claims {} bytes, more than an archive of {} can hold; fetch the file again",
                     status.size, archive_->bytes));

  Member member(archive_->zip, it->second);
  const std::string damaged = "is truncated or damaged; fetch the file again";
  char magic[8];
  if (!member.read(magic, sizeof magic)) fail(damaged);
  if (std::string_view(magic, kMagic.size()) != kMagic) fail("is not in npy format");
  const int major = magic[6];
  if (major < 1 || major > 3) fail(fmt::format("npy version {} is unknown; save it again", major));
  const uint64_t prefix = major == 1 ? 2 : 4;
  uint32_t length = 0;
  if (!member.read(&length, prefix)) fail(damaged);
  if (length > kMaxHeader) fail(fmt::format("has a header of {} bytes; save it again", length));
  std::string text(length, '\0');
  if (!member.read(text.data(), length)) fail(damaged);

  Header header;
  if (!HeaderParser(text).parse(header)) fail("has a header that is not NumPy's; save it again");
  const uint64_t element = element_bytes(header.descr);
  if (element == 0)
    fail(fmt::format("dtype '{}' is not supported; save it as float32, int32 or uint8",
                     header.descr));
  if (header.shape.size() > Shape::kMaxRank)
    fail(fmt::format("has {} dimensions; at most {} are supported", header.shape.size(),
                     Shape::kMaxRank));
  if (header.fortran_order && header.shape.size() > 1)
    fail("is in Fortran order; save numpy.ascontiguousarray of it");
  uint64_t bytes = element;  // zero extents left out, so that none hides others that overflow
  bool empty = false;
  for (int64_t dim : header.shape) {
    if (static_cast<uint64_t>(dim) > kMaxBytes / bytes) fail("shape is larger than any memory");
    if (dim == 0)
      empty = true;
    else
      bytes *= static_cast<uint64_t>(dim);
  }
  if (empty) bytes = 0;
  const uint64_t before = sizeof magic + prefix + length;
  const Shape shape(header.shape.data(), static_cast<int>(header.shape.size()));
  if (status.size != before + bytes)
    fail(fmt::format("{} {} needs {} bytes, the file holds {}; fetch it again", header.descr,
                     shape.str(), bytes, status.size - std::min(status.size, before)));

  if (header.descr == "<i8") {
    std::vector<int64_t> values(static_cast<size_t>(shape.size()));
    if (!member.read(values.data(), bytes) || !member.at_end()) fail(damaged);
    const Tensor converted = from_int64(values.data(), shape);
    const Tensor dense = dense_tensor(shape, converted.dtype());
    dense.copy_from(converted);
    return dense;
  }
  const Tensor tensor = dense_tensor(shape, memory_dtype(header.descr));
  if (!member.read(tensor.raw(), bytes) || !member.at_end()) fail(damaged);
  return tensor;
}

void save_npz(const std::string& path, const TensorMap& tensors) {
  const auto fail = [&](const std::string& reason) {
    throw UserError(
        fmt::format("{}: cannot write: {}; check the directory and the free space", path, reason));
  };
  int error = 0;
  zip_t* zip = zip_open(path.c_str(), ZIP_CREATE | ZIP_TRUNCATE, &error);
  if (zip == nullptr) {
    zip_error_t details;
    zip_error_init_with_code(&details, error);
    const std::string reason = zip_error_strerror(&details);
    zip_error_fini(&details);
    fail(reason);
  }
  std::vector<std::vector<std::byte>> arrays;  // libzip reads them when it closes the archive
  arrays.reserve(tensors.size());
  for (const auto& [name, tensor] : tensors) {
    arrays.push_back(encode_npy(tensor));
    zip_source_t* source = zip_source_buffer(zip, arrays.back().data(), arrays.back().size(), 0);
    const zip_int64_t index =
        source == nullptr ? -1
                          : zip_file_add(zip, (name + ".npy").c_str(), source, ZIP_FL_ENC_UTF_8);
    if (index < 0) {
      if (source != nullptr) zip_source_free(source);
      const std::string reason = zip_strerror(zip);
      zip_discard(zip);
      fail(reason);
    }
    zip_set_file_compression(zip, static_cast<zip_uint64_t>(index), ZIP_CM_STORE, 0);
    // 1 January 1980, so that the bytes do not depend on the clock.
    zip_file_set_dostime(zip, static_cast<zip_uint64_t>(index), 0, (1 << 5) | 1, 0);
  }
  if (zip_close(zip) != 0) {
    const std::string reason = zip_strerror(zip);
    zip_discard(zip);
    fail(reason);
  }
}

}  // namespace orthofed
