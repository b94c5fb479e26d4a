#include <fmt/core.h>

#include <iostream>

#include "cli/commands.h"
#include "cli/session.h"
#include "cli/terminal/json.h"
#include "cli/terminal/score_table.h"
#include "cli/terminal/site_view.h"
#include "models/training/make.h"
#include "models/training/site_data.h"

namespace orthofed::cli {

int eval_command(const EvalArguments& o) {
  Terminal terminal(o.global);
  const RunConfig config = open_config(o.config, o.set, terminal);
  const std::string client = o.client.empty() ? config.data.client : o.client;
  const Predictor predictor(load_base(config), o.adapters);
  say_left_aside(terminal, predictor.model());
  if (!predictor.classes().empty() && predictor.classes() != config.data.classes)
    throw UserError("--adapter: its classes or their order differ from data.classes");
  SiteProgress progress(terminal, client);
  const SiteData data =
      open_site(config, client, predictor.model().config, progress.callbacks().decoding);
  progress.done();
  warn_skipped(terminal, data.cache->skipped(), client);
  const int64_t classes = int64_t(config.data.classes.size());
  const Scores scores = score(predictor, data, config.train.batch_size);
  if (!scores.probabilities.empty() &&
      scores.probabilities.size() != scores.labels.size() * size_t(classes))
    throw UserError(fmt::format(
        "the head of these weights has {} classes, data.classes {}: give the adapters of a run on "
        "this configuration (--adapter)",
        scores.probabilities.size() / scores.labels.size(), classes));
  const SiteMetrics m = metrics_of(scores, classes);
  if (o.global.json)
    std::cout << json_object({{"client", json_text(client.empty() ? "all" : client)},
                              {"samples", std::to_string(m.samples)},
                              {"accuracy", json_number(m.accuracy)},
                              {"balanced_accuracy", json_number(m.balanced_accuracy)},
                              {"auroc", json_number(m.auroc)},
                              {"classes", json_list(config.data.classes)},
                              {"confusion", json_matrix(m.confusion)}})
              << "\n";
  else
    std::cout << score_table({{client.empty() ? "all" : client, 0, m}})
              << confusion_table(m.confusion, config.data.classes);
  return 0;
}

}  // namespace orthofed::cli
