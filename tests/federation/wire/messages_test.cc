// Frames and messages in memory: what is written is read, and every fault is refused by name.
#include "federation/wire/messages.h"

#include <cstring>
#include <limits>

#include "engine/io/safetensors.h"
#include "models/config/names.h"
#include "tests/federation/support.h"

namespace orthofed::test {
namespace {

const Expected kExpected{"client 'north'", schema_of(theta0()), 3};
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

Frame only_frame(const Bytes& bytes) {
  FrameReader reader(bytes, 1 << 20, "client 'north'");
  const std::optional<Frame> frame = reader.next();
  EXPECT_TRUE(frame.has_value());
  EXPECT_FALSE(reader.next().has_value());
  return *frame;
}

template <class M>
M round_trip(const M& message) {
  const Bytes bytes = encode(message);
  const Frame frame = only_frame(bytes);
  EXPECT_EQ(frame.size(), bytes.size());
  EXPECT_EQ(frame.type, M::type);
  return std::get<M>(decode(frame, kExpected));
}

TEST(Protocol, HeaderIsByteForByteAsDocumented) {
  const Bytes bytes = encode(Bye{});
  ASSERT_EQ(bytes.size(), 90u);  // 88 and "{}"
  const unsigned char expected[24] = {'O', 'F', 'E', 'D', 2, 0, 8, 0, 0, 0, 0, 0,
                                      2,   0,   0,   0,   0, 0, 0, 0, 0, 0, 0, 0};
  EXPECT_EQ(std::memcmp(bytes.data(), expected, 24), 0);
  const auto* text = reinterpret_cast<const char*>(bytes.data());
  EXPECT_EQ(std::string(text + 24, 64), sha256(std::string(text, 24) + "{}"));
  EXPECT_EQ(std::string(text + 88, 2), "{}");
}

TEST(Protocol, MessagesComeBack) {
  const Hello hello = round_trip(hello_of("north"));
  EXPECT_EQ(hello.client, "north");
  EXPECT_EQ(hello.method, "opal");
  EXPECT_EQ(hello.base_sha256, sha256("base"));
  EXPECT_EQ(hello.schema, schema_of(theta0()));
  EXPECT_EQ(hello.schema.at("blocks.0.attn.qkv.general.a"), "f32[2, 3]");

  const Welcome welcome = round_trip(Welcome{7, 1.5, 3600, {{"train.lr", "0.001"}}});
  EXPECT_EQ(welcome.rounds, 7);
  EXPECT_EQ(welcome.join_seconds, 1.5);
  EXPECT_EQ(welcome.answer_seconds, 3600);
  EXPECT_EQ(welcome.settings, (Settings{{"train.lr", "0.001"}}));

  EXPECT_EQ(round_trip(Refuse{"no"}).reason, "no");
  EXPECT_EQ(round_trip(Abort{"why"}).reason, "why");
  round_trip(Bye{});

  const Round round = round_trip(Round{2, true, theta0()});
  EXPECT_EQ(round.round, 2);
  EXPECT_TRUE(round.evaluate);
  EXPECT_TRUE(same_bits(round.tensors, theta0()));
  EXPECT_TRUE(same_bits(round_trip(Final{3, theta0()}).tensors, theta0()));

  TimeSplit time;
  for (const Activity a : kActivities) time[a] = 1.0 / (1 + double(a));
  const Update update = round_trip(Update{
      2, 351, Update::Report{0.1, 1.0 / 3, {{"update", 1e-300}, {"base", kNan}}, time}, theta0()});
  EXPECT_EQ(update.report->time.seconds, time.seconds);
  EXPECT_EQ(update.samples, 351);
  EXPECT_EQ(update.report->images_per_second, 0.1);  // the same double
  EXPECT_EQ(update.report->train_loss, 1.0 / 3);
  EXPECT_EQ(update.report->penalties.at("update"), 1e-300);
  EXPECT_TRUE(std::isnan(update.report->penalties.at("base")));
  EXPECT_TRUE(same_bits(update.tensors, theta0()));
  EXPECT_FALSE(round_trip(Update{2, 351, std::nullopt, theta0()}).report.has_value());
}

TEST(Protocol, MetricsCarryWhatIsSharedAndNoMore) {
  const SiteEvaluation evaluation{scores(7, 3), scores(6, 4)};
  TimeSplit time;
  time[Activity::evaluation] = 0.125;
  const Metrics all = round_trip(Metrics{3, ShareMetrics::confusion, evaluation, time});
  EXPECT_EQ(all.time.seconds, time.seconds);
  EXPECT_EQ(all.evaluation->personal.confusion, evaluation.personal.confusion);
  EXPECT_EQ(all.evaluation->general.samples, 10);
  EXPECT_EQ(all.evaluation->general.accuracy, 0.6);
  EXPECT_TRUE(std::isnan(all.evaluation->general.auroc));
  EXPECT_EQ(all.evaluation->general.classes_scored, std::vector<int64_t>{1});

  const Metrics scalars = round_trip(Metrics{3, ShareMetrics::scalars, evaluation});
  EXPECT_TRUE(scalars.evaluation->personal.confusion.empty());
  EXPECT_EQ(scalars.evaluation->personal.accuracy, 0.7);

  const Metrics none = round_trip(Metrics{3, ShareMetrics::none, evaluation, time});
  EXPECT_FALSE(none.evaluation.has_value());
  EXPECT_EQ(none.time.total(), 0);
}

TEST(Protocol, EmptyTensorsCross) {
  const Bytes bytes = encode(Update{0, 5, std::nullopt, {}});
  const auto update = std::get<Update>(decode(only_frame(bytes), {"client 'north'", {}, 3}));
  EXPECT_TRUE(update.tensors.empty());
}

TEST(Protocol, StreamsAreWalkedFrameByFrame) {
  Bytes stream;
  for (const Message& message :
       {Message(hello_of("north")), Message(Round{0, false, theta0()}), Message(Bye{})}) {
    const Bytes frame = encode(message);
    stream.insert(stream.end(), frame.begin(), frame.end());
  }
  FrameReader reader(stream, 1 << 20, "peer");
  EXPECT_EQ(reader.next()->type, FrameType::hello);
  EXPECT_EQ(reader.next()->type, FrameType::round);
  EXPECT_EQ(reader.next()->type, FrameType::bye);
  EXPECT_FALSE(reader.next().has_value());

  // Every cut but those between frames is an error.
  const size_t first = encode(hello_of("north")).size();
  for (size_t size = 1; size < first; ++size) {
    FrameReader cut(std::span<const std::byte>(stream).first(size), 1 << 20, "peer");
    EXPECT_THROW(cut.next(), ProtocolError) << size;
  }
}

// ---- Hostile frames -----------------------------------------------------------------------------

// What a frame with one changed byte in its header, the digest recomputed or not, is refused with.
std::string header_error(size_t offset, unsigned char value, const Message& message = Bye{}) {
  Bytes bytes = encode(message);
  bytes[offset] = std::byte{value};
  return message_of<ProtocolError>([&] { FrameReader(bytes, 64, "client 'north'").next(); });
}

TEST(ProtocolErrors, EveryHeaderFieldIsChecked) {
  EXPECT_SAYS(header_error(0, 'X'), "client 'north': frame header: magic");
  EXPECT_SAYS(header_error(4, 1), "frame header: version 1");
  EXPECT_SAYS(header_error(5, 1), "frame header: version 258");
  EXPECT_SAYS(header_error(6, 0), "frame header: type 0");
  EXPECT_SAYS(header_error(6, 10), "frame header: type 10");
  EXPECT_SAYS(header_error(7, 1), "frame header: type 264");
  EXPECT_SAYS(header_error(8, 1), "frame header: flags 0x1");
  EXPECT_SAYS(header_error(15, 1), "frame header: manifest length 16777218 is above the limit");
  EXPECT_SAYS(header_error(23, 0x80), "frame header: tensor length");  // 2^63: before allocation
  EXPECT_SAYS(header_error(16, 1), "in a Bye frame, which carries none");
  EXPECT_SAYS(header_error(18, 1, Round{0, false, theta0()}), "is above the limit of 64");
  EXPECT_SAYS(header_error(24, 'A'), "sha256 is not lower-case hexadecimal");
}

TEST(ProtocolErrors, EveryChangedBitIsNoticed) {
  const Bytes good = encode(Update{1, 2, std::nullopt, theta0()});
  for (size_t i = 0; i < good.size(); ++i) {
    Bytes bytes = good;
    bytes[i] ^= std::byte{1};
    EXPECT_THROW(FrameReader(bytes, 1 << 20, "peer").next(), ProtocolError) << i;
  }
}

std::string manifest_error(FrameType type, const std::string& manifest, const Bytes& tensors = {}) {
  const Bytes bytes = encode_frame(type, manifest, tensors);
  return message_of<ProtocolError>([&] { decode(only_frame(bytes), kExpected); });
}

TEST(ProtocolErrors, ManifestsAreRefusedByKey) {
  const std::string digest(64, 'a');
  const auto hello = [&](const std::string& client, const std::string& base,
                         const std::string& more = "") {
    return "{\"client\":" + client + ",\"method\":\"opal\",\"base_sha256\":" + base +
           ",\"classes_sha256\":\"" + digest + "\",\"schema\":{}" + more + "}";
  };
  const std::string good_base = "\"" + digest + "\"";
  const auto h = FrameType::hello;
  EXPECT_SAYS(manifest_error(h, "{"), "client 'north': Hello frame: manifest is not JSON");
  EXPECT_SAYS(manifest_error(h, ""), "manifest is not JSON");
  EXPECT_SAYS(manifest_error(h, "{} {}"), "manifest is not JSON");
  EXPECT_SAYS(manifest_error(h, "\xff"), "manifest is not JSON");
  EXPECT_SAYS(manifest_error(h, std::string(100000, '[')), "manifest is not JSON");
  EXPECT_SAYS(manifest_error(h, "[1]"), "manifest is not an object");
  EXPECT_SAYS(manifest_error(h, "{}"), "Hello frame: client is missing");
  EXPECT_SAYS(manifest_error(h, hello("7", good_base)), "client is not a string");
  EXPECT_SAYS(manifest_error(h, hello("\"../etc\"", good_base)), "client is not a client name");
  EXPECT_SAYS(manifest_error(h, hello("\"\"", good_base)), "client is not a client name");
  EXPECT_SAYS(manifest_error(h, hello("\"" + std::string(600, 'x') + "\"", good_base)),
              "client is longer than 500 bytes");
  EXPECT_SAYS(manifest_error(h, hello("\"a\"", "\"abc\"")), "base_sha256 is not a SHA-256");
  EXPECT_SAYS(manifest_error(h, hello("\"a\"", good_base, ",\"patients\":3")),
              "patients is not a key of this frame");
  EXPECT_SAYS(manifest_error(h, hello("\"a\"", good_base, ",\"client\":\"b\"")), "'client' twice");
  EXPECT_SAYS(
      manifest_error(h, "{\"client\":\"a\",\"method\":\"opal\",\"base_sha256\":" + good_base +
                            ",\"classes_sha256\":\"" + digest + "\",\"schema\":{\"x\":1}}"),
      "schema holds what is not a string");

  const auto w = FrameType::welcome;
  const auto welcome = [](const std::string& rounds) {
    return "{\"rounds\":" + rounds + ",\"join_seconds\":1,\"answer_seconds\":1}";
  };
  EXPECT_SAYS(manifest_error(w, welcome("0")), "rounds = 0 is outside");
  EXPECT_SAYS(manifest_error(w, welcome("-1")), "rounds = -1 is outside");
  EXPECT_SAYS(manifest_error(w, welcome("1.5")), "rounds is not an integer");
  EXPECT_SAYS(manifest_error(w, welcome("18446744073709551615")), "is outside");
  EXPECT_SAYS(manifest_error(w, welcome("1e999")), "manifest is not JSON");
  EXPECT_SAYS(manifest_error(w, "{\"rounds\":1,\"join_seconds\":-1,\"answer_seconds\":1}"),
              "join_seconds = -1");
  EXPECT_SAYS(manifest_error(FrameType::bye, "{\"x\":1}"), "x is not a key");
}

TEST(ProtocolErrors, UpdatesAreRefusedByField) {
  const Bytes tensors = encode_safetensors(theta0());
  const auto u = FrameType::update;
  const auto error = [&](const std::string& manifest) {
    return manifest_error(u, manifest, tensors);
  };
  EXPECT_SAYS(error("{\"round\":0}"), "Update frame: samples is missing");
  EXPECT_SAYS(error("{\"round\":0,\"samples\":0}"), "samples = 0 is outside");
  EXPECT_SAYS(error("{\"round\":0,\"samples\":-5}"), "samples = -5");
  EXPECT_SAYS(error("{\"round\":0,\"samples\":true}"), "samples is not an integer");
  EXPECT_SAYS(error("{\"round\":0,\"samples\":9007199254740993}"), "samples = 9007199254740993");
  EXPECT_SAYS(error("{\"round\":0,\"samples\":1,\"report\":[]}"), "report is not an object");
  const auto report = [&](const std::string& body) {
    return error("{\"round\":0,\"samples\":1,\"report\":{" + body + "}}");
  };
  EXPECT_SAYS(report("\"images_per_second\":1"), "report.train_loss is missing");
  EXPECT_SAYS(report("\"images_per_second\":1,\"train_loss\":null,\"penalties\":{}"),
              "report.train_loss is not a number");
  EXPECT_SAYS(report("\"images_per_second\":1,\"train_loss\":1,\"penalties\":{\"update\":\"x\"}"),
              "report.penalties.update is not a number");
  const auto timed = [&](const std::string& waiting, const std::string& more = "") {
    return report(
        "\"images_per_second\":1,\"train_loss\":1,\"penalties\":{},\"time\":{\"set_up\":1,"
        "\"joining\":0,\"training\":0,\"evaluation\":0,\"aggregation\":0,\"saving\":0,"
        "\"communication\":0,\"other\":0" +
        waiting + "}" + more);
  };
  EXPECT_SAYS(report("\"images_per_second\":1,\"train_loss\":1,\"penalties\":{}"),
              "report.time is missing");
  EXPECT_SAYS(timed(""), "report.time.waiting is missing");
  EXPECT_SAYS(timed(",\"waiting\":-1"), "report.time.waiting = -1 is outside");
  EXPECT_SAYS(timed(",\"waiting\":1,\"patients\":3"), "report.time.patients is not a key");
  EXPECT_SAYS(timed(",\"waiting\":1", ",\"path\":\"/x\""), "report.path is not a key");
}

std::string tensor_error(const TensorMap& tensors) {
  return manifest_error(FrameType::update, "{\"round\":0,\"samples\":1}",
                        encode_safetensors(tensors));
}

TEST(ProtocolErrors, TensorsAreHeldAgainstTheSchema) {
  TensorMap t = theta0();
  t.erase("head.weight");
  EXPECT_SAYS(tensor_error(t), "client 'north': Update frame: tensor 'head.weight' is missing");
  t = theta0();
  t["personal"] = Tensor::zeros({1}, DType::f32);
  EXPECT_SAYS(tensor_error(t), "tensor 'personal' is not in the agreed schema");
  t = theta0();
  t["head.weight"] = Tensor::zeros({1, 3}, DType::f32);
  EXPECT_SAYS(tensor_error(t), "tensor 'head.weight' is f32[1, 3], agreed was f32[3]");
  t["head.weight"] = Tensor::zeros({4}, DType::f32);
  EXPECT_SAYS(tensor_error(t), "tensor 'head.weight' is f32[4], agreed was f32[3]");
  t["head.weight"] = Tensor::zeros({3}, DType::f64);
  EXPECT_SAYS(tensor_error(t), "tensor 'head.weight' is f64[3], agreed was f32[3]");
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    for (size_t i = 0; i < 3; ++i) {
      t["head.weight"] = Tensor::zeros({3}, DType::f32);
      t["head.weight"].data<float>()[i] = bad;
      EXPECT_SAYS(tensor_error(t), "tensor 'head.weight' holds NaN or infinity");
    }
  }
}

TEST(ProtocolErrors, TensorBytesAreNotTrusted) {
  const Bytes good = encode_safetensors(theta0());
  const auto error = [&](const Bytes& bytes) {
    return manifest_error(FrameType::update, "{\"round\":0,\"samples\":1}", bytes);
  };
  EXPECT_SAYS(error({}), "Update frame");
  for (const size_t size : {size_t{1}, size_t{7}, size_t{8}, size_t{20}, good.size() - 1})
    EXPECT_SAYS(error(Bytes(good.begin(), good.begin() + std::ptrdiff_t(size))), "client 'north'");
  Bytes longer = good;
  longer.push_back(std::byte{0});
  EXPECT_SAYS(error(longer), "client 'north'");
  Bytes huge = good;
  huge[7] = std::byte{0x7f};  // a header of 2^62 bytes
  EXPECT_SAYS(error(huge), "client 'north'");
}

TEST(ProtocolErrors, MetricsMustAddUp) {
  const auto m = FrameType::metrics;
  const auto metrics = [&](const std::string& personal) {
    return manifest_error(
        m, "{\"round\":1,\"share\":\"confusion\",\"personal\":" + personal + ",\"general\":{}}");
  };
  const auto with = [&](const std::string& samples, const std::string& accuracy,
                        const std::string& scored, const std::string& confusion) {
    return metrics("{\"samples\":" + samples + ",\"accuracy\":" + accuracy +
                   ",\"balanced_accuracy\":1,\"auroc\":null,\"classes_scored\":" + scored +
                   ",\"confusion\":" + confusion + "}");
  };
  const std::string zeros = "[[0,0,0],[0,0,0],[0,0,0]]";
  EXPECT_SAYS(manifest_error(m, "{\"round\":1,\"share\":\"all\"}"), "share is not none, scalars");
  EXPECT_SAYS(manifest_error(m, "{\"round\":1,\"share\":\"none\",\"personal\":{}}"),
              "personal is not a key");
  EXPECT_SAYS(manifest_error(m, "{\"round\":1,\"share\":\"scalars\"}"), "personal is missing");
  EXPECT_SAYS(metrics("{}"), "personal.samples is missing");
  EXPECT_SAYS(with("1", "1.5", "[]", zeros), "personal.accuracy = 1.5 is outside 0 .. 1");
  EXPECT_SAYS(with("1", "1", "[3]", zeros), "personal.classes_scored = 3 is outside 0 .. 2");
  EXPECT_SAYS(with("1", "1", "[1,1]", zeros), "personal.classes_scored is not ascending");
  EXPECT_SAYS(with("1", "1", "[0,1,2,2]", zeros), "classes_scored has more than 3 entries");
  EXPECT_SAYS(with("1", "1", "[]", zeros), "personal.confusion sums to 0, not to samples");
  EXPECT_SAYS(with("1", "1", "[]", "[[2,0,0],[0,0,0],[0,0,0]]"),
              "personal.confusion = 2 is outside");
  EXPECT_SAYS(with("1", "1", "[]", "[[-1,0,0],[0,0,0],[0,0,0]]"), "personal.confusion = -1");
  EXPECT_SAYS(with("1", "1", "[]", "[[1,0],[0,0],[0,0]]"), "personal.confusion is not 3 x 3");
  EXPECT_SAYS(with("1", "1", "[]", "[[1,0,0],[0,0,0]]"), "personal.confusion is not 3 x 3");
  EXPECT_SAYS(with("1", "1", "[]", "[1,2,3]"), "personal.confusion is not 3 x 3");
  // The scores are fine, the confusion matrix is one more than share = scalars allows.
  const std::string scores =
      "{\"samples\":0,\"accuracy\":null,\"balanced_accuracy\":null,\"auroc\":null,"
      "\"classes_scored\":[],\"confusion\":[]}";
  EXPECT_SAYS(manifest_error(m, "{\"round\":1,\"share\":\"scalars\",\"personal\":" + scores +
                                    ",\"general\":" + scores + "}"),
              "personal.confusion is not a key of this frame");
}

TEST(Protocol, NamesAndTexts) {
  for (const char* name : {"a", "site-1.north_EU", "0"}) EXPECT_TRUE(is_client_name(name)) << name;
  for (const char* name : {"", ".", "..", ".a", "a/b", "a b", "\xc3\xa9"})
    EXPECT_FALSE(is_client_name(name)) << name;
  EXPECT_FALSE(is_client_name(std::string(65, 'a')));
  EXPECT_EQ(printable("a\x1b[31mb\n"), "a?[31mb?");
  EXPECT_EQ(printable(std::string(1000, 'a')).size(), 500u);
  EXPECT_EQ(round_trip(Abort{"a\x1b[2J" + std::string(1000, 'a')}).reason.size(), 500u);
  EXPECT_NE(classes_digest({"a", "b"}), classes_digest({"b", "a"}));
  EXPECT_NE(classes_digest({"a,b"}), classes_digest({"a", "b"}));
}

}  // namespace
}  // namespace orthofed::test
