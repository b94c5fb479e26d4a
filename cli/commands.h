// The subcommands of `orthofed`: what each is told (plain structs, filled in by cli/arguments.cc)
// and the function that does it (cli/NAME.cc; for config, config_command.cc). A command returns its
// exit status, 0 on success, and throws UserError for what the user can mend (2) and other
// exceptions for the rest (1). Paths are relative to the working directory.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "cli/terminal/terminal.h"
#include "models/config/config.h"
#include "models/methods/method.h"

namespace orthofed::cli {

// A whole federation on this machine: server and clients as processes over loopback.
struct RunArguments {
  GlobalOptions global;
  std::string config;
  std::vector<std::string> set;  // "key=value", in order
  std::string out;               // folder
  bool in_process = false;       // threads of this process instead
  int64_t profile = 0;           // steps of each client to measure; 0: none
};

// The server of a federation.
struct ServeArguments {
  GlobalOptions global;
  std::string config;
  std::vector<std::string> set;
  std::string out;
};

// One site of a federation.
struct JoinArguments {
  GlobalOptions global;
  std::string config;
  std::string client;
  std::vector<std::string> set;
  std::string out;      // empty: federation.state_dir, else a folder named after the client
  int64_t profile = 0;  // steps to measure; 0: none
};

// One site alone, without a federation.
struct TrainArguments {
  GlobalOptions global;
  std::string config;
  std::vector<std::string> set;
  std::string out;
  int64_t profile = 0;  // steps to measure; 0: none
};

// Metrics of trained adapters on a site's test images.
struct EvalArguments {
  GlobalOptions global;
  std::string config;
  std::vector<std::string> set;
  std::vector<std::string> adapters;  // safetensors
  std::string client;                 // empty: data.client
};

// Features and logits of images, with weights and any number of adapters.
struct PredictArguments {
  GlobalOptions global;
  std::string weights;                // a checkpoint (engine/io/checkpoint.h)
  std::string config;                 // config.json; empty: the one beside the weights
  std::vector<std::string> input;     // one .npz with `images`, one folder, or image files
  std::string output;                 // safetensors
  std::vector<std::string> adapters;  // safetensors
  std::string csv;                    // also path, class, probabilities; empty: not written
  int64_t image_size = 0;             // pixels, a multiple of the patch; 0: the model's
  Precision precision = Precision::automatic;
  FrozenPrecision frozen_precision = FrozenPrecision::same;
  DeviceChoice device = DeviceChoice::automatic;
};

// Adapters in the formats of other programs. One of `out` and `bundle` is set.
struct ExportArguments {
  GlobalOptions global;
  std::vector<std::string> sources;  // a run's folder, or one or two adapter files
  std::string format;                // peft | merged
  std::string adapter;  // general | personal | both; empty: those given, of a run the general one
  bool concatenate = false;     // both as one PEFT adapter instead of two
  int transformers = 5;         // whose names of modules, for a base from Hugging Face
  std::string client;           // whose personal adapter, of a run
  std::string weights, config;  // the base model; empty: the run's
  std::string out, bundle;      // folders
};

// An adapter folder of PEFT as an adapter file of ours.
struct ImportArguments {
  GlobalOptions global;
  std::string folder;
  std::string weights, config;       // the base model
  std::string adapter;               // general | personal; empty: as it was exported, else general
  std::vector<std::string> classes;  // of the classifier's rows; empty: as it was exported
  std::string out;                   // safetensors
};

// What a file of weights or an adapter is.
struct InspectArguments {
  GlobalOptions global;
  std::string path;    // a checkpoint, an adapter, or a folder of one or of PEFT's
  std::string config;  // config.json; empty: the one beside the weights
};

// A dry run at a site before it joins. Sends nothing.
struct CheckArguments {
  GlobalOptions global;
  std::string config;
  std::vector<std::string> set;
  std::string client;  // empty: every client the data names
};

// The demonstration: a base model made here, then every method over real sockets.
struct DemoArguments {
  GlobalOptions global;
  std::string config;  // configs/demo.toml
  std::vector<std::string> set;
  std::string out;
  std::vector<std::string> methods = demo_methods();
  int64_t pretrain_steps = 0;  // 0: the demo's own number
};

// A table of every run below a folder, by method, over seeds.
struct ReportArguments {
  GlobalOptions global;
  std::string folder;
  bool markdown = false;
  bool time = false;    // where the time of each run went, instead
  bool rounds = false;  // and of each round
};

// What this program found on this machine.
struct DoctorArguments {
  GlobalOptions global;
};

// Every key of a configuration file.
struct ConfigArguments {
  GlobalOptions global;
  std::string section;    // "train" or "train.lr"; empty: all
  bool markdown = false;  // as docs/configuration.md; of "method", the table in docs/method.md
};

int run_command(const RunArguments& options);
int serve_command(const ServeArguments& options);
int join_command(const JoinArguments& options);
int train_command(const TrainArguments& options);
int eval_command(const EvalArguments& options);
int predict_command(const PredictArguments& options);
int export_command(const ExportArguments& options);
int import_command(const ImportArguments& options);
int inspect_command(const InspectArguments& options);
int check_command(const CheckArguments& options);
int demo_command(const DemoArguments& options);
int report_command(const ReportArguments& options);
int doctor_command(const DoctorArguments& options);
int config_command(const ConfigArguments& options);

}  // namespace orthofed::cli
