// Sockets that dawdle, crowd or vanish.
#include "federation/net/transport.h"

#include "tests/federation/support.h"

namespace orthofed::test {
namespace {

class TransportTest : public FederationTest {
 protected:
  static std::optional<Event> next(Transport& transport, double seconds = 10) {
    return transport.wait(after(seconds), {});
  }
  static Event expect(Transport& transport, Event::Kind kind) {
    std::optional<Event> event = next(transport);
    EXPECT_TRUE(event && event->kind == kind) << (event ? event->detail : "nothing");
    return event ? std::move(*event) : Event{};
  }
};
using Kind = Event::Kind;

TEST_F(TransportTest, FramesCrossBothWays) {
  Transport server(quick_transport()), client(quick_transport());
  const uint16_t port = server.listen("127.0.0.1:0");
  const int64_t there = client.connect(fmt::format("127.0.0.1:{}", port), after(5), {});
  client.send(there, std::make_shared<const Bytes>(encode(Abort{"one"})));
  client.send(there, std::make_shared<const Bytes>(encode(Abort{"two"})));
  const Event opened = expect(server, Kind::opened);
  EXPECT_SAYS(opened.detail, "127.0.0.1:");
  EXPECT_SAYS(expect(server, Kind::frame).frame.manifest, "one");
  // The second frame waits until the peer is admitted.
  EXPECT_FALSE(next(server, 0.05).has_value());
  server.admit(opened.connection, 1000);
  EXPECT_SAYS(expect(server, Kind::frame).frame.manifest, "two");
  server.send(opened.connection, std::make_shared<const Bytes>(encode(Bye{})));
  EXPECT_EQ(expect(client, Kind::frame).frame.type, FrameType::bye);
  client.close(there);
  EXPECT_SAYS(expect(server, Kind::closed).detail, "the peer closed the connection");
}

TEST_F(TransportTest, WhatWasSentLastArrivesThoughTheOtherSideStillTalks) {
  Transport server(quick_transport());
  const uint16_t port = server.listen("127.0.0.1:0");
  RawPeer peer(port);
  peer.send(Bytes(5000));  // no frame, and more of it than is read
  EXPECT_EQ(expect(server, Kind::opened).connection, 1);
  const Event invalid = expect(server, Kind::invalid);
  peer.send(Bytes(100000));
  server.send(invalid.connection, std::make_shared<const Bytes>(encode(Refuse{"no"})));
  server.close(invalid.connection);
  EXPECT_EQ(peer.reason(), "no");
  EXPECT_FALSE(next(server, 0.5).has_value());  // closed by its owner: no event
}

TEST_F(TransportTest, ASlowFirstFrameIsCutOff) {
  TransportOptions options = quick_transport();
  options.handshake_seconds = 0.3;
  Transport server(options);
  RawPeer silent(server.listen("127.0.0.1:0"));
  expect(server, Kind::opened);
  EXPECT_SAYS(expect(server, Kind::closed).detail, "no complete first frame within 0.3 s");

  // A byte now and then does not help: the limit is for the whole frame.
  Transport another(options);
  RawPeer slow(another.listen("127.0.0.1:0"));
  expect(another, Kind::opened);
  const Bytes hello = encode(hello_of("a"));
  const auto start = Clock::now();
  std::optional<Event> event;
  for (size_t i = 0; i < hello.size() && !event; ++i) {
    slow.send(std::span<const std::byte>(hello).subspan(i, 1));
    event = next(another, 0.02);
  }
  ASSERT_TRUE(event.has_value());
  EXPECT_EQ(event->kind, Kind::closed);
  EXPECT_LT(Clock::now() - start, std::chrono::seconds(5));
}

TEST_F(TransportTest, AFrameThatStallsIsCutOff) {
  TransportOptions options = quick_transport();
  options.stall_seconds = 0.3;
  Transport server(options);
  RawPeer peer(server.listen("127.0.0.1:0"));
  peer.send(hello_of("a"));
  const int64_t connection = expect(server, Kind::opened).connection;
  expect(server, Kind::frame);
  server.admit(connection, 1 << 20);
  // Silence between frames is no stall, and no communication.
  Stopwatch time(Activity::waiting);
  EXPECT_FALSE(server.wait(after(0.5), {}, &time).has_value());
  EXPECT_EQ(time.split()[Activity::communication], 0);
  const Bytes update = encode(Update{0, 1, std::nullopt, theta0()});
  peer.send(std::span<const std::byte>(update).first(100));
  const std::optional<Event> event = server.wait(after(10), {}, &time);
  ASSERT_TRUE(event && event->kind == Kind::closed);
  EXPECT_SAYS(event->detail, "stalled for 0.3 s inside a frame");
  const TimeSplit split = time.split();
  EXPECT_GT(split[Activity::communication], 0.1);
  EXPECT_GE(split[Activity::waiting], 0.4);
  EXPECT_EQ(split.total(), split[Activity::communication] + split[Activity::waiting]);
}

TEST_F(TransportTest, APeerThatDoesNotReadIsCutOff) {
  TransportOptions options = quick_transport();
  options.stall_seconds = 0.3;
  Transport server(options);
  RawPeer peer(server.listen("127.0.0.1:0"));
  peer.send(hello_of("a"));
  const int64_t connection = expect(server, Kind::opened).connection;
  expect(server, Kind::frame);
  server.admit(connection, 0);
  server.send(connection, std::make_shared<const Bytes>(size_t{1} << 26));  // 64 MiB
  EXPECT_SAYS(expect(server, Kind::closed).detail, "takes no data for 0.3 s");
}

// With room for one tensor section, the others' senders wait until the owner has taken it: one with
// less patience than that goes, one with more is served.
TEST_F(TransportTest, TensorSectionsComeOneAfterAnother) {
  TransportOptions options = quick_transport();
  options.max_bodies = 1;
  Transport server(options);
  options.stall_seconds = 0.5;
  Transport first(options), impatient(options), patient(options);
  const std::string address = fmt::format("127.0.0.1:{}", server.listen("127.0.0.1:0"));
  const auto join = [&](Transport& client, double write_seconds) {
    const int64_t link = client.connect(address, after(5), {});
    client.send(link, std::make_shared<const Bytes>(encode(hello_of("a"))));
    client.admit(link, 1 << 20, write_seconds);
    const int64_t connection = expect(server, Kind::opened).connection;
    expect(server, Kind::frame);
    server.admit(connection, 1 << 26);
    return std::pair(link, connection);
  };
  const auto a = join(first, 20), b = join(impatient, 0), c = join(patient, 20);
  // More than the sockets' buffers take.
  const auto update = std::make_shared<const Bytes>(
      encode(Update{0, 1, std::nullopt, {{"x", Tensor::full({1 << 22}, DType::f32, 1)}}}));
  first.send(a.first, update);
  sleep_seconds(0.5);
  impatient.send(b.first, update);
  patient.send(c.first, update);
  EXPECT_SAYS(expect(impatient, Kind::closed).detail, "takes no data for 0.5 s");
  EXPECT_EQ(expect(server, Kind::frame).connection, a.second);
  for (int i = 0; i < 2; ++i) {
    const std::optional<Event> event = next(server);
    ASSERT_TRUE(event.has_value());
    EXPECT_EQ(event->kind, event->connection == c.second ? Kind::frame : Kind::closed);
  }
}

// With one large frame at a time on its way out, the others wait until it has been taken, or its
// peer cut off. Small frames pass them, and who is closed while it waits hears the reason.
TEST_F(TransportTest, LargeFramesLeaveOneAfterAnother) {
  TransportOptions options = quick_transport();
  options.max_sending = 1;
  options.stall_seconds = 2;
  Transport server(options), patient(quick_transport());
  const uint16_t port = server.listen("127.0.0.1:0");
  RawPeer stuck(port), closed(port), small(port);
  std::vector<int64_t> connections;
  for (RawPeer* peer : {&stuck, &closed, &small}) {
    connections.push_back(expect(server, Kind::opened).connection);
    peer->send(hello_of("a"));
  }
  const int64_t link = patient.connect(fmt::format("127.0.0.1:{}", port), after(5), {});
  patient.send(link, std::make_shared<const Bytes>(encode(hello_of("a"))));
  patient.admit(link, 1 << 26);
  for (int hellos = 0; hellos < 4;) {
    const std::optional<Event> event = next(server);
    ASSERT_TRUE(event.has_value());
    if (event->kind == Kind::opened) connections.push_back(event->connection);
    if (event->kind == Kind::frame) ++hellos;
  }
  ASSERT_EQ(connections.size(), 4u);
  for (const int64_t connection : connections) server.admit(connection, 0);

  // More than the sockets' buffers take.
  const auto large = std::make_shared<const Bytes>(
      encode(Update{0, 1, std::nullopt, {{"x", Tensor::full({1 << 22}, DType::f32, 1)}}}));
  for (const size_t i : {0, 1, 3}) server.send(connections[i], large);
  server.send(connections[1], std::make_shared<const Bytes>(encode(Abort{"over"})));
  server.close(connections[1]);
  server.send(connections[2], std::make_shared<const Bytes>(encode(Bye{})));
  EXPECT_EQ(closed.reason(), "over");
  small.expect<Bye>();
  EXPECT_FALSE(next(patient, 0.2).has_value());
  const Event cut = expect(server, Kind::closed);
  EXPECT_EQ(cut.connection, connections[0]);
  EXPECT_SAYS(cut.detail, "takes no data for 2 s");
  EXPECT_EQ(expect(patient, Kind::frame).frame.size(), large->size());
}

TEST_F(TransportTest, CrowdsAreTurnedAwayButMembersStay) {
  TransportOptions options = quick_transport();
  options.max_pending = 3;
  Transport server(options);
  const uint16_t port = server.listen("127.0.0.1:0");
  RawPeer member(port);
  member.send(hello_of("a"));
  const int64_t connection = expect(server, Kind::opened).connection;
  expect(server, Kind::frame);
  server.admit(connection, 0);
  std::vector<RawPeer> crowd;
  for (int i = 0; i < 8; ++i) crowd.emplace_back(port);
  for (int i = 0; i < 3; ++i) expect(server, Kind::opened);
  EXPECT_FALSE(next(server, 0.2).has_value());
  for (size_t i = 3; i < crowd.size(); ++i) EXPECT_FALSE(crowd[i].receive().has_value());
  server.send(connection, std::make_shared<const Bytes>(encode(Bye{})));
  member.expect<Bye>();
}

TEST_F(TransportTest, AStatedLengthDoesNotAllocate) {
  Transport server(quick_transport());
  RawPeer peer(server.listen("127.0.0.1:0"));
  peer.send(hello_of("a"));
  const int64_t connection = expect(server, Kind::opened).connection;
  expect(server, Kind::frame);
  server.admit(connection, size_t{1} << 50);  // allows a petabyte; the peer states one and goes
  Bytes header = encode(Update{0, 1, std::nullopt, theta0()});
  header.resize(kHeaderBytes);
  header[16 + 6] = std::byte{3};
  peer.send(header);
  peer.close();
  expect(server, Kind::closed);
}

TEST_F(TransportTest, StopWakesEveryWait) {
  Transport transport(quick_transport());
  std::stop_source stop;
  std::thread later([&] {
    sleep_seconds(0.05);
    stop.request_stop();
  });
  EXPECT_THROW(transport.wait(Clock::time_point::max(), stop.get_token()), Cancelled);
  later.join();
  EXPECT_THROW(transport.connect("127.0.0.1:1", after(10), stop.get_token()), Cancelled);
}

TEST_F(TransportTest, AddressesAreChecked) {
  Transport transport(quick_transport());
  for (const char* address : {"", "host", ":1", "host:", "host:x", "host:-1", "host:65536"})
    EXPECT_SAYS(message_of<UserError>([&] { transport.listen(address); }), "HOST:PORT") << address;
  EXPECT_SAYS(message_of<UserError>([&] { transport.listen("203.0.113.1:0"); }),
              "cannot listen at 203.0.113.1:0");  // a documentation address (RFC 5737)
  EXPECT_GT(transport.listen("127.0.0.1:0"), 0);  // a bare machine resolves no names
}

}  // namespace
}  // namespace orthofed::test
