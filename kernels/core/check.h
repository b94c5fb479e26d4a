// Two kinds of errors cross every layer: a UserError is one that the user can fix (the command
// prints its one line and exits 2), any other Error is a fault of the machine or of this program
// (exit 1).
#pragma once
#include <stdexcept>
#include <string>

namespace orthofed {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Its message names what is wrong and the remedy, in one line, without a stack of prefixes.
struct UserError : Error {
  using Error::Error;
};

[[noreturn]] void check_failed(const char* file, int line, const char* condition,
                               const std::string& message);

}  // namespace orthofed

// Throws Error where a contract between two parts of this program is broken. The message is
// evaluated only on failure.
#define OF_CHECK(condition, message)                                                     \
  do {                                                                                   \
    if (!(condition)) ::orthofed::check_failed(__FILE__, __LINE__, #condition, message); \
  } while (false)
