// Random requests over every option, on every SIMD target against the
// reference. A failing one prints its seed.
#include <gtest/gtest.h>

#include "tests/support/attention_case.h"
#include "tests/support/run_kernel.h"

namespace attention::test {
namespace {

void ExpectRightForSeeds(uint64_t begin, uint64_t end,
                         const RandomLimits& limits) {
  for (uint64_t seed = begin; seed < end; ++seed) {
    Random random(seed);
    const AttentionCase request = RandomCase(random, limits);
    ASSERT_TRUE(IsRightOnAllTargets(request)) << "seed " << seed;
  }
}

TEST(RandomTest, Small) {
  RandomLimits limits;
  limits.query_lengths = {0, 1, 1, 2, 3, 4, 7};
  limits.key_lengths = {0, 1, 2, 3, 4, 5, 8, 17};
  limits.head_sizes = {1, 2, 3, 5, 8};
  ExpectRightForSeeds(0, 4000, limits);
}

TEST(RandomTest, AcrossBlocks) { ExpectRightForSeeds(10000, 11500, {}); }

TEST(RandomTest, ManyRows) {
  RandomLimits limits;
  limits.query_lengths = {60, 113, 130, 260};
  limits.key_lengths = {60, 130, 257, 300, 520};
  limits.head_sizes = {8, 16, 24, 32};
  limits.max_work = 4000000;
  ExpectRightForSeeds(20000, 20150, limits);
}

TEST(RandomTest, ManyKeys) {
  RandomLimits limits;
  limits.query_lengths = {1, 1, 2, 5};
  limits.key_lengths = {1000, 1024, 1300, 2049, 3333};
  limits.head_sizes = {4, 8, 16, 64};
  limits.max_work = 2000000;
  ExpectRightForSeeds(30000, 30300, limits);
}

}  // namespace
}  // namespace attention::test
