#include "models/methods/method.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>

#include "kernels/core/check.h"

namespace orthofed {
namespace {

std::deque<Method>& table() {
  static std::deque<Method> rows = {
      {.name = "opal",
       .help = "two adapters and a penalty",
       .general = true,
       .personal = true,
       .up = kGeneralPart,
       .down = kGeneralPart,
       .server = ServerRule::mean,
       .penalty_update = 2,
       .demo = 5},
      {.name = "dual",
       .help = "two adapters",
       .general = true,
       .personal = true,
       .up = kGeneralPart,
       .down = kGeneralPart,
       .server = ServerRule::mean,
       .demo = 4},
      {.name = "fedavg",
       .help = "one adapter, averaged",
       .general = true,
       .up = kGeneralPart,
       .down = kGeneralPart,
       .server = ServerRule::mean,
       .demo = 2},
      {.name = "fedavg_ft",
       .help = "fedavg, then each client fine-tunes",
       .general = true,
       .up = kGeneralPart,
       .down = kGeneralPart,
       .server = ServerRule::mean,
       .fine_tunes = true,
       .demo = 3},
      {.name = "local", .help = "one adapter that stays home", .personal = true, .demo = 1},
      {.name = "pooled",
       .help = "all data in one place, for reference",
       .general = true,
       .all_images = true},
  };
  return rows;
}

std::string parts_text(const Exchange& e) {
  if (e == kNothing) return "-";
  std::vector<const char*> parts;
  if (e.a) parts.push_back("A");
  if (e.b) parts.push_back("B");
  if (e.head) parts.push_back("head");
  return fmt::format("{}", fmt::join(parts, ", "));
}

}  // namespace

const std::deque<Method>& methods() {
  return table();
}

std::vector<std::string> method_names() {
  std::vector<std::string> names;
  for (const Method& row : methods()) names.emplace_back(row.name);
  return names;
}

std::vector<std::string> demo_methods() {
  std::multimap<int, std::string> by_place;
  for (const Method& row : methods())
    if (row.demo > 0) by_place.emplace(row.demo, row.name);
  std::vector<std::string> names;
  for (const auto& [place, name] : by_place) names.push_back(name);
  return names;
}

const Method& method_named(const std::string& name) {
  for (const Method& row : methods())
    if (name == row.name) return row;
  throw UserError(
      fmt::format("method: \"{}\" is not one of {}", name, fmt::join(method_names(), ", ")));
}

const Method& method_alone(bool all_images) {
  const auto row = std::find_if(methods().begin(), methods().end(), [&](const Method& m) {
    return !m.federated() && m.all_images == all_images;
  });
  OF_CHECK(row != methods().end(), "the table has methods of one machine");
  return *row;
}

const Method* without_penalty(const Method& method) {
  for (const Method& row : methods())
    if (row.penalty_update == 0 && row.general == method.general &&
        row.personal == method.personal && row.up == method.up && row.down == method.down &&
        row.server == method.server && row.all_images == method.all_images &&
        row.fine_tunes == method.fine_tunes)
      return &row;
  return nullptr;
}

TensorMap exchanged(const TensorMap& general, const Exchange& parts) {
  TensorMap some;
  for (const auto& [name, tensor] : general)
    if (name.ends_with(".lora_A.weight")   ? parts.a
        : name.ends_with(".lora_B.weight") ? parts.b
                                           : parts.head)
      some.emplace(name, tensor);
  return some;
}

std::string methods_markdown() {
  std::string out =
      "| method | what it is | adapters | up | down | server | then at home | `penalty.update` |\n"
      "|---|---|---|---|---|---|---|---|\n";
  for (const Method& m : methods())
    out += fmt::format("| `{}` | {} | {} | {} | {} | {} | {} | {} |\n", m.name, m.help,
                       m.two_adapters() ? "general, personal"
                       : m.general      ? "general"
                                        : "personal",
                       parts_text(m.up), parts_text(m.down), m.federated() ? "mean" : "none",
                       m.fine_tunes ? "fine-tunes" : "-",
                       m.penalty_update > 0 ? fmt::format("{:g}", m.penalty_update) : "-");
  return out;
}

void add_method(const Method& method) {
  OF_CHECK(method.up == method.down, "the protocol agrees on one schema: up and down are the same");
  table().push_back(method);
}

}  // namespace orthofed
