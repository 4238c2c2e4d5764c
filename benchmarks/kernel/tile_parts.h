// The parts of a tile, each in a loop of its own: what they take at least.
#ifndef ATTENTION_BENCHMARKS_KERNEL_TILE_PARTS_H_
#define ATTENTION_BENCHMARKS_KERNEL_TILE_PARTS_H_

#include <cstdint>

namespace attention::benchmarks {

// Seconds for a tile of FLOAT32: `rows` query rows, kKeyBlock keys.
struct TileParts {
  int64_t rows = 0;
  double scores = 0;
  double softmax = 0;  // maximum, exp and sum
  double weighted_sums = 0;
  // The tile's share of packing the keys, in a task of as many rows as there
  // can be.
  double packing = 0;

  double sum() const { return scores + softmax + weighted_sums + packing; }
};

// One thread, medians of several tries; takes about a fifth of a second.
// `head_size` is that of queries, keys and values, a multiple of 32.
TileParts MeasureTileParts(int64_t head_size);

}  // namespace attention::benchmarks

#endif  // ATTENTION_BENCHMARKS_KERNEL_TILE_PARTS_H_
