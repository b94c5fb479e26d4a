#include <fmt/ranges.h>

#include <chrono>
#include <cmath>
#include <filesystem>
#include <iostream>

#include "cli/commands.h"
#include "cli/local_run.h"
#include "cli/session.h"
#include "cli/terminal/json.h"
#include "cli/terminal/score_table.h"
#include "cli/terminal/table.h"
#include "cli/terminal/units.h"
#include "engine/data/synthetic.h"
#include "engine/io/files.h"
#include "engine/io/png.h"
#include "engine/io/text.h"
#include "federation/report/scores.h"
#include "kernels/core/parallel.h"
#include "models/config/toml.h"
#include "models/training/demo_base.h"
#include "models/training/make.h"
#include "models/training/site_data.h"
#include "models/training/site_trainer.h"

namespace orthofed::cli {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// Balanced accuracy on a site that nobody trained on, of the adapters in `files`.
double on_unseen(const RunConfig& config, const SiteData& unseen, const std::string& file) {
  const Predictor predictor(
      load_base(config.model.weights, "", device_of(config.device), config.precision), {file});
  return metrics_of(score(predictor, unseen, config.train.batch_size),
                    int64_t(config.data.classes.size()))
      .balanced_accuracy;
}

struct Row {
  std::string method;
  RunSummary summary;
  double unseen = NAN;  // the general model; for local the mean of the sites' models
};

std::string comparison(const std::vector<Row>& rows, const std::vector<std::string>& clients) {
  std::vector<std::string> header = {"method"};
  header.insert(header.end(), clients.begin(), clients.end());
  header.insert(header.end(), {"mean", "general", "unseen site"});
  Table table(header);
  for (const Row& r : rows) {
    std::vector<std::string> cells = {r.method};
    constexpr auto balanced = &SiteMetrics::balanced_accuracy;
    for (const ClientSummary& c : r.summary.clients)
      cells.push_back(score(score_of(c, &ClientSummary::personal, balanced)));
    cells.push_back(score(mean_over_clients(r.summary, &ClientSummary::personal, balanced)));
    cells.push_back(score(mean_over_clients(r.summary, &ClientSummary::general, balanced)));
    cells.push_back(score(r.unseen));
    table.add_row(cells);
  }
  return table.text();
}

std::string json_of(const std::vector<Row>& rows, const PretrainResult& base) {
  std::vector<std::string> runs;
  for (const Row& r : rows)
    runs.push_back(json_object({{"method", json_text(r.method)},
                                {"unseen_site", json_number(r.unseen)},
                                {"summary", to_json(r.summary)}}));
  return json_object({{"base_accuracy", fmt::format("[{}]", fmt::join(base.accuracy, ", "))},
                      {"runs", fmt::format("[{}]", joined(runs))}}) +
         "\n";
}

}  // namespace

int demo_command(const DemoArguments& o) {
  const auto begin = Clock::now();
  Terminal terminal(o.global);
  RunConfig config = open_config(o.config, o.set, terminal);
  const OutputFolder output(o.out, "demo.txt");

  const SyntheticConfig& s = config.data.synthetic;
  SyntheticOptions cells;
  cells.clients = s.clients;
  cells.classes = int64_t(config.data.classes.size());
  cells.shift = s.shift;
  cells.seed = config.seed;
  save_png(o.out + "/cells.png", contact_sheet(cells));
  terminal.message(
      fmt::format("the images: {}/cells.png (rows are classes, columns are sites)", o.out));

  // The clients take one core each; before them there is only this. Two, on any machine: sums
  // differ between thread counts.
  cpu::set_threads(2);
  DemoBaseOptions base;
  base.seed = config.seed;
  if (o.pretrain_steps > 0) base.steps = o.pretrain_steps;
  auto progress =
      std::make_unique<Progress>(terminal, "making the base model", base.steps * base.batch_size);
  const PretrainResult made =
      make_demo_base(base, [&](int64_t, int64_t, double) { progress->advance(base.batch_size); });
  progress->finish();
  progress.reset();
  config.model.weights = save_base(made.model, std::filesystem::absolute(o.out + "/base").string());
  terminal.message(fmt::format(
      "base model: lobes {:.2f} (chance {:.2f}), granules {:.2f} ({:.2f}), hue {:.2f} ({:.2f}) on "
      "held-out images",
      made.accuracy[0], made.chance[0], made.accuracy[1], made.chance[1], made.accuracy[2],
      made.chance[2]));
  const double base_seconds = seconds_since(begin);

  cpu::set_threads(int(config.threads));
  const SiteData unseen = open_unseen_site(config, made.model.config);
  std::vector<Row> rows;
  for (const std::string& method : o.methods) {
    std::vector<std::string> set = o.set;
    set.push_back("method=" + method);
    set.push_back("model.weights=" + config.model.weights);
    set.push_back(std::string("precision=") + word(config.precision));
    const RunConfig run_config = completed(load_config(o.config, set));
    const std::string folder = o.out + "/" + method;
    make_directories(folder);
    const LocalRun run = run_shown(run_config, folder, false, terminal, method);
    Row row{method, run.summary, NAN};
    if (!run.result.general.empty()) {
      row.unseen = on_unseen(run_config, unseen, folder + "/general_adapter.safetensors");
    } else {
      std::vector<double> of_sites;
      for (const ClientSummary& c : row.summary.clients)
        of_sites.push_back(
            on_unseen(run_config, unseen,
                      fmt::format("{}/clients/{}/personal_adapter.safetensors", folder, c.name)));
      row.unseen = mean_of_defined(of_sites);
    }
    rows.push_back(std::move(row));
  }

  const std::string text = fmt::format(
      "Balanced accuracy on test images ({} clients, {} training images each, {} rounds, "
      "shift {:g}, seed {})\n\n{}\n"
      "general: personal adapter off. unseen site: the general model at a laboratory that took no "
      "part;\nfor local the mean of the sites' own models.{}\n",
      s.clients, s.train, config.rounds, s.shift, config.seed,
      comparison(rows, config.federation.clients),
      s.shift == 0
          ? "\nshift 0: all sites are alike, a control in which personalisation should bring "
            "nothing."
          : "");
  write_file(o.out + "/demo.txt", text);
  if (o.global.json)
    std::cout << json_of(rows, made);
  else if (!o.global.quiet)
    std::cout << "\n"
              << text
              << fmt::format("base model {}, {} federations {}; everything in {}\n",
                             format_duration(base_seconds), rows.size(),
                             format_duration(seconds_since(begin) - base_seconds), o.out);
  return 0;
}

}  // namespace orthofed::cli
