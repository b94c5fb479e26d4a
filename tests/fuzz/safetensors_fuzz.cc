// libFuzzer on the safetensors reader: a build directory of its own, with clang 16 or later.
//   cmake -S . -B build/fuzz -G Ninja -DCMAKE_CXX_COMPILER=clang++-16 -DOF_FUZZ=ON
//         -DOF_OPENMP=OFF -DOF_ONEDNN=OFF -DOF_CUDA=OFF -DOF_BENCH=OFF
//   ninja -C build/fuzz safetensors_fuzz
//   build/fuzz/bin/safetensors_fuzz -max_len=4096 -max_total_time=600 FOUND tests/fuzz/corpus
// FOUND is an empty folder for what it finds; the corpus itself stays small.
#include <cstdint>

#include "tests/fuzz/safetensors_property.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  orthofed::test::check_safetensors_reader(std::as_bytes(std::span(data, size)));
  return 0;
}
