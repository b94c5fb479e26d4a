#include "engine/io/checkpoint.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "engine/io/files.h"
#include "engine/io/sha256.h"
#include "tests/support/files.h"

namespace orthofed {
namespace {

using test::TemporaryDirectory;
using test::user_error;

const char* const kFirst = "model-00001-of-00002.safetensors";
const char* const kSecond = "model-00002-of-00002.safetensors";
const char* const kIndex = "model.safetensors.index.json";

// Two shards and their index, to be spoilt.
class Shards : public testing::Test {
 protected:
  Shards() {
    save_safetensors(dir_ / kFirst, {{"a", a_}, {"b", b_}}, {{"format", "pt"}});
    save_safetensors(dir_ / kSecond, {{"c", c_}});
    index(R"("a": "model-00001-of-00002.safetensors", "b": "model-00001-of-00002.safetensors",
             "c": "model-00002-of-00002.safetensors")");
  }
  void index(const std::string& weight_map) const {
    write_file(dir_ / kIndex,
               R"({"metadata": {"total_size": 76}, "weight_map": {)" + weight_map + "}}");
  }
  testing::AssertionResult refused(std::initializer_list<std::string> parts) const {
    return user_error([&] { load_checkpoint(dir_ / kIndex); }, parts);
  }

  TemporaryDirectory dir_;
  Tensor a_ = Tensor::full({2, 3}, DType::f32, 1), b_ = Tensor::full({5}, DType::bf16, 2),
         c_ = Tensor::full({3, 3}, DType::f16, 3);
};

TEST_F(Shards, AreOneSetOfTensors) {
  for (const std::string& path : {dir_ / kIndex, dir_.path()}) {
    const Safetensors all = load_checkpoint(path);
    ASSERT_EQ(all.tensors.size(), 3u);
    EXPECT_EQ(all.tensors.at("a").to_vector(), a_.to_vector());
    EXPECT_EQ(all.tensors.at("b").dtype(), DType::bf16);
    EXPECT_EQ(all.tensors.at("c").to_vector(), c_.to_vector());
    EXPECT_EQ(all.metadata.at("format"), "pt");
  }
  const CheckpointFiles files = checkpoint_files(dir_.path());
  EXPECT_EQ(files.main, dir_ / kIndex);
  EXPECT_EQ(files.shards, (std::vector<std::string>{dir_ / kFirst, dir_ / kSecond}));
}

TEST_F(Shards, HaveADigestOfTheirOwn) {
  const std::string expected = sha256(sha256_of_file(dir_ / kFirst) + "  " + kFirst + "\n" +
                                      sha256_of_file(dir_ / kSecond) + "  " + kSecond + "\n");
  EXPECT_EQ(sha256_of_checkpoint(dir_ / kIndex), expected);
  EXPECT_EQ(sha256_of_checkpoint(dir_.path()), expected);
  EXPECT_EQ(sha256_of_checkpoint(dir_ / kFirst), sha256_of_file(dir_ / kFirst));
  save_safetensors(dir_ / kSecond, {{"c", Tensor::full({3, 3}, DType::f16, 4)}});
  EXPECT_NE(sha256_of_checkpoint(dir_ / kIndex), expected);
}

TEST_F(Shards, MissingShard) {
  std::filesystem::remove(dir_ / kSecond);
  EXPECT_TRUE(refused({kIndex, kSecond, "fetch it too"}));
}

TEST_F(Shards, DamagedShardIsNamed) {
  write_file(dir_ / kSecond, "not safetensors");
  EXPECT_TRUE(refused({kSecond, "this is not a safetensors file"}));
}

TEST_F(Shards, TensorThatItsShardDoesNotHold) {
  save_safetensors(dir_ / kSecond, {});
  EXPECT_TRUE(refused({kIndex, "'c'", kSecond, "does not hold it", "one version"}));
}

TEST_F(Shards, TensorThatTheIndexDoesNotKnow) {
  save_safetensors(dir_ / kSecond, {{"c", c_}, {"d", c_}});
  EXPECT_TRUE(refused({kSecond, "'d'", "nowhere", "one version"}));
}

TEST_F(Shards, TensorInTwoShards) {
  save_safetensors(dir_ / kSecond, {{"a", a_}, {"c", c_}});
  EXPECT_TRUE(refused({kSecond, "'a'", kFirst}));
}

TEST_F(Shards, NamesThatLeadOutOfTheFolder) {
  for (const char* name : {"../model.safetensors", "/etc/passwd", "sub/model.safetensors", "..",
                           ".", "", "a\\\\b.safetensors", "a\\u0000b"}) {
    index(std::string(R"("a": ")") + name + '"');
    EXPECT_TRUE(refused({kIndex, "'a'", "beside its index"})) << name;
  }
}

TEST_F(Shards, IndexThatIsNone) {
  const auto text = [&](const std::string& json) { write_file(dir_ / kIndex, json); };
  text("{");
  EXPECT_TRUE(refused({kIndex, "not valid JSON"}));
  text("[1]");
  EXPECT_TRUE(refused({kIndex, "no 'weight_map'"}));
  text("{\"weight_map\": {}}");
  EXPECT_TRUE(refused({kIndex, "no 'weight_map'"}));
  text("{\"weight_map\": {\"a\": 1}}");
  EXPECT_TRUE(refused({kIndex, "weight_map['a']", "name"}));
  text("{\"weight_map\": {\"a\": \"x\", \"a\": \"y\"}}");
  EXPECT_TRUE(refused({kIndex, "'a' twice"}));
  text(std::string(1000, '[') + std::string(1000, ']'));
  EXPECT_TRUE(refused({kIndex, "nested too deeply"}));
}

TEST(Checkpoint, AFoldersWeights) {
  const TemporaryDirectory dir;
  const auto main = [&] { return checkpoint_files(dir.path()).main; };
  EXPECT_TRUE(user_error(main, {dir.path(), "no safetensors file", "pth_to_safetensors"}));
  save_safetensors(dir / "a.safetensors", {});
  EXPECT_EQ(main(), dir / "a.safetensors");
  save_safetensors(dir / "b.safetensors", {});
  EXPECT_TRUE(user_error(main, {dir.path(), "a.safetensors", "b.safetensors", "name the file"}));
  save_safetensors(dir / "model.safetensors", {});
  EXPECT_EQ(main(), dir / "model.safetensors");
  EXPECT_TRUE(
      user_error([&] { load_checkpoint(dir / "c.safetensors"); }, {"c.safetensors", "check"}));
}

}  // namespace
}  // namespace orthofed
