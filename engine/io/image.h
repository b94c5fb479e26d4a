// Images are decoded as Pillow decodes them, bit for bit: JPEG by libjpeg-turbo with its default
// settings (accurate integer DCT, smooth chroma upsampling); PNG, BMP, GIF (first frame) and PNM by
// stb_image (the high byte of 16-bit samples).
//
// The result is that of Image.open(...).convert("RGB"): grey becomes three equal channels, alpha is
// dropped, CMYK is converted, and an EXIF orientation is ignored.
#pragma once
#include <cstddef>
#include <span>
#include <string>

#include "engine/tensor/tensor.h"

namespace orthofed {

// Returns u8 [H, W, 3], dense. Thread-safe. Throws UserError naming `source` where the bytes are
// not an image of these formats, are truncated or damaged, or hold more than 178,956,970 pixels
// (Pillow's limit).
Tensor decode_image(std::span<const std::byte> bytes, const std::string& source);
Tensor load_image(const std::string& path);

// Does the name end in .jpg, .jpeg, .png or .bmp?
bool has_image_suffix(const std::string& path);

}  // namespace orthofed
