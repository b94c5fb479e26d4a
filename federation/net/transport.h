// Frames over TCP. One thread of its own moves the bytes (Asio coroutines); the owner takes events
// from a queue with wait(), one at a time, and answers with send() and close(), which never block.
// So the logic of server and client is plain sequential code, and a site may train for an hour
// while its socket stays served.
//
// What a peer can do to us is bounded: a header is checked before its body is allocated, memory
// grows with the bytes that have arrived, at most one frame per connection waits in the queue, at
// most max_bodies of them have tensors (the others' senders wait), a frame that has begun must keep
// moving (stall_seconds), a new connection must deliver its first frame within handshake_seconds,
// and at most max_pending connections may be that new.
#pragma once
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>

#include "engine/time/stopwatch.h"
#include "federation/wire/frame.h"

namespace orthofed {

using Clock = std::chrono::steady_clock;
// A point in time `seconds` from now.
Clock::time_point after(double seconds);

// The stop token was used: the user asked the run to end.
struct Cancelled : Error {
  using Error::Error;
};

using SharedBytes = std::shared_ptr<const Bytes>;

struct TransportOptions {
  double handshake_seconds = 10;  // from connecting to the end of the first frame
  double stall_seconds = 30;      // longest pause inside a frame, reading or writing
  double linger_seconds = 2;      // after close(): for the peer to read what was sent last
  int max_pending = 64;           // connections that are not admitted (yet)
  int max_bodies = 16;            // tensor sections in memory, arriving or not yet taken
  int max_sending = 64;           // large frames on their way out; the others wait in line
};

struct Event {
  enum class Kind {
    opened,   // a peer connected
    frame,    // a whole, undamaged frame arrived
    invalid,  // what arrived is no frame: nothing more is read, an answer can still be sent
    closed,   // the connection is gone; its number is not used again
  };
  Kind kind{};
  int64_t connection = 0;
  Frame frame;         // frame
  std::string detail;  // opened: the peer's address; invalid and closed: why
};

class Transport {
 public:
  explicit Transport(const TransportOptions& options = {});
  // Closes everything, giving what was sent last linger_seconds to arrive.
  ~Transport();
  Transport(const Transport&) = delete;
  Transport& operator=(const Transport&) = delete;

  // Accepts connections at "host:port"; port 0 takes a free one. Returns the port. UserError if the
  // address is not one or is in use.
  uint16_t listen(const std::string& address);

  // Connects to "host:port", trying again with growing pauses until `deadline`: a server may start
  // after its clients. UserError names the address and the last cause; Cancelled on stop.
  int64_t connect(const std::string& address, Clock::time_point deadline, std::stop_token stop);

  // The peer takes part: it may send more than its first frame, with tensor sections up to this
  // size. For the side that connected, too. A client writes with more patience than stall_seconds
  // (write_seconds 0): its update waits in line where the server has max_bodies others.
  void admit(int64_t connection, size_t max_tensor_bytes, double write_seconds = 0);

  // Queues a frame; a broadcast shares one buffer, and large frames leave max_sending at a time, so
  // that memory does not grow with the number of peers. Failure to deliver it shows as a closed
  // event.
  void send(int64_t connection, SharedBytes frame);

  // Delivers what was sent, but for large frames that still wait in line with another behind them,
  // then closes. Nothing that arrives later makes an event.
  void close(int64_t connection);

  // The next event, or nullopt at `deadline` (an event that is already there always comes first).
  // Cancelled on stop. `time`: of this wait, that in which a frame was on its way, from its first
  // byte to its last, in or out, is communication; the rest stays what it was charged to.
  std::optional<Event> wait(Clock::time_point deadline, std::stop_token stop,
                            Stopwatch* time = nullptr);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace orthofed
