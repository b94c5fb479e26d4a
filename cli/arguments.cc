#include "cli/arguments.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "cli/version.h"
#include "engine/io/nearest.h"
#include "engine/io/text.h"
#include "engine/tensor/watch.h"
#include "kernels/core/check.h"

namespace orthofed::cli {

namespace {

// Clients that are processes of their own are told by the same options (cli/local_run.cc).
void watch_flags(CLI::App& app) {
  app.add_flag_callback(
      "--check-finite", ask_for_finite_check,
      "Stop at the first kernel call that writes a NaN or an infinity, and name it (slow)");
  app.add_option_function<std::string>(
         "--shadow", [](const std::string&) { ask_for_shadow(); },
         "Compute every kernel call on this device as well and stop at the first difference "
         "(slow)")
      ->type_name("DEVICE")
      ->check(CLI::IsMember({"cpu"}));
}

// After watch_flags: what looks at every call costs time of its own.
void profile_flag(CLI::App& app, int64_t& steps, const std::string& then) {
  // As text, checked when it was given: CLI11 2.4 checks a number's value even where no flag is.
  const auto text = std::make_shared<std::string>();
  app.add_flag(
         "--profile{5}", *text,
         "Measure where the time of a step goes, over 5 steps or --profile=STEPS (1 to 1000), "
         "after 3 to warm up: " +
             then)
      ->type_name("STEPS")
      ->excludes("--check-finite")
      ->excludes("--shadow");
  app.parse_complete_callback([&app, &steps, text] {
    if (app.count("--profile") == 0) return;
    const std::string wrong = CLI::Range(1, 1000)(*text);
    if (!wrong.empty()) throw CLI::ValidationError("--profile", wrong);
    steps = std::stoll(*text);
  });
}

void config_file(CLI::App& app, std::string& config, std::vector<std::string>& set) {
  app.add_option("CONFIG", config, "Configuration file (TOML)")->type_name(" ")->required();
  app.add_option("--set", set, "Override a key of the configuration, as often as needed")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
}

void output_folder(CLI::App& app, std::string& out) {
  app.add_option("--out", out, "Folder for the results")->type_name("DIR")->required();
}

void adapter_files(CLI::App& app, std::vector<std::string>& adapters) {
  app.add_option("--adapter", adapters, "Adapter to apply; several are added up")
      ->type_name("FILE");
}

CLI::Option* base_model(CLI::App& app, std::string& weights, std::string& config,
                        const std::string& otherwise) {
  app.add_option("--config", config, "Its config.json; default: the one beside the weights")
      ->type_name("FILE");
  return app
      .add_option("--weights", weights,
                  "Base model: safetensors, an index of shards, or their folder" + otherwise)
      ->type_name("PATH");
}

// An option whose value is one of E's words; `value` holds the default.
template <class E>
void choice(CLI::App& app, const std::string& name, E& value, const std::string& help) {
  app.add_option_function<std::string>(
         name, [&value](const std::string& text) { value = value_of<E>(text).value(); }, help)
      ->type_name("NAME")
      ->check(CLI::IsMember(
          std::vector<std::string>(std::begin(Words<E>::list), std::end(Words<E>::list))));
}

// The parser of one invocation: which options each command has, and which command was asked for.
class Parser {
 public:
  explicit Parser(const Commands& commands) {
    app_.name("orthofed");
    app_.description(
        "Fine-tunes vision transformers at several sites that keep their images: a general LoRA\n"
        "adapter is averaged over the sites, a personal one stays home.");
    app_.footer(
        "`orthofed COMMAND --help` shows a command's options with an example.\n"
        "Exit status: 0 success, 2 bad input, 1 any other error, 130 interrupted.");
    app_.set_version_flag("--version", version_text(), "Print the version and exit");
    app_.require_subcommand(1);
    global_flags(app_);
    add(commands);
  }

  // The chosen command, ready to be called.
  std::function<int()> parse(int argc, const char* const* argv) {
    app_.parse(argc, argv);
    return action_;
  }

  std::string help() const { return app_.help(); }  // of the command, if one was named

  // One line for what CLI11 could not parse; it puts what matters most first: a misspelt word.
  std::string explain(const CLI::ParseError& error) const {
    const CLI::App& command = deepest();
    const std::string help = command.get_display_name() == "orthofed"
                                 ? "orthofed --help"
                                 : "orthofed " + command.get_name() + " --help";
    for (const std::string& word : app_.remaining(true)) {
      if (word.size() > 1 && word[0] == '-' && word != "--")
        return unknown("option", word.substr(0, word.find('=')), flags(command), help);
      if (app_.get_subcommands().empty()) return unknown("command", word, names(), help);
    }
    if (app_.get_subcommands().empty()) return "no command given; " + help + " lists them";
    std::string what = error.what();
    std::replace(what.begin(), what.end(), '\n', ' ');
    return fmt::format("{}: {} ({})", command.get_name(), what, help);
  }

 private:
  template <class Options, class Declare>
  void command(const char* name, const char* description, const char* example,
               int (*body)(const Options&), Declare declare) {
    if (body == nullptr) return;
    auto options = std::make_shared<Options>();
    CLI::App* sub = app_.add_subcommand(name, description);
    sub->footer(std::string("Example:\n  ") + example);
    declare(*sub, *options);
    global_flags(*sub);
    sub->callback([this, body, options] {
      options->global = global_;
      action_ = [body, options] { return body(*options); };
    });
  }

  void add(const Commands& c);

  void global_flags(CLI::App& app) {
    app.add_flag("-q,--quiet", global_.quiet,
                 "No progress, no messages, no table: warnings and errors only");
    app.add_flag("--json", global_.json,
                 "The result as JSON on stdout, events as JSON lines on stderr");
  }

  const CLI::App& deepest() const {
    const auto chosen = app_.get_subcommands();
    return chosen.empty() ? app_ : *chosen.front();
  }

  std::vector<std::string> names() const {
    std::vector<std::string> list;
    for (const CLI::App* sub : app_.get_subcommands({})) list.push_back(sub->get_name());
    return list;
  }

  static std::vector<std::string> flags(const CLI::App& app) {
    std::vector<std::string> list;
    for (const CLI::Option* option : app.get_options()) {
      for (const std::string& name : option->get_lnames()) list.push_back("--" + name);
      for (const std::string& name : option->get_snames()) list.push_back("-" + name);
    }
    return list;
  }

  static std::string unknown(const std::string& kind, const std::string& word,
                             const std::vector<std::string>& known, const std::string& help) {
    const std::string near = nearest_name(word, known);
    return fmt::format("unknown {} '{}'; {}", kind, word,
                       near.empty() ? help + " lists them" : "did you mean '" + near + "'?");
  }

  CLI::App app_;
  GlobalOptions global_;
  std::function<int()> action_;
};

void Parser::add(const Commands& c) {
  command("run", "Run a whole federation on this machine",
          "orthofed run configs/demo.toml --set seed=1 --out runs/seed1", c.run,
          [](CLI::App& app, RunArguments& o) {
            watch_flags(app);
            config_file(app, o.config, o.set);
            output_folder(app, o.out);
            app.add_flag("--in-process", o.in_process,
                         "Server and clients as threads of this process instead of processes");
            profile_flag(app, o.profile,
                         "each client writes DIR/clients/NAME/profile.txt and trace.json; prints "
                         "the table of the one that trained longest");
          });
  command(
      "serve", "Be the server of a federation",
      "orthofed serve configs/wbc_sites.toml --set federation.address=0.0.0.0:7733 --out runs/wbc",
      c.serve, [](CLI::App& app, ServeArguments& o) {
        config_file(app, o.config, o.set);
        output_folder(app, o.out);
      });
  command(
      "join", "Be one client of a federation",
      "orthofed join configs/wbc_sites.toml --client bccd --set data.root=/data/wbc "
      "--set federation.address=server:7733",
      c.join, [](CLI::App& app, JoinArguments& o) {
        watch_flags(app);
        config_file(app, o.config, o.set);
        app.add_option("--client", o.client, "Which client this is")->type_name("NAME")->required();
        app.add_option("--out", o.out, "Folder for the results and the personal adapter")
            ->type_name("DIR");
        profile_flag(app, o.profile,
                     "prints a table, and writes it and a trace to DIR/profile.txt and "
                     "trace.json");
      });
  command("train", "Train on one site alone, without a federation",
          "orthofed train configs/wbc_sites.toml --set data.client=bccd --out runs/bccd", c.train,
          [](CLI::App& app, TrainArguments& o) {
            watch_flags(app);
            config_file(app, o.config, o.set);
            output_folder(app, o.out);
            profile_flag(app, o.profile,
                         "prints a table, and writes it and a trace to DIR/profile.txt and "
                         "trace.json");
          });
  command("eval", "Compute metrics of adapters on test images",
          "orthofed eval configs/wbc_sites.toml --client bccd "
          "--adapter runs/wbc/general_adapter.safetensors "
          "--adapter runs/wbc/clients/bccd/personal_adapter.safetensors",
          c.eval, [](CLI::App& app, EvalArguments& o) {
            watch_flags(app);
            config_file(app, o.config, o.set);
            adapter_files(app, o.adapters);
            app.add_option("--client", o.client, "Site whose images are used")->type_name("NAME");
          });
  command("predict", "Compute features and logits of images",
          "orthofed predict --weights vit.safetensors --input images/ --output out.safetensors "
          "--csv out.csv",
          c.predict, [](CLI::App& app, PredictArguments& o) {
            watch_flags(app);
            app.add_option("--weights", o.weights,
                           "Model: safetensors, an index of shards, or their folder")
                ->type_name("PATH")
                ->required();
            app.add_option("--input", o.input, "An .npz with `images`, a folder, or image files")
                ->type_name("PATH")
                ->required();
            app.add_option("--output", o.output, "Features and logits (safetensors)")
                ->type_name("FILE")
                ->required();
            adapter_files(app, o.adapters);
            app.add_option("--csv", o.csv, "Also write path, class and probabilities as CSV")
                ->type_name("FILE");
            app.add_option("--config", o.config, "config.json; default: the one beside the weights")
                ->type_name("FILE");
            app.add_option("--image-size", o.image_size,
                           "Side that images are resized to, a multiple of the model's patch; "
                           "default: as its configuration says")
                ->type_name("PIXELS")
                ->check(CLI::PositiveNumber);
            choice(app, "--precision", o.precision,
                   "Of the computation; auto: bf16 where the processor has it");
            choice(app, "--frozen-precision", o.frozen_precision,
                   "Of the blocks' products; fp8: as train.frozen_precision, with bf16");
            choice(app, "--device", o.device,
                   "What computes; auto: a GPU where there is one; simt: its kernels, emulated");
          });
  command("export", "Write adapters as other programs read them",
          "orthofed export runs/wbc --format peft --adapter both --client bccd --out peft/bccd\n"
          "  orthofed export general.safetensors --weights vit.safetensors --format merged --out "
          "merged\n"
          "  orthofed export runs/wbc --bundle wbc-model",
          c.export_model, [](CLI::App& app, ExportArguments& o) {
            app.add_option("RUN_OR_ADAPTER", o.sources, "A run's folder, or adapter files")
                ->type_name(" ")
                ->expected(-1)
                ->required();
            app.add_option("--format", o.format,
                           "peft: adapter_model.safetensors and adapter_config.json; merged: full "
                           "weights")
                ->type_name("NAME")
                ->check(CLI::IsMember({"peft", "merged"}));
            app.add_option("--adapter", o.adapter,
                           "general, personal or both; default: the files given, of a run the "
                           "general one")
                ->type_name("NAME")
                ->check(CLI::IsMember({"general", "personal", "both"}));
            app.add_flag("--concatenate", o.concatenate,
                         "Both adapters as one of rank r_g + r_p instead of two named ones");
            app.add_option("--transformers", o.transformers,
                           "For PEFT on a model of Hugging Face's: the major version of "
                           "transformers, which names the modules")
                ->type_name("4|5")
                ->capture_default_str()
                ->check(CLI::IsMember({4, 5}));
            app.add_option("--client", o.client, "Whose personal adapter")->type_name("NAME");
            base_model(app, o.weights, o.config, "; default: the run's");
            app.add_option("--out", o.out, "Folder to write")->type_name("DIR");
            app.add_option("--bundle", o.bundle,
                           "Instead of --format and --out: a folder with weights, class names, "
                           "preprocessing and model card, from which `predict` works")
                ->type_name("DIR");
          });
  command("import", "Read an adapter that PEFT wrote",
          "orthofed import peft/bccd --weights vit.safetensors --out adapter.safetensors",
          c.import_adapter, [](CLI::App& app, ImportArguments& o) {
            app.add_option("DIR", o.folder, "Folder with adapter_config.json")
                ->type_name(" ")
                ->required();
            base_model(app, o.weights, o.config, "")->required();
            app.add_option("--adapter", o.adapter,
                           "What it is to be: general or personal; default: as it was exported, "
                           "else general")
                ->type_name("NAME")
                ->check(CLI::IsMember({"general", "personal"}));
            app.add_option("--class", o.classes, "Names of the classes, in the classifier's order")
                ->type_name("NAME")
                ->allow_extra_args(false);
            app.add_option("--out", o.out, "Adapter to write (safetensors)")
                ->type_name("FILE")
                ->required();
          });
  command("inspect", "Say what a file of weights or an adapter is, or which tensors do not fit",
          "orthofed inspect vit.safetensors --json", c.inspect,
          [](CLI::App& app, InspectArguments& o) {
            app.add_option("PATH", o.path, "Safetensors, an index of shards, or a folder")
                ->type_name(" ")
                ->required();
            app.add_option("--config", o.config, "config.json; default: the one beside the weights")
                ->type_name("FILE");
          });
  command("check", "Examine a site's data before it joins; sends nothing",
          "orthofed check configs/wbc_sites.toml --client bccd --set data.root=/data/wbc", c.check,
          [](CLI::App& app, CheckArguments& o) {
            config_file(app, o.config, o.set);
            app.add_option("--client", o.client, "Only this client")->type_name("NAME");
          });
  command("demo", "Show every method on generated cells; needs no data",
          "orthofed demo configs/demo.toml --out runs/demo", c.demo,
          [](CLI::App& app, DemoArguments& o) {
            watch_flags(app);
            config_file(app, o.config, o.set);
            output_folder(app, o.out);
            app.add_option("--method", o.methods, "Methods to run, in order")
                ->type_name("NAME")
                ->check(CLI::IsMember(method_names()));
            app.add_option("--pretrain-steps", o.pretrain_steps,
                           "Steps of the base model's training; default: the demo's own number")
                ->type_name("N")
                ->check(CLI::Range(int64_t{1}, int64_t{1000000}));
          });
  command("report", "Compare the runs below a folder, by method, over seeds",
          "orthofed report runs/wbc", c.report, [](CLI::App& app, ReportArguments& o) {
            app.add_option("DIR", o.folder, "Folder of runs")->type_name(" ")->required();
            app.add_flag("--markdown", o.markdown, "As a GitHub table");
            CLI::Option* time =
                app.add_flag("--time", o.time,
                             "Instead: where the time of each run went, a stacked bar a process")
                    ->excludes("--markdown");
            app.add_flag("--rounds", o.rounds, "With --time: and of each round")->needs(time);
          });
  command("doctor", "Print what this program finds on this machine", "orthofed doctor --json",
          c.doctor, [](CLI::App&, DoctorArguments&) {});
  command("config", "List the keys of a configuration file", "orthofed config train", c.config,
          [](CLI::App& app, ConfigArguments& o) {
            app.add_option("SECTION", o.section, "Only this section or key")->type_name(" ");
            app.add_flag("--markdown", o.markdown,
                         "As docs/configuration.md; of `method`, the table in docs/method.md");
          });
}

bool asks_for_json(int argc, const char* const* argv) {
  return std::any_of(argv, argv + argc,
                     [](const char* word) { return std::strcmp(word, "--json") == 0; });
}

}  // namespace

int run_command_line(int argc, const char* const* argv, const Commands& commands, std::ostream& out,
                     std::ostream& err) {
  const bool json = asks_for_json(argc, argv);
  const auto fail = [&](int status, std::string message) {
    std::replace(message.begin(), message.end(), '\n', ' ');
    if (json) {
      err << fmt::format("{{\"event\": \"error\", \"text\": {}, \"exit_status\": {}}}\n",
                         string_literal(message), status);
    } else {
      err << "orthofed: " + message + '\n';
    }
    err.flush();
    return status;
  };
  try {
    Parser parser(commands);
    std::function<int()> action;
    try {
      action = parser.parse(argc, argv);
    } catch (const CLI::CallForVersion& version) {
      out << version.what() << '\n';
    } catch (const CLI::CallForHelp&) {
      out << parser.help();
    } catch (const CLI::ParseError& error) {
      return fail(2, parser.explain(error));
    }
    const int status = action ? action() : 0;
    out.flush();
    return out ? status : fail(1, "writing to standard output failed");
  } catch (const UserError& error) {
    return fail(2, error.what());
  } catch (const std::bad_alloc&) {
    return fail(1, "out of memory");
  } catch (const std::exception& error) {
    return fail(1, error.what());
  }
}

}  // namespace orthofed::cli
