#include "federation/report/results.h"

#include <filesystem>
#include <future>
#include <map>

#include "models/adapters/adapter_file.h"
#include "tests/federation/support.h"
#include "tests/support/files.h"

namespace orthofed::test {
namespace {

struct Calls : ServerObserver {
  void client_joined(const std::string&, size_t, size_t) override { ++count["joined"]; }
  void round_started(int64_t, int64_t) override { ++count["started"]; }
  void update_received(const ClientRound&) override { ++count["update"]; }
  void round_aggregated(int64_t, const TensorMap&) override { ++count["aggregated"]; }
  void metrics_received(const std::string&, int64_t,
                        const std::optional<SiteEvaluation>&) override {
    ++count["metrics"];
  }
  void client_round(const ClientRound&) override { ++count["round"]; }
  void finished(const FederationResult&) override {
    ++count["finished"];
    there_when_finished = std::filesystem::exists(folder + "/summary.json");
  }
  std::string folder;
  bool there_when_finished = false;
  std::map<std::string, int64_t> count;
};

class ResultsTest : public FederationTest {
 protected:
  ResultsTest() { calls.folder = directory.path(); }
  FederationResult run() {
    Recorder recorder(config, agreement, directory.path(), calls);
    ServerOptions options;
    options.transport = quick_transport();
    FederationResult result =
        run_in_process(config, agreement, theta0(), {&a, &b}, recorder, options);
    summary = recorder.summary();
    return result;
  }

  TemporaryDirectory directory;
  RunConfig config = config_for({"a", "b"});
  Agreement agreement = agreement_for();
  ArithmeticSite a{"a", 1, 1}, b{"b", 5, 3};
  Calls calls;
  RunSummary summary;
};

TEST_F(ResultsTest, FilesAreWrittenAndEveryCallIsHandedOn) {
  const FederationResult result = run();
  EXPECT_EQ(to_json(read_summary(directory / "summary.json")), to_json(summary));
  EXPECT_EQ(summary.clients.size(), 2u);
  EXPECT_TRUE(
      same_bits(load_adapter(directory / "general_adapter.safetensors").tensors, result.general));
  EXPECT_EQ(read_client_times(directory / "metrics.jsonl", 3).size(), 3u);
  EXPECT_TRUE(calls.there_when_finished);
  const std::map<std::string, int64_t> expected = {{"joined", 2},     {"started", 3}, {"update", 6},
                                                   {"aggregated", 3}, {"metrics", 2}, {"round", 6},
                                                   {"finished", 1}};
  EXPECT_EQ(calls.count, expected);
}

// No client hears that all went well where the result is lost.
TEST_F(ResultsTest, WhereTheResultCannotBeWrittenTheRunFailsForEverybody) {
  make_directories(directory / "summary.json");
  Recorder recorder(config, agreement, directory.path(), calls);
  std::promise<uint16_t> port;
  ServerOptions options;
  options.transport = quick_transport();
  options.listening = [&](uint16_t bound) { port.set_value(bound); };
  auto server = std::async(std::launch::async,
                           [&] { return serve(config, agreement, theta0(), recorder, options); });
  const std::string address = fmt::format("127.0.0.1:{}", port.get_future().get());
  auto of_a = join_async(address, a), of_b = join_async(address, b);
  EXPECT_SAYS(message_of<FederationError>([&] { of_a.get(); }), "the server failed");
  EXPECT_SAYS(message_of<FederationError>([&] { of_b.get(); }), "the server failed");
  EXPECT_SAYS(message_of<UserError>([&] { server.get(); }), directory / "summary.json");
  EXPECT_EQ(calls.count["finished"], 0);
  EXPECT_TRUE(a.finished);
}

}  // namespace
}  // namespace orthofed::test
