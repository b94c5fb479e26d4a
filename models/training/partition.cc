#include "models/training/partition.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <map>
#include <numeric>
#include <set>
#include <utility>

#include "engine/io/sha256.h"
#include "kernels/core/check.h"
#include "kernels/core/philox.h"

namespace orthofed {
namespace {

// Uniform numbers in a row from one Philox stream.
class Draws {
 public:
  explicit Draws(Philox rng) : rng_(rng) {}
  double uniform() { return (double(rng_(next_++)[0]) + 0.5) * 0x1p-32; }  // (0, 1)
  double standard_normal() { return normal(rng_, next_++); }
  int64_t below(int64_t n) { return std::min(n - 1, int64_t(uniform() * double(n))); }

 private:
  Philox rng_;
  uint64_t next_ = 0;
};

void shuffle(std::vector<int64_t>& items, Draws& draws) {  // Fisher-Yates
  for (int64_t i = std::ssize(items) - 1; i > 0; --i)
    std::swap(items[i], items[draws.below(i + 1)]);
}

// log of a Gamma(alpha, 1) number (Marsaglia, Tsang, ACM TOMS 26, 2000). For alpha < 1 it is that
// of alpha + 1 plus log(U) / alpha: as a logarithm it does not underflow where alpha is small.
double log_gamma_draw(double alpha, Draws& draws) {
  if (alpha < 1) return log_gamma_draw(alpha + 1, draws) + std::log(draws.uniform()) / alpha;
  const double d = alpha - 1.0 / 3, c = 1 / std::sqrt(9 * d);
  for (;;) {
    const double x = draws.standard_normal(), root = 1 + c * x;
    if (root <= 0) continue;
    const double v = root * root * root;
    if (std::log(draws.uniform()) < 0.5 * x * x + d - d * v + d * std::log(v))
      return std::log(d * v);
  }
}

// Dirichlet(alpha, ..., alpha) over n parts: independent Gamma numbers, normalised.
std::vector<double> dirichlet(int64_t n, double alpha, Draws& draws) {
  std::vector<double> parts;
  for (int64_t i = 0; i < n; ++i) parts.push_back(log_gamma_draw(alpha, draws));
  const double largest = *std::max_element(parts.begin(), parts.end());
  double sum = 0;
  for (double& part : parts) sum += part = std::exp(part - largest);
  for (double& part : parts) part /= sum;
  return parts;
}

// Deals items to the clients in these proportions; the cuts are rounded cumulatively, so that all
// items are dealt.
void deal(const std::vector<int64_t>& items, const std::vector<double>& parts, Partition& clients) {
  double cumulative = 0;
  int64_t begin = 0;
  for (size_t c = 0; c < parts.size(); ++c) {
    cumulative += parts[c];
    const bool last = c + 1 == parts.size();
    const int64_t end = last ? std::ssize(items)
                             : std::clamp(int64_t(std::llround(cumulative * double(items.size()))),
                                          begin, int64_t(std::ssize(items)));
    clients[c].insert(clients[c].end(), items.begin() + begin, items.begin() + end);
    begin = end;
  }
}

// Gives every empty client one sample of the largest one, and sorts.
void finish(Partition& clients) {
  for (auto& client : clients) {
    if (!client.empty()) continue;
    auto& largest = *std::max_element(clients.begin(), clients.end(),
                                      [](auto& a, auto& b) { return a.size() < b.size(); });
    client.push_back(largest.back());
    largest.pop_back();
  }
  for (auto& client : clients) std::sort(client.begin(), client.end());
}

void check_sizes(int64_t samples, int64_t clients, int64_t shards_per_client = 1) {
  if (clients <= 0) throw UserError("data.partition.clients must be positive");
  if (shards_per_client <= 0) throw UserError("data.partition.shards_per_client must be positive");
  if (samples / shards_per_client < clients)
    throw UserError(fmt::format("data.partition: {} samples are too few for {} x {}", samples,
                                clients, shards_per_client));
}

void check_alpha(double alpha) {
  if (!(alpha > 0 && std::isfinite(alpha)))
    throw UserError(fmt::format("data.partition.alpha = {}: must be positive", alpha));
}

}  // namespace

Partition partition_dirichlet(const std::vector<int32_t>& labels, int64_t clients, double alpha,
                              uint64_t seed) {
  check_sizes(std::ssize(labels), clients);
  check_alpha(alpha);
  std::map<int32_t, std::vector<int64_t>> by_class;
  for (int64_t i = 0; i < std::ssize(labels); ++i) by_class[labels[i]].push_back(i);
  Partition result(clients);
  for (auto& [label, samples] : by_class) {
    Draws draws(PhiloxKey(seed).with("partition_dirichlet").with(static_cast<uint64_t>(label)));
    const std::vector<double> shares = dirichlet(clients, alpha, draws);
    shuffle(samples, draws);
    deal(samples, shares, result);
  }
  finish(result);
  return result;
}

Partition partition_quantity(int64_t samples, int64_t clients, double alpha, uint64_t seed) {
  check_sizes(samples, clients);
  check_alpha(alpha);
  Draws draws(PhiloxKey(seed).with("partition_quantity"));
  std::vector<int64_t> all(samples);
  std::iota(all.begin(), all.end(), int64_t{0});
  const std::vector<double> shares = dirichlet(clients, alpha, draws);
  shuffle(all, draws);
  Partition result(clients);
  deal(all, shares, result);
  finish(result);
  return result;
}

Partition partition_shards(const std::vector<int32_t>& labels, int64_t clients,
                           int64_t shards_per_client, uint64_t seed) {
  check_sizes(std::ssize(labels), clients, shards_per_client);
  const int64_t shards = clients * shards_per_client, n = std::ssize(labels);
  Draws draws(PhiloxKey(seed).with("partition_shards"));
  std::vector<int64_t> samples(n), order(shards);
  std::iota(order.begin(), order.end(), int64_t{0});
  shuffle(order, draws);
  std::iota(samples.begin(), samples.end(), int64_t{0});
  shuffle(samples, draws);
  std::stable_sort(samples.begin(), samples.end(),
                   [&](int64_t i, int64_t j) { return labels[i] < labels[j]; });
  Partition result(clients);
  for (int64_t s = 0; s < shards; ++s) {
    auto& client = result[s / shards_per_client];
    client.insert(client.end(), samples.begin() + n * order[s] / shards,
                  samples.begin() + n * (order[s] + 1) / shards);
  }
  finish(result);
  return result;
}

ValidationCut cut_validation(const std::vector<int32_t>& labels,
                             const std::vector<std::string>& keys, double share, uint64_t seed) {
  OF_CHECK(labels.size() == keys.size(), "labels and keys differ in number");
  if (!(share >= 0 && share < 1))
    throw UserError(fmt::format("data.validation = {}: must be in [0, 1)", share));

  struct ClassCount {
    int64_t samples = 0, quota = 0, taken = 0;
  };
  std::map<int32_t, ClassCount> classes;
  for (int32_t label : labels) ++classes[label].samples;
  for (auto& [label, count] : classes)
    // A share such as .2 is not exact in binary; 1e-9 keeps floor(.2 * 5) at 1.
    count.quota = count.samples < 5 ? 0 : int64_t(std::floor(share * double(count.samples) + 1e-9));

  std::map<std::string, std::vector<int64_t>> groups;
  for (int64_t i = 0; i < std::ssize(keys); ++i) groups[keys[i]].push_back(i);
  std::vector<std::pair<std::string, const std::vector<int64_t>*>> order;  // by digest
  for (const auto& [key, samples] : groups)
    order.emplace_back(sha256(std::to_string(seed) + "|" + key), &samples);
  std::sort(order.begin(), order.end());

  std::set<int64_t> validation;
  for (const auto& [digest, samples] : order) {
    std::map<int32_t, int64_t> in_group;
    for (int64_t i : *samples) ++in_group[labels[i]];
    int64_t change = 0;  // of the summed distance to the quotas
    bool allowed = true;
    for (const auto& [label, n] : in_group) {
      const ClassCount& c = classes[label];
      change += std::abs(c.taken + n - c.quota) - std::abs(c.taken - c.quota);
      allowed = allowed && c.quota > 0 && c.taken + n < c.samples;
    }
    if (!allowed || change >= 0) continue;
    for (const auto& [label, n] : in_group) classes[label].taken += n;
    validation.insert(samples->begin(), samples->end());
  }

  ValidationCut cut;
  for (int64_t i = 0; i < std::ssize(labels); ++i)
    (validation.contains(i) ? cut.validation : cut.train).push_back(i);
  return cut;
}

}  // namespace orthofed
