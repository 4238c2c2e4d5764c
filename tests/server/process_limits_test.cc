#include "server/process_limits.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <initializer_list>

namespace attention::server {
namespace {

using ::testing::IsEmpty;

constexpr int64_t kMib = int64_t{1} << 20;

TEST(WithMemory, LeavesWhatFits) {
  const Options options;
  const Options same = WithMemory(options, 2560 * kMib);
  EXPECT_EQ(same.max_inflight_bytes, options.max_inflight_bytes);
  EXPECT_EQ(same.max_pooled_bytes, options.max_pooled_bytes);
  EXPECT_EQ(same.max_request_bytes, options.max_request_bytes);
  EXPECT_EQ(same.max_response_bytes, options.max_response_bytes);
}

TEST(WithMemory, LowersThePoolAndTheBudget) {
  const Options lower = WithMemory(Options(), 2000 * kMib);
  EXPECT_EQ(lower.max_pooled_bytes, 400 * kMib);
  EXPECT_EQ(lower.max_inflight_bytes, 1600 * kMib);
  EXPECT_EQ(lower.max_request_bytes, 320 * kMib);
}

TEST(WithMemory, LowersMessagesThatNoLongerFit) {
  Options options;
  options.max_request_bytes = 300 * kMib;
  options.max_response_bytes = 200 * kMib;
  const Options lower = WithMemory(options, 500 * kMib);
  EXPECT_EQ(lower.max_inflight_bytes, 400 * kMib);
  EXPECT_EQ(lower.max_request_bytes, 150 * kMib);
  EXPECT_EQ(lower.max_response_bytes, 100 * kMib);
}

TEST(WithMemory, KeepsOptionsValid) {
  const int64_t kMost = (int64_t{1} << 31) - 1 - kMib;
  for (const int64_t request : {int64_t{1024}, kMib + 1, kMost}) {
    for (const int64_t response : {int64_t{1024}, kMib + 1, kMost}) {
      for (const int64_t pooled : {int64_t{0}, int64_t{1} << 50}) {
        for (const int64_t bytes :
             {int64_t{4096}, 16 * kMib + 3, 3000 * kMib}) {
          Options options;
          options.max_request_bytes = request;
          options.max_response_bytes = response;
          options.max_pooled_bytes = pooled;
          options.max_inflight_bytes = 2 * request + response;
          ASSERT_THAT(Validate(options), IsEmpty());
          const Options lower = WithMemory(options, bytes);
          EXPECT_THAT(Validate(lower), IsEmpty())
              << request << " " << response << " " << pooled << " " << bytes;
          EXPECT_LE(lower.max_inflight_bytes + lower.max_pooled_bytes, bytes);
        }
      }
    }
  }
}

}  // namespace
}  // namespace attention::server
