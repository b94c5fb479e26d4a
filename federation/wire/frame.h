// The frames of the round protocol (docs/protocol.md) as bytes. Pure functions of memory, no sockets.
//
//   frame = header[88] | manifest (JSON) | tensors (safetensors, or nothing)
//   header: "OFED" | u16 version | u16 type | u32 flags = 0 | u32 manifest bytes |
//           u64 tensor bytes | sha256 of the 24 bytes before it, the manifest and the tensors (hex)
//
// Integers are little-endian. Reading trusts nothing: every field of the header is checked before
// anything of a stated size is allocated. A ProtocolError names the peer, the frame and the field.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/core/check.h"

namespace orthofed {

// A federation that failed: a peer that died, took too long or sent what it must not.
struct FederationError : Error {
  using Error::Error;
};
struct ProtocolError : FederationError {
  using FederationError::FederationError;
};

using Bytes = std::vector<std::byte>;

constexpr uint16_t kProtocolVersion = 2;
constexpr size_t kHeaderBytes = 88;
constexpr size_t kMaxManifestBytes = size_t{1} << 20;
constexpr size_t kDigestBytes = 64;

enum class FrameType : uint16_t {
  hello = 1,    // client -> server: who I am and what I hold
  welcome = 2,  // server -> client: you take part; what follows
  refuse = 3,   // server -> client: you do not take part, because
  round = 4,    // server -> client: train from these tensors
  update = 5,   // client -> server: the tensors after training, and n_i
  final = 6,    // server -> client: the last average; finish and evaluate
  metrics = 7,  // client -> server: scores, as far as the client shares them
  bye = 8,      // server -> client: the run is complete
  abort = 9,    // both: the run ends here, because
};
const char* name_of(FrameType type);
constexpr bool carries_tensors(FrameType type) {
  return type == FrameType::round || type == FrameType::update || type == FrameType::final;
}

struct FrameHeader {
  FrameType type{};
  size_t manifest_bytes = 0, tensor_bytes = 0;
  std::string sha256;  // stated by the sender
};

struct Frame {
  FrameType type{};
  std::string manifest;  // JSON
  Bytes tensors;
  size_t size() const { return kHeaderBytes + manifest.size() + tensors.size(); }
};

// Checks all but the digest, before anything of the stated size is allocated. `max_tensor_bytes` is
// what this peer may send now; frames of a type without tensors may carry none at any time.
FrameHeader decode_header(std::span<const std::byte, kHeaderBytes> bytes, size_t max_tensor_bytes,
                          std::string_view peer);
// Recomputes the digest of `header` (as received) and the body.
void verify_digest(std::span<const std::byte, kHeaderBytes> bytes, const Frame& frame,
                   std::string_view peer);
Bytes encode_frame(FrameType type, std::string_view manifest, std::span<const std::byte> tensors);

// Walks the frames in a recorded stream, with the checks above. nullopt at its end; a stream that
// ends inside a frame is an error.
class FrameReader {
 public:
  FrameReader(std::span<const std::byte> stream, size_t max_tensor_bytes, std::string peer)
      : rest_(stream), max_tensor_bytes_(max_tensor_bytes), peer_(std::move(peer)) {}
  std::optional<Frame> next();

 private:
  std::span<const std::byte> rest_;
  size_t max_tensor_bytes_;
  std::string peer_;
};

// The longest text that a manifest may hold, in bytes.
constexpr size_t kMaxText = 500;
// Text from a peer, fit for a terminal and a log: cut at kMaxText bytes, without control characters.
std::string printable(std::string_view text);
// A SHA-256 in lower-case hexadecimal?
bool is_digest(std::string_view text);

}  // namespace orthofed
