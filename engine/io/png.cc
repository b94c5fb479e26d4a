#include "engine/io/png.h"

#include <stb/stb_image_write.h>

#include "engine/io/files.h"

namespace orthofed {

void save_png(const std::string& path, const Tensor& image) {
  OF_CHECK(image.rank() == 3 && (image.dim(2) == 3 || image.dim(2) == 1) && image.dense() &&
               image.size() > 0,
           "an image is dense [H, W, 3] or [H, W, 1]");
  const auto width = static_cast<int>(image.dim(1)), channels = static_cast<int>(image.dim(2));
  std::string bytes;
  const auto append = [](void* target, void* data, int size) {
    static_cast<std::string*>(target)->append(static_cast<const char*>(data),
                                              static_cast<size_t>(size));
  };
  const int written = stbi_write_png_to_func(append, &bytes, width, static_cast<int>(image.dim(0)),
                                             channels, image.data<uint8_t>(), width * channels);
  OF_CHECK(written != 0, "PNG could not be encoded");
  write_file(path, bytes);
}

}  // namespace orthofed
