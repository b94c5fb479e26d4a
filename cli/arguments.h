// The command line: options into the structs of cli/commands.h, exceptions into exit statuses.
//
//   0 success   1 anything else   2 the user can mend it: one line on stderr   130 interrupted
#pragma once
#include <ostream>

#include "cli/commands.h"

namespace orthofed::cli {

// The bodies of the subcommands. One that is null is not offered.
struct Commands {
  int (*run)(const RunArguments&) = nullptr;
  int (*serve)(const ServeArguments&) = nullptr;
  int (*join)(const JoinArguments&) = nullptr;
  int (*train)(const TrainArguments&) = nullptr;
  int (*eval)(const EvalArguments&) = nullptr;
  int (*predict)(const PredictArguments&) = nullptr;
  int (*export_model)(const ExportArguments&) = nullptr;
  int (*import_adapter)(const ImportArguments&) = nullptr;
  int (*inspect)(const InspectArguments&) = nullptr;
  int (*check)(const CheckArguments&) = nullptr;
  int (*demo)(const DemoArguments&) = nullptr;
  int (*report)(const ReportArguments&) = nullptr;
  int (*doctor)(const DoctorArguments&) = nullptr;
  int (*config)(const ConfigArguments&) = nullptr;
};

// Parses, runs the one command that is named, and reports what it throws on `err`; help and version
// go to `out`. Returns the exit status; throws nothing.
int run_command_line(int argc, const char* const* argv, const Commands& commands, std::ostream& out,
                     std::ostream& err);

}  // namespace orthofed::cli
