// Images from files: JPEG through libjpeg-turbo with its default settings (accurate integer DCT,
// smooth chroma upsampling), which is bit for bit what Pillow gives; PNG, BMP, GIF (first frame)
// and PNM through stb_image (the high byte of 16-bit samples).
//
// As Pillow's Image.open(...).convert("RGB"): grey becomes three equal channels, alpha is dropped,
// CMYK is converted, and an EXIF orientation is ignored.
#pragma once
#include <cstddef>
#include <span>
#include <string>

#include "engine/tensor/tensor.h"

namespace orthofed {

// u8 [H, W, 3], dense. Throws UserError naming `source` where the bytes are no image of these
// formats, are truncated or damaged, or hold more than 178,956,970 pixels (Pillow's limit).
// Thread-safe.
Tensor decode_image(std::span<const std::byte> bytes, const std::string& source);
Tensor load_image(const std::string& path);

// Does the name end as one of the formats above does (.jpg, .jpeg, .png, .bmp)?
bool has_image_suffix(const std::string& path);

}  // namespace orthofed
