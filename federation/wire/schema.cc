#include "federation/wire/schema.h"

#include <fmt/core.h>

#include <nlohmann/json.hpp>

#include "engine/io/sha256.h"
#include "federation/wire/frame.h"

namespace orthofed {

Schema schema_of(const TensorMap& tensors) {
  Schema schema;
  for (const auto& [name, tensor] : tensors)
    schema[name] = name_of(tensor.dtype()) + tensor.shape().str();
  return schema;
}

std::string classes_digest(const std::vector<std::string>& classes) {
  return sha256(nlohmann::json(classes).dump());
}

void check_tensors(const TensorMap& tensors, const Schema& schema, std::string_view where) {
  const auto fail = [&](const std::string& name, const std::string& what) -> void {
    throw ProtocolError(fmt::format("{}: tensor '{}' {}", where, printable(name), what));
  };
  for (const auto& [name, type] : schema)
    if (!tensors.count(name)) fail(name, "is missing");
  for (const auto& [name, type] : schema_of(tensors)) {
    const auto agreed = schema.find(name);
    if (agreed == schema.end()) fail(name, "is not in the agreed schema");
    if (agreed->second != type)
      fail(name, fmt::format("is {}, agreed was {}", type, agreed->second));
  }
  for (const auto& [name, tensor] : tensors)
    if (!tensor.all_finite()) fail(name, "holds NaN or infinity: training diverged");
}

}  // namespace orthofed
