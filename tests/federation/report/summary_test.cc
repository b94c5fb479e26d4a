#include "federation/report/summary.h"

#include <cmath>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>

#include "models/scoring/metrics.h"
#include "tests/federation/support.h"

namespace orthofed::test {
namespace {

using nlohmann::json;

class SummaryTest : public FederationTest {
 protected:
  SummaryTest()
      : directory(std::filesystem::temp_directory_path() /
                  fmt::format("orthofed-summary-{}", ::getpid())) {
    std::filesystem::create_directories(directory);
  }
  ~SummaryTest() override { std::filesystem::remove_all(directory); }
  std::string path(const char* name) const { return (directory / name).string(); }
  std::filesystem::path directory;
};

RunSummary example() {
  RunConfig config = config_for({"a", "b"});
  config.seed = 18446744073709551615u;
  FederationResult result;
  result.wall_seconds = 12.5;
  result.clients = {{"a", 351, SiteEvaluation{scores(7, 3), scores(6, 4)}, 95.5, 1000, 2000},
                    {"b", 9930, SiteEvaluation{scores(90, 10), scores(80, 20)}, 100, 1001, 2000}};
  result.clients[0].evaluation->personal.auroc = 0.75;
  result.clients[0].time.emplace();
  (*result.clients[0].time)[Activity::training] = 11;
  (*result.clients[0].time)[Activity::waiting] = 0.5;
  result.time[Activity::waiting] = 12;
  result.time_by_round = {result.time};
  return summarize(config, agreement_for(), result, "vit_tiny", "cpu", "f32");
}

TEST_F(SummaryTest, HasEveryFieldOfTheContract) {
  const json s = json::parse(to_json(example()));
  EXPECT_EQ(s.at("method"), "opal");
  EXPECT_EQ(s.at("rounds"), 3);
  EXPECT_EQ(s.at("seed"), 18446744073709551615u);
  EXPECT_EQ(s.at("device"), "cpu");
  EXPECT_EQ(s.at("base_model").at("name"), "vit_tiny");
  EXPECT_EQ(s.at("base_model").at("sha256"), sha256("base"));
  EXPECT_EQ(s.at("wall_seconds"), 12.5);
  ASSERT_EQ(s.at("clients").size(), 2u);
  const json& a = s.at("clients")[0];
  EXPECT_EQ(a.at("name"), "a");
  EXPECT_EQ(a.at("train"), 351);
  EXPECT_EQ(a.at("test"), 10);
  EXPECT_EQ(a.at("accuracy"), 0.7);
  EXPECT_EQ(a.at("balanced_accuracy"), 0.7);
  EXPECT_EQ(a.at("auroc"), 0.75);
  EXPECT_EQ(a.at("general").at("accuracy"), 0.6);
  EXPECT_TRUE(a.at("general").at("auroc").is_null());
  EXPECT_EQ(a.at("bytes_sent"), 1000);
  EXPECT_EQ(a.at("bytes_received"), 2000);
  EXPECT_EQ(a.at("train_images_per_second"), 95.5);
  EXPECT_NEAR(s.at("mean").at("accuracy").get<double>(), 0.8, 1e-12);
  EXPECT_EQ(a.at("time").at("total"), 11.5);
  EXPECT_EQ(a.at("time").at("training"), 11);
  EXPECT_EQ(a.at("time").at("set_up"), 0);
  EXPECT_EQ(a.at("time").size(), 1 + kActivities.size());
  EXPECT_TRUE(s.at("clients")[1].at("time").is_null());  // not shared
  EXPECT_EQ(s.at("time").at("waiting"), 12);
  EXPECT_EQ(s.at("time_by_round"), json::array({s.at("time")}));
  EXPECT_EQ(s.at("mean").at("auroc"), 0.75);  // of the clients that define it
}

TEST_F(SummaryTest, TheUnionSumsConfusionMatrices) {
  const RunSummary summary = example();
  const json s = json::parse(to_json(summary)).at("union");
  const UnionScores expected =
      union_scores({summary.clients[0].personal->confusion, summary.clients[1].personal->confusion},
                   summary.seed);
  EXPECT_EQ(s.at("accuracy").at("value"), 97.0 / 110);
  EXPECT_EQ(s.at("balanced_accuracy").at("low"), expected.balanced_accuracy.low);
  EXPECT_EQ(s.at("balanced_accuracy").at("high"), expected.balanced_accuracy.high);

  // One client that keeps its matrix leaves the union undefined; its mean still counts.
  RunSummary partial = summary;
  partial.clients[1].personal->confusion.clear();
  EXPECT_TRUE(json::parse(to_json(partial)).at("union").is_null());
  partial.clients[1].personal.reset();
  partial.clients[1].general.reset();
  partial.clients[1].train_images_per_second = std::numeric_limits<double>::quiet_NaN();
  const json p = json::parse(to_json(partial));
  EXPECT_EQ(p.at("mean").at("accuracy"), 0.7);
  EXPECT_TRUE(p.at("clients")[1].at("accuracy").is_null());
  EXPECT_TRUE(p.at("clients")[1].at("test").is_null());
  EXPECT_TRUE(p.at("clients")[1].at("train_images_per_second").is_null());
}

TEST_F(SummaryTest, IsReadBackAsItWasWritten) {
  const auto same = [&](const RunSummary& summary) {
    write_summary(path("summary.json"), summary);
    const RunSummary read = read_summary(path("summary.json"));
    EXPECT_EQ(to_json(read), to_json(summary));
    EXPECT_EQ(read.clients.size(), summary.clients.size());
  };
  same(example());
  EXPECT_EQ(read_summary(path("summary.json")).clients[1].general->samples, 100);
  RunSummary partial = example();
  partial.head = HeadKind::personal;
  partial.wall_seconds = std::numeric_limits<double>::quiet_NaN();
  partial.clients[0].train_images_per_second = std::numeric_limits<double>::quiet_NaN();
  partial.clients[0].general.reset();
  partial.clients[1].personal->confusion.clear();
  same(partial);
  partial.clients[0].personal.reset();
  partial.time_by_round.clear();
  same(partial);
  same(RunSummary{});
}

TEST_F(SummaryTest, AFileThatIsNoSummarySaysWhere) {
  const std::string file = path("summary.json");
  const auto refused = [&](const std::function<void(json&)>& spoil) {
    json document = json::parse(to_json(example()));
    spoil(document);
    write_file(file, document.dump());
    const std::string what = message_of<UserError>([&] { read_summary(file); });
    EXPECT_EQ(std::count(what.begin(), what.end(), '\n'), 0) << what;
    EXPECT_EQ(what.rfind(file + ": not a run's summary: ", 0), 0u) << what;
    return what.substr(std::min(what.size(), (file + ": not a run's summary: ").size()));
  };
  EXPECT_EQ(refused([](json& j) { j.erase("method"); }), "method is missing");
  EXPECT_EQ(refused([](json& j) { j["seed"] = -1; }), "seed is not a count");
  EXPECT_EQ(refused([](json& j) { j["rounds"] = 1.5; }), "rounds is not a count");
  EXPECT_EQ(refused([](json& j) { j["classes"][1] = 7; }), "classes[1] is not a text");
  EXPECT_EQ(refused([](json& j) { j["clients"] = "a, b"; }), "clients is not a list");
  EXPECT_EQ(refused([](json& j) { j["clients"][0]["accuracy"] = "high"; }),
            "clients[0].accuracy is not a number");
  EXPECT_EQ(refused([](json& j) { j["clients"][1].erase("general"); }),
            "clients[1].general is missing");
  EXPECT_EQ(refused([](json& j) { j["clients"][1]["confusion"][0] = {1}; }),
            "clients[1].confusion is not square");
  EXPECT_EQ(refused([](json& j) { j["time"].erase("waiting"); }), "time.waiting is missing");
  EXPECT_EQ(refused([](json& j) { j = json::array(); }), "it is not an object");
  write_file(file, "{\"method\": ");
  EXPECT_SAYS(message_of<UserError>([&] { read_summary(file); }), "is not valid JSON");
  EXPECT_SAYS(message_of<UserError>([&] { read_summary(path("none")); }), path("none"));
}

TEST_F(SummaryTest, SaysWhoseHeadTheGeneralScoresUse) {
  RunSummary summary = example();
  EXPECT_EQ(json::parse(to_json(summary)).at("general_head"), "shared");
  summary.head = HeadKind::personal;
  EXPECT_EQ(json::parse(to_json(summary)).at("general_head"), "each client's own");
}

TEST_F(SummaryTest, FilesAreWholeOrNotThere) {
  write_summary(path("summary.json"), example());
  EXPECT_EQ(read_text(path("summary.json")), to_json(example()));
  EXPECT_THROW(write_summary(path("missing/summary.json"), example()), UserError);
  EXPECT_THROW(MetricsLog(path("missing/metrics.jsonl")), UserError);
}

TEST_F(SummaryTest, OneLineForEachClientAndRoundOfARealRun) {
  struct Logging : ServerObserver {
    explicit Logging(const std::string& file) : log(file) {}
    void client_round(const ClientRound& complete) override { log.write(complete); }
    MetricsLog log;
  } observer(path("metrics.jsonl"));
  ArithmeticSite a("a", 1, 1), b("b", 5, 3);
  b.delay = 0.02;  // the times that clients share are in milliseconds
  ServerOptions options;
  options.transport = quick_transport();
  run_in_process(config_for({"a", "b"}), agreement_for(), theta0(), {&a, &b}, observer, options);

  std::istringstream lines(read_text(path("metrics.jsonl")));
  std::map<std::string, int64_t> next_round;
  int64_t count = 0;
  for (std::string line; std::getline(lines, line); ++count) {
    const json object = json::parse(line);
    const std::string client = object.at("client");
    EXPECT_EQ(object.at("round"), next_round[client]++);
    EXPECT_EQ(object.at("train"), client == "a" ? 1 : 3);
    EXPECT_EQ(object.at("train_images_per_second"), 100);
    EXPECT_EQ(object.at("penalties").at("update"), 0.5);
    EXPECT_TRUE(object.at("penalties").at("features").is_null());
    EXPECT_GT(object.at("bytes_sent"), 0);
    EXPECT_GE(object.at("time").at("total"), object.at("time").at("waiting"));
    EXPECT_EQ(object.contains("balanced_accuracy"), object.at("round") == 2);
    if (object.at("round") == 2) {
      EXPECT_EQ(object.at("general").at("accuracy"), 0.6);
    }
  }
  EXPECT_EQ(count, 6);
  const auto times = read_client_times(path("metrics.jsonl"), 3);
  ASSERT_EQ(times.size(), 3u);
  EXPECT_EQ(times[1].size(), 2u);
  EXPECT_GT(times[2].at("b").total(), 0.01);
  EXPECT_SAYS(message_of<UserError>([&] { read_client_times(path("metrics.jsonl"), 2); }),
              "not a round of a run: round is none of the run's rounds");
}

}  // namespace
}  // namespace orthofed::test
