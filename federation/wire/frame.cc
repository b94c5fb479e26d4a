#include "federation/wire/frame.h"

#include <fmt/core.h>

#include <algorithm>
#include <cstring>

#include "engine/io/sha256.h"

namespace orthofed {
namespace {

constexpr char kMagic[4] = {'O', 'F', 'E', 'D'};
constexpr size_t kDigestOffset = 24;  // the header's fields before its digest
static_assert(kDigestOffset + kDigestBytes == kHeaderBytes);

template <class T>
void store(std::byte* to, T value) {
  for (size_t i = 0; i < sizeof(T); ++i) to[i] = std::byte(uint8_t(value >> (8 * i)));
}

template <class T>
T load(const std::byte* from) {
  T value = 0;
  for (size_t i = 0; i < sizeof(T); ++i) value = T(value | T(T(from[i]) << (8 * i)));
  return value;
}

std::string digest(std::span<const std::byte> fields, std::string_view manifest,
                   std::span<const std::byte> tensors) {
  Sha256 sha;
  sha.update(fields.data(), fields.size());
  sha.update(manifest.data(), manifest.size());
  sha.update(tensors.data(), tensors.size());
  return sha.hex();
}

}  // namespace

bool is_digest(std::string_view text) {
  return text.size() == kDigestBytes &&
         text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

const char* name_of(FrameType type) {
  switch (type) {
    case FrameType::hello:
      return "Hello";
    case FrameType::welcome:
      return "Welcome";
    case FrameType::refuse:
      return "Refuse";
    case FrameType::round:
      return "Round";
    case FrameType::update:
      return "Update";
    case FrameType::final:
      return "Final";
    case FrameType::metrics:
      return "Metrics";
    case FrameType::bye:
      return "Bye";
    case FrameType::abort:
      return "Abort";
  }
  return "?";
}

FrameHeader decode_header(std::span<const std::byte, kHeaderBytes> bytes, size_t max_tensor_bytes,
                          std::string_view peer) {
  const auto fail = [&](const std::string& what) -> void {
    throw ProtocolError(fmt::format("{}: frame header: {}", peer, what));
  };
  if (std::memcmp(bytes.data(), kMagic, sizeof kMagic) != 0)
    fail("magic is not OFED: the peer does not speak this protocol");
  const auto version = load<uint16_t>(bytes.data() + 4);
  if (version != kProtocolVersion)
    fail(fmt::format("version {} where this program speaks {}: both sides need the same release",
                     version, kProtocolVersion));
  const auto type = load<uint16_t>(bytes.data() + 6);
  if (type < uint16_t(FrameType::hello) || type > uint16_t(FrameType::abort))
    fail(fmt::format("type {} is unknown", type));
  if (const auto flags = load<uint32_t>(bytes.data() + 8); flags != 0)
    fail(fmt::format("flags {:#x} are not 0", flags));

  FrameHeader header;
  header.type = FrameType(type);
  const auto manifest = load<uint32_t>(bytes.data() + 12);
  if (manifest > kMaxManifestBytes)
    fail(fmt::format("manifest length {} is above the limit of {}", manifest, kMaxManifestBytes));
  const auto tensors = load<uint64_t>(bytes.data() + 16);
  if (!carries_tensors(header.type) && tensors != 0)
    fail(fmt::format("tensor length {} in a {} frame, which carries none", tensors,
                     name_of(header.type)));
  if (tensors > max_tensor_bytes)
    fail(fmt::format("tensor length {} is above the limit of {}{}", tensors, max_tensor_bytes,
                     max_tensor_bytes ? " (federation.max_frame_mb)" : ""));
  header.manifest_bytes = manifest;
  header.tensor_bytes = size_t(tensors);
  header.sha256.assign(reinterpret_cast<const char*>(bytes.data()) + kDigestOffset, kDigestBytes);
  if (!is_digest(header.sha256)) fail("sha256 is not lower-case hexadecimal");
  return header;
}

void verify_digest(std::span<const std::byte, kHeaderBytes> bytes, const Frame& frame,
                   std::string_view peer) {
  const std::string computed = digest(bytes.first(kDigestOffset), frame.manifest, frame.tensors);
  if (std::memcmp(bytes.data() + kDigestOffset, computed.data(), kDigestBytes) != 0)
    throw ProtocolError(fmt::format("{}: {} frame: sha256 does not match: damaged on the way", peer,
                                    name_of(frame.type)));
}

Bytes encode_frame(FrameType type, std::string_view manifest, std::span<const std::byte> tensors) {
  OF_CHECK(manifest.size() <= kMaxManifestBytes, "manifest above the limit");
  Bytes bytes(kHeaderBytes + manifest.size() + tensors.size());
  std::memcpy(bytes.data(), kMagic, sizeof kMagic);
  store<uint16_t>(bytes.data() + 4, kProtocolVersion);
  store<uint16_t>(bytes.data() + 6, uint16_t(type));
  store<uint32_t>(bytes.data() + 8, 0);
  store<uint32_t>(bytes.data() + 12, uint32_t(manifest.size()));
  store<uint64_t>(bytes.data() + 16, tensors.size());
  const std::string sha =
      digest(std::span<const std::byte>(bytes).first(kDigestOffset), manifest, tensors);
  std::memcpy(bytes.data() + kDigestOffset, sha.data(), kDigestBytes);
  std::memcpy(bytes.data() + kHeaderBytes, manifest.data(), manifest.size());
  std::copy(tensors.begin(), tensors.end(),
            bytes.begin() + std::ptrdiff_t(kHeaderBytes + manifest.size()));
  return bytes;
}

std::optional<Frame> FrameReader::next() {
  if (rest_.empty()) return std::nullopt;
  if (rest_.size() < kHeaderBytes)
    throw ProtocolError(fmt::format("{}: stream ends inside a frame header", peer_));
  const auto header_bytes = rest_.first<kHeaderBytes>();
  const FrameHeader header = decode_header(header_bytes, max_tensor_bytes_, peer_);
  rest_ = rest_.subspan(kHeaderBytes);
  if (rest_.size() < header.manifest_bytes + header.tensor_bytes)
    throw ProtocolError(
        fmt::format("{}: stream ends inside a {} frame", peer_, name_of(header.type)));
  Frame frame;
  frame.type = header.type;
  frame.manifest.assign(reinterpret_cast<const char*>(rest_.data()), header.manifest_bytes);
  rest_ = rest_.subspan(header.manifest_bytes);
  frame.tensors.assign(rest_.begin(), rest_.begin() + std::ptrdiff_t(header.tensor_bytes));
  rest_ = rest_.subspan(header.tensor_bytes);
  verify_digest(header_bytes, frame, peer_);
  return frame;
}

std::string printable(std::string_view text) {
  std::string s(text.substr(0, kMaxText));
  for (char& c : s)
    if (static_cast<unsigned char>(c) < 0x20 || static_cast<unsigned char>(c) > 0x7e) c = '?';
  return s;
}

}  // namespace orthofed
