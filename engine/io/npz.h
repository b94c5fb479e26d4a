// NumPy's .npz is a zip archive of .npy arrays
// (https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html).
//
// This reads npy 1.0 to 3.0, little-endian, C order, up to five dimensions: f8, f4, f2, i8 (to i32,
// or to f64 if a value does not fit), i4, u1 and b1 (to u8). Faults are UserErrors that name the
// file and the array.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "engine/tensor/tensor_map.h"

namespace orthofed {

class NpzFile {
 public:
  explicit NpzFile(const std::string& path);
  ~NpzFile();
  NpzFile(const NpzFile&) = delete;
  NpzFile& operator=(const NpzFile&) = delete;

  const std::vector<std::string>& names() const { return names_; }  // in the archive's order
  bool contains(const std::string& name) const;
  // The tensor is dense whatever the row length. Not thread-safe.
  Tensor read(const std::string& name) const;

 private:
  struct Archive;
  std::string path_;
  std::unique_ptr<Archive> archive_;
  std::vector<std::string> names_;
};

// Stores without compression; the same tensors give the same bytes. bf16 is written as f4. Replaces
// `path` only when the whole archive has been written.
void save_npz(const std::string& path, const TensorMap& tensors);

}  // namespace orthofed
