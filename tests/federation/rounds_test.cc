// Whole federations over loopback sockets, with sites whose averages can be computed by hand.
#include <algorithm>

#include "federation/combine/average.h"
#include "tests/federation/support.h"

namespace orthofed::test {
namespace {

using Rounds = FederationTest;

std::vector<double> plus(const Tensor& tensor, double x) {
  std::vector<double> values = tensor.to_vector();
  for (double& v : values) v += x;
  return values;
}

TEST_F(Rounds, AveragesExactly) {
  const RunConfig config = config_for({"b", "a"});
  ArithmeticSite a("a", 1, 1), b("b", 5, 3);  // weighted step: (1*1 + 3*5) / 4 = 4
  ServerThread server(config);
  auto joined_b = join_async(server.address(), b);
  auto joined_a = join_async(server.address(), a);
  const FederationResult result = server.result();
  const JoinResult result_a = joined_a.get(), result_b = joined_b.get();

  for (const auto& [name, tensor] : theta0()) {
    EXPECT_EQ(result.general.at(name).to_vector(), plus(tensor, 12)) << name;
    for (const ArithmeticSite* site : {&a, &b}) {
      ASSERT_EQ(site->seen.size(), 3u);
      for (size_t t = 0; t < 3; ++t)
        EXPECT_EQ(site->seen[t].at(name).to_vector(), plus(tensor, 4 * double(t)));
    }
  }
  for (const ArithmeticSite* site : {&a, &b}) {
    EXPECT_TRUE(same_bits(site->final_broadcast, result.general));
    ASSERT_EQ(site->evaluated.size(), 1u);  // after aggregation, once
    EXPECT_TRUE(same_bits(site->evaluated[0], result.general));
  }
  EXPECT_TRUE(same_bits(result_a.general, result.general));
  EXPECT_EQ(a.personal, 3);
  EXPECT_EQ(b.personal, 15);

  ASSERT_EQ(result.clients.size(), 2u);
  EXPECT_EQ(result.clients[0].client, "a");
  EXPECT_EQ(result.clients[1].samples, 3);
  EXPECT_EQ(result.clients[0].images_per_second, 100);
  ASSERT_TRUE(result.clients[0].evaluation.has_value());
  EXPECT_EQ(result.clients[0].evaluation->personal.confusion, scores(7, 3).confusion);
  EXPECT_EQ(result.clients[0].evaluation->general.accuracy, 0.6);
  EXPECT_TRUE(std::isnan(result.clients[0].evaluation->general.auroc));
  // Both ends count the same bytes.
  EXPECT_EQ(result.clients[0].bytes_sent, result_a.bytes_sent);
  EXPECT_EQ(result.clients[0].bytes_received, result_a.bytes_received);
  EXPECT_EQ(result.clients[1].bytes_sent, result_b.bytes_sent);
  EXPECT_EQ(server.events.aggregates().size(), 3u);
}

TEST_F(Rounds, OneRecordForEachClientAndRound) {
  for (const bool every_round : {false, true}) {
    RunConfig config = config_for({"a", "b"});
    config.federation.evaluate_every_round = every_round;
    ArithmeticSite a("a", 1, 1), b("b", 5, 3);
    Events events;
    ServerOptions options;
    options.transport = quick_transport();
    const FederationResult result =
        run_in_process(config, agreement_for(), theta0(), {&a, &b}, events, options);
    std::vector<ClientRound> records = events.rounds();
    ASSERT_EQ(records.size(), 6u);
    EXPECT_TRUE(std::is_sorted(records.begin(), records.end(),
                               [](const auto& x, const auto& y) { return x.round < y.round; }));
    int64_t sent = 0;
    for (const ClientRound& r : records) {
      EXPECT_EQ(r.evaluation.has_value(), every_round || r.round == 2) << r.round;
      ASSERT_TRUE(r.report.has_value());
      EXPECT_EQ(r.report->train_loss, 1.0 / double(r.round + 1));
      EXPECT_EQ(r.report->penalties.at("update"), 0.5);
      EXPECT_TRUE(std::isnan(r.report->penalties.at("features")));
      EXPECT_GT(r.bytes_received, 0);
      if (r.client == "a") sent += r.bytes_sent;
    }
    EXPECT_EQ(a.evaluated.size(), every_round ? 3u : 1u);
    // All a client sends, but its Hello, belongs to a round.
    EXPECT_EQ(sent + int64_t(encode(hello_of("a")).size()), result.clients[0].bytes_sent);
  }
}

// Which update arrives first must not show in any bit of the result.
TEST_F(Rounds, OrderOfAnswersDoesNotMatter) {
  const std::vector<std::string> names = {"a", "b", "c"};
  std::vector<TensorMap> results;
  for (const std::vector<double>& delays :
       {std::vector<double>{0, 0.03, 0.06}, {0.06, 0.03, 0}, {0.03, 0, 0.06}}) {
    ArithmeticSite a("a", 1e16f, 7), b("b", -1e16f, 7), c("c", 0.1f, 7);
    a.delay = delays[0], b.delay = delays[1], c.delay = delays[2];
    RunConfig config = config_for(names);
    Events events;
    ServerOptions options;
    options.transport = quick_transport();
    results.push_back(
        run_in_process(config, agreement_for(), theta0(), {&c, &a, &b}, events, options).general);
  }
  EXPECT_TRUE(same_bits(results[0], results[1]));
  EXPECT_TRUE(same_bits(results[0], results[2]));
  // The sum is one that depends on its order: the test could fail.
  const double x = 7 * 1e16, y = -x, z = 7 * double(0.1f);
  EXPECT_NE(float((x + y) + z), float((x + z) + y));
}

TEST_F(Rounds, UniformWeights) {
  RunConfig config = config_for({"a", "b"});
  config.federation.weights = Weighting::uniform;
  ArithmeticSite a("a", 1, 1), b("b", 5, 3);
  Events events;
  ServerOptions options;
  options.transport = quick_transport();
  const auto result = run_in_process(config, agreement_for(), theta0(), {&a, &b}, events, options);
  EXPECT_EQ(result.general.at("head.weight").to_vector(), plus(theta0().at("head.weight"), 9));
}

TEST_F(Rounds, LocalExchangesNothing) {
  const RunConfig config = config_for({"a", "b"}, "local");
  ArithmeticSite a("a", 1, 1, "local"), b("b", 5, 3, "local");
  Events events;
  ServerOptions options;
  options.transport = quick_transport();
  const auto result = run_in_process(config, agreement_for("local"), {}, {&a, &b}, events, options);
  EXPECT_TRUE(result.general.empty());
  EXPECT_EQ(a.personal, 3);
  EXPECT_EQ(result.clients[1].samples, 3);
  EXPECT_TRUE(result.clients[1].evaluation.has_value());
}

TEST_F(Rounds, FineTuningComesBetweenTheLastBroadcastAndTheEvaluation) {
  const RunConfig config = config_for({"a"}, "fedavg_ft");
  ArithmeticSite a("a", 1, 1, "fedavg_ft");
  Events events;
  ServerOptions options;
  options.transport = quick_transport();
  const auto result =
      run_in_process(config, agreement_for("fedavg_ft"), theta0(), {&a}, events, options);
  EXPECT_TRUE(a.finished_before_evaluation);
  EXPECT_EQ(a.personal, 1003);
  EXPECT_TRUE(same_bits(a.final_broadcast, result.general));
}

TEST_F(Rounds, ServeRefusesItsOwnBadConfiguration) {
  Events events;
  const auto refusal = [&](const std::function<void(RunConfig&)>& spoil) {
    RunConfig config = config_for({"a"});
    spoil(config);
    return message_of<UserError>([&] { serve(config, agreement_for(), theta0(), events); });
  };
  EXPECT_SAYS(refusal([](auto& c) { c.method = "pooled"; }), "on the one machine that has them");
  EXPECT_SAYS(refusal([](auto& c) { c.method = "magic"; }), "\"magic\"");
  EXPECT_SAYS(refusal([](auto& c) { c.rounds = 0; }), "rounds");
  EXPECT_SAYS(refusal([](auto& c) { c.federation.clients = {}; }), "federation.clients");
  EXPECT_SAYS(refusal([](auto& c) { c.federation.clients = {"a", "a"}; }), "twice");
  EXPECT_SAYS(refusal([](auto& c) { c.federation.clients = {"../a"}; }), "../a");
  EXPECT_SAYS(refusal([](auto& c) { c.federation.address = "localhost"; }), "HOST:PORT");
  EXPECT_SAYS(refusal([](auto& c) { c.federation.max_frame_mb = 0; }), "max_frame_mb");
  EXPECT_SAYS(refusal([](auto& c) { c.federation.timeout_seconds = 0; }), "timeout_seconds");
}

TEST_F(Rounds, ABroadcastAboveTheFrameLimitIsTheUsersToRaise) {
  const Tensor large = Tensor::zeros({512, 1024}, DType::f32);  // 2 MiB
  Agreement agreement = agreement_for();
  agreement.schema = schema_of({{"x", large}});
  RunConfig config = config_for({"a"});
  config.federation.max_frame_mb = 1;
  ArithmeticSite a("a", 1, 1);
  a.mutable_agreement() = agreement;
  Events events;
  ServerOptions options;
  options.transport = quick_transport();
  EXPECT_SAYS(message_of<UserError>([&] {
                run_in_process(config, agreement, {{"x", large}}, {&a}, events, options);
              }),
              "federation.max_frame_mb = 1");
}

TEST_F(Rounds, LargeTensorsCross) {
  Tensor large = Tensor::empty({700, 1021}, DType::f32);  // 2.7 MiB: many reads and writes
  for (int64_t r = 0; r < large.rows(); ++r)
    for (int64_t c = 0; c < large.cols(); ++c) large.row<float>(r)[c] = float(r * 1021 + c);
  Agreement agreement = agreement_for();
  agreement.schema = schema_of({{"x", large}});
  RunConfig config = config_for({"a", "b"});
  config.rounds = 2;
  ArithmeticSite a("a", 1, 1), b("b", 1, 2);
  a.mutable_agreement() = b.mutable_agreement() = agreement;
  Events events;
  ServerOptions options;
  options.transport = quick_transport();
  const auto result = run_in_process(config, agreement, {{"x", large}}, {&a, &b}, events, options);
  EXPECT_EQ(result.general.at("x").to_vector(), plus(large, 2));
}

// ---- Where the time goes ------------------------------------------------------------------------

TEST(Stopwatch, EveryMomentIsOneActivitys) {
  const auto start = Clock::now();
  Stopwatch time(Activity::set_up);
  sleep_seconds(0.02);
  {
    const Spending training(&time, Activity::training);
    sleep_seconds(0.02);
    const Spending saving(&time, Activity::saving);
    sleep_seconds(0.02);
    time.reassign(Activity::communication, std::chrono::milliseconds(5));
  }
  const TimeSplit split = time.split();
  const double elapsed = std::chrono::duration<double>(Clock::now() - start).count();
  EXPECT_GE(split[Activity::set_up], 0.02);
  EXPECT_GE(split[Activity::training], 0.02);
  EXPECT_GE(split[Activity::saving], 0.0149);
  EXPECT_NEAR(split[Activity::communication], 0.005, 1e-12);
  EXPECT_EQ(split[Activity::waiting], 0);
  EXPECT_GE(split.total(), 0.06 - 1e-9);
  EXPECT_LE(split.total(), elapsed + 1e-9);

  EXPECT_EQ(time.turn_to(Activity::waiting), Activity::set_up);  // it went back
  Stopwatch copy = time;
  sleep_seconds(0.02);
  EXPECT_GE(copy.split()[Activity::waiting], 0.02);
  const Spending nobody(nullptr, Activity::training);
}

void expect_same(const TimeSplit& a, const TimeSplit& b) {
  for (const Activity activity : kActivities)
    EXPECT_NEAR(a[activity], b[activity], 1e-9) << name_of(activity);
}

// 'a' has answered before 'b' trains for a while, so its waiting, and the server's, are that long.
TEST_F(Rounds, ASlowClientMakesTheOthersWait) {
  class Answers : public Events {
   public:
    void update_received(const ClientRound& so_far) override {
      if (so_far.client == "a") add("update " + std::to_string(so_far.round));
    }
    void round_aggregated(int64_t round, const TensorMap& general) override {
      Events::round_aggregated(round, general);
      sleep_seconds(0.02);  // charged to saving
    }
  } events;
  RunConfig config = config_for({"a", "b"});
  config.federation.evaluate_every_round = true;
  const auto start = Clock::now();
  ArithmeticSite a("a", 1, 1), b("b", 5, 3);
  constexpr double kSlow = 0.1;
  b.on_train = [&](int64_t round) {
    EXPECT_TRUE(events.wait_for("update " + std::to_string(round)));
    sleep_seconds(kSlow);
  };
  a.on_evaluate = [] { sleep_seconds(0.01); };
  ServerOptions options;
  options.transport = quick_transport();
  const FederationResult result =
      run_in_process(config, agreement_for(), theta0(), {&a, &b}, events, options);
  const double elapsed = std::chrono::duration<double>(Clock::now() - start).count();

  ASSERT_TRUE(result.clients[0].time && result.clients[1].time);
  const TimeSplit &of_a = *result.clients[0].time, &of_b = *result.clients[1].time;
  EXPECT_GE(of_b[Activity::training], 3 * kSlow - 0.002);  // told in whole milliseconds
  // Three times kSlow, less what the machine took to let 'a' start waiting.
  EXPECT_GT(of_a[Activity::waiting], kSlow);
  EXPECT_GT(result.time[Activity::waiting], kSlow);
  EXPECT_GE(of_a[Activity::evaluation], 3 * 0.01 - 0.002);
  EXPECT_GE(result.time[Activity::saving], 3 * 0.02);
  EXPECT_GT(result.time[Activity::aggregation], 0);
  EXPECT_GT(result.time[Activity::communication], 0);
  for (const TimeSplit& time : {of_a, of_b, result.time}) {
    EXPECT_LE(time.total(), elapsed + 1e-9);
    EXPECT_GT(time.total(), 3 * kSlow);
  }

  // The server's rounds are its run, and each waited for 'b'; joining is the first one's.
  ASSERT_EQ(result.time_by_round.size(), 3u);
  TimeSplit sum;
  for (const TimeSplit& round : result.time_by_round) {
    EXPECT_GT(round[Activity::waiting], kSlow / 3);
    EXPECT_GE(round[Activity::saving], 0.02);
    sum += round;
  }
  expect_same(sum, result.time);
  EXPECT_EQ(result.time_by_round[1][Activity::joining], 0);

  // What a client told with its records is what it told in all.
  std::map<std::string, TimeSplit> told;
  for (const ClientRound& r : events.rounds()) {
    ASSERT_TRUE(r.time.has_value());
    told[r.client] += *r.time;
  }
  expect_same(told["a"], of_a);
  expect_same(told["b"], of_b);
}

}  // namespace
}  // namespace orthofed::test
