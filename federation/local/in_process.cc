#include "federation/local/in_process.h"

#include <fmt/core.h>

#include <exception>
#include <thread>

namespace orthofed {
namespace {

bool is_federation_error(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const FederationError&) {
    return true;
  } catch (const Cancelled&) {
    return true;
  } catch (...) {
    return false;
  }
}

}  // namespace

FederationResult run_in_process(const RunConfig& config, const Agreement& agreement,
                                const TensorMap& initial, const std::vector<Site*>& sites,
                                ServerObserver& observer, const ServerOptions& options,
                                const std::vector<ClientObserver*>& observers) {
  OF_CHECK(observers.empty() || observers.size() == sites.size(), "one observer a site");
  RunConfig local = config;
  local.federation.address = "127.0.0.1:0";

  // A site that throws stops the server, which may still wait for it to join; a server that fails
  // stops clients that still look for it; the user's stop reaches all.
  std::stop_source stop_server, stop_clients;
  const std::stop_callback forward(options.stop, [&] {
    stop_server.request_stop();
    stop_clients.request_stop();
  });
  std::vector<std::exception_ptr> errors(sites.size());
  const auto run_client = [&](size_t i, uint16_t port) {
    JoinOptions join_options;
    join_options.share = config.federation.share_metrics;
    join_options.join_timeout_seconds = config.federation.join_timeout_seconds;
    join_options.max_frame_mb = config.federation.max_frame_mb;
    join_options.stop = stop_clients.get_token();
    join_options.transport = options.transport;
    ClientObserver silent;
    try {
      join(fmt::format("127.0.0.1:{}", port), *sites[i], join_options,
           observers.empty() ? silent : *observers[i]);
    } catch (...) {
      errors[i] = std::current_exception();
      if (!is_federation_error(errors[i])) stop_server.request_stop();
    }
  };

  std::vector<std::jthread> threads;
  ServerOptions server_options = options;
  server_options.stop = stop_server.get_token();
  server_options.listening = [&](uint16_t port) {
    if (options.listening) options.listening(port);
    for (size_t i = 0; i < sites.size(); ++i)
      threads.emplace_back([&run_client, i, port] { run_client(i, port); });
  };
  FederationResult result;
  std::exception_ptr server_error;
  try {
    result = serve(local, agreement, initial, observer, server_options);
  } catch (...) {
    server_error = std::current_exception();
    stop_clients.request_stop();
  }
  for (std::jthread& thread : threads) thread.join();

  for (const std::exception_ptr& error : errors)
    if (error && !is_federation_error(error)) std::rethrow_exception(error);
  if (server_error) std::rethrow_exception(server_error);
  for (const std::exception_ptr& error : errors)
    if (error) std::rethrow_exception(error);
  return result;
}

}  // namespace orthofed
