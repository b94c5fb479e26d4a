// What leaves a site, read back from the bytes on the wire: the general adapter, the shared head,
// n_i, and the metrics that share_metrics allows. Nothing else, whatever the site holds.
#include <nlohmann/json.hpp>
#include <set>

#include "engine/io/safetensors.h"
#include "tests/federation/support.h"

namespace orthofed::test {
namespace {

using nlohmann::json;
using Wire = FederationTest;

// Every path in a document, array elements as [], leaves only: "personal.confusion[][]".
void collect(const json& value, const std::string& path, std::set<std::string>* leaves) {
  if (value.is_object() && !value.empty()) {
    for (const auto& [key, child] : value.items())
      collect(child, path.empty() ? key : path + "." + key, leaves);
  } else if (value.is_array() && !value.empty()) {
    for (const json& child : value) collect(child, path + "[]", leaves);
  } else {
    leaves->insert(path);
  }
}

struct Sent {
  std::vector<FrameType> types;
  std::map<FrameType, std::set<std::string>> fields;
  std::set<std::string> tensors;
  std::string all;  // the bytes
};

// A run of two rounds with scores in each, client 'a' behind a proxy that records.
Sent record(ShareMetrics share, const std::string& method = "opal") {
  RunConfig config = config_for({"a", "b"}, method);
  config.rounds = 2;
  config.federation.evaluate_every_round = true;
  ServerThread server(config);
  RecordingProxy proxy(server.port);
  ArithmeticSite a("a", 1, 1, method), b("b", 1, 2, method);
  a.personal = 4242.4242;
  JoinOptions options = quick_join();
  options.share = share;
  auto join_a = join_async(proxy.address(), a, options);
  auto join_b = join_async(server.address(), b);
  const FederationResult result = server.result();
  const JoinResult result_a = join_a.get();
  join_b.get();
  proxy.join();
  EXPECT_EQ(result_a.bytes_sent, int64_t(proxy.from_client.size()));
  EXPECT_EQ(result.clients[0].bytes_sent, int64_t(proxy.from_client.size()));
  EXPECT_EQ(result.clients[0].evaluation.has_value(), share != ShareMetrics::none);
  EXPECT_EQ(std::isnan(result.clients[0].images_per_second), share == ShareMetrics::none);
  EXPECT_EQ(result.clients[0].time.has_value(), share != ShareMetrics::none);

  Sent sent;
  sent.all.assign(reinterpret_cast<const char*>(proxy.from_client.data()),
                  proxy.from_client.size());
  FrameReader reader(proxy.from_client, 1 << 20, "client 'a'");
  while (const std::optional<Frame> frame = reader.next()) {
    sent.types.push_back(frame->type);
    collect(json::parse(frame->manifest), "", &sent.fields[frame->type]);
    if (frame->tensors.empty()) continue;
    const Safetensors body = decode_safetensors(frame->tensors, "recorded");
    EXPECT_TRUE(body.metadata.empty());
    for (const auto& [name, tensor] : body.tensors) sent.tensors.insert(name);
  }
  return sent;
}

const std::set<std::string> kScalars = {"samples", "accuracy", "balanced_accuracy", "auroc",
                                        "classes_scored[]"};

std::set<std::string> hello_fields(const Schema& schema) {
  std::set<std::string> fields = {"client", "method", "base_sha256", "classes_sha256"};
  for (const auto& [name, type] : schema) fields.insert("schema." + name);
  if (schema.empty()) fields.insert("schema");
  return fields;
}

std::set<std::string> times(const std::string& path) {
  std::set<std::string> fields;
  for (const char* part : {"set_up", "joining", "training", "evaluation", "aggregation", "saving",
                           "communication", "waiting", "other"})
    fields.insert(path + part);
  return fields;
}

std::set<std::string> metrics_fields(std::set<std::string> scores) {
  std::set<std::string> fields = {"round", "share"};
  for (const char* which : {"personal.", "general."})
    for (const std::string& score : scores) fields.insert(which + score);
  if (!scores.empty()) fields.merge(times("time."));
  return fields;
}

std::set<std::string> report_fields() {
  std::set<std::string> fields = times("report.time.");
  for (const char* field :
       {"images_per_second", "train_loss", "penalties.update", "penalties.features"})
    fields.insert(std::string("report.") + field);
  return fields;
}

TEST_F(Wire, OnlyTheAllowedFieldsLeave) {
  for (const ShareMetrics share :
       {ShareMetrics::none, ShareMetrics::scalars, ShareMetrics::confusion}) {
    SCOPED_TRACE(word(share));
    const Sent sent = record(share);
    EXPECT_EQ(sent.types,
              (std::vector<FrameType>{FrameType::hello, FrameType::update, FrameType::metrics,
                                      FrameType::update, FrameType::metrics}));
    EXPECT_EQ(sent.fields.at(FrameType::hello), hello_fields(schema_of(theta0())));

    std::set<std::string> update = {"round", "samples"}, scores;
    if (share != ShareMetrics::none) {
      update.merge(report_fields());
      scores = kScalars;
    }
    if (share == ShareMetrics::confusion) scores.insert("confusion[][]");
    EXPECT_EQ(sent.fields.at(FrameType::update), update);
    EXPECT_EQ(sent.fields.at(FrameType::metrics), metrics_fields(scores));

    EXPECT_EQ(sent.tensors, (std::set<std::string>{"blocks.0.attn.qkv.general.a", "head.weight"}));
    for (const char* secret : {"4242.4", "round\",\"lobed", "lobed", "granular"})
      EXPECT_EQ(sent.all.find(secret), std::string::npos) << secret;
  }
}

TEST_F(Wire, LocalSendsNoTensorAtAll) {
  const Sent sent = record(ShareMetrics::confusion, "local");
  EXPECT_TRUE(sent.tensors.empty());
  EXPECT_EQ(sent.fields.at(FrameType::hello), hello_fields({}));
}

}  // namespace
}  // namespace orthofed::test
