// The safetensors format (https://github.com/huggingface/safetensors): 8 bytes little-endian header
// length, a JSON header {name: {dtype, shape, data_offsets}, __metadata__: {string: string}}, then
// the tensors' bytes, dense, without gaps. Used for weights, adapters, and updates on the wire.
//
// Reading trusts nothing: header length and JSON, duplicate names, dtypes, shapes, sizes, and that
// the offsets cover the data exactly once. Faults are UserErrors naming file, tensor and remedy.
#pragma once
#include <cstddef>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "engine/tensor/tensor_map.h"

namespace orthofed {

struct Safetensors {
  TensorMap tensors;
  std::map<std::string, std::string> metadata;  // __metadata__
};

// Tensors are dense views of the mapped file, so that opening a large file reads its header alone
// and a tensor that nobody touches is never read. Their rows start where the file has them, on a
// multiple of the element's size. Copies are made of what is not even that, and of I64 (converted:
// to i32, or to f64 if a value does not fit). Writing to a view does not reach the file.
Safetensors load_safetensors(const std::string& path);

// Does the same from memory; all tensors are copies. Messages say `source` for the file.
Safetensors decode_safetensors(std::span<const std::byte> bytes, const std::string& source);

// Writes wide dtypes first, and then by name, so that every tensor is aligned to its dtype and the
// same tensors give the same bytes. Atomic: `path` holds the old file or all of the new one.
void save_safetensors(const std::string& path, const TensorMap& tensors,
                      const std::map<std::string, std::string>& metadata = {});
std::vector<std::byte> encode_safetensors(const TensorMap& tensors,
                                          const std::map<std::string, std::string>& metadata = {});

}  // namespace orthofed
