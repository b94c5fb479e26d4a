#include "engine/io/image.h"

#include <fmt/core.h>
#include <stb/stb_image.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <limits>
#include <vector>
// jpeglib.h needs stdio before it.
#include <jpeglib.h>
// jerror.h needs jpeglib before it.
#include <jerror.h>

#include "engine/io/dense.h"
#include "engine/io/files.h"

namespace orthofed {
namespace {

constexpr int64_t kMaxPixels = 178956970;

void check_size(int64_t height, int64_t width, const std::string& source) {
  if (height <= 0 || width <= 0 || width > kMaxPixels / height)
    throw UserError(fmt::format("{}: {} x {} pixels; an image may have 1 to {} pixels", source,
                                width, height, kMaxPixels));
}

// Warnings after which pixels are made up: libjpeg goes on, a diagnosis must not.
bool is_damage(int code) {
  switch (code) {
    case JWRN_JPEG_EOF:    // premature end of the file
    case JWRN_HIT_MARKER:  // premature end of a data segment
    case JWRN_HUFF_BAD_CODE:
    case JWRN_ARITH_BAD_CODE:
    case JWRN_MUST_RESYNC:  // a restart marker is missing
    case JWRN_BOGUS_PROGRESSION:
      return true;
    default:
      return false;
  }
}

// libjpeg reports errors by a function that must not return. It is C, so it is left by longjmp, and
// the functions between setjmp and longjmp hold nothing with a destructor.
class JpegDecoder {
 public:
  JpegDecoder() {
    cinfo_.err = jpeg_std_error(&errors_);
    cinfo_.client_data = this;
    errors_.error_exit = [](j_common_ptr cinfo) { self(cinfo).leave(); };
    errors_.emit_message = [](j_common_ptr cinfo, int level) {
      if (level < 0 && is_damage(cinfo->err->msg_code)) self(cinfo).leave();
    };
    errors_.output_message = [](j_common_ptr) {};
  }
  ~JpegDecoder() { jpeg_destroy_decompress(&cinfo_); }
  JpegDecoder(const JpegDecoder&) = delete;
  JpegDecoder& operator=(const JpegDecoder&) = delete;

  // Both false where the file is damaged; reason() says how.
  bool read_header(std::span<const std::byte> bytes) {
    if (setjmp(jump_) != 0) return false;
    jpeg_create_decompress(&cinfo_);
    jpeg_mem_src(&cinfo_, reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size());
    jpeg_read_header(&cinfo_, TRUE);
    cinfo_.out_color_space = cinfo_.num_components == 4 ? JCS_CMYK : JCS_RGB;
    return true;
  }
  // pixels [height, width, channels()], dense
  bool read_pixels(uint8_t* pixels) {
    if (setjmp(jump_) != 0) return false;
    jpeg_start_decompress(&cinfo_);
    const size_t pitch = size_t{cinfo_.output_width} * size_t(channels());
    while (cinfo_.output_scanline < cinfo_.output_height) {
      JSAMPROW row = pixels + cinfo_.output_scanline * pitch;
      jpeg_read_scanlines(&cinfo_, &row, 1);
    }
    jpeg_finish_decompress(&cinfo_);
    return true;
  }

  int64_t height() const { return cinfo_.image_height; }
  int64_t width() const { return cinfo_.image_width; }
  int channels() const { return cinfo_.out_color_space == JCS_CMYK ? 4 : 3; }
  const char* reason() const { return reason_.data(); }

 private:
  static JpegDecoder& self(j_common_ptr cinfo) {
    return *static_cast<JpegDecoder*>(cinfo->client_data);
  }
  [[noreturn]] void leave() {
    cinfo_.err->format_message(reinterpret_cast<j_common_ptr>(&cinfo_), reason_.data());
    std::longjmp(jump_, 1);
  }

  jpeg_decompress_struct cinfo_{};
  jpeg_error_mgr errors_{};
  std::jmp_buf jump_;
  std::array<char, JMSG_LENGTH_MAX> reason_{};
};

uint8_t mul_div_255(int a, int b) {
  const int product = a * b + 128;
  return static_cast<uint8_t>((product + (product >> 8)) >> 8);
}

// CMYK JPEGs store inverted inks (Adobe's convention, which Pillow assumes for all of them).
void cmyk_to_rgb(const uint8_t* cmyk, uint8_t* rgb, int64_t pixels) {
  for (int64_t i = 0; i < pixels; ++i) {
    const int white = cmyk[4 * i + 3];  // 255 - black
    for (int c = 0; c < 3; ++c)
      rgb[3 * i + c] = static_cast<uint8_t>(white - mul_div_255(255 - cmyk[4 * i + c], white));
  }
}

Tensor decode_jpeg(std::span<const std::byte> bytes, const std::string& source) {
  JpegDecoder decoder;
  const auto fail = [&] {
    throw UserError(fmt::format("{}: is not a readable JPEG image ({}); replace or remove it",
                                source, decoder.reason()));
  };
  if (!decoder.read_header(bytes)) fail();
  check_size(decoder.height(), decoder.width(), source);
  Tensor image = dense_tensor({decoder.height(), decoder.width(), 3}, DType::u8);
  if (decoder.channels() == 3) {
    if (!decoder.read_pixels(image.data<uint8_t>())) fail();
    return image;
  }
  const Tensor inks = dense_tensor({decoder.height(), decoder.width(), 4}, DType::u8);
  if (!decoder.read_pixels(inks.data<uint8_t>())) fail();
  cmyk_to_rgb(inks.data<uint8_t>(), image.data<uint8_t>(), decoder.height() * decoder.width());
  return image;
}

// stb_image fills up what a BMP lacks. Its header holds the file's size (0 from some writers).
bool is_truncated_bmp(std::span<const std::byte> bytes) {
  if (bytes.size() < 6 || bytes[0] != std::byte{'B'} || bytes[1] != std::byte{'M'}) return false;
  uint32_t size = 0;
  std::memcpy(&size, bytes.data() + 2, sizeof size);
  return size > bytes.size();
}

Tensor decode_other(std::span<const std::byte> bytes, const std::string& source) {
  const auto fail = [&] {
    throw UserError(
        fmt::format("{}: is not a readable image ({}); JPEG, PNG and BMP are read: "
                    "convert, replace or remove it",
                    source, stbi_failure_reason()));
  };
  if (bytes.size() > std::numeric_limits<int>::max())
    throw UserError(fmt::format("{}: is larger than 2 GB; that is no image", source));
  if (is_truncated_bmp(bytes))
    throw UserError(fmt::format("{}: is a truncated BMP image; replace or remove it", source));
  const auto* data = reinterpret_cast<const stbi_uc*>(bytes.data());
  const int size = static_cast<int>(bytes.size());
  int width = 0, height = 0, channels = 0;
  if (stbi_info_from_memory(data, size, &width, &height, &channels) == 0) fail();
  check_size(height, width, source);
  const std::unique_ptr<stbi_uc, decltype(&stbi_image_free)> pixels(
      stbi_load_from_memory(data, size, &width, &height, &channels, 3), stbi_image_free);
  if (pixels == nullptr) fail();
  Tensor image = dense_tensor({height, width, 3}, DType::u8);
  std::memcpy(image.raw(), pixels.get(), static_cast<size_t>(image.size()));
  return image;
}

}  // namespace

Tensor decode_image(std::span<const std::byte> bytes, const std::string& source) {
  if (bytes.empty()) throw UserError(fmt::format("{}: is empty; replace or remove it", source));
  const bool jpeg = bytes.size() >= 2 && bytes[0] == std::byte{0xff} && bytes[1] == std::byte{0xd8};
  return jpeg ? decode_jpeg(bytes, source) : decode_other(bytes, source);
}

Tensor load_image(const std::string& path) {
  const std::vector<std::byte> bytes = read_bytes(path);
  return decode_image(bytes, path);
}

bool has_image_suffix(const std::string& path) {
  const size_t dot = path.rfind('.');
  if (dot == std::string::npos) return false;
  std::string suffix = path.substr(dot + 1);
  for (char& c : suffix) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  constexpr const char* kSuffixes[] = {"jpg", "jpeg", "png", "bmp"};
  return std::any_of(std::begin(kSuffixes), std::end(kSuffixes),
                     [&](const char* known) { return suffix == known; });
}

}  // namespace orthofed
