#include "server/connections/limits.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include "server/options.h"

namespace attention::server {
namespace {

// What is left when every connection of both kinds is open.
int64_t LeftOf(int64_t limit) {
  return DescriptorReserve(limit) - HttpReserve(limit);
}

TEST(LimitsTest, HttpHasAPartOfTheReserve) {
  EXPECT_EQ(HttpReserve(1'000'000), 64);
  EXPECT_EQ(HttpReserve(1024), 64);
  EXPECT_EQ(HttpReserve(256), 24);
  EXPECT_EQ(HttpReserve(64), 4);
  // More than below which the acceptor stops.
  for (int64_t limit = 256; limit < 2000; ++limit) {
    EXPECT_GE(LeftOf(limit), 24 + DescriptorReserve(limit) / 4) << limit;
  }
}

TEST(LimitsTest, MoreOfHttpTakesFromGrpc) {
  const int64_t limit = DescriptorLimit();
  const int64_t most = MostConnections();
  EXPECT_EQ(MostConnections(HttpReserve(limit)), most);
  EXPECT_EQ(MostConnections(HttpReserve(limit) + 10), most - 10);
  EXPECT_EQ(MostConnections(MostHttpConnections()), 1);
  EXPECT_LE(Options().http_max_connections, HttpReserve(limit));
}

TEST(LimitsTest, FewDescriptorsAreNotForHttpAlone) {
  rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  const rlimit few = {.rlim_cur = 128, .rlim_max = before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);
  Options options;
  options.http_listen = "127.0.0.1:0";
  EXPECT_TRUE(Validate(options).empty());
  options.http_max_connections = 10'000;
  const auto errors = Validate(options);
  EXPECT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
  ASSERT_EQ(errors.size(), 1);
  EXPECT_EQ(errors.front(),
            "--http-max-connections: got 10000, wanted 1 to 99 (of 128 "
            "descriptors, see ulimit -n)");
}

}  // namespace
}  // namespace attention::server
