#include "engine/io/safetensors.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "engine/io/files.h"
#include "tests/support/files.h"
#include "tests/support/random.h"

namespace orthofed {
namespace {

using test::TemporaryDirectory;
using test::user_error;

std::string file_of(const std::string& header, const std::string& data = "") {
  const uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + header + data;
}

// The header filled up with spaces, so that the data starts on a multiple of eight.
std::string padded(std::string header) {
  header.append((8 - header.size() % 8) % 8, ' ');
  return header;
}

Safetensors decode(const std::string& file) {
  return decode_safetensors(as_bytes(file), "x.safetensors");
}

testing::AssertionResult refused(const std::string& file, const std::string& reason) {
  return user_error([&] { decode(file); }, {"x.safetensors", reason});
}

testing::AssertionResult equal(const Tensor& a, const Tensor& b) {
  if (a.dtype() != b.dtype() || !(a.shape() == b.shape()))
    return testing::AssertionFailure() << name_of(a.dtype()) << a.shape().str() << " and "
                                       << name_of(b.dtype()) << b.shape().str();
  if (a.to_vector() != b.to_vector()) return testing::AssertionFailure() << "values differ";
  return testing::AssertionSuccess();
}

TensorMap samples() {
  TensorMap tensors;
  for (DType dtype : {DType::f64, DType::f32, DType::bf16, DType::f16, DType::i32, DType::u8}) {
    uint64_t stream = 0;
    for (const Shape& shape : {Shape{}, Shape{1}, Shape{17}, Shape{3, 5}, Shape{2, 3, 4, 7},
                               Shape{8, 16}, Shape{0}, Shape{0, 3}, Shape{3, 0}}) {
      const Philox rng = PhiloxKey(test::seed()).with(stream++);
      std::vector<float> values;
      for (int64_t i = 0; i < shape.size(); ++i)
        values.push_back(static_cast<float>(rng(static_cast<uint64_t>(i))[0] % 200));
      tensors[std::string(name_of(dtype)) + shape.str()] = Tensor::of(values, shape).to(dtype);
    }
  }
  return tensors;
}

TEST(Safetensors, RoundTripsEveryDTypeAndShape) {
  const TemporaryDirectory directory;
  const TensorMap tensors = samples();
  const std::map<std::string, std::string> metadata{{"model", "vit \"tiny\""}, {"empty", ""}};
  save_safetensors(directory / "a.safetensors", tensors, metadata);
  const std::vector<std::byte> encoded = encode_safetensors(tensors, metadata);
  EXPECT_EQ(encoded, read_bytes(directory / "a.safetensors"));
  EXPECT_EQ(encoded, encode_safetensors(tensors, metadata));

  for (const Safetensors& file :
       {load_safetensors(directory / "a.safetensors"), decode_safetensors(encoded, "memory")}) {
    EXPECT_EQ(file.metadata, metadata);
    ASSERT_EQ(file.tensors.size(), tensors.size());
    for (const auto& [name, tensor] : tensors) {
      SCOPED_TRACE(name);
      ASSERT_TRUE(file.tensors.count(name));
      EXPECT_TRUE(equal(file.tensors.at(name), tensor));
    }
  }
}

TEST(Safetensors, EmptyFile) {
  EXPECT_TRUE(decode_safetensors(encode_safetensors({}), "memory").tensors.empty());
  EXPECT_TRUE(decode(file_of("{}")).tensors.empty());
  EXPECT_TRUE(decode(file_of("{}      ")).tensors.empty());  // padded with spaces
}

TEST(Safetensors, WritesDenseDataWhateverThePitch) {
  const Tensor wide = Tensor::of(std::vector<float>{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, {2, 5});
  const auto bytes =
      encode_safetensors({{"columns", wide.columns(1, 3)}, {"rows", wide.row_range(1, 2)}});
  const Safetensors file = decode_safetensors(bytes, "memory");
  EXPECT_EQ(file.tensors.at("columns").to_vector(), (std::vector<double>{2, 3, 7, 8}));
  EXPECT_EQ(file.tensors.at("rows").to_vector(), (std::vector<double>{6, 7, 8, 9, 10}));
  float last[4];  // "columns" comes first, dense
  std::memcpy(last, bytes.data() + bytes.size() - 9 * sizeof(float), sizeof last);
  EXPECT_EQ(last[0], 2);
  EXPECT_EQ(last[2], 7);
}

TEST(Safetensors, ViewsTheMappedFile) {
  const TemporaryDirectory directory;
  const std::string path = directory / "a.safetensors";
  save_safetensors(path, {{"aligned", Tensor::full({3, 4}, DType::f32, 1)},
                          {"odd", Tensor::full({3, 3}, DType::f32, 2)}});
  Safetensors file = load_safetensors(path);
  // Dense, where they are in the file: one right behind the other.
  EXPECT_TRUE(file.tensors.at("aligned").dense());
  EXPECT_EQ(file.tensors.at("odd").pitch(), 3);
  EXPECT_EQ(file.tensors.at("odd").data<float>(), file.tensors.at("aligned").data<float>() + 12);
  // What does not even start on a multiple of its element is copied, to rows on 16 bytes.
  write_file(directory / "b.safetensors",
             file_of(padded(R"({"f":{"dtype":"F32","shape":[2,1],"data_offsets":[1,9]},)"
                            R"("u":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})"),
                     std::string(9, '\0')));
  const Tensor copied = load_safetensors(directory / "b.safetensors").tensors.at("f");
  EXPECT_EQ(copied.pitch(), 4);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(copied.data<float>()) % 16, 0U);
  EXPECT_EQ(copied.to_vector(), (std::vector<double>{0, 0}));
  // The tensor keeps the mapping alive, can be written to, and the file does not change.
  const Tensor kept = file.tensors.at("aligned");
  file = {};
  kept.fill(7);
  EXPECT_EQ(kept.to_vector(), std::vector<double>(12, 7));
  EXPECT_EQ(load_safetensors(path).tensors.at("aligned").to_vector(), std::vector<double>(12, 1));
}

TEST(Safetensors, ConvertsInt64) {
  const int64_t values[2] = {-3, 2147483647};
  const std::string data(reinterpret_cast<const char*>(values), 16);
  const std::string header = R"({"n":{"dtype":"I64","shape":[2],"data_offsets":[0,16]}})";
  const Tensor small = decode(file_of(header, data)).tensors.at("n");
  EXPECT_EQ(small.dtype(), DType::i32);
  EXPECT_EQ(small.to_vector(), (std::vector<double>{-3, 2147483647}));
  const int64_t large[2] = {-3, int64_t{1} << 40};
  const Tensor wide = decode(file_of(header, std::string(reinterpret_cast<const char*>(large), 16)))
                          .tensors.at("n");
  EXPECT_EQ(wide.dtype(), DType::f64);
  EXPECT_EQ(wide.to_vector(), (std::vector<double>{-3, 0x1p40}));
}

TEST(Safetensors, RefusesATruncatedFileAtEveryLength) {
  const auto whole = encode_safetensors(
      {{"a", Tensor::full({2, 3}, DType::f32, 1)}, {"b", Tensor::full({5}, DType::u8, 2)}});
  for (size_t n = 0; n < whole.size(); ++n)
    ASSERT_TRUE(user_error([&] { decode_safetensors(std::span(whole).first(n), "x"); }, {"x: "}))
        << n;
  auto longer = whole;
  longer.push_back(std::byte{0});
  EXPECT_TRUE(user_error([&] { decode_safetensors(longer, "x"); }, {"1 bytes after the last"}));
}

TEST(Safetensors, RefusesHostileHeaders) {
  EXPECT_TRUE(refused("", "too short"));
  EXPECT_TRUE(refused(std::string("\xff\xff\xff\xff\xff\xff\xff\xff{}", 10), "claims"));
  EXPECT_TRUE(refused(std::string("\x40\0\0\0\0\0\0\0{}", 10), "truncated"));
  EXPECT_TRUE(refused(file_of(""), "not a JSON object"));
  EXPECT_TRUE(refused(file_of("[]"), "not a JSON object"));
  EXPECT_TRUE(refused(file_of(" {}"), "not a JSON object"));
  EXPECT_TRUE(refused(file_of("{"), "not valid JSON"));
  EXPECT_TRUE(refused(file_of("{}x"), "not valid JSON"));
  EXPECT_TRUE(refused(file_of(std::string("{}\0", 3)), "not valid JSON"));
  EXPECT_TRUE(refused(file_of("{\"\xff\":1}"), "not valid JSON"));
  EXPECT_TRUE(refused(file_of("{\"a\":" + std::string(100000, '[')), "nested too deeply"));
  std::string objects;
  for (int i = 0; i < 100000; ++i) objects += "{\"a\":";
  EXPECT_TRUE(refused(file_of(objects), "nested too deeply"));
}

// One float "a" with one field of its header replaced.
std::string with(const std::string& field, const std::string& value) {
  std::string header = "{\"a\":{";
  for (const auto& [name, good] : {std::pair<std::string, std::string>{"dtype", "\"F32\""},
                                   {"shape", "[1]"},
                                   {"data_offsets", "[0,4]"}})
    header += (header.back() == '{' ? "\"" : ",\"") + name + "\":" + (name == field ? value : good);
  return file_of(header + "}}", std::string(4, '\0'));
}

TEST(Safetensors, RefusesWrongFields) {
  auto one = [](const std::string& field, const std::string& value, const std::string& reason) {
    return user_error([&] { decode(with(field, value)); }, {"x.safetensors", "'a'", reason});
  };
  ASSERT_EQ(decode(with("", "")).tensors.at("a").to_vector(), std::vector<double>{0});
  EXPECT_TRUE(one("dtype", "3", "dtype must be a string"));
  EXPECT_TRUE(one("dtype", "\"F8_E4M3\"", "not supported; convert"));
  EXPECT_TRUE(one("shape", "1", "shape must be an array"));
  EXPECT_TRUE(one("shape", "[-1]", "non-negative"));
  EXPECT_TRUE(one("shape", "[1.0]", "non-negative"));
  EXPECT_TRUE(one("shape", "[\"1\"]", "non-negative"));
  std::string ones = "[1";
  for (int i = 0; i < Shape::kMaxRank; ++i) ones += ",1";
  EXPECT_TRUE(one("shape", ones + "]", "dimensions; at most"));
  EXPECT_TRUE(one("shape", "[4294967296,4294967296]", "larger than any memory"));
  EXPECT_TRUE(one("shape", "[9223372036854775807,2,0]", "larger than any memory"));
  EXPECT_TRUE(one("shape", "[0,9223372036854775807,2]", "larger than any memory"));
  EXPECT_TRUE(one("shape", "[18446744073709551616]", "non-negative"));  // beyond 64 bits: a float
  EXPECT_TRUE(one("shape", "[2]", "needs 8 bytes"));
  EXPECT_TRUE(one("shape", "[0]", "needs 0 bytes"));
  EXPECT_TRUE(one("data_offsets", "4", "two non-negative"));
  EXPECT_TRUE(one("data_offsets", "[0]", "two non-negative"));
  EXPECT_TRUE(one("data_offsets", "[0,4,4]", "two non-negative"));
  EXPECT_TRUE(one("data_offsets", "[-4,0]", "two non-negative"));
  EXPECT_TRUE(one("data_offsets", "[4,0]", "end before they begin"));
  EXPECT_TRUE(one("data_offsets", "[0,8]", "truncated"));
  EXPECT_TRUE(one("data_offsets", "[18446744073709551615,3]", "end before they begin"));
  EXPECT_TRUE(one("data_offsets", "[0,3]", "needs 4 bytes"));

  EXPECT_TRUE(refused(file_of(R"({"a":1})"), "exactly dtype"));
  EXPECT_TRUE(refused(file_of(R"({"a":{"dtype":"F32","shape":[0]}})"), "exactly dtype"));
  EXPECT_TRUE(refused(file_of(R"({"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0],"more":1}})"),
                      "exactly"));
}

TEST(Safetensors, RefusesDuplicatesOverlapsAndGaps) {
  const std::string data(8, '\0');
  const std::string u8 = R"({"dtype":"U8","shape":[4],"data_offsets":)";
  EXPECT_TRUE(refused(file_of(R"({"a":)" + u8 + R"([0,4]},"a":)" + u8 + "[4,8]}}", data),
                      "names 'a' twice"));
  EXPECT_TRUE(refused(file_of(R"({"__metadata__":{"k":"1","k":"2"}})"), "names 'k' twice"));
  EXPECT_TRUE(refused(
      file_of(R"({"a":{"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]}})"), "twice"));
  EXPECT_TRUE(
      refused(file_of(R"({"a":)" + u8 + R"([0,4]},"b":)" + u8 + "[2,6]}}", data), "'b': overlaps"));
  EXPECT_TRUE(
      refused(file_of(R"({"a":)" + u8 + R"([0,4]},"b":)" + u8 + "[0,4]}}", data), "overlaps"));
  EXPECT_TRUE(refused(file_of(R"({"a":)" + u8 + "[4,8]}}", data), "belong to no tensor"));
  EXPECT_TRUE(refused(file_of(R"({"a":)" + u8 + "[0,4]}}", data), "4 bytes after the last"));
}

TEST(Safetensors, RefusesMetadataThatIsNotStrings) {
  EXPECT_TRUE(refused(file_of(R"({"__metadata__":[]})"), "object of strings"));
  EXPECT_TRUE(
      refused(file_of(R"({"__metadata__":{"a":1}})"), "__metadata__['a'] must be a string"));
  EXPECT_TRUE(refused(file_of(R"({"__metadata__":{"a":{"b":"c"}}})"), "must be a string"));
}

// Every single-byte change of a small file is either refused with a UserError or decodes to tensors
// of the sizes the file holds; the sanitizers watch.
TEST(Safetensors, SurvivesFlippedBytes) {
  const auto whole = encode_safetensors(
      {{"a", Tensor::full({2, 3}, DType::f32, 1)}, {"bc", Tensor::full({5}, DType::u8, 2)}},
      {{"k", "v"}});
  int accepted = 0;
  for (size_t i = 0; i < whole.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      auto changed = whole;
      changed[i] ^= std::byte(1 << bit);
      try {
        int64_t bytes = 0;
        for (const auto& [name, tensor] : decode_safetensors(changed, "x").tensors)
          bytes += tensor.size() * static_cast<int64_t>(size_of(tensor.dtype()));
        ++accepted;
        ASSERT_LE(bytes, 29);
      } catch (const UserError&) {
      }
    }
  }
  EXPECT_GT(accepted, 29 * 8 - 1);  // the data itself is free
}

long peak_kib() {
  struct rusage usage {};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss;
}

// 1.2 GB of which one element is read. The file is a hole: it takes no room on the disk.
TEST(Safetensors, OpensALargeFileWithoutReadingIt) {
  const TemporaryDirectory directory;
  const std::string path = directory / "large.safetensors";
  const std::string start = file_of(
      padded(R"({"w":{"dtype":"F32","shape":[30000,10000],"data_offsets":[0,1200000000]}})"));
  write_file(path, start);
  std::filesystem::resize_file(path, start.size() + 1200000000);
  const long before = peak_kib();
  const Safetensors file = load_safetensors(path);
  EXPECT_EQ(file.tensors.at("w").row<float>(29999)[9999], 0);
  EXPECT_LT(peak_kib() - before, 64 << 10);
}

TEST(Safetensors, MissingFile) {
  EXPECT_TRUE(user_error([] { load_safetensors("/nowhere/w.safetensors"); },
                         {"/nowhere/w.safetensors", "check the path"}));
}

TEST(Safetensors, ReadsPretrainedWeights) {
  const char* root = std::getenv("OF_DATA");
  if (root == nullptr) GTEST_SKIP() << "OF_DATA is not set: no pretrained weights to read";
  const Safetensors file =
      load_safetensors(std::string(root) + "/vit_tiny_pretrained/vit_tiny_patch16_224.safetensors");
  const Tensor weight = file.tensors.at("patch_embed.proj.weight");
  EXPECT_EQ(weight.shape(), (Shape{192, 3, 16, 16}));
  for (const auto& [name, tensor] : file.tensors) EXPECT_TRUE(tensor.all_finite()) << name;
}

}  // namespace
}  // namespace orthofed
