// Pictures that people look at are written as PNG files.
#pragma once
#include <string>

#include "engine/tensor/tensor.h"

namespace orthofed {

// image: u8 [H, W, 3] (or [H, W, 1]: grey). Replaces `path` atomically.
void save_png(const std::string& path, const Tensor& image);

}  // namespace orthofed
