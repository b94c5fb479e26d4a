#include "engine/io/safetensors.h"

#include <fmt/core.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>

#include "engine/io/files.h"
#include "engine/io/integers.h"

namespace orthofed {
namespace {

using nlohmann::json;

static_assert(std::endian::native == std::endian::little, "the format is little-endian");

constexpr size_t kPrefix = 8;               // bytes of the header's length
constexpr uint64_t kMaxHeader = 100 << 20;  // as the reference implementation
constexpr const char* kMetadata = "__metadata__";
constexpr size_t kDataAlignment = 64;  // of the data section, by spaces after the header

// A tensor's place in the data section, checked on its own.
struct Entry {
  std::string name, dtype;
  Shape shape;
  uint64_t begin = 0, end = 0;  // bytes
};

// The format's name of each dtype. I64 is read, never written.
constexpr std::pair<const char*, size_t> kFileDTypes[] = {
    {"F64", 8}, {"F32", 4}, {"BF16", 2}, {"F16", 2}, {"I64", 8}, {"I32", 4}, {"U8", 1}};

size_t file_dtype_size(const std::string& name) {
  for (const auto& [known, size] : kFileDTypes)
    if (name == known) return size;
  return 0;
}

const char* file_dtype(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return "F64";
    case DType::f32:
      return "F32";
    case DType::bf16:
      return "BF16";
    case DType::f16:
      return "F16";
    case DType::i32:
      return "I32";
    case DType::u8:
      return "U8";
  }
  return "?";
}

DType memory_dtype(const std::string& name) {
  for (DType dtype : {DType::f64, DType::f32, DType::bf16, DType::f16, DType::i32, DType::u8})
    if (name == file_dtype(dtype)) return dtype;
  throw Error("no dtype of ours: " + name);
}

class Reader {
 public:
  Reader(std::span<std::byte> bytes, std::shared_ptr<const void> owner, const std::string& source)
      : bytes_(bytes), owner_(std::move(owner)), source_(source) {}

  Safetensors read() {
    const json header = parse_header();
    Safetensors file;
    std::vector<Entry> entries;
    for (const auto& [name, value] : header.items()) {
      if (name == kMetadata)
        file.metadata = metadata(value);
      else
        entries.push_back(entry(name, value));
    }
    check_cover(entries);
    for (const Entry& e : entries) file.tensors.emplace(e.name, tensor(e));
    return file;
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw UserError(fmt::format("{}: {}", source_, what));
  }
  [[noreturn]] void fail(const std::string& name, const std::string& what) const {
    throw UserError(fmt::format("{}: tensor '{}': {}", source_, name, what));
  }

  json parse_header() {
    if (bytes_.size() < kPrefix)
      fail(fmt::format("is {} bytes long, too short for a safetensors file; fetch it again",
                       bytes_.size()));
    uint64_t length = 0;
    std::memcpy(&length, bytes_.data(), kPrefix);
    if (length > kMaxHeader)
      fail(
          fmt::format("the header claims {} bytes (at most {} are allowed): this is not a "
                      "safetensors file",
                      length, kMaxHeader));
    if (length > bytes_.size() - kPrefix)
      fail(
          fmt::format("the header claims {} bytes but the file has {}: it is truncated; fetch it "
                      "again",
                      length, bytes_.size() - kPrefix));
    data_ = bytes_.subspan(kPrefix + length);

    const auto* text = reinterpret_cast<const char*>(bytes_.data()) + kPrefix;
    if (length == 0 || *text != '{') fail("the header is not a JSON object; fetch the file again");
    // The parser takes a NUL for the end of its input.
    if (std::memchr(text, '\0', length) != nullptr)
      fail("the header is not valid JSON; fetch the file again");
    // A parser keeps the last of two equal keys; here two readers must never disagree about a file.
    std::vector<std::set<std::string>> keys;  // of the objects that are open
    const auto check_keys = [&](int depth, json::parse_event_t event, json& parsed) {
      if (depth > 3) fail("the header is nested too deeply; it is not a safetensors header");
      if (event == json::parse_event_t::object_start) keys.emplace_back();
      if (event == json::parse_event_t::object_end) keys.pop_back();
      if (event == json::parse_event_t::key &&
          !keys.back().insert(parsed.get_ref<const std::string&>()).second)
        fail(fmt::format("the header names '{}' twice; write the file again",
                         parsed.get_ref<const std::string&>()));
      return true;
    };
    try {
      return json::parse(text, text + length, check_keys);
    } catch (const json::exception&) {
      fail("the header is not valid JSON; fetch the file again");
    }
  }

  std::map<std::string, std::string> metadata(const json& value) const {
    if (!value.is_object()) fail("__metadata__ must be an object of strings");
    std::map<std::string, std::string> result;
    for (const auto& [key, text] : value.items()) {
      if (!text.is_string()) fail(fmt::format("__metadata__['{}'] must be a string", key));
      result.emplace(key, text.get<std::string>());
    }
    return result;
  }

  Entry entry(const std::string& name, const json& value) const {
    if (!value.is_object() || value.size() != 3 || !value.contains("dtype") ||
        !value.contains("shape") || !value.contains("data_offsets"))
      fail(name, "must have exactly dtype, shape and data_offsets");
    const json& dtype = value["dtype"];
    const json& shape = value["shape"];
    const json& offsets = value["data_offsets"];
    Entry e;
    e.name = name;

    if (!dtype.is_string()) fail(name, "dtype must be a string");
    e.dtype = dtype.get<std::string>();
    const uint64_t element = file_dtype_size(e.dtype);
    if (element == 0)
      fail(name,
           fmt::format("dtype '{}' is not supported; convert it to F32, F16 or BF16", e.dtype));

    if (!shape.is_array()) fail(name, "shape must be an array");
    if (shape.size() > Shape::kMaxRank)
      fail(name, fmt::format("has {} dimensions; at most {} are supported", shape.size(),
                             Shape::kMaxRank));
    int64_t dims[Shape::kMaxRank];
    uint64_t bytes = element;  // zero extents left out, so that none hides others that overflow
    bool empty = false;
    for (size_t i = 0; i < shape.size(); ++i) {
      if (!shape[i].is_number_unsigned()) fail(name, "shape must hold non-negative integers");
      const auto dim = shape[i].get<uint64_t>();
      if (dim > kMaxBytes / bytes) fail(name, "shape is larger than any memory");
      dims[i] = static_cast<int64_t>(dim);
      if (dim == 0)
        empty = true;
      else
        bytes *= dim;
    }
    if (empty) bytes = 0;
    e.shape = Shape(dims, static_cast<int>(shape.size()));

    if (!offsets.is_array() || offsets.size() != 2 || !offsets[0].is_number_unsigned() ||
        !offsets[1].is_number_unsigned())
      fail(name, "data_offsets must be two non-negative integers");
    e.begin = offsets[0].get<uint64_t>();
    e.end = offsets[1].get<uint64_t>();
    if (e.begin > e.end) fail(name, "data_offsets end before they begin");
    if (e.end > data_.size())
      fail(name,
           fmt::format("ends at byte {} but the file holds {} bytes of data: it is truncated; "
                       "fetch it again",
                       e.end, data_.size()));
    if (e.end - e.begin != bytes)
      fail(name, fmt::format("{} {} needs {} bytes, data_offsets give {}", e.dtype, e.shape.str(),
                             bytes, e.end - e.begin));
    return e;
  }

  // Sorted by place, each tensor begins where the one before ends, from the first byte to the last.
  void check_cover(std::vector<Entry>& entries) const {
    std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
      return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
    });
    uint64_t expected = 0;
    for (const Entry& e : entries) {
      if (e.begin < expected) fail(e.name, "overlaps another tensor; write the file again");
      if (e.begin > expected)
        fail(e.name,
             fmt::format("bytes {} to {} before it belong to no tensor; write the file again",
                         expected, e.begin));
      expected = e.end;
    }
    if (expected != data_.size())
      fail(fmt::format("{} bytes after the last tensor belong to none; write the file again",
                       data_.size() - expected));
  }

  Tensor tensor(const Entry& e) const {
    std::byte* first = data_.data() + e.begin;
    if (e.dtype == "I64") return from_int64(first, e.shape);
    const DType dtype = memory_dtype(e.dtype);
    const size_t row_bytes = static_cast<size_t>(e.shape.cols()) * size_of(dtype);
    const bool aligned = reinterpret_cast<uintptr_t>(first) % size_of(dtype) == 0;
    if (owner_ != nullptr && aligned && e.shape.size() > 0)
      return Tensor::view(owner_, first, e.shape, dtype);
    Tensor copy = Tensor::empty(e.shape, dtype, Device::cpu);
    auto* to = static_cast<std::byte*>(copy.raw());
    const size_t pitch_bytes = static_cast<size_t>(copy.pitch()) * size_of(dtype);
    if (row_bytes > 0)
      for (int64_t r = 0; r < copy.rows(); ++r)
        std::memcpy(to + static_cast<size_t>(r) * pitch_bytes,
                    first + static_cast<size_t>(r) * row_bytes, row_bytes);
    return copy;
  }

  static constexpr uint64_t kMaxBytes = uint64_t{1} << 48;

  std::span<std::byte> bytes_, data_;
  std::shared_ptr<const void> owner_;  // of bytes_; null: copy everything
  const std::string& source_;
};

// Calls sink(bytes) for the prefix, the header and each row or dense tensor, in the file's order.
template <class Sink>
void write_to(const TensorMap& tensors, const std::map<std::string, std::string>& metadata,
              Sink&& sink) {
  std::vector<std::pair<const std::string*, const Tensor*>> order;
  for (const auto& [name, tensor] : tensors) {
    OF_CHECK(name != kMetadata, "a tensor cannot be called __metadata__");
    OF_CHECK(tensor.defined() && tensor.device() == Device::cpu,
             "tensor '" + name + "' is empty or on another device");
    order.emplace_back(&name, &tensor);
  }
  std::stable_sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
    return size_of(a.second->dtype()) > size_of(b.second->dtype());
  });

  json header = json::object();
  if (!metadata.empty()) header[kMetadata] = metadata;
  uint64_t offset = 0;
  for (const auto& [name, tensor] : order) {
    const uint64_t bytes = static_cast<uint64_t>(tensor->size()) * size_of(tensor->dtype());
    json shape = json::array();
    for (int i = 0; i < tensor->rank(); ++i) shape.push_back(tensor->dim(i));
    header[*name] = {{"dtype", file_dtype(tensor->dtype())},
                     {"shape", std::move(shape)},
                     {"data_offsets", {offset, offset + bytes}}};
    offset += bytes;
  }
  std::string text = header.dump();
  text.append((kDataAlignment - (kPrefix + text.size()) % kDataAlignment) % kDataAlignment, ' ');
  const uint64_t length = text.size();
  sink(std::as_bytes(std::span(&length, 1)));
  sink(as_bytes(text));

  for (const auto& [name, tensor] : order) {
    const size_t element = size_of(tensor->dtype());
    const auto* first = static_cast<const std::byte*>(tensor->raw());
    if (tensor->dense()) {
      sink(std::span(first, static_cast<size_t>(tensor->size()) * element));
      continue;
    }
    for (int64_t r = 0; r < tensor->rows(); ++r)
      sink(std::span(first + static_cast<size_t>(r * tensor->pitch()) * element,
                     static_cast<size_t>(tensor->cols()) * element));
  }
}

}  // namespace

Safetensors load_safetensors(const std::string& path) {
  const MappedFile file = map_file(path);
  return Reader(file.bytes, file.owner, path).read();
}

Safetensors decode_safetensors(std::span<const std::byte> bytes, const std::string& source) {
  // Without an owner the reader copies every tensor and never writes to the bytes.
  const std::span<std::byte> readable(const_cast<std::byte*>(bytes.data()), bytes.size());
  return Reader(readable, nullptr, source).read();
}

void save_safetensors(const std::string& path, const TensorMap& tensors,
                      const std::map<std::string, std::string>& metadata) {
  AtomicFile file(path);
  write_to(tensors, metadata, [&](std::span<const std::byte> bytes) { file.write(bytes); });
  file.commit();
}

std::vector<std::byte> encode_safetensors(const TensorMap& tensors,
                                          const std::map<std::string, std::string>& metadata) {
  std::vector<std::byte> buffer;
  write_to(tensors, metadata, [&](std::span<const std::byte> bytes) {
    buffer.insert(buffer.end(), bytes.begin(), bytes.end());
  });
  return buffer;
}

}  // namespace orthofed
