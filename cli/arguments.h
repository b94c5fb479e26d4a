// The command line: options into the structs of cli/commands.h, exceptions into exit statuses.
//
//   0 success   1 anything else   2 the user's to mend: one line on stderr   130 interrupted
#pragma once
#include <ostream>

#include "cli/commands.h"

namespace orthofed::cli {

// The bodies of the subcommands. One that is null is not offered.
struct Commands {
  int (*run)(const RunOptions&) = nullptr;
  int (*serve)(const ServeOptions&) = nullptr;
  int (*join)(const JoinOptions&) = nullptr;
  int (*train)(const TrainOptions&) = nullptr;
  int (*eval)(const EvalOptions&) = nullptr;
  int (*predict)(const PredictOptions&) = nullptr;
  int (*export_model)(const ExportOptions&) = nullptr;
  int (*import_adapter)(const ImportOptions&) = nullptr;
  int (*inspect)(const InspectOptions&) = nullptr;
  int (*check)(const CheckOptions&) = nullptr;
  int (*demo)(const DemoOptions&) = nullptr;
  int (*report)(const ReportOptions&) = nullptr;
  int (*doctor)(const DoctorOptions&) = nullptr;
  int (*config)(const ConfigOptions&) = nullptr;
};

// Parses, runs the one command that is named, and reports what it throws on `err`; help and version
// go to `out`. Returns the exit status; throws nothing.
int run_command_line(int argc, const char* const* argv, const Commands& commands, std::ostream& out,
                     std::ostream& err);

}  // namespace orthofed::cli
