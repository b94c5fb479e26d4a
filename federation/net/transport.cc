#include "federation/net/transport.h"

#include <fmt/core.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <asio.hpp>
#include <condition_variable>
#include <deque>
#include <functional>
#include <future>
#include <map>
#include <mutex>
#include <thread>

namespace orthofed {
namespace {

using asio::use_awaitable;
using asio::ip::tcp;

constexpr auto kNever = Clock::time_point::max();
constexpr double kConnectSeconds = 5;  // one attempt
constexpr size_t kChunk = size_t{1} << 18;
// What the kernel may keep of a connection that waits to be read, and as much that waits to be
// sent: the rest stays where it was made, which is one buffer for all clients in a broadcast. Left
// to itself the kernel gives a fast connection megabytes, and a thousand clients' frames exceed
// what it has for all of TCP (net.ipv4.tcp_mem): then it drops packets, and hardly anything moves
// any more. The price is speed over a long way: what is under way at once is this much, about 5
// MB/s a connection where a round trip takes 50 ms.
constexpr int kKernelBytes = int(kChunk);

std::string describe(const tcp::endpoint& endpoint) {
  const bool v6 = endpoint.address().is_v6();
  return fmt::format("{}{}{}:{}", v6 ? "[" : "", endpoint.address().to_string(), v6 ? "]" : "",
                     endpoint.port());
}

// Timers that are cancelled serve as condition variables: something has changed, look again.
asio::awaitable<void> changed_or_expired(asio::steady_timer& timer) {
  asio::error_code cancelled;
  co_await timer.async_wait(asio::redirect_error(use_awaitable, cancelled));
}

bool is_large(const SharedBytes& frame) {
  return frame->size() > kChunk;
}

// So many at a time, first come, first served.
class Turns {
 public:
  explicit Turns(int turns) : free_(turns) {}
  Turns(const Turns&) = delete;

  struct GiveBack {
    void operator()(Turns* turns) const {
      ++turns->free_;
      turns->wake_next();
    }
  };
  using Turn = std::unique_ptr<Turns, GiveBack>;  // one as long as it lives; empty: none

  // Waits for one, or until it is not wanted any more; whoever changes that cancels the timer.
  template <class Wanted>
  asio::awaitable<Turn> take(asio::steady_timer& timer, Wanted wanted) {
    line_.push_back(&timer);
    while (wanted() && !(line_.front() == &timer && free_ > 0)) co_await changed_or_expired(timer);
    std::erase(line_, &timer);
    Turn turn;
    if (wanted()) {
      --free_;
      turn.reset(this);
    }
    wake_next();
    co_return turn;
  }

 private:
  void wake_next() {
    if (!line_.empty()) line_.front()->cancel();
  }

  int free_;
  std::deque<asio::steady_timer*> line_;
};

// One connection. Lives on the transport's thread; its three coroutines (read, write, watch) share
// it, and the last one to end destroys it.
struct Link {
  Link(int64_t number, tcp::socket s)
      : id(number),
        peer(describe(s.remote_endpoint())),
        socket(std::move(s)),
        watch(socket.get_executor(), kNever),
        reader(socket.get_executor(), kNever),
        writer(socket.get_executor(), kNever) {}

  // The next frame out is a large one. What a closing link has left is its last word.
  bool waits_its_turn() const { return socket.is_open() && !closing && is_large(outbox.front()); }

  int64_t id;
  std::string peer;  // its address
  tcp::socket socket;
  asio::steady_timer watch, reader, writer;
  Clock::time_point read_deadline = kNever, write_deadline = kNever, close_deadline = kNever;
  std::deque<SharedBytes> outbox;
  size_t max_tensor_bytes = 0;
  double write_seconds = 0;  // longest pause of a write; 0: stall_seconds
  bool admitted = false;
  bool first_frame = true;  // not yet received: read_deadline stands and does not move
  bool taken = true;        // the owner has taken the last event, the next frame may be read
  bool closing = false;     // the owner has closed
  Turns::Turn body;         // its tensor section is one of Impl::bodies
};
using LinkPtr = std::shared_ptr<Link>;

struct HostPort {
  std::string host, port;
};

HostPort split_address(const std::string& address) {
  const size_t colon = address.rfind(':');
  HostPort a;
  if (colon != std::string::npos) {
    a = {address.substr(0, colon), address.substr(colon + 1)};
    if (a.host.size() > 2 && a.host.front() == '[' && a.host.back() == ']')
      a.host = a.host.substr(1, a.host.size() - 2);  // [::1]:7733
  }
  const bool digits = !a.port.empty() && a.port.size() <= 5 &&
                      a.port.find_first_not_of("0123456789") == std::string::npos;
  if (a.host.empty() || !digits || std::stoi(a.port) > 65535)
    throw UserError(fmt::format(
        "federation.address = \"{}\" is not an address: write HOST:PORT, as in \"127.0.0.1:7733\"",
        address));
  return a;
}

// A peer whose machine is gone sends nothing at all: let the kernel ask after 30 s of silence and
// give up 30 s later. Also keeps the entry of a quiet connection alive in a firewall's table.
void set_up(tcp::socket& socket) {
  socket.set_option(tcp::no_delay(true));
  socket.set_option(asio::socket_base::keep_alive(true));
  const auto set = [&](int option, int value) {
    if (::setsockopt(socket.native_handle(), IPPROTO_TCP, option, &value, sizeof value) != 0)
      throw std::system_error(errno, std::generic_category(), "setsockopt");
  };
  set(TCP_KEEPIDLE, 30);
  set(TCP_KEEPINTVL, 10);
  set(TCP_KEEPCNT, 3);
  socket.set_option(asio::socket_base::receive_buffer_size(kKernelBytes));
  set(TCP_NOTSENT_LOWAT, kKernelBytes);
}

}  // namespace

Clock::time_point after(double seconds) {
  return Clock::now() + std::chrono::duration_cast<Clock::duration>(
                            std::chrono::duration<double>(std::clamp(seconds, 0.0, 1e9)));
}

struct Transport::Impl {
  TransportOptions options;
  Turns bodies{options.max_bodies};    // tensor sections in memory
  Turns sending{options.max_sending};  // large frames on their way out
  asio::io_context io{1};
  asio::executor_work_guard<asio::io_context::executor_type> work{io.get_executor()};

  // On the transport's thread only.
  tcp::acceptor acceptor{io};
  std::map<int64_t, LinkPtr> links;
  struct Connecting {
    explicit Connecting(asio::io_context& context) : socket(context) {}
    tcp::socket socket;
    bool done = false, late = false;
  };
  std::shared_ptr<Connecting> connecting;
  int64_t next_id = 1;
  bool stopping = false;

  // Shared with the owner.
  std::mutex mutex;
  std::condition_variable_any changed;
  std::deque<Event> events;
  struct Attempt {
    int64_t connection = 0;  // 0: failed
    std::string error;
  };
  std::optional<Attempt> attempt;
  int frames_moving = 0;  // on their way, in or out
  Clock::time_point moving_since;
  Clock::duration moved{};  // the time in which there was one

  std::thread thread;

  explicit Impl(const TransportOptions& o) : options(o) {
    thread = std::thread([this] { io.run(); });
  }

  // Runs f on the transport's thread and waits for it.
  template <class F>
  auto call(F f) {
    std::packaged_task<decltype(f())()> task(std::move(f));
    auto result = task.get_future();
    asio::post(io, [&task] { task(); });
    return result.get();
  }

  void spawn(asio::awaitable<void> coroutine) {
    asio::co_spawn(io, std::move(coroutine), asio::detached);
  }

  Clock::duration moved_so_far() const {  // mutex held
    return moved + (frames_moving > 0 ? Clock::now() - moving_since : Clock::duration::zero());
  }

  // A frame on its way, while this lives.
  class Moving {
   public:
    explicit Moving(Impl& impl) : impl_(impl) {
      const std::lock_guard lock(impl_.mutex);
      if (impl_.frames_moving++ == 0) impl_.moving_since = Clock::now();
    }
    ~Moving() {
      const std::lock_guard lock(impl_.mutex);
      if (--impl_.frames_moving == 0) impl_.moved += Clock::now() - impl_.moving_since;
    }
    Moving(const Moving&) = delete;

   private:
    Impl& impl_;
  };

  void push(Event event) {
    const std::lock_guard lock(mutex);
    events.push_back(std::move(event));
    changed.notify_all();
  }

  LinkPtr find(int64_t id) const {
    const auto it = links.find(id);
    return it == links.end() ? nullptr : it->second;
  }

  // ---- The life of a connection -----------------------------------------------------------------

  LinkPtr add(tcp::socket socket) {
    set_up(socket);
    auto link = std::make_shared<Link>(next_id++, std::move(socket));
    link->read_deadline = after(options.handshake_seconds);
    links[link->id] = link;
    spawn(read(link));
    spawn(write(link));
    spawn(watch(link));
    if (stopping) begin_close(link);
    return link;
  }

  void drop(const LinkPtr& link, const std::string& why) {
    if (!link->socket.is_open()) return;
    asio::error_code ignored;  // the descriptor is released whatever close reports
    link->socket.close(ignored);
    for (auto* timer : {&link->watch, &link->reader, &link->writer}) timer->cancel();
    links.erase(link->id);
    if (!link->closing) push({Event::Kind::closed, link->id, {}, why});
  }

  void begin_close(const LinkPtr& link) {
    link->closing = true;
    // The last word counts: a large frame that has not begun would keep it too long.
    while (link->outbox.size() > 1 && is_large(link->outbox.front())) link->outbox.pop_front();
    link->close_deadline = after(options.linger_seconds);
    for (auto* timer : {&link->watch, &link->reader, &link->writer}) timer->cancel();
  }

  static void set_deadline(Link& link, Clock::time_point& deadline, Clock::time_point value) {
    deadline = value;
    if (value < link.watch.expiry()) link.watch.cancel();
  }

  double write_seconds(const Link& link) const {
    return link.write_seconds > 0 ? link.write_seconds : options.stall_seconds;
  }

  // Ends the connection when one of its deadlines has passed.
  asio::awaitable<void> watch(LinkPtr link) {
    while (link->socket.is_open()) {
      const auto now = Clock::now();
      if (link->close_deadline <= now) {
        drop(link, "closed");
      } else if (link->read_deadline <= now) {
        drop(link,
             link->first_frame
                 ? fmt::format("no complete first frame within {} s", options.handshake_seconds)
                 : fmt::format("stalled for {} s inside a frame", options.stall_seconds));
      } else if (link->write_deadline <= now) {
        drop(link, fmt::format("takes no data for {} s", write_seconds(*link)));
      } else {
        link->watch.expires_at(
            std::min({link->read_deadline, link->write_deadline, link->close_deadline}));
        co_await changed_or_expired(link->watch);
      }
    }
  }

  // ---- Reading ----------------------------------------------------------------------------------

  asio::awaitable<size_t> read_some(LinkPtr link, std::byte* to, size_t size) {
    const size_t got = co_await link->socket.async_read_some(asio::buffer(to, size), use_awaitable);
    if (!link->first_frame) set_deadline(*link, link->read_deadline, after(options.stall_seconds));
    co_return got;
  }

  // Memory follows the bytes that arrive: a stated length alone allocates one chunk.
  template <class Buffer>
  asio::awaitable<void> read_section(LinkPtr link, Buffer& buffer, size_t size) {
    for (size_t filled = 0; filled < size;) {
      if (buffer.size() == filled) buffer.resize(std::min(size, std::max(2 * filled, kChunk)));
      filled += co_await read_some(link, reinterpret_cast<std::byte*>(buffer.data()) + filled,
                                   buffer.size() - filled);
    }
  }

  asio::awaitable<Frame> read_frame(LinkPtr link) {
    std::array<std::byte, kHeaderBytes> bytes;
    size_t filled = co_await read_some(link, bytes.data(), kHeaderBytes);
    const Moving moving(*this);
    while (filled < kHeaderBytes)
      filled += co_await read_some(link, bytes.data() + filled, kHeaderBytes - filled);
    const FrameHeader header = decode_header(bytes, link->max_tensor_bytes, link->peer);
    Frame frame;
    frame.type = header.type;
    co_await read_section(link, frame.manifest, header.manifest_bytes);
    if (header.tensor_bytes > 0) {
      link->read_deadline = kNever;  // the peer cannot help it
      link->body = co_await bodies.take(link->reader, [&] { return link->socket.is_open(); });
    }
    co_await read_section(link, frame.tensors, header.tensor_bytes);
    verify_digest(bytes, frame, link->peer);
    link->first_frame = false;
    link->read_deadline = kNever;
    co_return frame;
  }

  void deliver(const LinkPtr& link, Event event) {
    if (link->closing) return;
    link->taken = false;
    push(std::move(event));
  }

  // Reads one frame at a time: the next when the owner has taken the last, and the second only of a
  // peer that is admitted.
  asio::awaitable<void> read(LinkPtr link) {
    std::string why;
    try {
      try {
        while (!link->closing) {
          Frame frame = co_await read_frame(link);
          deliver(link, {Event::Kind::frame, link->id, std::move(frame), {}});
          while (!(link->taken && link->admitted) && !link->closing && link->socket.is_open())
            co_await changed_or_expired(link->reader);
        }
      } catch (const ProtocolError& e) {
        why = e.what();
      }
      if (!why.empty()) {
        link->read_deadline = kNever;
        deliver(link, {Event::Kind::invalid, link->id, {}, why});
        while (!link->closing && link->socket.is_open()) co_await changed_or_expired(link->reader);
      }
      // Closing a socket with unread data resets the connection, and the peer would lose what was
      // sent last: read on, and discard, until the peer closes or the linger time is over.
      for (std::array<std::byte, 4096> discarded{};;)
        co_await link->socket.async_read_some(asio::buffer(discarded), use_awaitable);
    } catch (const std::system_error& e) {
      why = e.code() == asio::error::eof ? std::string("the peer closed the connection")
                                         : e.code().message();
    } catch (const std::exception& e) {
      why = e.what();
    }
    link->body.reset();
    drop(link, why);
  }

  // ---- Writing ----------------------------------------------------------------------------------

  asio::awaitable<void> write(LinkPtr link) {
    try {
      while (link->socket.is_open()) {
        if (link->outbox.empty()) {
          if (link->closing) {
            link->socket.shutdown(tcp::socket::shutdown_send);
            co_return;
          }
          co_await changed_or_expired(link->writer);
          continue;
        }
        Turns::Turn turn;
        if (const auto large = [&] { return link->waits_its_turn(); }; large())
          turn = co_await sending.take(link->writer, large);
        const SharedBytes frame = std::move(link->outbox.front());
        link->outbox.pop_front();
        const Moving moving(*this);
        for (size_t sent = 0; sent < frame->size();) {
          set_deadline(*link, link->write_deadline, after(write_seconds(*link)));
          sent += co_await link->socket.async_write_some(
              asio::buffer(frame->data() + sent, std::min(kChunk, frame->size() - sent)),
              use_awaitable);
        }
        link->write_deadline = kNever;
      }
    } catch (const std::system_error&) {
      // The connection is broken. The reader finds that too, after what the peer sent before: the
      // reason it gave for closing, perhaps.
      link->write_deadline = kNever;
    }
  }

  // ---- Connections in ---------------------------------------------------------------------------

  uint16_t start_listening(const std::string& address) {
    const HostPort a = split_address(address);
    try {
      const tcp::endpoint endpoint =
          *tcp::resolver(io).resolve(a.host, a.port, tcp::resolver::passive).begin();
      acceptor.open(endpoint.protocol());
      acceptor.set_option(tcp::acceptor::reuse_address(true));
      acceptor.bind(endpoint);
      acceptor.listen();
    } catch (const std::system_error& e) {
      asio::error_code ignored;
      acceptor.close(ignored);
      throw UserError(
          fmt::format("cannot listen at {}: {}: {}", address, e.code().message(),
                      e.code() == asio::error::address_in_use
                          ? "stop the other server, or set federation.address to "
                            "another port (0: a free one)"
                          : "set federation.address to one of this machine's addresses"));
    }
    spawn(accept());
    return acceptor.local_endpoint().port();
  }

  asio::awaitable<void> accept() {
    while (acceptor.is_open()) {
      asio::error_code error;
      tcp::socket socket =
          co_await acceptor.async_accept(asio::redirect_error(use_awaitable, error));
      if (error) {  // closed, or out of descriptors: look again a little later
        asio::steady_timer pause(io, std::chrono::milliseconds(100));
        if (acceptor.is_open()) co_await changed_or_expired(pause);
        continue;
      }
      const auto pending = std::count_if(links.begin(), links.end(),
                                         [](const auto& l) { return !l.second->admitted; });
      if (pending >= options.max_pending) continue;  // closes it
      try {
        const LinkPtr link = add(std::move(socket));
        push({Event::Kind::opened, link->id, {}, link->peer});
      } catch (const std::system_error&) {
        // Gone between connecting and here.
      }
    }
  }

  // ---- Connections out --------------------------------------------------------------------------

  asio::awaitable<void> try_connect(HostPort a) {
    if (stopping) co_return;
    Attempt result;
    connecting = std::make_shared<Connecting>(io);
    const auto state = connecting;
    asio::steady_timer timer(io, after(kConnectSeconds));
    timer.async_wait([state](asio::error_code cancelled) {
      if (cancelled || state->done) return;
      state->late = true;
      asio::error_code ignored;
      state->socket.close(ignored);
    });
    try {
      tcp::resolver resolver(io);
      const auto endpoints = co_await resolver.async_resolve(a.host, a.port, use_awaitable);
      co_await asio::async_connect(state->socket, endpoints, use_awaitable);
      state->done = true;
      result.connection = add(std::move(state->socket))->id;
    } catch (const std::system_error& e) {
      result.error =
          state->late ? fmt::format("no answer within {} s", kConnectSeconds) : e.code().message();
    }
    connecting.reset();
    const std::lock_guard lock(mutex);
    attempt = std::move(result);
    changed.notify_all();
  }
};

Transport::Transport(const TransportOptions& options) : impl_(std::make_unique<Impl>(options)) {}

Transport::~Transport() {
  asio::post(impl_->io, [impl = impl_.get()] {
    asio::error_code ignored;
    impl->acceptor.close(ignored);
    impl->stopping = true;
    if (impl->connecting) impl->connecting->socket.close(ignored);
    for (const auto& [id, link] : impl->links)
      if (!link->closing) impl->begin_close(link);
    impl->work.reset();
  });
  impl_->thread.join();
}

uint16_t Transport::listen(const std::string& address) {
  return impl_->call([&] { return impl_->start_listening(address); });
}

int64_t Transport::connect(const std::string& address, Clock::time_point deadline,
                           std::stop_token stop) {
  const HostPort a = split_address(address);
  const auto never = [] { return false; };
  for (double pause = 0.05;; pause = std::min(2 * pause, 2.0)) {
    std::unique_lock lock(impl_->mutex);
    impl_->attempt.reset();
    asio::post(impl_->io, [this, a] { impl_->spawn(impl_->try_connect(a)); });
    impl_->changed.wait(lock, stop, [&] { return impl_->attempt.has_value(); });
    if (stop.stop_requested()) throw Cancelled("stopped while connecting");
    if (impl_->attempt->connection) return impl_->attempt->connection;
    if (after(pause) >= deadline)
      throw UserError(
          fmt::format("no server answers at {}: {}: start the server there, or "
                      "correct federation.address",
                      address, impl_->attempt->error));
    impl_->changed.wait_until(lock, stop, after(pause), never);
    if (stop.stop_requested()) throw Cancelled("stopped while connecting");
  }
}

void Transport::admit(int64_t connection, size_t max_tensor_bytes, double write_seconds) {
  asio::post(impl_->io, [this, connection, max_tensor_bytes, write_seconds] {
    if (const LinkPtr link = impl_->find(connection)) {
      link->admitted = true;
      link->max_tensor_bytes = max_tensor_bytes;
      link->write_seconds = write_seconds;
      link->reader.cancel();
    }
  });
}

void Transport::send(int64_t connection, SharedBytes frame) {
  asio::post(impl_->io, [this, connection, frame = std::move(frame)]() mutable {
    const LinkPtr link = impl_->find(connection);
    if (!link || link->closing) return;
    link->outbox.push_back(std::move(frame));
    link->writer.cancel();
  });
}

void Transport::close(int64_t connection) {
  impl_->call([&] {
    const LinkPtr link = impl_->find(connection);
    if (link && !link->closing) impl_->begin_close(link);
  });
  const std::lock_guard lock(impl_->mutex);
  std::erase_if(impl_->events, [&](const Event& e) { return e.connection == connection; });
}

std::optional<Event> Transport::wait(Clock::time_point deadline, std::stop_token stop,
                                     Stopwatch* time) {
  std::unique_lock lock(impl_->mutex);
  const Clock::duration moved = impl_->moved_so_far();
  impl_->changed.wait_until(lock, stop, deadline, [&] { return !impl_->events.empty(); });
  if (time != nullptr) time->reassign(Activity::communication, impl_->moved_so_far() - moved);
  if (stop.stop_requested()) throw Cancelled("stopped");
  if (impl_->events.empty()) return std::nullopt;
  Event event = std::move(impl_->events.front());
  impl_->events.pop_front();
  if (event.kind == Event::Kind::frame)
    asio::post(impl_->io, [this, connection = event.connection] {
      if (const LinkPtr link = impl_->find(connection)) {
        link->taken = true;
        link->body.reset();
        link->reader.cancel();
      }
    });
  return event;
}

}  // namespace orthofed
