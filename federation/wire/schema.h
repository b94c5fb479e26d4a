// What a frame's tensors must be: the names, shapes and types on which client and server have agreed.
#pragma once
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "engine/tensor/tensor_map.h"

namespace orthofed {

using Schema = std::map<std::string, std::string>;  // tensor -> "f32[8, 192]"

// "f32[8, 192]" for every tensor.
Schema schema_of(const TensorMap& tensors);
// SHA-256 of the class names in order, unambiguously joined (as a JSON array).
std::string classes_digest(const std::vector<std::string>& classes);
// Throws ProtocolError unless `tensors` has exactly the names, shapes and dtypes of `schema` and
// only finite values. `where` opens the message: "client 'north': Update frame".
void check_tensors(const TensorMap& tensors, const Schema& schema, std::string_view where);

}  // namespace orthofed
