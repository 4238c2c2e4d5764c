// How the tokens of one sequence are dealt out to several servers.
#ifndef ATTENTION_KERNEL_SHARD_H_
#define ATTENTION_KERNEL_SHARD_H_

#include <algorithm>
#include <cstdint>

#include "kernel/key_values.h"

namespace attention {

// Tokens go to shards in runs: run r, tokens [run * r, run * (r + 1)), to shard
// r % count. A shard has its runs one after the other.
//
// Invariants:
//   1. run is kKeyBlock times a power of two: so each run is one subtree of the
//      tree of blocks, and has one partial.
//   2. The largest values keep all numbers of tokens below 2^62.
struct ShardLayout {
  static constexpr int64_t kMaxCount = 1024;
  static constexpr int64_t kMaxRunBlocks = int64_t{1} << 20;
  static constexpr int64_t kMaxLength = int64_t{1} << 40;

  int64_t count = 1;
  int64_t run = kKeyBlock;

  // How many of a sequence's first `length` tokens `shard` has.
  int64_t TokensOf(int64_t shard, int64_t length) const {
    const int64_t round = count * run;
    return length / round * run +
           std::clamp<int64_t>(length % round - shard * run, 0, run);
  }

  // The place in the sequence of the shard's token number `token`.
  int64_t PlaceOf(int64_t shard, int64_t token) const {
    return token / run * (count * run) + shard * run + token % run;
  }
};

}  // namespace attention

#endif  // ATTENTION_KERNEL_SHARD_H_
