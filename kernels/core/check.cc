#include "kernels/core/check.h"

namespace orthofed {

void check_failed(const char* file, int line, const char* condition, const std::string& message) {
  throw Error(std::string(file) + ":" + std::to_string(line) + ": " + message + " [" + condition +
              "]");
}

}  // namespace orthofed
