#include "federation/report/model_card.h"

#include <fmt/core.h>

#include <cmath>
#include <set>

#include "federation/report/scores.h"

namespace orthofed {
namespace {

std::string number(double value) {
  return std::isnan(value) ? "-" : fmt::format("{:.3f}", value);
}

// A table cell; names come from configurations.
std::string cell(std::string text) {
  for (char& c : text)
    if (c == '|' || c == '\n' || c == '\r') c = ' ';
  return text;
}

// "general, rank 8, scale 2"
std::string describe(const AdapterFile& file) {
  std::set<int64_t> ranks;
  for (const auto& [name, t] : file.tensors)
    if (name.ends_with(".lora_A.weight")) ranks.insert(t.rows());
  std::string list;
  for (int64_t r : ranks) list += (list.empty() ? "" : ", ") + std::to_string(r);
  return fmt::format("{}: rank {}, scale {:.6g}, after {} rounds", name_of(file.kind), list,
                     file.scale, file.round);
}

std::string scores(const RunSummary& summary) {
  constexpr auto personal = &ClientSummary::personal, general = &ClientSummary::general;
  std::string text =
      "| site | training images | test images | accuracy | balanced accuracy | AUROC | balanced "
      "accuracy, general adapter alone |\n|---|---|---|---|---|---|---|\n";
  for (const ClientSummary& c : summary.clients)
    text += fmt::format("| {} | {} | {} | {} | {} | {} | {} |\n", cell(c.name), c.train,
                        c.personal ? std::to_string(c.personal->samples) : "-",
                        number(score_of(c, personal, &SiteMetrics::accuracy)),
                        number(score_of(c, personal, &SiteMetrics::balanced_accuracy)),
                        number(score_of(c, personal, &SiteMetrics::auroc)),
                        number(score_of(c, general, &SiteMetrics::balanced_accuracy)));
  const auto mean = [&](double SiteMetrics::*score) {
    return number(mean_over_clients(summary, personal, score));
  };
  return text + fmt::format("| mean | | | {} | {} | {} | |\n", mean(&SiteMetrics::accuracy),
                            mean(&SiteMetrics::balanced_accuracy), mean(&SiteMetrics::auroc));
}

}  // namespace

std::string to_markdown(const ModelCard& card, std::span<const AdapterFile> adapters) {
  OF_CHECK(!adapters.empty(), "at least one adapter");
  std::string list, classes;
  for (const AdapterFile& file : adapters) {
    list += fmt::format("| adapter | {} |\n", describe(file));
    if (classes.empty())
      for (const std::string& name : file.classes)
        classes += (classes.empty() ? "" : ", ") + cell(name);
  }
  std::string text = fmt::format(
      "---\nlibrary_name: {}\ntags:\n- image-classification\n- lora\n- orthofed\n---\n\n# {}\n\n"
      "{}\n\n| | |\n|---|---|\n| base model | {}, sha256 `{}` |\n| method | {} |\n{}"
      "| classes, in the order of the outputs | {} |\n",
      card.hub_name, card.title, card.what, cell(card.base_name), adapters[0].base_sha256,
      adapters[0].method.empty() ? "not recorded" : adapters[0].method, list,
      classes.empty() ? "not named" : classes);
  if (!card.summary) {
    text +=
        "\n## Data and scores\n\nNot known: this was exported from adapter files, without the run "
        "they are from.\n";
  } else {
    const RunSummary& run = *card.summary;
    text += fmt::format("| rounds, seed | {}, {} |\n| computed on | {}, {} |\n", run.rounds,
                        run.seed, run.device, run.precision);
    text += "\n## Data and scores\n\n" + scores(run) +
            "\nOn each site's test images, after the last round, with the site's own personal "
            "adapter where the method has one; `-`: not shared or not defined.\n";
  }
  return text + "\n## Use\n\n```\n" + card.use +
         "\n```\n\n## Limits\n\nNothing is known about images of other sites than those above. An "
         "adapter is computed from images and is not free of information about them. For research; "
         "this is not a medical device. The base model's licence applies to it.\n";
}

}  // namespace orthofed
