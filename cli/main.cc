#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <iostream>

#include "cli/arguments.h"
#include "cli/terminal/terminal.h"
#include "federation/local/processes.h"

namespace {

// Files are written whole and renamed, so that nothing is lost by leaving here.
extern "C" void on_signal(int signal) {
  orthofed::cli::end_progress_line_in_signal_handler();
  orthofed::end_clients_in_signal_handler();
  _exit(128 + signal);
}

// libgomp's threads spin while they wait, which on a machine with other work costs several times
// the work itself. It reads the environment when it is loaded, before main: start anew with the
// variable set. A setting of the user's is kept.
void have_threads_sleep(char** argv) {
  if (std::getenv("OMP_WAIT_POLICY") != nullptr) return;
  if (setenv("OMP_WAIT_POLICY", "passive", 1) == 0) execv("/proc/self/exe", argv);
  // Without /proc it goes on as it is: slower, not wrong.
}

}  // namespace

int main(int argc, char** argv) {
  have_threads_sleep(argv);
  std::signal(SIGINT, on_signal);
  std::signal(SIGTERM, on_signal);

  orthofed::cli::Commands commands;
  commands.run = orthofed::cli::run_command;
  commands.serve = orthofed::cli::serve_command;
  commands.join = orthofed::cli::join_command;
  commands.train = orthofed::cli::train_command;
  commands.eval = orthofed::cli::eval_command;
  commands.predict = orthofed::cli::predict_command;
  commands.export_model = orthofed::cli::export_command;
  commands.import_adapter = orthofed::cli::import_command;
  commands.inspect = orthofed::cli::inspect_command;
  commands.check = orthofed::cli::check_command;
  commands.demo = orthofed::cli::demo_command;
  commands.report = orthofed::cli::report_command;
  commands.config = orthofed::cli::config_command;
  commands.doctor = orthofed::cli::doctor_command;
  return orthofed::cli::run_command_line(argc, argv, commands, std::cout, std::cerr);
}
