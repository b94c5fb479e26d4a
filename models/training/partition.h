// Splitting a labelled set: into clients, for sets that come without sites, and into train and
// validation at one client. Everything is a function of the labels and the seed.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace orthofed {

// The samples of each client, ascending. Every sample occurs once and no client is empty.
using Partition = std::vector<std::vector<int64_t>>;  // [client][...]

// The proportions are drawn before anything that depends on the number of samples: train and test
// images of one set, partitioned one after the other, are divided in the same proportions.
// All three throw UserError where there are fewer samples than clients (or shards), or where alpha
// is not positive.

// Class skew (Hsu, Qi, Brown, arXiv 1909.06335, in the form of Li et al., arXiv 2102.02079): each
// class is divided among the clients in proportions drawn from Dirichlet(alpha, ..., alpha). Small
// alpha: a client has few classes; large alpha: all clients alike.
Partition partition_dirichlet(const std::vector<int32_t>& labels, int64_t clients, double alpha,
                              uint64_t seed);
// Quantity skew (arXiv 2102.02079): the sizes are in proportions drawn from Dirichlet(alpha), the
// classes are not looked at.
Partition partition_quantity(int64_t samples, int64_t clients, double alpha, uint64_t seed);
// Label shards (McMahan et al., arXiv 1602.05629): the samples, sorted by label, are cut into
// clients * shards_per_client pieces of nearly equal size, and each client gets shards_per_client
// of them at random: at most about that many classes.
Partition partition_shards(const std::vector<int32_t>& labels, int64_t clients,
                           int64_t shards_per_client, uint64_t seed);

struct ValidationCut {
  std::vector<int64_t> train, validation;  // ascending; together every sample once
};

// Takes floor(share * n_c) samples of each class c of one client's train set, none where n_c < 5.
// keys [n] are the paths, or the group of each sample (patient, slide): samples with the same key
// stay together. The order is that of sha256("seed|key"), never that of the rows, so the cut does
// not depend on how a manifest is sorted, and few samples change sides when some are added.
// Walking through the keys in that order, a key's samples are taken if that brings the counts of
// the classes closer to their quotas, together; with paths as keys the quotas are met exactly. A
// group with samples of a class whose quota is 0, or with all that is left of a class in train, is
// not taken.
ValidationCut cut_validation(const std::vector<int32_t>& labels,
                             const std::vector<std::string>& keys, double share, uint64_t seed);

}  // namespace orthofed
