// What goes wrong between machines: wrong partners, hostile and dying peers, silence. Each ends
// with a message that names who, when and what; none hangs.
#include <limits>

#include "federation/combine/average.h"
#include "tests/federation/support.h"

namespace orthofed::test {
namespace {

using Joining = FederationTest;
using Failing = FederationTest;

// ---- Joining ------------------------------------------------------------------------------------

TEST_F(Joining, ARefusalSaysWhatDiffers) {
  ServerThread server(config_for({"a", "b"}));
  const auto refusal = [&](const std::string& name, const std::function<void(Agreement&)>& spoil) {
    ArithmeticSite site(name, 1, 1);
    spoil(site.mutable_agreement());
    ClientObserver silent;
    return message_of<UserError>([&] { join(server.address(), site, quick_join(), silent); });
  };
  const auto nothing = [](Agreement&) {};
  EXPECT_SAYS(refusal("mallory", nothing),
              "client 'mallory': the name is not in federation.clients");
  EXPECT_SAYS(refusal("a", [](Agreement& a) { a.method = "dual"; }),
              "method differs: \"opal\" at the server, \"dual\" at the client");
  EXPECT_SAYS(refusal("a", [](Agreement& a) { a.base_sha256 = sha256("other"); }),
              "base model differs: sha256 " + sha256("base").substr(0, 12));
  EXPECT_SAYS(refusal("a", [](Agreement& a) { std::swap(a.classes[0], a.classes[1]); }),
              "classes differ");
  EXPECT_SAYS(refusal("a", [](Agreement& a) { a.schema["head.weight"] = "f32[4]"; }),
              "'head.weight' is f32[3] at the server, f32[4] at the client");
  EXPECT_SAYS(refusal("a", [](Agreement& a) { a.schema.erase("head.weight"); }),
              "'head.weight' is f32[3] at the server, absent at the client");
  EXPECT_SAYS(refusal("a", [](Agreement& a) { a.schema["extra"] = "f32[1]"; }),
              "'extra' is absent at the server, f32[1] at the client");
  EXPECT_SAYS(refusal("../a", nothing), "client name \"../a\"");

  // None of this stopped the server.
  ArithmeticSite a("a", 1, 1), b("b", 1, 1);
  auto join_a = join_async(server.address(), a);
  EXPECT_TRUE(server.events.wait_for("joined a"));
  EXPECT_SAYS(refusal("a", nothing), "a client of this name has joined already");
  auto join_b = join_async(server.address(), b);
  server.result();
  join_a.get();
  join_b.get();
}

TEST_F(Joining, HostileBytesAreAnsweredAndTheServerGoesOn) {
  ServerThread server(config_for({"a"}));
  const auto answer = [&](std::span<const std::byte> bytes) {
    RawPeer peer(server.port);
    peer.send(bytes);
    return peer.reason();
  };
  const Bytes hello = encode(hello_of("a"));
  const auto changed = [&](size_t offset, unsigned char value) {
    Bytes bytes = hello;
    bytes[offset] = std::byte{value};
    return answer(bytes);
  };
  EXPECT_SAYS(answer(as_bytes("GET / HTTP/1.1\r\nHost: example.org\r\nAccept: */*\r\n"
                              "User-Agent: something that is long enough for a header\r\n\r\n")),
              "magic is not OFED");
  EXPECT_SAYS(changed(0, 'o'), "127.0.0.1:");  // names the peer by its address
  EXPECT_SAYS(changed(4, 99), "frame header: version 99");
  EXPECT_SAYS(changed(6, 77), "frame header: type 77");
  EXPECT_SAYS(changed(8, 1), "frame header: flags");
  EXPECT_SAYS(changed(15, 0xff), "frame header: manifest length");
  EXPECT_SAYS(changed(20, 1), "in a Hello frame, which carries none");
  EXPECT_SAYS(changed(30, 'f' == char(hello[30]) ? 'e' : 'f'), "sha256 does not match");
  EXPECT_SAYS(changed(hello.size() - 1, ' '), "sha256 does not match");
  EXPECT_SAYS(answer(encode_frame(FrameType::hello, "{", {})), "manifest is not JSON");
  EXPECT_SAYS(answer(encode_frame(FrameType::hello, "{}", {})), "client is missing");
  EXPECT_SAYS(answer(encode(Bye{})), "Bye frame before a Hello");
  EXPECT_SAYS(answer(encode(Metrics{0, ShareMetrics::none, {}})), "Metrics frame before a Hello");
  // Tensors from who has not joined are refused by their length, unread.
  EXPECT_SAYS(answer(encode(Update{0, 1, {}, theta0()})), "is above the limit of 0");
  // Truncated, and gone.
  RawPeer(server.port).send(std::span<const std::byte>(hello).first(hello.size() / 2));
  RawPeer(server.port).send(std::span<const std::byte>(hello).first(3));

  ArithmeticSite a("a", 1, 1);
  auto join_a = join_async(server.address(), a);
  server.result();
  join_a.get();
  EXPECT_SAYS(server.events.log(), "refused: ");
}

TEST_F(Joining, AClientMayGoAndComeAgainBeforeTheStart) {
  ServerThread server(config_for({"a", "b"}));
  {
    RawPeer first(server.port);
    first.send(hello_of("a"));
    first.expect<Welcome>();
  }
  EXPECT_TRUE(server.events.wait_for("left a: the peer closed the connection"));
  RawPeer second(server.port);
  second.send(hello_of("a"));
  second.expect<Welcome>();
  second.send(Bye{});
  EXPECT_TRUE(server.events.wait_for("left a: a Bye frame where none was asked for"));
  ArithmeticSite a("a", 1, 1), b("b", 1, 1);
  auto join_a = join_async(server.address(), a);
  auto join_b = join_async(server.address(), b);
  server.result();
  join_a.get();
  join_b.get();
}

TEST_F(Joining, LateComersAreTold) {
  ServerThread server(config_for({"a"}));
  ArithmeticSite a("a", 1, 1);
  std::string late, twin;
  a.on_train = [&](int64_t round) {
    if (round != 0) return;
    RawPeer peer(server.port), same(server.port);
    peer.send(hello_of("b"));
    late = peer.reason();
    same.send(hello_of("a"));
    twin = same.reason();
  };
  auto join_a = join_async(server.address(), a);
  server.result();
  join_a.get();
  EXPECT_SAYS(late, "the name is not in federation.clients");
  EXPECT_SAYS(twin, "has joined already");
}

TEST_F(Joining, TheServerStopsWaiting) {
  RunConfig config = config_for({"a", "north", "south"});
  config.federation.join_timeout_seconds = 0.3;
  ServerThread server(config);
  ArithmeticSite a("a", 1, 1);
  auto joined = join_async(server.address(), a);
  EXPECT_SAYS(message_of<FederationError>([&] { server.result(); }),
              "not joined within 0.3 s (federation.join_timeout_seconds): north, south");
  EXPECT_SAYS(message_of<FederationError>([&] { joined.get(); }), "not joined within 0.3 s");
}

TEST_F(Joining, AServerThatIsNotThere) {
  uint16_t port = 0;
  { Socket::listen(&port); }  // a port that was free a moment ago
  ArithmeticSite a("a", 1, 1);
  JoinOptions options = quick_join();
  options.join_timeout_seconds = 0.3;
  ClientObserver silent;
  const std::string address = fmt::format("127.0.0.1:{}", port);
  const std::string what = message_of<UserError>([&] { join(address, a, options, silent); });
  EXPECT_SAYS(what, "no server answers at " + address);
  EXPECT_SAYS(what, "start the server");
  EXPECT_SAYS(message_of<UserError>([&] { join("nowhere", a, options, silent); }), "HOST:PORT");
  EXPECT_SAYS(message_of<UserError>([&] { join("h:99999", a, options, silent); }), "HOST:PORT");
}

TEST_F(Joining, AServerThatStartsLater) {
  uint16_t port = 0;
  { Socket::listen(&port); }
  ArithmeticSite a("a", 1, 1);
  auto joined = join_async(fmt::format("127.0.0.1:{}", port), a);
  sleep_seconds(0.2);
  RunConfig config = config_for({"a"});
  config.federation.address = fmt::format("127.0.0.1:{}", port);
  ServerThread server(config);
  server.result();
  EXPECT_TRUE(same_bits(joined.get().general, a.final_broadcast));
}

TEST_F(Joining, APortInUse) {
  ServerThread server(config_for({"a"}));
  RunConfig config = config_for({"a"});
  config.federation.address = server.address();
  Events events;
  EXPECT_SAYS(message_of<UserError>([&] { serve(config, agreement_for(), theta0(), events); }),
              "cannot listen at " + server.address() + ": Address already in use");
}

TEST_F(Joining, SomethingElseAnswers) {
  uint16_t port = 0;
  Socket listener = Socket::listen(&port);
  ArithmeticSite a("a", 1, 1);
  auto joined = join_async(fmt::format("127.0.0.1:{}", port), a);
  Socket peer = listener.accept();
  peer.send(as_bytes(std::string(200, '5')));
  EXPECT_SAYS(message_of<UserError>([&] { joined.get(); }), "is not an orthofed server");
}

// ---- Rounds that fail ---------------------------------------------------------------------------

// One honest client 'a' and a raw peer 'b' that has joined and been asked to train round 1 of 3.
class Pair {
 public:
  explicit Pair(RunConfig config = config_for({"a", "b"})) : server(config), b(server.port) {
    joined_a = join_async(server.address(), a);
    b.send(hello_of("b"));
    b.expect<Welcome>();
    b.expect<Round>();
  }
  // The server's error; 'a' must be told the same.
  std::string error() {
    const std::string what = message_of<FederationError>([&] { server.result(); });
    EXPECT_EQ(message_of<FederationError>([&] { joined_a.get(); }),
              "the server ended the run: " + what);
    return what;
  }

  ArithmeticSite a{"a", 1, 1};
  ServerThread server;
  RawPeer b;
  std::future<JoinResult> joined_a;
};

TEST_F(Failing, HostileUpdatesNameClientRoundAndField) {
  const auto error = [](const Bytes& bytes) {
    Pair pair;
    pair.b.send(bytes);
    const std::string what = pair.error();
    EXPECT_SAYS(what, "round 1 of 3 failed: client 'b': ");
    EXPECT_EQ(what.find("client 'b'"), what.rfind("client 'b'")) << "named twice: " << what;
    EXPECT_SAYS(pair.b.reason(), what);  // it is told, too
    return what;
  };
  const auto update = [](const std::function<void(TensorMap&)>& spoil) {
    TensorMap tensors = theta0();
    spoil(tensors);
    return encode(Update{0, 1, std::nullopt, tensors});
  };
  const auto patched = [](size_t offset, unsigned char value) {
    Bytes bytes = encode(Update{0, 1, std::nullopt, theta0()});
    bytes[offset] = std::byte{value};
    return bytes;
  };
  EXPECT_SAYS(error(patched(0, 'X')), "frame header: magic");
  EXPECT_SAYS(error(patched(4, 3)), "frame header: version 3");
  EXPECT_SAYS(error(patched(6, 200)), "frame header: type 200");
  EXPECT_SAYS(error(patched(14, 0xff)), "frame header: manifest length");
  EXPECT_SAYS(error(patched(21, 0xff)), "federation.max_frame_mb");
  EXPECT_SAYS(error(patched(200, 0)), "Update frame: sha256 does not match");
  EXPECT_SAYS(error(encode_frame(FrameType::update, "nonsense", {})), "Update frame: manifest");
  EXPECT_SAYS(error(encode_frame(FrameType::update, R"({"round":0,"samples":-1})", {})),
              "Update frame: samples = -1");
  EXPECT_SAYS(error(encode_frame(FrameType::update, R"({"round":0,"samples":1})", {})),
              "Update frame");
  for (const int64_t samples : {kMaxSamples + 1, int64_t{1} << 40})
    EXPECT_SAYS(error(encode(Update{0, samples, std::nullopt, theta0()})),
                fmt::format("Update frame: samples = {} is outside 1 .. {}", samples, kMaxSamples));
  EXPECT_SAYS(error(update([](TensorMap& t) { t.erase("head.weight"); })),
              "tensor 'head.weight' is missing");
  EXPECT_SAYS(error(update([](TensorMap& t) { t["x"] = Tensor::zeros({1}, DType::f32); })),
              "tensor 'x' is not in the agreed schema");
  EXPECT_SAYS(
      error(update([](TensorMap& t) { t["head.weight"] = Tensor::zeros({2}, DType::f32); })),
      "tensor 'head.weight' is f32[2], agreed was f32[3]");
  EXPECT_SAYS(error(update([](TensorMap& t) {
                t["head.weight"].data<float>()[1] = std::numeric_limits<float>::quiet_NaN();
              })),
              "tensor 'head.weight' holds NaN or infinity");
  EXPECT_SAYS(error(encode(Update{1, 1, std::nullopt, theta0()})), "round = 1, asked for was 0");
  EXPECT_SAYS(error(encode(Metrics{0, ShareMetrics::none, {}})),
              "a Metrics frame where none was asked for");
  EXPECT_SAYS(error(encode(hello_of("b"))), "a Hello frame where none was asked for");
  EXPECT_SAYS(error(encode(Abort{"its disk is full\x1b[2J"})), "its disk is full?[2J");
}

// The result goes to disk before anybody hears that the run is complete.
TEST_F(Failing, AResultThatCannotBeWrittenIsNoGoodBye) {
  ServerThread server(config_for({"a", "b"}));
  server.events.at_the_end([](const FederationResult& result) {
    for (const ClientResult& client : result.clients) EXPECT_GT(client.bytes_received, 0);
    throw UserError("general_adapter.safetensors: no space left");
  });
  ArithmeticSite a("a", 1, 1), b("b", 1, 1);
  auto join_a = join_async(server.address(), a), join_b = join_async(server.address(), b);
  EXPECT_SAYS(message_of<UserError>([&] { server.result(); }), "no space left");
  for (auto* joined : {&join_a, &join_b})
    EXPECT_SAYS(message_of<FederationError>([&] { joined->get(); }), "the server ended the run");
}

TEST_F(Failing, AnUpdateSentTwice) {
  Pair pair;
  const Bytes update = encode(Update{0, 1, std::nullopt, theta0()});
  Bytes twice = update;
  twice.insert(twice.end(), update.begin(), update.end());
  pair.b.send(twice);
  // The second one is refused: in this round, or as the answer to the next.
  EXPECT_SAYS(pair.error(), "client 'b'");
}

TEST_F(Failing, AClientThatDiesMidRound) {
  Pair pair;
  pair.b.close();
  EXPECT_SAYS(pair.error(), "round 1 of 3 failed: client 'b': the peer closed the connection");
}

TEST_F(Failing, AClientThatDiesInsideItsUpdate) {
  Pair pair;
  const Bytes update = encode(Update{0, 1, std::nullopt, theta0()});
  pair.b.send(std::span<const std::byte>(update).first(update.size() - 1));
  pair.b.close();
  EXPECT_SAYS(pair.error(), "round 1 of 3 failed: client 'b'");
}

TEST_F(Failing, AClientThatNeverAnswers) {
  RunConfig config = config_for({"a", "b"});
  config.federation.timeout_seconds = 0.3;
  Pair pair(config);
  EXPECT_SAYS(pair.error(), "client 'b': no answer within 0.3 s (federation.timeout_seconds)");
}

TEST_F(Failing, AClientThatDiesBeforeItsLastScores) {
  RunConfig config = config_for({"a", "b"});
  config.rounds = 1;
  Pair pair(config);
  pair.b.send(Update{0, 1, std::nullopt, theta0()});
  pair.b.expect<Final>();
  pair.b.close();
  EXPECT_SAYS(pair.error(), "final evaluation failed: client 'b'");
  // The record of the round that did complete is not lost.
  const auto records = pair.server.events.rounds();
  EXPECT_EQ(records.size(), 2u);
}

// The site's message may name a file or a label: the server learns only in what it failed.
TEST_F(Failing, ASiteThatThrowsTellsTheServerNoMoreThanThat) {
  const RunConfig config = config_for({"a", "b"});
  ServerThread server(config);
  ArithmeticSite a("a", 1, 1), b("b", 1, 1);
  b.on_train = [](int64_t round) {
    if (round == 1) throw UserError("/data/patient_17.png: not an image");
  };
  auto joined_a = join_async(server.address(), a);
  auto joined_b = join_async(server.address(), b);
  EXPECT_EQ(message_of<FederationError>([&] { server.result(); }),
            "round 2 of 3 failed: client 'b': failed while training; its log says why");
  EXPECT_SAYS(message_of<UserError>([&] { joined_b.get(); }), "patient_17");
  EXPECT_SAYS(message_of<FederationError>([&] { joined_a.get(); }), "client 'b'");
}

TEST_F(Failing, AnUpdateThatDivergedDoesNotLeaveTheSite) {
  const RunConfig config = config_for({"a"});
  ServerThread server(config);
  class Diverging : public ArithmeticSite {
   public:
    using ArithmeticSite::ArithmeticSite;
    SiteUpdate train(const TensorMap& broadcast, int64_t round, int64_t rounds) override {
      SiteUpdate update = ArithmeticSite::train(broadcast, round, rounds);
      update.tensors.at("head.weight").data<float>()[2] = std::numeric_limits<float>::infinity();
      return update;
    }
  } a("a", 1, 1);
  auto joined = join_async(server.address(), a);
  EXPECT_SAYS(message_of<Error>([&] { joined.get(); }),
              "round 1 of 3: the update of client 'a': tensor 'head.weight' holds NaN");
  EXPECT_SAYS(message_of<FederationError>([&] { server.result(); }), "client 'a': failed while");
}

TEST_F(Failing, InOneProcessTheSitesOwnErrorComesOut) {
  ArithmeticSite a("a", 1, 1), b("b", 1, 1);
  b.on_train = [](int64_t) { throw UserError("the site's own words"); };
  Events events;
  ServerOptions options;
  options.transport = quick_transport();
  EXPECT_EQ(message_of<UserError>([&] {
              run_in_process(config_for({"a", "b"}), agreement_for(), theta0(), {&a, &b}, events,
                             options);
            }),
            "the site's own words");
  // One that is refused stops a server which would wait for it.
  ArithmeticSite c("c", 1, 1);
  c.mutable_agreement().base_sha256 = sha256("other");
  EXPECT_SAYS(message_of<UserError>([&] {
                run_in_process(config_for({"a", "c"}), agreement_for(), theta0(), {&a, &c}, events,
                               options);
              }),
              "base model differs");
}

TEST_F(Failing, AnObserverThatThrowsEndsTheRunForAll) {
  class Full : public ServerObserver {
    void round_aggregated(int64_t, const TensorMap&) override { throw UserError("disk full"); }
  } full;
  ArithmeticSite a("a", 1, 1);
  ServerOptions options;
  options.transport = quick_transport();
  EXPECT_EQ(message_of<UserError>([&] {
              run_in_process(config_for({"a"}), agreement_for(), theta0(), {&a}, full, options);
            }),
            "disk full");
}

// ---- Stopping -----------------------------------------------------------------------------------

TEST_F(Failing, TheServerIsStopped) {
  ServerThread server(config_for({"a", "b"}));
  ArithmeticSite a("a", 1, 1);
  auto joined = join_async(server.address(), a);
  EXPECT_TRUE(server.events.wait_for("joined a"));
  server.stop();
  EXPECT_THROW(server.result(), Cancelled);
  EXPECT_SAYS(message_of<FederationError>([&] { joined.get(); }), "the server was stopped");
}

TEST_F(Failing, AClientIsStopped) {
  const RunConfig config = config_for({"a", "b"});
  ServerThread server(config);
  ArithmeticSite a("a", 1, 1), b("b", 1, 1);
  std::stop_source stop;
  b.on_train = [&](int64_t round) {
    if (round == 1) stop.request_stop();
  };
  JoinOptions options = quick_join();
  options.stop = stop.get_token();
  auto joined_a = join_async(server.address(), a);
  auto joined_b = join_async(server.address(), b, options);
  EXPECT_EQ(message_of<FederationError>([&] { server.result(); }),
            "round 2 of 3 failed: client 'b': stopped by its user");
  EXPECT_THROW(joined_b.get(), Cancelled);
  EXPECT_SAYS(message_of<FederationError>([&] { joined_a.get(); }), "stopped by its user");

  uint16_t port = 0;
  { Socket::listen(&port); }
  auto nowhere = join_async(fmt::format("127.0.0.1:{}", port), a, options);  // stopped already
  EXPECT_THROW(nowhere.get(), Cancelled);
}

// ---- Hostile servers ----------------------------------------------------------------------------

TEST_F(Failing, AServerThatBreaksTheProtocol) {
  const auto error = [](const std::vector<Bytes>& frames) {
    uint16_t port = 0;
    Socket listener = Socket::listen(&port);
    ArithmeticSite a("a", 1, 1);
    auto joined = join_async(fmt::format("127.0.0.1:{}", port), a);
    RawPeer client(listener.accept());
    client.expect<Hello>();
    client.send(Welcome{2, 5, 5});
    for (const Bytes& frame : frames) client.send(frame);
    const std::string what = message_of<FederationError>([&] { joined.get(); });
    client.close();
    return what;
  };
  TensorMap nan = theta0();
  nan["head.weight"] = Tensor::full({3}, DType::f32, std::numeric_limits<double>::quiet_NaN());
  TensorMap fewer = theta0();
  fewer.erase("head.weight");
  EXPECT_SAYS(error({encode(Round{0, false, nan})}), "server: Round frame: tensor 'head.weight'");
  EXPECT_SAYS(error({encode(Round{0, false, fewer})}), "'head.weight' is missing");
  EXPECT_SAYS(error({encode(Round{1, false, theta0()})}), "Round frame where none was due");
  EXPECT_SAYS(error({encode(Final{2, theta0()})}), "Final frame where none was due");
  EXPECT_SAYS(error({encode(Bye{})}), "Bye frame where none was due");
  EXPECT_SAYS(error({encode(Welcome{2, 5, 5})}), "Welcome frame where none was due");
  EXPECT_SAYS(error({encode(hello_of("a"))}), "Hello frame where none was due");
  EXPECT_SAYS(error({Bytes(200)}), "magic is not OFED");
  EXPECT_SAYS(error({encode(Abort{"for a reason"})}), "the server ended the run: for a reason");
}

TEST_F(Failing, AServerThatTrainsWithOtherSettings) {
  uint16_t port = 0;
  Socket listener = Socket::listen(&port);
  ArithmeticSite a("a", 1, 1);
  JoinOptions options = quick_join();
  options.settings = {{"train.lr", "0.001"}, {"lora.rank", "8"}, {"ours", "1"}};
  auto joined = join_async(fmt::format("127.0.0.1:{}", port), a, options);
  RawPeer client(listener.accept());
  client.expect<Hello>();
  client.send(
      Welcome{2, 5, 5, {{"train.lr", "0.003"}, {"lora.rank", "8"}, {"train.new\n", "\x1b[1m"}}});
  const std::string what = message_of<UserError>([&] { joined.get(); });
  EXPECT_SAYS(what, "train.lr = 0.003 (here 0.001)");
  EXPECT_SAYS(what, "(here not known)");
  EXPECT_EQ(what.find("lora.rank"), std::string::npos) << what;
  EXPECT_EQ(what.find_first_of("\n\x1b"), std::string::npos) << what;
}

TEST_F(Failing, AServerThatDiesWhileTheClientTrains) {
  uint16_t port = 0;
  Socket listener = Socket::listen(&port);
  ArithmeticSite a("a", 1, 1);
  auto training = std::make_shared<std::promise<void>>();
  a.on_train = [training](int64_t) {
    training->set_value();
    sleep_seconds(0.1);
  };
  auto joined = join_async(fmt::format("127.0.0.1:{}", port), a);
  RawPeer client(listener.accept());
  client.expect<Hello>();
  client.send(Welcome{2, 5, 5});
  client.send(Round{0, false, theta0()});
  training->get_future().wait();
  client.close();
  EXPECT_SAYS(message_of<FederationError>([&] { joined.get(); }), "lost the server at 127.0.0.1:");
}

}  // namespace
}  // namespace orthofed::test
