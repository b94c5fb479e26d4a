#include "engine/io/npz.h"

#include <gtest/gtest.h>
#include <zip.h>

#include <cstring>
#include <fstream>

#include "engine/io/files.h"
#include "tests/support/files.h"

namespace orthofed {
namespace {

using test::TemporaryDirectory;
using test::user_error;

// An .npy with any header, right or wrong.
std::string npy(const std::string& header, const std::string& data, char major = 1) {
  std::string bytes = std::string("\x93NUMPY") + major + '\0';
  const auto length = static_cast<uint32_t>(header.size());
  bytes.append(reinterpret_cast<const char*>(&length), major == 1 ? 2 : 4);
  return bytes + header + data;
}

std::string header(const std::string& descr, const std::string& shape,
                   const std::string& fortran = "False") {
  return "{'descr': '" + descr + "', 'fortran_order': " + fortran + ", 'shape': " + shape + ", }\n";
}

// A zip archive made without the code under test.
void write_zip(const std::string& path, const std::map<std::string, std::string>& members) {
  int error = 0;
  zip_t* zip = zip_open(path.c_str(), ZIP_CREATE | ZIP_TRUNCATE, &error);
  ASSERT_NE(zip, nullptr);
  for (const auto& [name, bytes] : members)
    ASSERT_GE(zip_file_add(zip, name.c_str(), zip_source_buffer(zip, bytes.data(), bytes.size(), 0),
                           ZIP_FL_OVERWRITE),
              0);
  ASSERT_EQ(zip_close(zip), 0);
}

class NpzTest : public testing::Test {
 protected:
  Tensor read(const std::string& array) {
    write_zip(path_, {{"a.npy", array}});
    return NpzFile(path_).read("a");
  }
  testing::AssertionResult refused(const std::string& array, const std::string& reason) {
    return user_error([&] { read(array); }, {path_, "'a'", reason});
  }
  TemporaryDirectory directory_;
  const std::string path_ = directory_ / "x.npz";
};

template <class T>
std::string bytes_of(const std::vector<T>& values) {
  return std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
}

TEST_F(NpzTest, RoundTrips) {
  TensorMap tensors;
  for (DType dtype : {DType::f64, DType::f32, DType::f16, DType::i32, DType::u8})
    for (const Shape& shape : {Shape{}, Shape{3}, Shape{2, 3}, Shape{2, 2, 2, 3}, Shape{0, 3}}) {
      std::vector<float> values;
      for (int64_t i = 0; i < shape.size(); ++i) values.push_back(static_cast<float>(7 * i + 1));
      tensors[std::string(name_of(dtype)) + shape.str()] = Tensor::of(values, shape).to(dtype);
    }
  tensors["bf16"] = Tensor::full({2}, DType::bf16, 1.5);
  save_npz(path_, tensors);
  const auto bytes = read_bytes(path_);
  save_npz(path_, tensors);
  EXPECT_EQ(bytes, read_bytes(path_));

  const NpzFile file(path_);
  EXPECT_EQ(file.names().size(), tensors.size());
  for (const auto& [name, tensor] : tensors) {
    SCOPED_TRACE(name);
    ASSERT_TRUE(file.contains(name));
    const Tensor t = file.read(name);
    EXPECT_TRUE(t.dense());
    EXPECT_EQ(t.dtype(), tensor.dtype() == DType::bf16 ? DType::f32 : tensor.dtype());
    EXPECT_EQ(t.shape(), tensor.shape());
    EXPECT_EQ(t.to_vector(), tensor.to_vector());
  }
}

TEST_F(NpzTest, ReadsEveryVersionAndWidth) {
  const std::string floats = bytes_of<float>({1, 2, 3, 4, 5, 6});
  for (char version : {1, 2, 3}) {
    const Tensor t = read(npy(header("<f4", "(2, 3)"), floats, version));
    EXPECT_EQ(t.shape(), (Shape{2, 3}));
    EXPECT_EQ(t.to_vector(), (std::vector<double>{1, 2, 3, 4, 5, 6}));
  }
  EXPECT_EQ(read(npy("{'shape':(6,),'descr':\"<f4\",'fortran_order':False}", floats)).shape(),
            Shape{6});
  EXPECT_EQ(read(npy(header("<f4", "(6,)", "True"), floats)).shape(), Shape{6});  // one dimension
  const Tensor small = read(npy(header("<i8", "(2,)"), bytes_of<int64_t>({-5, 9})));
  EXPECT_EQ(small.dtype(), DType::i32);
  EXPECT_EQ(small.to_vector(), (std::vector<double>{-5, 9}));
  const Tensor large = read(npy(header("<i8", "(2,)"), bytes_of<int64_t>({-5, int64_t{1} << 40})));
  EXPECT_EQ(large.dtype(), DType::f64);
  EXPECT_EQ(large.to_vector(), (std::vector<double>{-5, 0x1p40}));
}

TEST_F(NpzTest, RefusesHostileArrays) {
  const std::string four = bytes_of<float>({1});
  EXPECT_TRUE(refused("", "truncated"));
  EXPECT_TRUE(refused("not an array at all", "npy format"));
  EXPECT_TRUE(refused(npy(header("<f4", "(1,)"), four, 4), "version 4"));
  EXPECT_TRUE(refused(npy(header("<f4", "(1,)"), "").substr(0, 20), "truncated"));
  EXPECT_TRUE(refused(npy(std::string(70000, ' '), four, 2), "header of 70000 bytes"));
  EXPECT_TRUE(refused(npy(header("<f4", "(2,)"), four), "needs 8 bytes, the file holds 4"));
  EXPECT_TRUE(refused(npy(header("<f4", "(0,)"), four), "needs 0 bytes"));
  EXPECT_TRUE(refused(npy(header(">f4", "(1,)"), four), "'>f4' is not supported"));
  EXPECT_TRUE(refused(npy(header("|O", "(1,)"), four), "'|O' is not supported"));
  EXPECT_TRUE(refused(npy(header("<f4", "(1, 1)", "True"), four), "Fortran order"));
  std::string ones;
  for (int i = 0; i <= Shape::kMaxRank; ++i) ones += "1, ";
  EXPECT_TRUE(refused(npy(header("<f4", "(" + ones + ")"), four), "dimensions; at most"));
  EXPECT_TRUE(
      refused(npy(header("<f4", "(4294967296, 4294967296)"), four), "larger than any memory"));
  EXPECT_TRUE(
      refused(npy(header("<f4", "(0, 4294967296, 4294967296)"), four), "larger than any memory"));
  for (const char* bad :
       {"{}", "{'descr': '<f4'}", "[1]", "{'descr': '<f4', 'fortran_order': 0, 'shape': (1,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1,)} x",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), 'shape': (1,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1 1)}",
        "{'descr': '<f4, 'fortran_order': False, 'shape': (1,)"})
    EXPECT_TRUE(refused(npy(bad, four), "header that is not NumPy's")) << bad;
}

TEST_F(NpzTest, RefusesATruncatedArchiveAtEveryLength) {
  save_npz(path_, {{"a", Tensor::full({3, 5}, DType::f32, 1)}});
  const std::string whole = read_text(path_);
  for (size_t n = 0; n < whole.size(); ++n) {
    std::ofstream(path_, std::ios::binary) << whole.substr(0, n);
    ASSERT_TRUE(user_error([&] { NpzFile(path_).read("a"); }, {path_})) << n;
  }
}

TEST_F(NpzTest, DamagedDataFailTheirChecksum) {
  save_npz(path_, {{"a", Tensor::full({64}, DType::f32, 1)}});
  std::string bytes = read_text(path_);
  const size_t at = bytes.find("NUMPY") + 200;  // among the values
  bytes[at] = static_cast<char>(bytes[at] ^ 0x10);
  write_file(path_, bytes);
  EXPECT_TRUE(user_error([&] { NpzFile(path_).read("a"); }, {path_, "'a'", "damaged"}));
}

TEST_F(NpzTest, MissingThingsAreNamed) {
  EXPECT_TRUE(user_error([&] { NpzFile file(path_); }, {path_, "check the path"}));
  write_file(path_, "text");
  EXPECT_TRUE(user_error([&] { NpzFile file(path_); }, {path_, "not a readable .npz"}));
  save_npz(path_, {{"images", Tensor::full({1}, DType::f32, 1)}});
  EXPECT_TRUE(user_error([&] { NpzFile(path_).read("image"); }, {"'image'", "mean 'images'"}));
  EXPECT_TRUE(user_error(
      [&] {
        save_npz(directory_ / "no/x.npz", {{"a", Tensor::full({1}, DType::f32, 1)}});
      },
      {"cannot write"}));
}

}  // namespace
}  // namespace orthofed
